"""A regular interleaving of tasks in fixed rates, with random access."""

import itertools
from typing import NamedTuple


class Presence(NamedTuple):
    """Of a task in batches of one size, of its group's turn where groups take turns.

    Attributes:
        batches: In which it is.
        share: Of the sequences, not of the tokens.
    """

    batches: int
    share: float


class Interleave:
    """An endless, regular interleaving of tasks in whole-number rates, with random access.

    In any window of n consecutive elements, a task has its share of n to within a few elements.
    (`grain.MapDataset.mix` interleaves likewise, but with rates rounded to a hundredth of the smallest.)

    Example: rates [2, 1] give the tasks 0, 0, 1, 0, 0, 1, ...
    """

    def __init__(self, rates: list[int]) -> None:
        self._rates = rates

    def __getitem__(self, index: int) -> tuple[int, int]:
        """The task of element `index`, and how many elements that task had before."""
        # Task 0 gets its share of all elements, task 1 its share of what that leaves, and so on. Of the first
        # `index` elements `before` are left to the tasks from here on, of the first `index + 1` `after`.
        before, after, total = index, index + 1, sum(self._rates)
        for task, rate in enumerate(self._rates):
            left_before, left_after = (count * (total - rate) // total for count in (before, after))
            if left_before == left_after:
                return task, before - left_before
            before, after, total = left_before, left_after, total - rate
        raise AssertionError("the last task takes what is left")

    def presence(self, batch_size: int, batches: int) -> list[Presence]:
        """Of each task in the first `batches`."""
        counts = [self.counts(number * batch_size) for number in range(batches + 1)]
        return [
            Presence(sum(now > then for then, now in itertools.pairwise(column)), rate / sum(self._rates))
            for column, rate in zip(zip(*counts, strict=True), self._rates, strict=True)
        ]

    def counts(self, index: int) -> list[int]:
        """How many elements each task has among the first `index`."""
        found, total = [], sum(self._rates)
        for rate in self._rates:
            left = index * (total - rate) // total
            found.append(index - left)
            index, total = left, total - rate
        return found
