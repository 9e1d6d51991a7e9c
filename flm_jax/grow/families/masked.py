"""Growth under a mask that is ramped from 0 to 1 (MSG, arXiv 2305.02869): new weights may hold anything."""

from flm_jax.grow import axis_map
from flm_jax.grow.rule import Fill, Growing, Operator, Rule, fill_all, is_folded, readout_fold
from flm_jax.parameters import Parameter


def _width(row: Parameter, growing: Growing) -> Rule:
    return Rule(Fill.INIT, readout_fold(growing.source, growing.target) if is_folded(row) else 1.0)


EMBED = Operator(
    axis_map.append, _width, "random weights, hidden by the mask in the norms (MSG)", masked=True
)
# Attention heads, queries of a key-value head, and FFN units.
UNITS = Operator(axis_map.append, fill_all(Fill.INIT), "random weights, hidden by the mask", masked=True)
LAYERS = Operator(
    axis_map.spread, fill_all(Fill.INIT), "random layers between the old, hidden by the mask", masked=True
)
