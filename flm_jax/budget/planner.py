"""The schedule with the lowest predicted loss for a budget, and what else the budget would buy."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flm_jax.budget import search
from flm_jax.budget.costs import CostTable, PlannedStage, Speed
from flm_jax.budget.ladder import family, ladder, sizes
from flm_jax.budget.machine import Machine
from flm_jax.budget.problem import Problem, Sizes, final_loss, onto_budget
from flm_jax.config import ModelConfig
from flm_jax.scaling.laws import LossLaw

# In a stage of fewer batches neither warmup nor mask have room.
_LEAST_STEPS = 10
# The break-even carryover is found to this.
_RESOLUTION = 0.005
# The sequences of more sizes out of some fifty are too many to look at.
_MOST_STAGES = 5


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be planned.

    Attributes:
        shape: Of a model whose family the sizes are taken from (`ladder.family`).
        machine: On which it is to run.
        mfu: Share of its peak, of all sizes.
        seconds: For which the machine is paid.
        law: Of the loss.
        length: Tokens of a sequence.
        batch_size: Sequences a step.
        carryover: kappa of `problem`.
        max_stages: At most.
        min_share: Of all tokens, that each stage has at least.
        min_gain: Share of the budget that growing must be worth to be advised, and each stage more.
        max_tokens: That there are.
        heads_multiple: Of which all sizes' heads are a multiple.
    """

    shape: ModelConfig
    machine: Machine
    mfu: float
    seconds: float
    law: LossLaw
    length: int
    batch_size: int
    carryover: float = 1.0
    max_stages: int = 3
    min_share: float = 0.05
    min_gain: float = 0.01
    max_tokens: float = float("inf")
    heads_multiple: int = 1

    @property
    def problem(self) -> Problem:
        """The same as a problem of tokens and FLOPs."""
        flops = self.machine.peak * self.mfu * self.seconds
        return Problem(self.law, flops, self.carryover, self.min_share, self.max_tokens)


