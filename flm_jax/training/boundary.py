"""What happens between two stages: the state grows, and the gate says whether the function is kept."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flm_jax.grow.errors import FunctionChangedError
from flm_jax.grow.leaf import LeafByLeaf
from flm_jax.grow.verification import Difference, Gate
from flm_jax.training.leg import Leg
from flm_jax.training.placement import to_devices
from flm_jax.training.state import TrainState


def grow(
    old: Leg, new: Leg, state: TrainState, rows: Mapping[str, np.ndarray], seed: int
) -> tuple[TrainState, Difference]:
    """Grows `state`, whose arrays are given up one by one, onto the new stage's mesh.

    Args:
        old: The stage that is over.
        new: The one that begins.
        state: At the end of the old stage.
        rows: A batch to compare both models on; `num_rows_for_gate` sequences.
        seed: Of the new weights, together with the step.

    Raises:
        FunctionChangedError: beyond what the method may.
    """
    growth, step = old.route.plans[old.index], int(state.step)
    size = len(next(iter(rows.values())))
    gate = Gate(growth, new.model)
    with old.context():
        gate.before(state.params, to_devices(rows, old.batch_sharding, size, range(size)))
    key = growth_key(seed, step, old.index)
    grown = growth(state, key, new.stage.optimizer_state, LeafByLeaf(new.mesh), new.abstract_state)
    grown = jax.device_put(grown, new.shardings)  # counters, from the old mesh to the new
    try:
        with new.context():
            return grown, gate.after(grown.params, to_devices(rows, new.batch_sharding, size, range(size)))
    except FunctionChangedError as error:
        raise FunctionChangedError(
            f"at step {step}, growing to stage {new.index + 1}: {error}\nThe checkpoint of step {step}, before the "
            "growth, is intact."
        ) from error


def growth_key(seed: int, step: int, index: int) -> jax.Array:
    """Of the new weights of a run's growth, the one after `index` others, of which some may be of the same step.

    Threefry whatever the default is: of the other kinds a layer among others is drawn differently from one alone.
    """
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, step), index)


def num_rows_for_gate(old: Leg, new: Leg) -> int:
    """A microbatch of the new stage, or as many sequences as both meshes can split."""
    parts = math.lcm(*(leg.mesh.shape["data"] * leg.mesh.shape["fsdp"] for leg in (old, new)))
    return math.ceil(new.stage.batch_size // new.stage.num_microbatches / parts) * parts


def scalars(new: Leg, found: Difference) -> dict[str, float]:
    """For the log, at the step of the growth."""
    step = new.lineage.step
    values: dict[str, Any] = {
        "stage": new.index + 1,
        "parameters": new.config.num_params,
        "ramp_steps": new.lineage.ramp_end - step,
        "tokens": new.tokens(step),
        "flops": new.flops(step),
        "loss_before": found.loss_before,
        "loss_after": found.loss_after,
        "gap": found.gap,
        "own_precision_gap": found.own_precision_gap,
        "logits": found.logits,
    }
    return {f"growth/{name}": value for name, value in values.items()}


def line(old: Leg, new: Leg, found: Difference, started: float) -> str:
    """For people; `started` is when the growth was, by `time.perf_counter`."""
    own = f"; {found.own_precision_gap:+.2e} in {new.config.dtype}" if new.config.dtype == "bfloat16" else ""
    grown = f"grown from {old.config.num_params:,} to {new.config.num_params:,} parameters"
    if not new.lineage.records[-1].operators:
        grown = "the next stage begins, nothing grows; compared"
    seconds = time.perf_counter() - started
    return (
        f"step {new.lineage.step}: {grown} in {seconds:.1f} s; loss on the next batch {found.loss_before:.6f} before, "
        f"{found.loss_after:.6f} after (gap {found.gap:+.2e} nats, logits {found.logits:.1e} relative, "
        f"{found.precision}{own})"
    )
