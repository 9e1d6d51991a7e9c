"""Layers that are copies of layers and act at once: not exact. Copies keep their source's moments and age."""

from collections.abc import Callable

from flm_jax.config import ModelConfig
from flm_jax.grow import axis_map
from flm_jax.grow.axis_map import AxisMap
from flm_jax.grow.rule import Fill, Operator, always, fill_all


def _copies(
    make_map: Callable[[int, int], AxisMap],
    says: str,
    unsuitable: Callable[[ModelConfig, ModelConfig], str | None] = always,
) -> Operator:
    return Operator(
        make_map, fill_all(Fill.COPY), says, exact=False, carries_moments=True, unsuitable=unsuitable
    )


def _at_most_twice(source: ModelConfig, target: ModelConfig) -> str | None:
    if target.num_layers <= 2 * source.num_layers:
        return None
    return (
        f"the middle of {source.num_layers} layers can be repeated once, up to {2 * source.num_layers} layers, not "
        f"{target.num_layers}; grow in several stages"
    )


STACK = _copies(axis_map.stack, "the layers again on top of themselves (G_stack)")
INTERPOLATE = _copies(axis_map.spread, "each layer again behind itself")
MIDDLE = _copies(axis_map.middle, "the layers in the middle once more (MIDAS)", _at_most_twice)
