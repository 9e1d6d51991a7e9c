"""What a schedule of sizes and tokens costs and reaches, by a loss law: the model that plans are made with.

A law L(N, D) speaks of runs from scratch. A growing run is followed with one number, its loss: a model of size N with
loss l counts as trained on D_N(l) tokens, those after which a run from scratch of that size has l. Growth keeps the
function, so the loss; of the tokens that the larger model is worth it keeps the share kappa (`carryover`):

    D_1 = T_1,   l_i = L(N_i, D_i),   D_(i+1) = kappa D_(N_(i+1))(l_i) + T_(i+1)

with T_i the tokens of stage i and F_i its FLOPs per token. A schedule is to have the lowest last loss with
sum F_i T_i <= C, sum T_i <= T_max, and T_i >= a share of all tokens: without a least share a growth that does not pay
would be planned with a first stage of no tokens, which costs nothing, and called a growth.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize

from flm_jax.scaling.laws import LossLaw

# Of the logarithm of the loss above the text's own.
_TOLERANCE = 1e-13


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Models to choose from, smallest first: `[n]` parameters and `[n]` FLOPs to train on one token."""

    params: np.ndarray
    flops: np.ndarray

    @staticmethod
    def of(params: ArrayLike, flops: ArrayLike) -> "Sizes":
        """From numbers.

        Raises:
            ValueError: they do not rise.
        """
        found = Sizes(np.asarray(params, float), np.asarray(flops, float))
        if found.params.shape != found.flops.shape or found.params.ndim != 1 or not len(found.params):
            raise ValueError(
                f"expected vectors of as many parameters as FLOPs per token, found shapes {found.params.shape} and "
                f"{found.flops.shape}"
            )
        if np.any(np.diff(found.params) <= 0) or np.any(np.diff(found.flops) <= 0):
            raise ValueError(
                "sizes must rise in parameters and FLOPs per token: a larger model costs more a token"
            )
        return found


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a schedule has to keep to.

    Attributes:
        law: Of the loss.
        flops: To spend, model FLOPs.
        carryover: kappa, in (0, 1].
        min_share: Of all tokens, that every stage has at least.
        max_tokens: That there are.
    """

    law: LossLaw
    flops: float
    carryover: float = 1.0
    min_share: float = 0.05
    max_tokens: float = float("inf")

    def __post_init__(self) -> None:
        if not 0 < self.carryover <= 1:
            raise ValueError(
                f"--carryover is the share of what was learnt that growing keeps, above 0 and up to 1; found "
                f"{self.carryover}"
            )
        if not 0 < self.min_share < 1:
            raise ValueError(f"--min_share is a share of the tokens between 0 and 1, found {self.min_share}")
        if not self.max_tokens > 0 or not self.flops > 0:
            raise ValueError(f"tokens and FLOPs must be positive, found {self.max_tokens} and {self.flops}")


def final_loss(law: LossLaw, params: ArrayLike, tokens: ArrayLike, carryover: float) -> float:
    """Where a run ends that trains these sizes on so many tokens, one after the other."""
    worth, loss = 0.0, float("inf")
    for size, more in zip(np.asarray(params, float), np.asarray(tokens, float), strict=True):
        worth = (carryover * float(law.tokens(size, loss)) if worth else 0.0) + float(more)
        loss = float(law.loss(size, worth))
    return loss


def onto_budget(problem: Problem, flops: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens in the same proportions that use up what there is of FLOPs or of tokens."""
    return tokens * min(problem.flops / float(flops @ tokens), problem.max_tokens / float(tokens.sum()))


class AllocationError(ValueError):
    """No best tokens were found for some sizes."""


def allocate(problem: Problem, params: np.ndarray, flops: np.ndarray) -> tuple[np.ndarray, float]:
    """The best tokens for each of these sizes in turn, and the loss that they end with.

    Sequential quadratic programming: all constraints are linear in the tokens. It begins with as many tokens for each,
    and where that does not converge with ever more, then with ever fewer.

    Raises:
        AllocationError: it converges from none of the three.
    """
    law, stages = problem.law, len(params)
    start = onto_budget(problem, flops, np.ones(stages))
    if stages == 1:
        return start, final_loss(law, params, start, problem.carryover)
    unit = float(start[0])
    least = np.eye(stages) - problem.min_share
    rows = np.vstack([least, -flops * unit / problem.flops, np.full(stages, -unit / problem.max_tokens)])
    room = np.concatenate([np.zeros(stages), [1.0, 1.0]])

    def height(tokens: np.ndarray) -> float:
        # The search may step outside of the constraints, where tokens would be negative.
        return np.log(final_loss(law, params, np.maximum(tokens, 1e-9) * unit, problem.carryover) - law.E)

    rising = onto_budget(problem, flops, 2.0 ** np.arange(stages)) / unit
    falling = onto_budget(problem, flops, 2.0 ** -np.arange(stages)) / unit
    for first in (np.ones(stages), rising, falling):
        found = optimize.minimize(
            height,
            first,
            method="SLSQP",
            constraints={"type": "ineq", "fun": lambda x: rows @ x + room, "jac": lambda x: rows},
            options={"maxiter": 300, "ftol": _TOLERANCE},
        )
        if found.success:
            # The budget is kept to the last token, which the search does to its tolerance.
            tokens = onto_budget(problem, flops, np.maximum(found.x, 1e-9) * unit)
            return tokens, final_loss(law, params, tokens, problem.carryover)
    sizes = ", ".join(f"{size:.4g}" for size in params)
    raise AllocationError(
        f"no best tokens for stages of {sizes} parameters: {found.message}; raise --min_share, or lower --max_stages"
    )
