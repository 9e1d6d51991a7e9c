"""What a model scored: by task with its uncertainty and chance, by group, as a table and as JSON."""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from flm_jax.evaluation.iq import paper
from flm_jax.evaluation.iq.generated import TASKS
from flm_jax.evaluation.iq.published import SETS
from flm_jax.table import aligned, number

_GROUP_SIZES = Counter([*(each.group for each in TASKS.values()), *(each.group for each in SETS.values())])


@dataclass(frozen=True)
class Rate:
    """So many of `total` right, where guessing is expected to have the share `chance`."""

    correct: int
    total: int
    chance: float

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, from 0 to 1."""
        low, high = binomtest(self.correct, self.total).proportion_ci(method="wilson")
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        low, high = self.interval
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "chance": self.chance,
        }


@dataclass(frozen=True)
class TaskResult:
    """Of one set.

    Attributes:
        task: Its name.
        language: Of the prompts.
        group: In which it is averaged.
        shots: Solved examples in each prompt.
        seed: Of the set.
        exact: Answers that were written as they should be.
        choice: Items whose right option was the likeliest.
        baseline: As in `ItemSet`.
        oracle: The share that `Oracle` solves both ways; None where no program can.
    """

    task: str
    language: str
    group: str
    shots: int
    seed: int
    exact: Rate
    choice: Rate
    baseline: float | None
    oracle: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the paper's scores as shares."""
        scores = paper.TASKS.get(self.task)
        return {
            "task": self.task,
            "language": self.language,
            "group": self.group,
            "shots": self.shots,
            "seed": self.seed,
            "exact": self.exact.to_json(),
            "choice": self.choice.to_json(),
            "baseline": self.baseline,
            "oracle": self.oracle,
            "paper_percent": scores._asdict() if scores else None,
        }


@dataclass(frozen=True)
class GroupMean:
    """The mean over a group's tasks in one language, each of the same weight, as in the paper."""

    group: str
    language: str
    tasks: int
    exact: float
    choice: float

    @property
    def of(self) -> int:
        """How many tasks the whole group has."""
        return _GROUP_SIZES.get(self.group, self.tasks)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the paper's means only of a whole group."""
        scores = paper.GROUPS.get(self.group) if self.tasks == self.of else None
        return {
            "group": self.group,
            "language": self.language,
            "tasks": self.tasks,
            "of": self.of,
            "exact": self.exact,
            "choice": self.choice,
            "paper_percent": scores._asdict() if scores else None,
        }


@dataclass(frozen=True)
class Results:
    """Of a suite."""

    tasks: tuple[TaskResult, ...]

    def groups(self) -> list[GroupMean]:
        """In the order in which they come up."""
        found: dict[tuple[str, str], list[TaskResult]] = defaultdict(list)
        for each in self.tasks:
            found[each.group, each.language].append(each)

        def mean(of: list[TaskResult], share: Callable[[TaskResult], float]) -> float:
            return sum(map(share, of)) / len(of)

        return [
            GroupMean(
                group,
                language,
                len({each.task for each in of}),
                mean(of, lambda each: each.exact.accuracy),
                mean(of, lambda each: each.choice.accuracy),
            )
            for (group, language), of in found.items()
        ]

    def table(self) -> str:
        """For people: percent, with 95 % intervals, and the paper's scores beside them."""
        measured = ("exact (95 %)", "chance", "choice (95 %)", "chance", "baseline", "oracle")
        header = ("task", "lang", "n", "shots", *measured, "GPT-3", "GLM-130B", "FLM-101B")
        rows = [header, *map(_task_cells, self.tasks), *map(_group_cells, self.groups())]
        return "\n".join([aligned(rows), "", *(f"- {note}" for note in paper.NOTES)])

    def to_json(self) -> dict[str, Any]:
        """The same numbers, as shares from 0 to 1."""
        return {
            "tasks": [each.to_json() for each in self.tasks],
            "groups": [each.to_json() for each in self.groups()],
            "notes": list(paper.NOTES),
        }


def _task_cells(each: TaskResult) -> tuple[str, ...]:
    return (
        each.task,
        each.language,
        str(each.exact.total),
        str(each.shots),
        *_rate_cells(each.exact),
        *_rate_cells(each.choice),
        _percent(each.baseline),
        _percent(each.oracle),
        *_paper_cells(paper.TASKS.get(each.task)),
    )


def _group_cells(each: GroupMean) -> tuple[str, ...]:
    whole = each.tasks == each.of
    name = f"{each.group}, mean of {each.tasks}" + ("" if whole else f" of {each.of}")
    scores = paper.GROUPS.get(each.group) if whole else None
    exact, choice = _percent(each.exact), _percent(each.choice)
    return (name, each.language, "", "", exact, "", choice, "", "", "", *_paper_cells(scores))


def _rate_cells(rate: Rate) -> tuple[str, str]:
    low, high = rate.interval
    return f"{100 * rate.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})", _percent(rate.chance)


def _percent(share: float | None) -> str:
    return "<0.1" if share is not None and 0 < share < 5e-4 else number(share and 100 * share, ".1f")


def _paper_cells(scores: paper.Scores | None) -> tuple[str, ...]:
    return tuple(number(score, ".2f") for score in scores or (None, None, None))
