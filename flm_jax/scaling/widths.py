"""The same model at other widths: what µP compares and carries hyperparameters between."""

import dataclasses
from typing import Any

from flm_jax.config import ModelConfig


def at_width(config: ModelConfig, d_model: int) -> ModelConfig:
    """The model at another width: heads of the same size, as many more of them, and an FFN in proportion.

    Of d_model 256, 4 heads of 64 and d_ff 1,024, a width of 128 has 2 heads of 64 and d_ff 512. Depth, vocabulary and
    µP's base width stay.

    Raises:
        ValueError: the width is not in proportion to a whole number of heads, groups or FFN units.
    """
    scaled: dict[str, Any] = {"d_model": d_model}
    for name in ("num_heads", "num_kv_heads", "d_ff"):
        size = getattr(config, name)
        if size is None:
            continue
        scaled[name], rest = divmod(size * d_model, config.d_model)
        if rest or not scaled[name]:
            raise ValueError(
                f"a width of {d_model} would have {size * d_model / config.d_model:g} of ModelConfig.{name}, which is "
                f"{size} at ModelConfig.d_model = {config.d_model}: expected a whole number; give other --widths, or "
                "bind ModelConfig.head_dim to less"
            )
    return dataclasses.replace(config, **scaled)
