"""The gate: does the grown model compute what its source computed?

In float32 whatever precision the run has (float64 for float64 parameters), because bfloat16's rounding is larger than
what a wrong growth may do; in bfloat16 the loss is compared besides.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from flm_jax.config import at_least_float32
from flm_jax.grow.errors import FunctionChangedError
from flm_jax.grow.leaf import check_shapes
from flm_jax.grow.planning import GrowthPlan
from flm_jax.grow.tolerances import LOGITS, LOSS
from flm_jax.layers.readout import logits
from flm_jax.model import Batch, LanguageModel
from flm_jax.network import readout_table


@dataclasses.dataclass(frozen=True)
class Difference:
    """What a growth did to the function, on one batch.

    Attributes:
        precision: Of the comparison, float32 or float64.
        logits: Largest difference of an old token's logit, over the largest logit.
        largest_logit: Of the source, in absolute value.
        loss_before: Nats per token of the source.
        loss_after: Of the grown model, at mask 0 where it has one.
        own_precision_gap: `loss_after - loss_before` in the model's own dtype; equal to `gap` unless that is bfloat16.
    """

    precision: str
    logits: float
    largest_logit: float
    loss_before: float
    loss_after: float
    own_precision_gap: float

    @property
    def gap(self) -> float:
        """Nats per token that the loss has moved by."""
        return self.loss_after - self.loss_before


class Gate:
    """Compares one growth before and after; two calls, because the source may be given up in between.

    Args:
        plan: Of the growth.
        model: Its loss is compared; the config is the plan's.
    """

    def __init__(self, plan: GrowthPlan, model: LanguageModel) -> None:
        self._plan = plan
        self._model = model
        self._before: tuple[np.ndarray, list[float]] | None = None

    def before(self, params: Any, batch: Batch) -> None:
        """Takes down what the source computes with `params` on a packed batch, `[batch, length]` each."""
        self._before = self._measure(params, batch, grown=False)

    def after(self, params: Any, batch: Batch) -> Difference:
        """Compares with what the grown model computes with `params` at mask 0, on the same batch.

        Raises:
            FunctionChangedError: beyond the tolerances, if the plan claims to keep the function.
        """
        assert self._before is not None, "Gate.before comes first"
        old_logits, old_losses = self._before
        logits, losses = self._measure(params, batch, grown=True)
        largest = max(float(np.max(np.abs(old_logits))), 1e-30)
        found = Difference(
            precision=self._precision(params),
            logits=float(np.max(np.abs(logits - old_logits))) / largest,
            largest_logit=largest,
            loss_before=old_losses[0],
            loss_after=losses[0],
            own_precision_gap=losses[-1] - old_losses[-1],
        )
        if self._plan.exact:
            _check(found, self._plan)
        return found

    def _precision(self, params: Any) -> str:
        return str(at_least_float32(jax.tree.leaves(params)[0].dtype))

    def _measure(self, params: Any, batch: Batch, grown: bool) -> tuple[np.ndarray, list[float]]:
        """Old tokens' logits of the first sequence, and the loss in the gate's precision and in the model's own."""
        config = self._plan.target if grown else self._plan.source
        precision = self._precision(params)
        # The source too in the target's own, so that a change of it at the growth is not taken for one of the function.
        own = self._plan.target.dtype
        dtypes = [precision] + ([own] if own == "bfloat16" else [])
        firsts, losses = [], []
        for dtype in dtypes:
            model = self._model.with_config(dataclasses.replace(config, dtype=dtype, attention="auto"))

            def look(params: Any, batch: Batch, model: LanguageModel = model) -> tuple[jax.Array, jax.Array]:
                hidden = model.hidden(params, batch, self._plan.mask(0.0) if grown else None)
                sums = model.token_sums_of(hidden, params, batch)
                # Of one sequence: all logits together would take more memory than a training step.
                found = logits(hidden[:1], readout_table(params, model.config), model.config)
                old_tokens = found[0, :, : self._plan.source.vocab_size]
                return old_tokens, sums.nll / jnp.maximum(sums.weight, 1)

            with jax.default_matmul_precision("highest"):
                first, loss = jax.jit(look)(params, batch)
            firsts.append(first)
            losses.append(float(loss))
        # Of several processes each has a part of them.
        return np.asarray(multihost_utils.process_allgather(firsts[0], tiled=True)), losses


def verify(
    plan: GrowthPlan,
    params: Any,
    rng: jax.Array | None = None,
    batch: Batch | None = None,
    grown: Any = None,
) -> Difference:
    """Grows `params` and proves that the function is kept, or raises; compute in float64 for float64 parameters.

    Args:
        plan: The growth.
        params: Of `plan.source`.
        rng: Of the new weights; a fixed key unless given.
        batch: A packed batch to compare on; random tokens unless given.
        grown: The grown parameters, where they exist already.

    Returns:
        The measured difference; for a plan that is not exact it may be large.

    Raises:
        FunctionChangedError: the plan says that the function is kept, and it is not.
        GrowthError: parameters of another model.
    """
    check_shapes(params, plan.source, "parameters")
    if grown is not None:
        check_shapes(grown, plan.target, "grown parameters")
    rng = jax.random.key(0) if rng is None else rng
    batch = _random_batch(plan) if batch is None else batch
    gate = Gate(plan, LanguageModel(plan.source))
    gate.before(params, batch)
    return gate.after(jax.jit(plan.params)(params, rng) if grown is None else grown, batch)


def _random_batch(plan: GrowthPlan, rows: int = 2, length: int = 64) -> Batch:
    length = min(length, plan.source.max_length)
    tokens = np.random.default_rng(0).integers(0, plan.source.vocab_size, (rows, length + 1), dtype=np.int32)
    return {
        "decoder_input_tokens": tokens[:, :-1],
        "decoder_target_tokens": tokens[:, 1:],
        "decoder_loss_weights": np.ones((rows, length), np.int32),
    }


def _check(found: Difference, plan: GrowthPlan) -> None:
    low = plan.source.param_dtype == "bfloat16"  # then the weights themselves have rounded
    # More tokens to choose from make the loss another one; their logits are what is kept.
    has_loss = "vocab" not in plan.maps
    bounds = []
    if has_loss and (low or plan.target.dtype == "bfloat16"):
        bounds.append(("loss", abs(found.own_precision_gap), LOSS["bfloat16"], "bfloat16"))
    if not low:
        bounds.append(("largest logit, relatively,", found.logits, LOGITS[found.precision], found.precision))
        # A loss cannot be truer than its logits, and large ones round by more than the bound in nats.
        bound = max(LOSS[found.precision], LOGITS[found.precision] * found.largest_logit)
        if has_loss:
            bounds.append(("loss", abs(found.gap), bound, found.precision))
    for what, moved, bound, precision in bounds:
        # Written so that a difference that is not a number fails too.
        if not moved <= bound:
            raise FunctionChangedError(
                f"growth should keep the function, but in {precision} the {what} moved by {moved:.3g}, expected at "
                f"most {bound:g}; the plan was\n{plan.explain()}"
            )
