"""The best schedule of a given number of stages: an exact search, because what no schedule can do better is known.

Put in losses at the switches, l_i, the cost of reaching a last loss l falls apart (`problem` has the symbols):

    C(l) = F_k D_k(l) + sum over i < k of g_i(l_i),   g_i(l') = F_i D_i(l') - kappa F_(i+1) D_(i+1)(l')

Each g_i falls and then rises. With f_i = E + A / N_i^alpha, so D_i(l') = (B / (l' - f_i))^(1/beta), it is lowest at

    l_i* = f_i + (f_i - f_(i+1)) / (r - 1),   r = (kappa F_(i+1) / F_i)^(beta / (1 + beta))

where both models pay the same for the next bit of loss; it depends on neither budget nor other stages. For r <= 1
growing costs more than it keeps at any time, and the lowest is 0, that of a stage without tokens. With every l_i the
larger of l_i* and l, C(l) is a lower bound of what l costs with these sizes, and the l at which it is the budget, found
by bisection, is one of the loss. Sequences are taken in the order of their bounds, with the tokens that are best under
all constraints (`problem.allocate`), until the next bound is no better than what was found.

A limit on tokens enters with a multiplier: a token costs F_i + lambda of a budget of C + lambda T_max. Any lambda >= 0
gives a bound; the best of some is taken.
"""

import dataclasses
import itertools

import numpy as np

from flm_jax.budget.problem import Problem, Sizes, allocate
from flm_jax.scaling.laws import LossLaw

_BISECTIONS = 50
# Of the multiplier, in FLOPs per token of the best size from scratch.
_MULTIPLIERS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6)
# Below what a law can tell, in nats; ends the search among schedules that are alike.
_TOLERANCE = 1e-7


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Sizes in turn, by their place among all; their tokens; the loss at the end."""

    places: tuple[int, ...]
    tokens: tuple[float, ...]
    loss: float


def from_scratch(problem: Problem, sizes: Sizes) -> Schedule:
    """The best of one stage."""
    tokens = np.minimum(problem.flops / sizes.flops, problem.max_tokens)
    losses = problem.law.loss(sizes.params, tokens)
    best = int(np.argmin(losses))
    return Schedule((best,), (float(tokens[best]),), float(losses[best]))


def grown(problem: Problem, sizes: Sizes, stages: int) -> Schedule | None:
    """The best of this many stages, at least two; None where there are not as many sizes.

    Raises:
        ValueError: the stages' least shares are more than all tokens.
    """
    if stages * problem.min_share > 1:
        raise ValueError(
            f"{stages} stages of at least {problem.min_share:g} of the tokens each are more than all: lower "
            "--max_stages or --min_share"
        )
    sequences = np.array(list(itertools.combinations(range(len(sizes.params)), stages)), int)
    if not len(sequences):
        return None
    bounds = _bounds(problem, sizes, sequences, 0.0)
    if np.isfinite(problem.max_tokens):
        unit = sizes.flops[from_scratch(problem, sizes).places[0]]
        for multiplier in _MULTIPLIERS:
            bounds = np.maximum(bounds, _bounds(problem, sizes, sequences, multiplier * unit))
    best: Schedule | None = None
    for index in np.argsort(bounds, kind="stable"):
        if best and bounds[index] >= best.loss - _TOLERANCE:
            break
        places = sequences[index]
        tokens, loss = allocate(problem, sizes.params[places], sizes.flops[places])
        if best is None or loss < best.loss:
            best = Schedule(tuple(map(int, places)), tuple(map(float, tokens)), loss)
    return best


def switch_loss(law: LossLaw, sizes: Sizes, carryover: float) -> np.ndarray:
    """`[n, n]`: the loss at which size i grows best into size j; infinite where that never pays, or j is not larger."""
    floor = law.floor(sizes.params)
    ratio = (carryover * sizes.flops[None] / sizes.flops[:, None]) ** (law.beta / (1 + law.beta))
    rises = np.triu(ratio > 1, 1)
    step = np.where(rises, (floor[:, None] - floor[None]) / np.where(rises, ratio - 1, 1), np.inf)
    return floor[:, None] + step


def cost_from_scratch(problem: Problem, sizes: Sizes, loss: float) -> float:
    """FLOPs that this loss costs from scratch at the best size; infinite where the tokens do not reach.

    Sizes are taken as continuous, or under a limit on tokens the step to the next larger shape would decide.
    """
    params = np.geomspace(sizes.params[0], sizes.params[-1], 4000)
    flops = np.exp(np.interp(np.log(params), np.log(sizes.params), np.log(sizes.flops)))
    tokens = problem.law.tokens(params, loss)
    return float(np.min(np.where(tokens <= problem.max_tokens, tokens * flops, np.inf)))


def _bounds(problem: Problem, sizes: Sizes, sequences: np.ndarray, multiplier: float) -> np.ndarray:
    """`[m]` losses which the sequences `[m, k]` cannot better."""
    law, kappa = problem.law, problem.carryover
    priced = Sizes(sizes.params, sizes.flops + multiplier)
    budget = problem.flops + (multiplier * problem.max_tokens if multiplier else 0.0)
    switches = switch_loss(law, priced, kappa)
    pairs = [(sequences[:, i], sequences[:, i + 1]) for i in range(sequences.shape[1] - 1)]
    last = sequences[:, -1]

    def cost(loss: np.ndarray) -> np.ndarray:
        found = priced.flops[last] * law.tokens(priced.params[last], loss)
        for one, other in pairs:
            switch = np.maximum(switches[one, other], loss)
            found += priced.flops[one] * law.tokens(priced.params[one], switch)
            found -= kappa * priced.flops[other] * law.tokens(priced.params[other], switch)
        return found

    low = law.floor(priced.params[last])
    high = low + law.B  # after one token
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        dear = cost(middle) > budget
        low, high = np.where(dear, middle, low), np.where(dear, high, middle)
    return low
