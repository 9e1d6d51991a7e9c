"""Which sequence of which task stands at each place of a run's data, by closed form.

The history of a run's mixtures becomes phases, in each of which the tasks interleave in fixed rates. A place is found
by bisection among them: nothing is proportional to the step, and nothing has to be kept to resume.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from typing import NamedTuple

from flm_jax.tasks.history import History
from flm_jax.tasks.interleave import Interleave, Presence
from flm_jax.tasks.mixture import Group, meaning_of

# Sequence rates are integers in units of about a millionth, so that positions are exact for any index.
_RATE_UNITS = 1 << 20


class TaskCounts(NamedTuple):
    """Of one task's prepared split.

    Attributes:
        sequences: Packed sequences.
        tokens: Without padding.
    """

    sequences: int
    tokens: int


class Reached(NamedTuple):
    """A task that has been read for as many epochs as it may be.

    Attributes:
        task: Its name.
        epochs: It may be read for.
        sequence: Of the whole stream, the first that is read without it.
    """

    task: str
    epochs: float
    sequence: int


@dataclasses.dataclass(frozen=True)
class _Turns:
    """Which group's turn it is: whole batches, by the steps since the mixture began.

    Attributes:
        steps: Of each group.
        offset: Steps of the mixture before `first`.
        first: Sequence at which a batch begins.
        batch_size: From there on.
    """

    steps: tuple[int, ...]
    offset: int
    first: int
    batch_size: int

    def group(self, sequence: int) -> int:
        """That a sequence belongs to."""
        turn = (self.offset + (sequence - self.first) // self.batch_size) % sum(self.steps)
        for group, steps in enumerate(self.steps):
            if turn < steps:
                return group
            turn -= steps
        raise AssertionError("a turn is less than the sum of the steps")

    def counts(self, sequence: int) -> list[int]:
        """Sequences of each group before `sequence`, counted from a fixed place."""
        batches, rows = divmod(sequence - self.first, self.batch_size)
        cycles, turn = divmod(self.offset + batches, sum(self.steps))
        found = []
        for steps in self.steps:
            done = cycles * steps + min(max(turn, 0), steps)
            found.append(done * self.batch_size + (rows if 0 <= turn < steps else 0))
            turn -= steps
        return found


class _Phase:
    """Sequences from `first` on, until the next phase, whose tasks interleave in fixed rates.

    Args:
        first: Sequence of the whole stream.
        starts: Sequences of each task that were read before.
        turns: Of the groups.
        groups: Task to rate, for each group.
    """

    def __init__(
        self, first: int, starts: Mapping[str, int], turns: _Turns, groups: list[dict[str, int]]
    ) -> None:
        self.first, self._starts, self._turns = first, dict(starts), turns
        self._names = [list(group) for group in groups]
        self._orders = [Interleave(list(group.values())) for group in groups]
        self._before = turns.counts(first)

    def locate(self, sequence: int) -> tuple[str, int]:
        """The task of a sequence, and how many of the task were read before."""
        group = self._turns.group(sequence)
        index = self._turns.counts(sequence)[group] - self._before[group]
        task, count = self._orders[group][index]
        name = self._names[group][task]
        return name, self._starts[name] + count

    def positions(self, sequence: int) -> dict[str, int]:
        """Sequences of each task before `sequence`."""
        found = dict(self._starts)
        for names, order, now, before in zip(
            self._names, self._orders, self._turns.counts(sequence), self._before, strict=True
        ):
            for name, count in zip(names, order.counts(now - before), strict=True):
                found[name] += count
        return found

    def presence(self, batch_size: int, batches: int) -> dict[str, Presence]:
        """Of each task that is read, in so many batches, were there no other phase behind this one."""
        return {
            name: found
            for names, order in zip(self._names, self._orders, strict=True)
            for name, found in zip(names, order.presence(batch_size, batches), strict=True)
        }


class MixturePlan:
    """The stream of sequences that a run's history of mixtures means.

    A task's own sequences go on through all changes, so that none is left out or comes twice within an epoch. When a
    task has been read for its `max_epochs`, its share goes to the others in proportion.

    Memory and the time of a look-up are of the order of phases times tasks.

    Args:
        history: Batch sizes, mixtures and caps.
        tasks: Of each task of them.
        length: Tokens of a sequence.

    Attributes:
        reached: The tasks that reach their cap, in order.
        end: Sequence at which all tasks of the mixture have reached their caps; None for never.

    Raises:
        ValueError: a cap is of no task, or of less than a sequence.
    """

    def __init__(self, history: History, tasks: Mapping[str, TaskCounts], length: int) -> None:
        self.tasks = dict(sorted(tasks.items()))
        self.reached: list[Reached] = []
        self._exhausted: set[str] = set()  # at present, while the plan is made
        self.end: int | None = None
        self._phases: list[_Phase] = []
        self._pieces = _joined(_pieces(history, length))
        positions = dict.fromkeys(self.tasks, 0)
        for piece in self._pieces:
            positions = self._fill(piece, positions, self._caps(piece))
            if self.end is not None:
                break
        self._firsts = [phase.first for phase in self._phases]

    def locate(self, sequence: int) -> tuple[str, int]:
        """The task of a sequence of the stream, and how many of the task's sequences come before it.

        Raises:
            IndexError: the stream has ended.
        """
        if self.end is not None and sequence >= self.end:
            raise IndexError(
                f"all tasks of the mixture have reached their epochs after {self.end:,} sequences, asked for "
                f"{sequence:,}: bind Trainer.max_epochs higher"
            )
        return self._phase(sequence).locate(sequence)

    def positions(self, sequence: int) -> dict[str, int]:
        """How many sequences of each task come before `sequence` of the stream; over a task's own: its epochs."""
        return self._phase(sequence).positions(sequence)

    def epochs(self, sequence: int) -> dict[str, float]:
        """Of each task before `sequence`."""
        found = self.positions(sequence)
        return {name: found[name] / task.sequences for name, task in self.tasks.items()}

    def tokens(self, sequence: int) -> dict[str, float]:
        """Of each task before `sequence`, without padding; exact at whole epochs, a mean in between."""
        found = self.positions(sequence)
        return {name: found[name] * task.tokens / task.sequences for name, task in self.tasks.items()}

    def shares(self, sequence: int) -> dict[str, float]:
        """Task to its share of the tokens as the mixture that holds at `sequence` asks for; they sum to 1."""
        index = bisect.bisect_right([piece.first for piece in self._pieces], sequence) - 1
        groups = self._pieces[index].groups
        turns = sum(group.steps for group in groups)
        return {
            task: share / sum(share for _, share in group.shares) * group.steps / turns
            for group in groups
            for task, share in group.shares
        }

    def presence(self, sequence: int, batch_size: int, batches: int) -> dict[str, Presence]:
        """Of each task in so many batches by the rates that hold at `sequence`."""
        return self._phase(sequence).presence(batch_size, batches)

    def _phase(self, sequence: int) -> _Phase:
        if sequence < 0:
            raise IndexError(f"expected a sequence of at least 0, found {sequence}")
        return self._phases[bisect.bisect_right(self._firsts, sequence) - 1]

    def _caps(self, piece: "_Piece") -> dict[str, tuple[float, int]]:
        """Task to its cap, in epochs and in sequences."""
        epochs = dict(piece.max_epochs)
        if unknown := sorted(set(epochs) - set(self.tasks) - {""}):
            raise ValueError(
                f"expected epochs of {list(self.tasks)}, the tasks of the mixture, found {unknown}: change the gin "
                "binding `Trainer.max_epochs`"
            )
        caps = {
            # Exact for what was written: 0.29 of 100 sequences are 29.
            name: (cap, math.floor(Fraction(str(cap)) * task.sequences))
            for name, task in self.tasks.items()
            if (cap := epochs.get(name, epochs.get(""))) is not None
        }
        for name in piece.asked:
            if name in caps and caps[name][1] < 1:
                raise ValueError(
                    f"expected epochs of {name} that make a sequence or more of its {self.tasks[name].sequences:,}, "
                    f"found {caps[name][0]:g}: bind Trainer.max_epochs (under t5x MAX_EPOCHS) higher, or leave the "
                    "task out of `MIXTURE_OR_TASK_NAME`"
                )
        return caps

    def _fill(
        self, piece: "_Piece", positions: dict[str, int], caps: Mapping[str, tuple[float, int]]
    ) -> dict[str, int]:
        """Adds the phases of a piece, a new one whenever a cap is reached; gives the positions at its end."""
        first = piece.first
        while True:
            left = {name: count - positions[name] for name, (_, count) in caps.items()}
            self._note_reached(piece, left, caps, first)
            if first == piece.end:
                return positions
            rates = [self._rates(group, left) for group in piece.groups]
            kept = [index for index, rate in enumerate(rates) if rate]
            if not kept:
                self.end = first
                return positions
            turns = dataclasses.replace(piece.turns, steps=tuple(piece.groups[index].steps for index in kept))
            phase = _Phase(first, positions, turns, [rates[index] for index in kept])
            self._phases.append(phase)
            limits = {name: caps[name][1] for rate in rates for name in rate if name in caps}
            full = _first_full(phase, first, piece.end, limits)
            if full is None:
                return positions if piece.end is None else phase.positions(piece.end)
            first, positions = full, phase.positions(full)

    def _note_reached(
        self,
        piece: "_Piece",
        left: Mapping[str, int],
        caps: Mapping[str, tuple[float, int]],
        sequence: int,
    ) -> None:
        # A cap that was reached may be raised in mid-run, and be reached again.
        self._exhausted = {task for task in self._exhausted if left.get(task, 1) <= 0}
        new = [task for task in piece.asked if left.get(task, 1) <= 0 and task not in self._exhausted]
        self.reached += [Reached(task, caps[task][0], sequence) for task in new]
        self._exhausted.update(new)

    def _rates(self, group: Group, left: Mapping[str, int]) -> dict[str, int]:
        """Relative rates of sequences: a task's share of tokens over its tokens per sequence."""
        shares = {name: share for name, share in group.shares if left.get(name, 1) > 0}
        total = sum(shares.values())
        rates = {
            name: share / total * self.tasks[name].sequences / self.tasks[name].tokens
            for name, share in shares.items()
        }
        return {name: max(1, round(rate / sum(rates.values()) * _RATE_UNITS)) for name, rate in rates.items()}


