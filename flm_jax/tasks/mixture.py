"""What a mixture may be: shares of tokens, a schedule of them, or groups of tasks that take turns.

    MIXTURE_OR_TASK_NAME = "en"
    MIXTURE_OR_TASK_NAME = {"en": 2, "zh": 1}
    MIXTURE_OR_TASK_NAME = {0: {"en": 2, "zh": 1}, 200_000_000: {"en": 1, "zh": 1}}
    MIXTURE_OR_TASK_NAME = @mixture.linear()
    MIXTURE_OR_TASK_NAME = @mixture.Alternating()

`Mixture.of` reads any of these, and its plain JSON form, which checkpoints keep.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

Shares = str | Mapping[str, float]
_BINDING = "change the gin binding `MIXTURE_OR_TASK_NAME`"


@dataclasses.dataclass(frozen=True)
class Alternating:
    """Groups of tasks that take turns: whole batches of one, then whole batches of the next.

    FreeLM's form, of which FLM-101B's later one is the mixture: batches of language, then batches of teacher signals.
    Only a batch in which all tasks of its group reach their `max_epochs` is shared: other groups fill it up.

    Attributes:
        groups: Group to its shares, e.g. `{"language": {"en": 2, "zh": 1}, "teacher": "signals"}`. A task is in one
            group only.
        steps: Batches of each group, in the order of `groups`, e.g. `(3, 1)`.
    """

    groups: Mapping[str, Shares]
    steps: Sequence[int]


class Group(NamedTuple):
    """What is mixed in a batch of one kind; a mixture that does not alternate has one group.

    Attributes:
        name: For people.
        steps: Batches, before it is the next group's turn.
        shares: (task, relative share of tokens), by name.
    """

    name: str
    steps: int
    shares: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of any form, compared by what it means: `{"en": 2, "zh": 1}` equals `{"en": 4, "zh": 2}`.

    Attributes:
        changes: (tokens, groups): from so many tokens on, padding included, counted from where the mixture begins to
            hold, until the next. The first is at 0.
    """

    changes: tuple[tuple[int, tuple[Group, ...]], ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mixture) and self.meaning == other.meaning

    def __hash__(self) -> int:
        return hash(self.meaning)

    @functools.cached_property
    def meaning(self) -> tuple[tuple[int, tuple[Any, ...]], ...]:
        """(tokens, `meaning_of` the groups), with what changes nothing left out."""
        found: list[tuple[int, tuple[Any, ...]]] = []
        for tokens, groups in self.changes:
            meant = meaning_of(groups)
            if not found or found[-1][1] != meant:
                found.append((tokens, meant))
        return tuple(found)

    @staticmethod
    def of(value: Any) -> "Mixture":
        """Reads a mixture.

        Args:
            value: A task's name; task to relative share; tokens to one of these (a schedule); `Alternating`; or what
                `to_json` gave.

        Raises:
            ValueError: it is none of these, or a share, a number of tokens or of steps cannot be.
        """
        if isinstance(value, Mixture):
            return value
        if isinstance(value, list):
            value = _schedule_from_json(value)
        if isinstance(value, Mapping) and any(not isinstance(key, str) for key in value):
            return Mixture(tuple((at, _constant(value[at])) for at in _starts(value)))
        return Mixture(((0, _constant(value)),))

    def to_json(self) -> Any:
        """Task to share; or `{"alternating": {group: [steps, shares]}}`; or `[[tokens, one of these], ...]`."""
        found = [[tokens, _to_json(groups)] for tokens, groups in self.changes]
        return found[0][1] if len(found) == 1 else found

    @property
    def tasks(self) -> list[str]:
        """All that it ever reads, in alphabetical order."""
        return sorted({task for _, groups in self.changes for group in groups for task, _ in group.shares})

    @property
    def has_clock(self) -> bool:
        """Whether it depends on how long it has held."""
        return len(self.meaning) > 1 or self.alternates

    @property
    def alternates(self) -> bool:
        """Whether it depends on where batches begin."""
        return any(len(groups) > 1 for _, groups in self.changes)


def meaning_of(groups: Sequence[Group]) -> tuple[Any, ...]:
    """What may be compared of them: steps and exact shares of each that sum to 1; names are for people."""
    found = []
    for group in groups:
        shares = [(task, Fraction(str(share))) for task, share in group.shares]
        total = sum(share for _, share in shares)
        found.append((group.steps, tuple((task, share / total) for task, share in shares)))
    return tuple(found)


