"""How fast the loss is falling: the slope that ends a stage."""

from collections import deque
from collections.abc import Sequence

import numpy as np

# Of steps, however long the window: a line through a few losses says nothing.
MIN_POINTS = 10


class LossSlope:
    """Least-squares slope of the loss over the logarithm of the tokens, in a window of the latest share of them.

    Over the logarithm, because a loss that falls as a power of the tokens has nearly a constant slope there. The
    window is a share, such as the last quarter of all tokens so far, and not a number of steps: its extent on the
    logarithm is then the same early and late, and the more steps it holds, the less their noise matters.

    Args:
        window: Share of the run's tokens, between 0 and 1.
        start: The run's tokens when counting begins: the window may not reach back further.
        points: (tokens, loss) of earlier steps, to go on from: a checkpoint keeps them.
    """

    def __init__(self, window: float, start: float, points: Sequence[Sequence[float]] = ()) -> None:
        self._window = window
        self._start = start
        self._points: deque[tuple[float, float]] = deque((float(t), float(v)) for t, v in points)
        self._slope = self._fitted()

    @property
    def points(self) -> list[list[float]]:
        """The window, as plain JSON; floats survive it bit by bit."""
        return [list(point) for point in self._points]

    def add(self, tokens: float, loss: float) -> None:
        """Takes in the loss of a step after `tokens` tokens of the run; one before the start is not counted."""
        if tokens <= self._start:
            return
        self._points.append((tokens, loss))
        while self._points[0][0] <= tokens * (1 - self._window):
            self._points.popleft()
        self._slope = self._fitted()

    def slope(self) -> float | None:
        """Nats per token for an e-fold of tokens; None until the window is full."""
        return self._slope

    def _fitted(self) -> float | None:
        if len(self._points) < MIN_POINTS or self._points[-1][0] * (1 - self._window) < self._start:
            return None
        tokens, losses = np.array(self._points, np.float64).T
        x = np.log(tokens) - np.mean(np.log(tokens))
        return float(np.sum(x * losses) / np.sum(x * x))
