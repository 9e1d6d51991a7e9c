"""What the steps since the last report found: means over them, of all tokens and of each task's."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MEANS = ("loss", "z_loss", "accuracy", "grad_norm")
_SUMS = ("task_nll", "task_correct", "task_weight")


class StepWindow:
    """Collects the metrics of steps.

    Steps weigh by their tokens with loss; those whose loss or gradient is not finite are left out.

    Args:
        tasks: Names, as the steps' sums of each task are numbered; none for a run without.
    """

    def __init__(self, tasks: Sequence[str] = ()) -> None:
        self._tasks = tasks
        self._steps: list[dict[str, float]] = []
        self._sums = np.zeros((len(_SUMS), len(tasks)))

    def add(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Takes in the metrics of a step (`step.train_step`, as numpy); gives its scalars."""
        values = {name: float(value) for name, value in metrics.items() if name not in _SUMS}
        self._steps.append(values)
        if self._tasks and _is_good(values):
            self._sums += np.stack([metrics[name] for name in _SUMS])
        return values

    def take(self) -> dict[str, float]:
        """`train/loss` and so on, `train/<task>/loss` and `accuracy` of tasks that had tokens; then it is empty."""
        good = [values for values in self._steps if _is_good(values)]
        weights = np.array([max(values["loss_tokens"], 1e-9) for values in good])
        found = {
            f"train/{name}": float(np.average([v[name] for v in good], weights=weights)) if good else math.nan
            for name in _MEANS
        }
        for task, (nll, correct, weight) in zip(self._tasks, self._sums.T, strict=True):
            if weight:
                found[f"train/{task}/loss"] = float(nll / weight)
                found[f"train/{task}/accuracy"] = float(correct / weight)
        self._steps.clear()
        self._sums[:] = 0
        return found


def _is_good(values: Mapping[str, float]) -> bool:
    return math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])
