"""The sizes among which a plan is searched: one family of real shapes."""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction

from flm_jax.budget.problem import Sizes
from flm_jax.config import ModelConfig
from flm_jax.scaling.laws import LossLaw

# A size follows when it is this much larger: real shapes lie closer than predictions can tell apart.
_RATIO = 1.12
# Around the best size from scratch, how far sizes are looked at: none of a good plan is outside.
_SMALLEST, _LARGEST = 1 / 500, 4


def family(shape: ModelConfig, multiple: int = 1) -> Iterator[ModelConfig]:
    """Shapes of ever more heads with the proportions of `shape`: width, FFN and depth follow the heads.

    FLM-101B has 128 coordinates, 512 FFN units and one layer for a head; its family holds 64 layers of 8,192 and 80 of
    10,240. Every axis of a shape is at least as long as in those before, so that each can grow into all that follow.

    Args:
        shape: One of the family.
        multiple: Of which the heads are a multiple, so that tensor parallelism can divide them.

    Raises:
        ValueError: width or FFN units do not divide among the heads.
    """
    groups = shape.size("queries")
    step = math.lcm(groups, multiple)
    for name in ("d_model", "d_ff"):
        if getattr(shape, name) * groups % shape.num_heads:
            raise ValueError(
                f"a family of shapes needs as much of ModelConfig.{name} for each head (of grouped-query attention, "
                f"each group): bind it to a multiple of {shape.num_heads // groups}; found {getattr(shape, name):,}"
            )
    heads = 0
    while True:
        heads += step
        times = Fraction(heads, shape.num_heads)
        yield dataclasses.replace(
            shape,
            num_heads=heads,
            num_kv_heads=None if shape.num_kv_heads is None else heads // groups,
            d_model=int(shape.d_model * times),
            d_ff=int(shape.d_ff * times),
            num_layers=max(1, round(shape.num_layers * times)),
        )


def ladder(
    shape: ModelConfig, law: LossLaw, flops: float, length: int, max_tokens: float, multiple: int = 1
) -> list[ModelConfig]:
    """The shapes of a family that are worth a look with so many FLOPs, smallest first."""
    shapes: list[ModelConfig] = []
    best, best_loss = 0, float("inf")
    for config in family(shape, multiple):
        params = config.num_params
        if shapes and shapes[-1].num_params > best and params > _LARGEST * best:
            break
        if shapes and params < _RATIO * shapes[-1].num_params:
            continue
        shapes.append(config)
        loss = float(law.loss(params, min(flops / config.flops_per_token(length), max_tokens)))
        if loss < best_loss:
            best, best_loss = params, loss
    return [config for config in shapes if config.num_params >= _SMALLEST * best]


def sizes(shapes: list[ModelConfig], length: int) -> Sizes:
    """Parameters and FLOPs per token of shapes."""
    return Sizes.of(
        [config.num_params for config in shapes], [config.flops_per_token(length) for config in shapes]
    )
