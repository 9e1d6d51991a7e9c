"""Where the entries of a grown axis come from."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class AxisMap:
    """One axis of a growth, from `old` entries to `new`.

    Attributes:
        source: `[new]`, the old index whose entry stands here, or is replaced by what fills new entries.
        is_new: `[new]`, False where the old entry itself stands.

    Four layers to six, spread: source (0, 0, 1, 2, 2, 3), is_new (F, T, F, F, T, F).
    """

    source: np.ndarray
    is_new: np.ndarray

    @property
    def old_positions(self) -> np.ndarray:
        """`[old]`, where each old entry stands now; taking these gives the old axis back."""
        return np.flatnonzero(~self.is_new)

    @property
    def appends(self) -> bool:
        """Whether the old entries stand first and in order, so that growing is padding at the end."""
        old = self.old_positions
        return bool(np.array_equal(old, np.arange(len(old))) and np.array_equal(self.source[old], old))

    def then(self, later: "AxisMap") -> "AxisMap":
        """The map of this growth and a later one together."""
        return AxisMap(self.source[later.source], later.is_new | self.is_new[later.source])


def append(old: int, new: int) -> AxisMap:
    """New entries at the end: 2 to 5 is source (0, 1, 0, 0, 0)."""
    index = np.arange(new)
    return AxisMap(np.where(index < old, index, 0), index >= old)


def spread(old: int, new: int) -> AxisMap:
    """New entries behind old ones, as evenly as may be; each has the old one below it as its source."""
    source = np.arange(new) * old // new
    return AxisMap(source, np.diff(source, prepend=-1) == 0)


def stack(old: int, new: int) -> AxisMap:
    """The whole axis again and again on top of itself: 2 to 5 is source (0, 1, 0, 1, 0)."""
    index = np.arange(new)
    return AxisMap(index % old, index >= old)
