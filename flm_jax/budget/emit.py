"""The gin file that `flm train` runs a plan with."""

import textwrap

from flm_jax.budget import plan_report
from flm_jax.budget.planner import Plan
from flm_jax.config import ModelConfig

# Of the first stage's peak: FLM-101B's published 4e-4, 3.4e-4 and 2e-4; later stages have the last.
_PEAKS = (1.0, 0.85, 0.5)
# As in FLM-101B: warmup of the first stage, of later ones, and ours: the ramp of the mask; of short stages, shares.
_WARMUP, _REWARMUP, _RAMP = 2000, 100, 500
_WARMUP_SHARE, _RAMP_SHARE = 0.04, 0.1

_TEMPLATE = """# {verdict}.
#
# Written by
#
#   {command}
#
# Give it last, behind the same model file, your data's and the run's:
#
#   flm train {model} --gin_file=YOUR_DATA.gin \\
#       --gin_file=gin_configs/runs/pretrain.gin --gin_file=THIS.gin --gin.MODEL_DIR=...
#
# It has no layout. Find one with
#
#   flm compile {model} \\
#       --gin_file=gin_configs/runs/pretrain.gin --gin_file=THIS.gin --topology=... --search
#
# and put it behind this file.
#
# Predicted loss {loss:.4f} after {tokens:.4g} tokens, {days:.3g} days, {hours:,.0f} device-hours, {dollars}.
# Rates, warmups and ramps are to be tuned on a small width: later peaks are FLM-101B's {peaks} of the first,
# warmups are its own, ramps ours; of short stages both are shares. Assumed:
#
{assumptions}
from __gin__ import dynamic_registration
from flm_jax import config
from flm_jax.grow import schedule
from flm_jax.training import trainer
include 'gin_configs/growth/stages.gin'

TASK_FEATURE_LENGTHS = {{"targets": {length}}}  # of the prepared data, too

trainer.Trainer.stages = [{references}]
schedule.Stage.policy = "rewarmup"
BATCH_SIZE = {batch_size}
{max_length}{stages}"""


def gin(plan: Plan, command: str, model: str, learning_rate: float) -> str:
    """A complete file; gin reads it from anywhere.

    Args:
        plan: To be run.
        command: That made it.
        model: Flags of the family's model file, which the plan is given behind.
        learning_rate: The first stage's peak, at the µP base width.
    """
    wish, total = plan.wish, plan.ledger.total
    names = [row.name for row in plan.ledger.rows]
    return _TEMPLATE.format(
        verdict=plan_report.verdict(plan),
        command=command,
        model=model,
        loss=plan.best.loss,
        tokens=total.tokens,
        days=total.days,
        hours=total.device_hours,
        dollars="no price given" if total.dollars is None else f"${total.dollars:,.0f}",
        peaks=" and ".join(f"{share:g}" for share in _PEAKS[1:]),
        assumptions="\n".join(map(_comment, plan_report.assumptions(plan))),
        length=wish.length,
        references=", ".join(f"@{name}/schedule.Stage()" for name in names),
        batch_size=wish.batch_size,
        max_length=f"config.ModelConfig.max_length = {wish.length}\n" if wish.length > wish.shape.max_length else "",
        stages="".join(
            _stage(name, index, shape, steps, learning_rate)
            for index, (name, shape, steps) in enumerate(zip(names, plan.best.shapes, plan.steps, strict=True))
        ),
    )  # fmt: skip


def _comment(line: str) -> str:
    return textwrap.fill(line, 120, initial_indent="# - ", subsequent_indent="#   ", break_long_words=False)


def _stage(name: str, index: int, shape: ModelConfig, steps: int, learning_rate: float) -> str:
    warmup = min(_REWARMUP if index else _WARMUP, int(_WARMUP_SHARE * steps))
    settings = {
        "steps": steps,
        "learning_rate": float(f"{learning_rate * _PEAKS[min(index, len(_PEAKS) - 1)]:.4g}"),
        "warmup_steps": warmup,
    }
    if index:
        settings["ramp_steps"] = max(1, min(_RAMP, int(_RAMP_SHARE * steps)))
    sizes = ["d_model", "num_layers", "num_heads", "d_ff"]
    if shape.num_kv_heads is not None:
        sizes.append("num_kv_heads")
    lines = [f"{name}/schedule.Stage.{key} = {value!r}" for key, value in settings.items()]
    lines += [f"{name}/config.ModelConfig.{size} = {getattr(shape, size)}" for size in sizes]
    return f"\n# {shape.num_params:,} parameters\n" + "\n".join(lines) + "\n"
