"""What a plan will do, in words."""

from typing import TYPE_CHECKING

from flm_jax.grow.operators import field
from flm_jax.grow.rule import readout_fold
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
        name = field(axis, source) + (" / num_kv_heads" if axis == "queries" else "")
        lines.append(
            f"  {axis:<7} {name} {source.size(axis):,} -> {target.size(axis):,}  "
            f"{plan.operators[axis]}: {operator.says}; {kept}"
        )
    lines += _constants(plan)
    lines.append(_what_is_kept(plan))
    if "vocab" in plan.maps:
        lines.append(
            f"  exact on the logits of the {source.vocab_size:,} old tokens: the new ones take a share of every "
            "probability, and the loss changes"
        )
    if plan.symmetric:
        lines.append(f"  WARNING: {symmetry_warning(plan)}")
    if all(operator.masked for operator in plan.chosen.values()):
        lines.append(
            "  at mask 0 the old weights train on as they did, if the learning rate goes on; but for clipping by the "
            "norm"
        )
    elif set(plan.chosen) == set(plan.symmetric):
        lines.append(
            "  the trajectory is that of the source, and of nothing larger, but for clipping by the norm"
        )
    else:
        lines.append(
            "  the optimizer carries the old moments; the trajectory is another from the first update on"
        )
    if plan.masked:
        lines.append("  until the ramp is over the model runs with `growth=plan.mask(value)`")
    return "\n".join(lines)


def symmetry_warning(plan: "GrowthPlan") -> str:
    """Of copies that nothing tells apart."""
    return (
        f"the copies on {', '.join(plan.symmetric)} compute the same and have the same gradients: they stay equal, and "
        "the grown model is worth no more than its source, unless the optimizer's state grows by the policy age or "
        "asymmetric (Stage.optimizer_state); use duplicate_noise, uneven or net2net"
    )


def _constants(plan: "GrowthPlan") -> list[str]:
    """What changes besides sizes."""
    source, target = plan.source, plan.target
    lines = []
    if "embed" in plan.maps:
        fold, why = readout_fold(source, target), "because the readout's multiplier changes"
        if plan.chosen["embed"].carries_moments:
            fold, why = fold * source.d_model / target.d_model, "because the readout sums over more copies"
        if fold != 1:
            lines.append(f"  final norm x {fold:g}, {why}")
    for name in ("norm_epsilon", "norm_denominator"):
        before, after = getattr(source, name), getattr(target, name)
        if before != after:
            told = (f"{value:g}" if value is not None else "d_model" for value in (before, after))
            lines.append(f"  {name} {' -> '.join(told)}")
    return lines


def _what_is_kept(plan: "GrowthPlan") -> str:
    if not plan.operators:
        return "  nothing grows: the model stays as it is"
    if not plan.exact:
        return "  the function CHANGES: the loss may jump, and no gate holds it"
    if plan.target.param_dtype == "bfloat16":
        return (
            f"  the function is kept: loss to {LOSS['bfloat16']:g} nats, the weights themselves being rounded"
        )
    bitwise = "; bitwise, for new layers add zeros" if plan.bitwise else ""
    return (
        f"  the function is kept: logits to {LOGITS['float64']:g} relative in float64, {LOGITS['float32']:g} in "
        f"float32; loss to {LOSS['float32']:g} nats in float32 (more where logits are large), "
        f"{LOSS['bfloat16']:g} in bfloat16{bitwise}"
    )