@dataclasses.dataclass(frozen=True)
class Option:
    """One way to spend the budget.

    Attributes:
        name: For people.
        shapes: Models in turn.
        tokens: Of each; none where the budget does not reach.
        loss: Predicted; None where the budget does not reach.
        spent: Share of the budget: less than 1 where the tokens are used up first.
    """

    name: str
    shapes: tuple[ModelConfig, ...]
    tokens: tuple[float, ...]
    loss: float | None
    spent: float | None

    def to_json(self) -> dict[str, Any]:
        """Sizes as numbers of parameters."""
        return {
            "name": self.name,
            "params": [shape.num_params for shape in self.shapes],
            "tokens": list(self.tokens),
            "loss": self.loss,
            "spent": self.spent,
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is advised, and what it was chosen over.

    Attributes:
        wish: What was asked for.
        best: What is advised, in whole steps.
        steps: Of each of its stages.
        from_scratch: The best of one stage.
        grown: What is advised if that grows, else the best of several stages; None where there is only one size.
        gain: Share of what the loss of `grown` costs from scratch that growing saves beside the best size from scratch
            under the same limits (`_gain`); 0 without `grown`.
        break_even: The carryover from which on two stages gain `min_gain`; None where they do at none.
        alternatives: Other ways to spend as much at most.
        ledger: Of `best`.
        smallest: Whether the advised first shape is the smallest of its family, which then is too coarse.
    """

    wish: Wish
    best: Option
    steps: tuple[int, ...]
    from_scratch: Option
    grown: Option | None
    gain: float
    break_even: float | None
    alternatives: tuple[Option, ...]
    ledger: CostTable
    smallest: bool

    @property
    def grows(self) -> bool:
        """Whether growing is advised."""
        return len(self.best.shapes) > 1


def plan(wish: Wish) -> Plan:
    """Searches, decides and writes the ledger.

    Raises:
        ValueError: a setting is out of range, or the budget is too small for whole steps; names the flag.
    """
    _check(wish)
    problem = wish.problem
    shapes = ladder(wish.shape, wish.law, problem.flops, wish.length, wish.max_tokens, wish.heads_multiple)
    choice = sizes(shapes, wish.length)
    scratch = search.from_scratch(problem, choice)
    _check_tokens(wish, choice.params[scratch.places[0]], scratch.tokens[0])
    found = [search.grown(problem, choice, stages) for stages in range(2, wish.max_stages + 1)]
    several = [schedule for schedule in found if schedule is not None]
    best = _advised(wish, choice, scratch, several)
    grown = best if best is not scratch else min(several, key=lambda schedule: schedule.loss, default=None)
    steps = _whole_steps(wish, best)
    picked = tuple(shapes[place] for place in best.places)
    tokens = tuple(count * wish.batch_size * wish.length for count in steps)
    loss = final_loss(wish.law, choice.params[list(best.places)], tokens, wish.carryover)
    names = [f"stage_{number}" for number in range(1, len(picked) + 1)]
    stages = [
        PlannedStage(*each, wish.batch_size, wish.length) for each in zip(names, picked, steps, strict=True)
    ]
    return Plan(
        wish,
        Option("advised", picked, tokens, loss, _spent(problem, choice, best.places, tokens)),
        steps,
        _option("from scratch, best size", wish, shapes, choice, scratch),
        None if grown is None else _option("grown, best sizes", wish, shapes, choice, grown),
        _gain(problem, choice, scratch, grown.loss) if grown is not None else 0.0,
        _break_even(wish, choice, scratch) if wish.max_stages > 1 else None,
        tuple(_alternatives(wish, shapes, choice, scratch, several, grown)),
        CostTable.of(stages, wish.machine, Speed("mfu", (wish.mfu,))),
        picked[0] == next(family(wish.shape, wish.heads_multiple)),
    )


def _advised(
    wish: Wish, choice: Sizes, scratch: search.Schedule, several: list[search.Schedule]
) -> search.Schedule:
    """The last schedule, by its number of stages, that is worth `min_gain` more of the budget than the one before."""
    best, gain = scratch, 0.0
    for schedule in several:
        worth = _gain(wish.problem, choice, scratch, schedule.loss)
        if worth - gain >= wish.min_gain:
            best, gain = schedule, worth
    return best


def _check(wish: Wish) -> None:
    Speed("mfu", (wish.mfu,))
    if wish.max_stages > _MOST_STAGES:
        raise ValueError(
            f"--max_stages={wish.max_stages} is more than are searched: expected at most {_MOST_STAGES}"
        )
    if wish.max_stages * wish.min_share > 1:
        raise ValueError(
            f"--max_stages={wish.max_stages} stages of at least --min_share={wish.min_share:g} of the tokens each are "
            "more than all tokens: lower one of them"
        )
    if not 0 <= wish.min_gain < 1:
        raise ValueError(f"--min_gain is a share of the budget between 0 and 1, found {wish.min_gain}")


def _check_tokens(wish: Wish, params: float, tokens: float) -> None:
    """Of the best size from scratch. Far fewer tokens than the budget could read leave nothing that binds the size."""
    if tokens < params and wish.max_tokens < float("inf"):
        raise ValueError(
            f"--tokens={wish.max_tokens:g} is so few beside the budget that the best size from scratch, "
            f"{params:.3g} parameters, has less than a token for each, where no law was fitted: lower --budget, or "
            "raise --tokens"
        )


def _whole_steps(wish: Wish, schedule: search.Schedule) -> tuple[int, ...]:
    steps = tuple(int(tokens // (wish.batch_size * wish.length)) for tokens in schedule.tokens)
    if min(steps) < _LEAST_STEPS:
        raise ValueError(
            f"a stage of the plan would have {min(steps)} steps of --batch_size={wish.batch_size} sequences of "
            f"{wish.length} tokens, expected at least {_LEAST_STEPS}: lower --batch_size, or raise --budget"
        )
    return steps


def _gain(problem: Problem, choice: Sizes, scratch: search.Schedule, loss: float) -> float:
    """Share of what a loss costs from scratch that is saved by having it where `scratch` has its own.

    `scratch` is the best size under both limits, on FLOPs and on tokens. Both losses are priced on one curve, that of
    the best size from scratch on a continuous scale within the tokens, so that the shapes' spacing is on both sides.
    """
    costs = [search.cost_from_scratch(problem, choice, each) for each in (scratch.loss, loss)]
    return 1 - costs[0] / costs[1]


def _break_even(wish: Wish, choice: Sizes, scratch: search.Schedule) -> float | None:
    """By bisection over the whole search of two stages; the gain rises with the carryover."""

    def pays(carryover: float) -> bool:
        problem = dataclasses.replace(wish.problem, carryover=carryover)
        found = search.grown(problem, choice, 2)
        return found is not None and _gain(problem, choice, scratch, found.loss) >= wish.min_gain

    if not pays(1.0):
        return None
    low, high = 0.0, 1.0
    while high - low > _RESOLUTION:
        middle = (low + high) / 2
        low, high = (low, middle) if pays(middle) else (middle, high)
    return high


def _alternatives(
    wish: Wish,
    shapes: list[ModelConfig],
    choice: Sizes,
    scratch: search.Schedule,
    several: list[search.Schedule],
    grown: search.Schedule | None,
) -> list[Option]:
    """The best of each number of stages, then what becomes of the best growing one's sizes when used otherwise."""
    problem = wish.problem
    options = [_option("from scratch, best size", wish, shapes, choice, scratch)]
    options += [
        _option(f"grown, best of {len(schedule.places)} stages", wish, shapes, choice, schedule)
        for schedule in several
    ]
    if grown is None:
        return options
    for name, place in (
        ("its last size from scratch", grown.places[-1]),
        ("its first size, never grown", grown.places[0]),
    ):
        single = Sizes.of(choice.params[[place]], choice.flops[[place]])
        found = search.from_scratch(problem, single)
        options.append(_option(name, wish, shapes, choice, dataclasses.replace(found, places=(place,))))
    for name, times in (("its sizes, first growth twice as early", 0.5), ("twice as late", 2.0)):
        places = list(grown.places)
        tokens = _other_time(problem, choice.flops[places], np.array(grown.tokens), times)
        picked = tuple(shapes[place] for place in places)
        if tokens is None:
            options.append(Option(name, picked, (), None, None))
            continue
        loss = final_loss(wish.law, choice.params[places], tokens, wish.carryover)
        share = _spent(problem, choice, places, tokens)
        options.append(Option(name, picked, tuple(map(float, tokens)), loss, share))
    return options


def _other_time(problem: Problem, flops: np.ndarray, tokens: np.ndarray, times: float) -> np.ndarray | None:
    """The first stage so many times as long, what is left for the others in the same proportions; None: nothing is."""
    first = tokens[0] * times
    if first * flops[0] >= problem.flops or first >= problem.max_tokens:
        return None
    left = dataclasses.replace(
        problem,
        flops=problem.flops - float(first * flops[0]),
        max_tokens=problem.max_tokens - float(first),
    )
    return np.concatenate([[first], onto_budget(left, flops[1:], tokens[1:])])


def _option(
    name: str, wish: Wish, shapes: list[ModelConfig], choice: Sizes, schedule: search.Schedule
) -> Option:
    picked = tuple(shapes[place] for place in schedule.places)
    share = _spent(wish.problem, choice, schedule.places, schedule.tokens)
    return Option(name, picked, schedule.tokens, schedule.loss, share)


def _spent(problem: Problem, choice: Sizes, places: Sequence[int], tokens: ArrayLike) -> float:
    """Share of the budget."""
    return float(choice.flops[list(places)] @ np.asarray(tokens, float)) / problem.flops
