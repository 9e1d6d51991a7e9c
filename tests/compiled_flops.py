"""FLOPs of a program's matmuls as XLA compiled it, read off its text: independent of what JAX traced."""

import math
import re

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_RESULT = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = \w+\[([\d,]*)\]")
_DOT = re.compile(r" dot\(.*?%([\w.\-]+),.*lhs_contracting_dims=\{([\d,]*)\}")
_WHILE = re.compile(r" while\(.*body=%?([\w.\-]+)")
_ROUNDS = re.compile(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)')
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=(\S+), false_computation=(\S+)")


def matmul_flops(text: str) -> int:
    """Of `compiled.as_text()`, two for a multiply-add; a loop's body as often as XLA says that it runs.

    Fails at what may hide a matmul: a convolution, a library's kernel, a loop of unknown length with matmuls.
    """
    assert " convolution(" not in text and "matmul" not in "".join(
        re.findall(r"custom_call_target=\S+", text)
    )
    computations: dict[str, list[str]] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            body = computations.setdefault("ENTRY" if header[1] else header[2], [])
        elif computations:
            body.append(line)

    def count(name: str) -> int:
        lines = computations[name]
        shapes = {
            found[1]: [int(n) for n in found[2].split(",") if n]
            for found in map(_RESULT.match, lines)
            if found
        }
        total = 0
        for line in lines:
            if dot := _DOT.search(line):
                result = _RESULT.match(line)
                assert result
                contracted = [shapes[dot[1]][int(axis)] for axis in dot[2].split(",")]
                total += 2 * math.prod(shapes[result[1]]) * math.prod(contracted)
            elif loop := _WHILE.search(line):
                if inside := count(loop[1]):
                    rounds = _ROUNDS.search(line)
                    assert rounds, f"a loop of unknown length with matmuls: {line[:200]}"
                    total += int(rounds[1]) * inside
            elif branches := _BRANCHES.search(line):
                names = re.findall(r"%?([\w.\-]+)", ",".join(filter(None, branches.groups())))
                total += max(count(branch) for branch in names)
            else:
                assert " dot(" not in line, f"a matmul in a form that is not known: {line[:200]}"
                total += sum(count(called) for called in _CALLED.findall(line))
        return total

    return count("ENTRY")
