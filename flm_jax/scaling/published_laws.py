"""Loss laws to plan with: two published ones by name, and fitted ones from a file."""

import json
import math
from pathlib import Path
from typing import Any

from flm_jax.scaling.laws import LossLaw

LAWS = {
    # arXiv 2203.15556, section D.2 (equation 10). Rounded for print, which biases the optimum; kept for comparison.
    "hoffmann2022": LossLaw(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28),
    # The same runs, fitted again: arXiv 2404.10102, table 1.
    "besiroglu2024": LossLaw(E=1.8172, A=482.01, alpha=0.3478, B=2085.43, beta=0.3658),
}
_KEYS = ("E", "A", "alpha", "B", "beta")


def named(name: str) -> LossLaw:
    """A published law, or that of a JSON file with the keys E, A, alpha, B, beta, such as `flm scaling fit` writes.

    Raises:
        ValueError: there is no such law or file, or the file does not hold one.
    """
    if name in LAWS:
        return LAWS[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(
            f"--law must be one of {', '.join(LAWS)} or a JSON file with the keys {', '.join(_KEYS)}; found {name!r}, "
            "which is neither"
        )
    try:
        found = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--law={name} is no JSON: {error}") from error
    found = found if isinstance(found, dict) else {}
    if {"a", "b", "c"} <= set(found):
        raise ValueError(
            f"--law={name} is a fit of L(C), over sizes alone, and a plan needs L(N, D): give flm scaling fit a CSV "
            "with the column tokens_millions"
        )
    values: dict[str, float] = {}
    for key in _KEYS:
        value: Any = found.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (key != "E" and value <= 0):
            kind = "a number" if key == "E" else "a positive number"
            raise ValueError(f"--law={name} must hold {kind} under the key {key}, found {value!r}")
        values[key] = value
    return LossLaw(**values)