def linear(start: Shares, end: Shares, tokens: int, begin: int = 0, pieces: int = 10) -> dict[int, Any]:
    """A schedule from one mixture to another, in steps of equal size.

    Args:
        start: Task to relative share, until `begin`.
        end: Likewise, from `begin + tokens` on.
        tokens: Of the transition, padding included.
        begin: Where it begins.
        pieces: Constant parts of the transition; in each the shares are those of its middle.

    Raises:
        ValueError: naming the setting.

    Example: from `{"en": 1}` to `{"zh": 1}` over 100 tokens in 2 pieces: `{0: {"en": 0.75, "zh": 0.25},
    50: {"en": 0.25, "zh": 0.75}, 100: {"zh": 1.0}}`.
    """
    for name, value, least in (("tokens", tokens, 1), ("begin", begin, 0), ("pieces", pieces, 1)):
        if not _is_whole(value, least):
            raise ValueError(
                f"mixture.linear.{name} must be a whole number of at least {least}, found {value!r}"
            )
    if pieces > tokens:
        raise ValueError(f"mixture.linear.pieces must be at most its tokens, {tokens:,}, found {pieces:,}")
    one, other = (_normalised(shares) for shares in (start, end))
    schedule: dict[int, Any] = {0: one}
    for piece in range(pieces):
        part = (piece + 0.5) / pieces
        schedule[begin + piece * tokens // pieces] = {
            task: (1 - part) * one.get(task, 0.0) + part * other.get(task, 0.0)
            for task in sorted({*one, *other})
        }
    schedule[begin + tokens] = other
    return schedule


def _normalised(shares: Shares) -> dict[str, float]:
    found = dict(_shares(shares))
    return {task: share / sum(found.values()) for task, share in found.items()}


def _starts(schedule: Mapping[Any, Any]) -> list[int]:
    wrong = [key for key in schedule if not _is_whole(key, 0)]
    if wrong or 0 not in schedule:
        raise ValueError(
            "expected a schedule of mixtures by whole numbers of tokens, the first 0, found "
            f"{wrong or sorted(schedule)}: {_BINDING}"
        )
    return sorted(schedule)


def _schedule_from_json(value: list[Any]) -> dict[int, Any]:
    if any(not isinstance(entry, list | tuple) or len(entry) != 2 for entry in value):
        raise ValueError(
            f"expected a task's name, shares of tokens, or a schedule of them, found {value!r}: {_BINDING}"
        )
    return dict(value)


def _constant(value: Any) -> tuple[Group, ...]:
    if isinstance(value, Mapping) and isinstance(value.get("alternating"), Mapping):
        groups = value["alternating"]
        value = Alternating(
            {name: shares for name, (_, shares) in groups.items()}, [steps for steps, _ in groups.values()]
        )
    if not isinstance(value, Alternating):
        return (Group("", 1, _shares(value)),)
    if (
        not isinstance(value.groups, Mapping)
        or len(value.groups) < 2
        or not isinstance(value.steps, Sequence)
        or len(value.steps) != len(value.groups)
        or not all(_is_whole(steps, 1) for steps in value.steps)
    ):
        raise ValueError(
            "expected two or more groups and a number of steps for each, e.g. Alternating.groups = "
            '{"language": {"en": 1}, "teacher": {"signals": 1}} and Alternating.steps = (3, 1), found '
            f"groups = {value.groups!r} and steps = {value.steps!r}"
        )
    groups = [
        Group(name, steps, _shares(shares))
        for (name, shares), steps in zip(value.groups.items(), value.steps, strict=True)
    ]
    tasks = [task for group in groups for task, _ in group.shares]
    if twice := sorted({task for task in tasks if tasks.count(task) > 1}):
        raise ValueError(f"expected each task in one group of Alternating.groups, found {twice} in two")
    return tuple(groups)


def _shares(value: Any) -> tuple[tuple[str, float], ...]:
    shares = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(shares, Mapping) or not shares or any(not isinstance(task, str) for task in shares):
        raise ValueError(
            f"expected a task's name or task to relative share of tokens as a mixture, found {value!r}: {_BINDING}"
        )
    if wrong := {task: share for task, share in shares.items() if not is_positive(share)}:
        raise ValueError(
            f"expected positive shares in the mixture, found {wrong}: {_BINDING} (leave a task out to give it no "
            "share)"
        )
    return tuple(sorted(shares.items()))


def _to_json(groups: tuple[Group, ...]) -> Any:
    if len(groups) == 1:
        return dict(groups[0].shares)
    return {"alternating": {group.name: [group.steps, dict(group.shares)] for group in groups}}


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_positive(value: Any) -> bool:
    """Whether it is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
