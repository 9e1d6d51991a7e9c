"""Our optimizers under t5x's wrapper, with a state that both drivers read."""

from typing import Any

import jax
import optax
from flax.core import freeze, unfreeze
from t5x import optimizers

from flm_jax.aged_adam import AgedAdamState
from flm_jax.training.step import skipping_non_finite


def optimizer_def(optimizer: optax.GradientTransformation) -> optimizers.OptimizerDef:
    """t5x's `OptaxWrapper` around an optax optimizer, for `LanguageModel.optimizer_def`.

    As under our trainer, updates whose gradients are not finite are skipped and counted. t5x does not stop the run
    when there are many.
    """
    # t5x takes the states that it knows, and refuses others by name.
    optimizers.OptaxStatePartitionRules._RULES[AgedAdamState] = _aged_adam_axes
    return PlainDictWrapper(skipping_non_finite(optimizer))


class PlainDictWrapper(optimizers.OptaxWrapper):
    """t5x holds parameters in `FrozenDict`s; our optimizers lay trees of plain dicts beside them."""

    def init_state(self, params: Any) -> optimizers.OptimizerState:
        """The state for `params`."""
        return super().init_state(unfreeze(params))

    def apply_gradient(
        self, hyper_params: Any, params: Any, state: optimizers.OptimizerState, grads: Any
    ) -> tuple[Any, optimizers.OptimizerState]:
        """New parameters and state."""
        updated, state = super().apply_gradient(hyper_params, unfreeze(params), state, unfreeze(grads))
        return freeze(updated), state

    def derive_logical_axes(
        self, optimizer: optimizers.Optimizer, param_logical_axes: Any
    ) -> optimizers.Optimizer:
        """The optimizer with the axes of each array in its place."""
        return super().derive_logical_axes(optimizer, unfreeze(param_logical_axes))


def _aged_adam_axes(state: AgedAdamState, params_axes: Any) -> AgedAdamState:
    """Moments lie as their parameters do; the count and the births, vectors, are on every device."""
    like_params = optimizers.OptaxStatePartitionRules.derive_params_axes
    return AgedAdamState(
        count=None,  # type: ignore[arg-type]
        mu=like_params(state.mu, params_axes),
        nu=like_params(state.nu, params_axes),
        births=jax.tree.map(lambda vector: None, state.births),
    )