def _first_full(phase: _Phase, first: int, end: int | None, limits: Mapping[str, int]) -> int | None:
    """The first sequence before which a task has been read up to its limit; None if that is behind `end`."""

    def is_full(sequence: int) -> bool:
        positions = phase.positions(sequence)
        return any(positions[name] >= limit for name, limit in limits.items())

    if not limits:
        return None
    top = first + 1 if end is None else end
    while end is None and not is_full(top):
        top = first + 2 * (top - first)
    return _bisect(is_full, first, top) if is_full(top) else None


def _bisect(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The least number above `low` for which `holds`; it does for `high`, and above every one for which it does."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


class _Piece(NamedTuple):
    """A part of a run in which mixture, caps and turns stay; `end` is None for the last."""

    first: int
    end: int | None
    groups: tuple[Group, ...]
    turns: _Turns
    max_epochs: tuple[tuple[str, float], ...]

    @property
    def asked(self) -> list[str]:
        """The tasks of all groups, in alphabetical order."""
        return sorted(task for group in self.groups for task, _ in group.shares)


def _pieces(history: History, length: int) -> Iterator[_Piece]:
    segments, origins = history.segments, history.clock_starts(length)
    for segment, origin, following in zip(segments, origins, [*segments[1:], None], strict=True):
        end = None if following is None else following.first
        changes = segment.mixture.changes
        starts = [origin.first + -(-tokens // length) for tokens, _ in changes]
        if segment.mixture.alternates:
            starts = [history.whole_batches(start) for start in starts]
        for start, stop, (_, groups) in zip(starts, [*starts[1:], None], changes, strict=True):
            ends = [place for place in (stop, end) if place is not None]
            first, last = max(start, segment.first), min(ends, default=None)
            if last is None or first < last:
                steps = tuple(group.steps for group in groups)
                turns = _Turns(steps, segment.step - origin.step, segment.first, segment.batch_size)
                yield _Piece(first, last, groups, turns, segment.max_epochs)


def _joined(pieces: Iterable[_Piece]) -> list[_Piece]:
    """Where one group's shares go on, as under another batch size, so does their interleaving."""
    found: list[_Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if (
            last
            and len(piece.groups) == 1
            and meaning_of(last.groups) == meaning_of(piece.groups)
            and last.max_epochs == piece.max_epochs
        ):
            found[-1] = last._replace(end=piece.end)
        else:
            found.append(piece)
    return found
