"""Batches of rows to score, in which what rows begin with in common is computed once.

A batch is computed in up to three levels, each going on in the key-value cache of the one above: the text with which
all its rows begin (a benchmark's worked examples), what the options of each question have in common, and the rest of
every row, in which all predictions lie that are asked for. Which of the levels there are is decided by what it costs.
"""

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.evaluation.scored_rows import Row

# What a position of a row's cache costs beside a computed token: it is copied from level to level, and every query
# looks at it. On two CPU cores at width 256 benchmarks/scoring.py --cache_cost found 1/4, in which queries count that
# would look back without a cache, too; the gain on rows like HellaSwag's speaks for this. Wider models have less of it.
CACHE_COST = 1 / 8
# Rows belong together if this share of the longer one is common to both; so many are worth a batch of their own.
_COMMON_SHARE = 1 / 4
_LEAST_TOGETHER = 4


def rounded(count: int, steps: int = 4) -> int:
    """The least of few sizes that holds `count`, so that few programs are compiled.

    Powers of two to 16, then multiples of 8 and at most `steps` to an octave: 5 becomes 8, 70 becomes 80 of
    (64, 80, 96, 112, 128) or, in two steps, 96 of (64, 96, 128).
    """
    power = 1 << max(count - 1, 0).bit_length()
    if power <= 16:
        return power
    return _up(count, max(power // (2 * steps), 8))


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


class Node(NamedTuple):
    """Some tokens behind those that another node has left in its cache."""

    tokens: np.ndarray  # int32, those to compute
    start: int  # the position of the first
    parent: int  # in the level above


@dataclasses.dataclass(frozen=True)
class Level:
    """Nodes of all parts of a batch as arrays of N rows, equally many for each part; padded on the right."""

    tokens: np.ndarray  # int32 [N, L]
    lengths: np.ndarray  # int32 [N], of each row's tokens
    parents: np.ndarray  # int32 [N], row of the same part in the level above


class Shape(NamedTuple):
    """What a program is compiled for.

    A batch in one shape can be computed in another that is as large in every way, for the price of more padding.
    """

    levels: tuple[tuple[int, int], ...]  # of each level: rows of a part, and their length
    cache_length: int
    wanted: tuple[int, int]  # of a row: places where predictions are asked for, and predictions at each

    @property
    def cost(self) -> float:
        """Token positions that a part computes and reads out, padding too, and those of the cache at their share."""
        computed = sum(rows * (length + CACHE_COST * self.cache_length) for rows, length in self.levels)
        return computed + self.levels[-1][0] * self.wanted[0]

    def holds(self, other: "Shape") -> bool:
        """Whether a batch of the other shape can be computed in this one."""
        return len(self.levels) == len(other.levels) and all(
            mine >= theirs for mine, theirs in zip(self._sizes, other._sizes, strict=True)
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        return (*itertools.chain.from_iterable(self.levels), self.cache_length, *self.wanted)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that are computed together.

    Attributes:
        parts: For each shard of the devices, the numbers of its rows.
        levels: From the common beginning to the ends; of the last, row r of part p is that of `parts[p][r]`.
        starts: Of each part's rows, the position where the last level begins.
        cache_length: Positions of the cache; 0 where one level is all.
        wanted: As in `Shape`.
    """

    parts: list[list[int]]
    levels: list[Level]
    starts: list[list[int]]
    cache_length: int
    wanted: tuple[int, int]

    @property
    def shape(self) -> Shape:
        """Of its arrays, as small as it may be."""
        shapes = (level.tokens.shape for level in self.levels)
        return Shape(
            tuple((rows // len(self.parts), length) for rows, length in shapes),
            self.cache_length,
            self.wanted,
        )

    def in_shape(self, shape: Shape) -> "Batch":
        """The same in a shape that holds it; rows that are added compute a token of padding."""

        def filled(array: np.ndarray, *sizes: int) -> np.ndarray:
            parts = array.reshape(len(self.parts), -1, *array.shape[1:])
            missing = [(0, size - there) for size, there in zip(sizes, parts.shape[1:], strict=True)]
            return np.pad(parts, [(0, 0), *missing]).reshape(-1, *sizes[1:])

        levels = [
            Level(
                filled(level.tokens, rows, length), filled(level.lengths, rows), filled(level.parents, rows)
            )
            for level, (rows, length) in zip(self.levels, shape.levels, strict=True)
        ]
        return dataclasses.replace(self, levels=levels, cache_length=shape.cache_length, wanted=shape.wanted)


def batches(
    rows: Sequence[Row], batch_size: int, shards: int = 1, multiple: int = 1, share: bool = True
) -> Iterator[Batch]:
    """All rows in batches of about equal lengths, each computed in the cheapest way.

    Args:
        rows: In lexicographic order.
        batch_size: Rows at a time, a multiple of `shards`.
        shards: Parts into which devices divide a batch; no part needs another's cache.
        multiple: Of which every level's length is one, because devices divide it.
        share: Whether to compute common beginnings once.
    """
    size = batch_size // shards
    for run in _runs(rows, share):
        parts = _parts(run, size)
        for first in range(0, len(parts), shards):
            chosen = parts[first : first + shards]
            chosen += [[] for _ in range(shards - len(chosen))]
            ways = itertools.product((False, True), repeat=2) if share else ((False, False),)
            yield min(
                (_batch(rows, chosen, size, multiple, *way) for way in ways),
                key=lambda batch: batch.shape.cost,
            )


def _runs(rows: Sequence[Row], share: bool) -> Iterator[list[list[int]]]:
    """Questions (the numbers of the rows with one context) that may lie in one batch, the longest first."""
    questions: dict[bytes, list[int]] = {}
    for number, row in enumerate(rows):
        questions.setdefault(row.context if share else row.tokens.tobytes(), []).append(number)
    alike: list[list[list[int]]] = []
    for question in questions.values():
        if share and alike and _belong_together(rows, alike[-1][-1][0], question[0]):
            alike[-1].append(question)
        else:
            alike.append([question])
    mixed: list[list[int]] = []
    for run in alike:
        if sum(map(len, run)) >= _LEAST_TOGETHER and len(run) > 1:
            yield _longest_first(rows, run)
        else:
            mixed += run
    if mixed:
        yield _longest_first(rows, mixed)


def _belong_together(rows: Sequence[Row], one: int, other: int) -> bool:
    longest = max(len(rows[number].tokens) for number in (one, other))
    return _common(rows, (one, other)) >= _COMMON_SHARE * longest


def _longest_first(rows: Sequence[Row], questions: list[list[int]]) -> list[list[int]]:
    """So that what needs most memory is met at once."""
    return sorted(questions, key=lambda question: -max(len(rows[number].tokens) for number in question))


def _parts(questions: list[list[int]], size: int) -> list[list[int]]:
    """Questions in parts of at most `size` rows; one that has more rows is divided."""
    parts: list[list[int]] = [[]]
    for question in questions:
        for first in range(0, len(question), size):
            piece = question[first : first + size]
            if len(parts[-1]) + len(piece) > size:
                parts.append([])
            parts[-1] += piece
    return parts


def _common(rows: Sequence[Row], numbers: Sequence[int]) -> int:
    """With how many tokens all of these begin that lie before the first prediction asked for."""
    # The furthest apart, since rows are in lexicographic order.
    first, last = rows[min(numbers)].tokens, rows[max(numbers)].tokens
    length = min(rows[number].first_scored for number in numbers)
    different = np.flatnonzero(first[:length] != last[:length])
    return int(different[0]) if len(different) else length


def _batch(
    rows: Sequence[Row], parts: list[list[int]], size: int, multiple: int, prefix: bool, stems: bool
) -> Batch:
    """A batch with a level for what each part has in common or not, and one for what each question has."""
    trees = [_tree(rows, part, prefix, stems) for part in parts]
    lengths = [
        _up(rounded(max(len(node.tokens) for tree in trees for node in tree[depth])), multiple)
        for depth in range(len(trees[0]))
    ]
    ends = [
        node.start + length
        for tree in trees
        for nodes, length in zip(tree, lengths, strict=True)
        for node in nodes
    ]
    return Batch(
        parts=parts,
        levels=[
            _level([tree[depth] for tree in trees], length, size) for depth, length in enumerate(lengths)
        ],
        starts=[
            [node.start for node in tree[-1][: len(part)]] for part, tree in zip(parts, trees, strict=True)
        ],
        cache_length=rounded(max(ends), steps=2) if len(lengths) > 1 else 0,
        wanted=_wanted([rows[number].targets for part in parts for number in part]),
    )


def _wanted(targets: Sequence[Mapping[int, Collection[int]]]) -> tuple[int, int]:
    """As in `Shape`."""
    most = max(len(tokens) for of_row in targets for tokens in of_row.values())
    return rounded(max(map(len, targets))), 1 << (most - 1).bit_length()


def _tree(rows: Sequence[Row], part: list[int], prefix: bool, stems: bool) -> list[list[Node]]:
    """The levels of one part."""
    if not part:  # a shard that has nothing to do computes a token
        return [[Node(np.zeros(1, np.int32), 0, 0)]] * (1 + prefix + stems)
    tree: list[list[Node]] = []
    start = 0
    if prefix:
        start = _common(rows, part)
        tree.append([Node(rows[part[0]].tokens[:start], 0, 0)])
    tails = [Node(rows[number].tokens[start:], start, 0) for number in part]
    if stems:
        nodes: list[Node] = []
        tails = []
        for _, question in itertools.groupby(part, key=lambda number: rows[number].context):
            members = list(question)
            end = _common(rows, members)
            tails += [Node(rows[number].tokens[end:], end, len(nodes)) for number in members]
            nodes.append(Node(rows[members[0]].tokens[start:end], start, 0))
        tree.append(nodes)
    return [*tree, tails]


def _level(nodes: list[list[Node]], length: int, size: int) -> Level:
    """Nodes of every part as arrays."""
    each = min(rounded(max(map(len, nodes)), steps=2), size)
    tokens = np.zeros((len(nodes), each, length), np.int32)
    lengths = np.zeros((len(nodes), each), np.int32)
    parents = np.zeros((len(nodes), each), np.int32)
    for part, members in enumerate(nodes):
        for index, node in enumerate(members):
            tokens[part, index, : len(node.tokens)] = node.tokens
            lengths[part, index], parents[part, index] = len(node.tokens), node.parent
    return Level(tokens.reshape(-1, length), lengths.reshape(-1), parents.reshape(-1))
