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

    @property
    def copies(self) -> np.ndarray:
        """`[new]`, how many entries have this one's source: source (0, 1, 2, 0, 1) gives (2, 2, 1, 2, 2)."""
        return np.bincount(self.source)[self.source]

    @property
    def is_even(self) -> bool:
        """Whether every old entry has as many copies as every other."""
        return len(set(self.copies.tolist())) == 1

    def then(self, later: "AxisMap") -> "AxisMap":
        """The map of this growth and a later one together."""
        return AxisMap(self.source[later.source], later.is_new | self.is_new[later.source])


def along(vector: np.ndarray, dim: int, ndim: int) -> np.ndarray:
    """`vector` as an array of `ndim` dimensions that lies along `dim` and broadcasts over the others."""
    return vector.reshape([-1 if i == dim else 1 for i in range(ndim)])


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


def middle(old: int, new: int) -> AxisMap:
    """The block in the middle once more, behind itself: 4 to 6 is source (0, 1, 2, 1, 2, 3).

    At most twice the old size.
    """
    block = new - old
    start = (old - block) // 2
    index = np.arange(new)
    return AxisMap(
        np.where(index < start + block, index, index - block),
        (index >= start + block) & (index < start + 2 * block),
    )


def random(old: int, new: int) -> AxisMap:
    """New entries at the end, each the copy of a source drawn at random; the same draw for the same sizes."""
    drawn = np.random.default_rng((old, new)).integers(0, old, new - old)
    return AxisMap(np.concatenate([np.arange(old), drawn]), np.arange(new) >= old)


def even_split(axis_map: AxisMap) -> np.ndarray:
    """`[new]`, weights of copies that sum to 1 over each source: source (0, 1, 0) gives (1/2, 1, 1/2)."""
    return 1 / axis_map.copies


def uneven_split(axis_map: AxisMap) -> np.ndarray:
    """`[new]`, likewise, the j-th of m copies with j / (1 + ... + m): source (0, 1, 0) gives (1/3, 1, 2/3)."""
    source = axis_map.source
    by_source = np.argsort(source, kind="stable")
    firsts = np.concatenate([[0], np.cumsum(np.bincount(source))[:-1]])
    order = np.empty_like(source)
    order[by_source] = np.arange(len(source)) - firsts[source[by_source]] + 1
    return 2 * order / (axis_map.copies * (axis_map.copies + 1))
