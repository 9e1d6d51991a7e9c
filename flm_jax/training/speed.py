"""Tokens per second, model and hardware FLOPs utilisation, between two log lines."""

from collections.abc import Callable

from flm_jax.config import ModelConfig
from flm_jax.training.hardware import Peak


class Speedometer:
    """Counts steps and tokens between two readings.

    MFU is of the model FLOPs (`ModelConfig.flops_per_token`) of tokens that are not padding; HFU of those that the
    program carries out (`flm_jax.flops`), on padding too.

    Args:
        config: The model.
        length: Tokens of a sequence.
        peak: What utilisation is a share of.
        now: Clock in seconds that runs in training steps only (`Bookkeeper.training_seconds`).
    """

    def __init__(self, config: ModelConfig, length: int, peak: Peak, now: Callable[[], float]) -> None:
        self._flops = config.flops_per_token(length)
        self._peak = peak.flops_per_second
        self._now = now
        self._restart()

    def _restart(self) -> None:
        self._start = self._now()
        self._steps = 0
        self._tokens = 0.0
        self._hardware_flops: float | None = 0.0

    def step(self, tokens: float, hardware_flops: float | None) -> None:
        """Counts one step over `tokens` tokens, which carried out these FLOPs; None where they are not known."""
        self._steps += 1
        self._tokens += tokens
        known = self._hardware_flops is not None and hardware_flops is not None
        self._hardware_flops = (self._hardware_flops or 0.0) + (hardware_flops or 0.0) if known else None

    def read(self) -> dict[str, float]:
        """Speeds since the last reading, and begins to count anew; empty if no step was counted."""
        seconds = self._now() - self._start
        steps, tokens, hardware_flops = self._steps, self._tokens, self._hardware_flops
        self._restart()
        if not steps:
            return {}
        rate = tokens / seconds
        found = {
            "seconds_per_step": seconds / steps,
            "tokens_per_second": rate,
            "mfu": rate * self._flops / self._peak,
        }
        if hardware_flops is not None:
            found["hfu"] = hardware_flops / seconds / self._peak
        return found
