"""How fast the loss is falling: the slope that ends a stage."""

from collections import deque
from collections.abc import Sequence

import numpy as np


class LossSlope:
    """Least-squares slope of the loss over the logarithm of the tokens, in a window of the latest steps.

    Over the logarithm, because a loss that falls as a power of the tokens has nearly a constant slope there, and
    because the number then means the same at 10⁶ and at 10¹² tokens. The fit over a window is what smooths.

    Args:
        window: Steps.
        points: (tokens, loss) of earlier steps, to go on from: a checkpoint keeps them.
    """

    def __init__(self, window: int, points: Sequence[Sequence[float]] = ()) -> None:
        self._points: deque[tuple[float, float]] = deque(
            ((float(t), float(v)) for t, v in points), maxlen=window
        )

    @property
    def points(self) -> list[list[float]]:
        """The window, as plain JSON; floats survive it bit by bit."""
        return [list(point) for point in self._points]

    def add(self, tokens: float, loss: float) -> None:
        """Takes in the loss of a step after `tokens` tokens of the run."""
        self._points.append((tokens, loss))

    def slope(self) -> float | None:
        """Nats per token for an e-fold of tokens; None until the window is full."""
        if len(self._points) < (self._points.maxlen or 0):
            return None
        tokens, losses = np.array(self._points, np.float64).T
        x = np.log(tokens) - np.mean(np.log(tokens))
        return float(np.sum(x * losses) / np.sum(x * x))
