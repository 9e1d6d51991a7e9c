"""How a run's data went on: which batch size and mixture held from which step on, and so what was read before a step.

A checkpoint keeps it. Everything that counts tokens, and the position in the data, follows from it.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from flm_jax.tasks.mixture import Mixture, is_positive

Epochs = float | Mapping[str, float] | tuple[tuple[str, float], ...] | None


@dataclasses.dataclass(frozen=True)
class Segment:
    """Steps of a run that read their data alike.

    Attributes:
        step: The first of them.
        first: Sequences that were read before it.
        batch_size: Sequences a step.
        mixture: What is read; the same as before goes on where it stood (`History.clock_starts`).
        max_epochs: (task, epochs of the whole run) that it may be read for; `""` stands for every task.
    """

    step: int
    first: int
    batch_size: int
    mixture: Mixture
    max_epochs: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "step": self.step,
            "sequences": self.first,
            "batch_size": self.batch_size,
            "mixture": self.mixture.to_json(),
            "max_epochs": epochs_to_json(self.max_epochs),
        }

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Segment":
        """The inverse of `to_json`."""
        return Segment(
            values["step"],
            values["sequences"],
            values["batch_size"],
            Mixture.of(values["mixture"]),
            read_epochs(values["max_epochs"]),
        )


@dataclasses.dataclass(frozen=True)
class History:
    """Segments, oldest first; the last has no end."""

    segments: tuple[Segment, ...]

    @staticmethod
    def begin(mixture: Any, batch_size: int, max_epochs: Epochs = None) -> "History":
        """Of a run from its first step on. Args as `Mixture.of`, `read_epochs`."""
        return History((Segment(0, 0, batch_size, Mixture.of(mixture), read_epochs(max_epochs)),))

    @staticmethod
    def from_json(values: Sequence[Mapping[str, Any]]) -> "History":
        """The inverse of `to_json`."""
        return History(tuple(Segment.from_json(segment) for segment in values))

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values, an object for each segment."""
        return [segment.to_json() for segment in self.segments]

    def changed(self, step: int, batch_size: int, mixture: Any, max_epochs: Epochs = None) -> "History":
        """With these settings from `step` on; itself where they hold already.

        What was to hold from `step` on is left out.
        """
        before = tuple(segment for segment in self.segments if segment.step <= step)
        new = Segment(step, self.sequences(step), batch_size, Mixture.of(mixture), read_epochs(max_epochs))
        last = before[-1]
        if dataclasses.replace(new, step=last.step, first=last.first) == last:
            return History(before)
        if last.step == step:  # under which nothing was read
            before = before[:-1]
            return (
                History(before).changed(step, batch_size, mixture, max_epochs) if before else History((new,))
            )
        return History((*before, new))

    def resized(self, step: int, batch_size: int) -> "History":
        """With another batch size from `step` on, and the mixture that holds there."""
        present = self.at(step)
        return self.changed(step, batch_size, present.mixture, present.max_epochs)

    def at(self, step: int) -> Segment:
        """What the batch behind `step` steps is read by."""
        return self.segments[max(0, bisect.bisect_right([s.step for s in self.segments], step) - 1)]

    def sequences(self, step: int) -> int:
        """Sequences that are read before `step`."""
        segment = self.at(step)
        return segment.first + (step - segment.step) * segment.batch_size

    def steps(self, sequences: int) -> int:
        """The least number of steps after which so many sequences are read."""
        index = max(0, bisect.bisect_left([s.first for s in self.segments], sequences) - 1)
        segment = self.segments[index]
        return segment.step + -(-(sequences - segment.first) // segment.batch_size)

    def whole_batches(self, sequences: int) -> int:
        """`sequences`, rounded up to where a batch begins."""
        return self.sequences(self.steps(sequences))

    def clock_starts(self, length: int) -> list[Segment]:
        """For each segment, the one at whose beginning its mixture's clock was at 0.

        The clock goes on where a changed mixture agrees with the one before in all that was read by that clock, so
        that a schedule may be continued in mid-run; it starts anew where it does not.

        Args:
            length: Tokens of a sequence.
        """
        found = [self.segments[0]]
        for before, segment in itertools.pairwise(self.segments):
            read = segment.first - found[-1].first
            old, new = (
                [change for change in mixture.meaning if -(-change[0] // length) < read]
                for mixture in (before.mixture, segment.mixture)
            )
            found.append(found[-1] if old == new else segment)
        return found

    @property
    def tasks(self) -> list[str]:
        """Of all mixtures, in alphabetical order."""
        return sorted({task for segment in self.segments for task in segment.mixture.tasks})


def read_epochs(value: Any) -> tuple[tuple[str, float], ...]:
    """A cap of epochs: a number for every task, or task to number; None for none.

    Raises:
        ValueError: it is none of these.
    """
    if value is None or value == ():
        return ()
    caps = dict(value) if isinstance(value, Mapping | tuple) else {"": value}
    if wrong := {task: cap for task, cap in caps.items() if not is_positive(cap)}:
        raise ValueError(
            f"expected a positive number of epochs, or task to number, found {wrong.get('', wrong)!r}: change the gin "
            "binding `Trainer.max_epochs`"
        )
    return tuple(sorted(caps.items()))


def epochs_to_json(caps: tuple[tuple[str, float], ...]) -> Any:
    """As `read_epochs` takes it."""
    found = dict(caps)
    return None if not found else found.get("", found)
