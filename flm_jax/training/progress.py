"""Where a run stands, as the line that it prints."""

import time
from collections.abc import Mapping

from flm_jax.training.leg import Leg


def progress_line(step: int, leg: Leg, values: Mapping[str, float]) -> str:
    """One line for people.

    Args:
        step: Batches taken.
        leg: The present stage.
        values: As they are recorded.
    """
    parts = [
        f"step {step:>6}/{leg.end_of_run}",
        f"loss {values['train/loss']:.4f}",
        f"grad {values['train/grad_norm']:.3f}",
        f"lr {values['train/learning_rate']:.2e}",
    ]
    if values["train/skipped"]:
        parts.append(f"skipped {values['train/skipped']:.0f}")
    if "train/loss_slope" in values:
        parts.append(f"slope {values['train/loss_slope']:.3f}")
    if "speed/tokens_per_second" in values:
        left = (leg.end - step) * values["speed/seconds_per_step"]
        parts += [
            f"{values['speed/tokens_per_second']:,.0f} tok/s",
            f"{values['speed/seconds_per_step'] * 1e3:,.0f} ms/step",
            f"MFU {values['speed/mfu']:.1%}",
            *([f"HFU {values['speed/hfu']:.1%}"] if "speed/hfu" in values else []),
            f"{'left' if leg.is_last else 'left in stage'} {time.strftime('%H:%M:%S', time.gmtime(left))}",
        ]
    return "  ".join(parts)
