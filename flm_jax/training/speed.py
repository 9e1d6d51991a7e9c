"""Tokens per second, model and hardware FLOPs utilisation, between two log lines."""

import contextlib
import time
from collections.abc import Callable, Iterator

from flm_jax.config import ModelConfig
from flm_jax.training.hardware import Peak


class Speedometer:
    """Counts steps and tokens between two readings.

    Evaluation and compilation are left out of the time. Utilisation counts tokens that are not padding:
    model FLOPs by `ModelConfig.flops_per_token` (MFU), and those carried out by
    `ModelConfig.hardware_flops_per_token` (HFU: whole blocks of attention, and recomputation).

    Args:
        config: The model.
        length: Tokens of a sequence.
        peak: What utilisation is a share of.
        now: Clock in seconds, for tests.
    """

    def __init__(
        self, config: ModelConfig, length: int, peak: Peak, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._flops = config.flops_per_token(length)
        self._hardware_flops = config.hardware_flops_per_token(length)
        self._peak = peak.flops_per_second
        self._now = now
        self.restart()

    def restart(self) -> None:
        """Begins to count anew; what was not read is forgotten."""
        self._start = self._now()
        self._steps = 0
        self._tokens = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out."""
        paused_at = self._now()
        yield
        self._start += self._now() - paused_at

    def step(self, tokens: float) -> None:
        """Counts one step over `tokens` tokens."""
        self._steps += 1
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Speeds since the last reading, and begins to count anew; empty if no step was counted."""
        seconds = self._now() - self._start
        steps, tokens = self._steps, self._tokens
        self.restart()
        if not steps:
            return {}
        rate = tokens / seconds
        return {
            "seconds_per_step": seconds / steps,
            "tokens_per_second": rate,
            "mfu": rate * self._flops / self._peak,
            "hfu": rate * self._hardware_flops / self._peak,
        }
