"""What a plan will do, in words."""

from typing import TYPE_CHECKING

from flm_jax.grow import operators
from flm_jax.grow.tolerances import LOGITS, LOSS

if TYPE_CHECKING:
    from flm_jax.grow.planning import GrowthPlan


def explain(plan: "GrowthPlan") -> str:
    """See `GrowthPlan.explain`."""
    source, target = plan.source, plan.target
    lines = [
        f"{source.num_params:,} -> {target.num_params:,} parameters (x {target.num_params / source.num_params:.2f})"
    ]
    for axis, operator in plan.chosen.items():
        kept = "exact at mask 0" if operator.masked else "exact" if operator.exact else "NOT exact"
        lines.append(
            f"  {axis:<6} {operators.FIELDS[axis]} {source.size(axis):,} -> {target.size(axis):,}  "
            f"{plan.operators[axis]}: {operator.says}; {kept}"
        )
    if "embed" in plan.maps:
        fold = operators.readout_fold(source, target)
        if fold != 1:
            lines.append(
                f"  gain and bias of the final norm x {fold:g}, for the readout's multiplier falls with d_model"
            )
        if target.norm_epsilon != source.norm_epsilon:
            lines.append(f"  norm_epsilon {source.norm_epsilon:g} -> {target.norm_epsilon:g}")
    if plan.exact and target.param_dtype == "bfloat16":
        lines.append(
            f"  the function is kept: loss to {LOSS['bfloat16']:g} nats, the weights themselves being rounded"
        )
    elif plan.exact:
        lines.append(
            f"  the function is kept: logits to {LOGITS['float64']:g} relative in float64, {LOGITS['float32']:g} in "
            f"float32; loss to {LOSS['float32']:g} nats in float32 (more where logits are large), "
            f"{LOSS['bfloat16']:g} in bfloat16"
        )
    else:
        lines.append("  the function CHANGES: the loss may jump, and no gate holds it")
    lines.append(
        "  at mask 0 the old weights train on as they did, if the learning rate goes on; but for clipping by the norm"
        if all(operator.masked for operator in plan.chosen.values())
        else "  the optimizer carries the old moments; the trajectory is another from the first update on"
    )
    if plan.masked:
        lines.append("  until the ramp is over the model runs with `growth=plan.mask(value)`")
    return "\n".join(lines)
