"""What a compiled program sends between devices, read off its text: kind, bytes, mesh axes, and how often."""

import dataclasses
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4,
          "s64": 8, "u64": 8, "f64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind of exchange over the same mesh axes, in a whole step.

    Attributes:
        kind: `all-gather, all-reduce, reduce-scatter, collective-permute` or `all-to-all`.
        axes: Mesh axes along which the devices lie that take part together.
        devices: How many these are.
        bytes: Of one device: what a gather makes, what a reduction adds up, what is permuted.
        times: Exchanges.
        beside: Whether the compiler carries them out beside matmuls, of its own accord (TPUs).
    """

    kind: str
    axes: tuple[str, ...]
    devices: int
    bytes: float
    times: int
    beside: bool = False


def read(text: str, mesh_shape: Sequence[tuple[str, int]]) -> list[Collective]:
    """The exchanges of a program compiled for a mesh, the largest first.

    Args:
        text: `compiled.as_text()`.
        mesh_shape: Axes and sizes in the order in which the program's devices are numbered.

    Raises:
        ValueError: the text has a form that is not known; nothing is guessed.
    """
    lines = _computations(text)
    times = _times(lines)
    found: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0])
    for name, body in lines.items():
        # TPUs write a reduce-scatter as a fusion of an all-reduce and the slice that is kept; and an exchange beside
        # matmuls several times: where it starts, in each fusion with a matmul, and where it is over.
        scatters = name.startswith("all-reduce-scatter")
        beside = any('"AsyncCollectiveStart"' in line for line in body)
        if name.startswith("async_collective_fusion") or any(
            '"AsyncCollectiveDone"' in line for line in body
        ):
            continue
        for line in body:
            match = _COLLECTIVE.search(line)
            if not match or not times[name]:
                continue
            kind = "reduce-scatter" if scatters and match[2] == "all-reduce" else match[2]
            axes, devices = _axes(line, mesh_shape)
            if devices == 1:
                continue
            each = found[kind, axes, devices, beside]
            each[0] += times[name] * _size(kind, match[1], bool(match[3]), devices, scatters)
            each[1] += times[name]
    result = [
        Collective(kind, axes, devices, bytes_, int(count), beside)
        for (kind, axes, devices, beside), (bytes_, count) in found.items()
    ]
    return sorted(result, key=lambda one: -one.bytes)


def _computations(text: str) -> dict[str, list[str]]:
    """Name to lines; the program itself is called ENTRY."""
    found: dict[str, list[str]] = {}
    body: list[str] | None = None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            body = found.setdefault("ENTRY" if header[1] else header[2], [])
        elif line.rstrip() == "}":  # others begin so within a kernel's description
            body = None
        elif body is not None:
            body.append(line)
    if "ENTRY" not in found:
        raise ValueError("expected a compiled program's text with an ENTRY, found none")
    return found


def _times(lines: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation is carried out."""
    calls = {name: list(_calls(body, lines)) for name, body in lines.items()}
    times: dict[str, int] = dict.fromkeys(lines, 0)

    def go(name: str, count: int) -> None:
        times[name] += count
        for called, rounds in calls[name]:
            go(called, count * rounds)

    go("ENTRY", 1)
    return times


def _calls(body: list[str], lines: dict[str, list[str]]) -> Iterator[tuple[str, int]]:
    """The computations that one calls, and how often."""
    for line in body:
        if loop := _WHILE.search(line):
            if _exchanges(loop[2], lines):  # of others it does not matter how often they run
                yield loop[2], _rounds(line, lines[loop[1]])
        else:
            yield from ((name, 1) for name in _named(line) if name in lines)


def _named(line: str) -> list[str]:
    groups = ",".join(_BRANCHES.findall(line)).replace("%", "").split(",")
    return [*_CALLED.findall(line), *(name.strip() for name in groups if name.strip())]


def _exchanges(name: str, lines: dict[str, list[str]]) -> bool:
    """Whether a computation, or one that it calls, exchanges anything."""
    for line in lines[name]:
        loop = _WHILE.search(line)
        called = [loop[2]] if loop else _named(line)
        if _COLLECTIVE.search(line) or any(_exchanges(other, lines) for other in called if other in lines):
            return True
    return False


def _rounds(line: str, condition: list[str]) -> int:
    """Of a loop: as the compiler says, or what its condition compares the counter with."""
    if known := re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', line):
        return int(known[1])
    constants = [int(n) for each in condition for n in re.findall(r"[su]32\[\]\S* constant\((\d+)\)", each)]
    if len(constants) != 1 or not any("direction=LT" in each for each in condition):
        raise ValueError(f"expected a loop whose rounds are known, found the condition {condition}")
    return constants[0]


def _size(kind: str, shapes: str, starts: bool, devices: int, slices: bool) -> float:
    """Bytes by the instruction's result; what only starts gives out `(operands, results)`.

    `slices`: what is written as an all-reduce, and of which each device then takes its part.
    """
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * _bytes_of(dtype)
        for dtype, dims in _ARRAY.findall(shapes)
    ]
    if starts and kind == "collective-permute":
        sizes = [size for size in sizes if size > 4]  # besides, two counters
    if starts and kind != "all-reduce":
        sizes = sizes[len(sizes) // 2 :]
    return sum(sizes) * (devices if kind == "reduce-scatter" and not slices else 1)


def _bytes_of(dtype: str) -> int:
    if dtype not in _BYTES:
        raise ValueError(f"expected one of {', '.join(_BYTES)} in a program's text, found {dtype}")
    return _BYTES[dtype]


def _axes(line: str, mesh_shape: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], int]:
    """Mesh axes along which the devices of an exchange differ, and how many devices that are."""
    names, sizes = [name for name, _ in mesh_shape], [size for _, size in mesh_shape]
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        numbers = [tuple(map(int, pair.split(","))) for pair in re.findall(r"\d+,\d+", pairs[1])]
        group = list(next((pair for pair in numbers if pair[0] != pair[1]), numbers[0][:1]))
    else:
        group = _group(line, math.prod(sizes))
    places = np.stack(np.unravel_index(np.asarray(group), sizes))
    differ = tuple(name for name, row in zip(names, places, strict=True) if len(set(row.tolist())) > 1)
    return differ, len(group)


def _group(line: str, num_devices: int) -> list[int]:
    """The first of the groups of devices that take part together."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))[0].tolist()
    form = r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
    if found := re.search(form, line):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        numbers = _iota(found[2], found[3]) if found[2] else np.arange(num_devices)
        inside = re.findall(r"'(\w+)'", found[4])
        if ":(" not in found[4] and all(name in axes for name in inside):
            index = tuple(slice(None) if name in inside else 0 for name in axes)
            return numbers.reshape([int(size) for size in axes.values()])[index].ravel().tolist()
    if "replica_groups={}" in line:
        return list(range(num_devices))
    raise ValueError(f"expected groups of devices in a form that is known, found {line.strip()[:300]}")


def _iota(dims: str, permutation: str | None) -> np.ndarray:
    sizes = [int(n) for n in dims.split(",")]
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    if permutation:
        numbers = numbers.transpose([int(n) for n in permutation.split(",")])
    return numbers.ravel()


def by_kind(collectives: Sequence[Collective]) -> dict[str, float]:
    """Bytes of each kind."""
    ordered = sorted(collectives, key=lambda one: one.kind)
    return {
        kind: sum(one.bytes for one in group)
        for kind, group in itertools.groupby(ordered, key=lambda one: one.kind)
    }
