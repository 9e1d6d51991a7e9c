"""A growth from one model to another, decided on sizes alone: `plan(source, target, method)`."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax import parameters
from flm_jax.config import ModelConfig
from flm_jax.grow import operators
from flm_jax.grow.axis_map import AxisMap
from flm_jax.grow.errors import FixedFieldError, GrowthError, ShrinkingError
from flm_jax.grow.explain import explain
from flm_jax.grow.leaf import CarryOut, check_shapes, grow_parameter, inline
from flm_jax.grow.operators import FIELDS, Operator, Rule
from flm_jax.grow.optimizer_state import grow_opt_state
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import Multipliers
from flm_jax.parameters import Parameter

# What a target may differ in besides its sizes; `norm_epsilon` is the plan's to set.
_FREE_FIELDS = ("dtype", "remat", "max_length", "init_std", "norm_epsilon")


@dataclasses.dataclass(frozen=True, eq=False)
class GrowthPlan:
    """What `plan` has decided: data, and the pure functions that carry it out.

    Attributes:
        source: The model as it is.
        target: The model to build and run: the requested sizes, with the norms' epsilon that keeps the function.
        operators: Axis to operator's name, of the axes that grow, in the order of `operators.OPERATORS`.
        maps: Axis to map, of the same axes.
    """

    source: ModelConfig
    target: ModelConfig
    operators: Mapping[str, str]
    maps: Mapping[str, AxisMap]

    @property
    def exact(self) -> bool:
        """Whether the function is kept, with the mask at 0 where there is one."""
        return all(operator.exact for operator in self.chosen.values())

    @property
    def masked(self) -> bool:
        """Whether the grown model needs a mask until its ramp is over."""
        return any(operator.masked for operator in self.chosen.values())

    @property
    def chosen(self) -> dict[str, Operator]:
        """Axis to operator, of the axes that grow."""
        return {axis: operators.OPERATORS[axis][name] for axis, name in self.operators.items()}

    def rules(self, row: Parameter) -> dict[str, Rule]:
        """What is done to a parameter, for each of its axes that grows."""
        return {
            axis: operator.rule(row, self.source, self.target)
            for axis, operator in self.chosen.items()
            if axis in row.axes
        }

    def weight(self, row: Parameter) -> float:
        """New value over old of every entry that was there."""
        return math.prod(rule.weight for rule in self.rules(row).values())

    def gradient_weight(self, row: Parameter) -> float:
        """New gradient over old, likewise."""
        return math.prod(rule.gradient_weight for rule in self.rules(row).values())

    def params(self, params: Any, rng: jax.Array, carry_out: CarryOut = inline) -> Any:
        """The grown parameters; pure, to be jitted with `out_shardings`.

        Args:
            params: Of `source`.
            rng: Key of the new weights' draws, which depend on it and on the parameters' names only.
            carry_out: How each leaf is grown; `leaf.LeafByLeaf(mesh)`, outside of jit, holds no old array longer than
                it must.
        """
        rows = parameters.table(self.target)
        check_shapes(params, self.source, "parameters")

        def one(path: Any, row: Parameter, old: jax.Array) -> jax.Array:
            name = "/".join(str(key.key) for key in path)
            # Python's own hash differs from process to process.
            key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
            return carry_out(grow_parameter, self, row, old, key)

        return jax.tree_util.tree_map_with_path(one, rows, params, is_leaf=parameters.is_parameter)

    def opt_state(self, opt_state: Any, policy: str = "carry", carry_out: CarryOut = inline) -> Any:
        """The grown optimizer state; pure.

        Args:
            opt_state: Of an optimizer over the parameters of `source`.
            policy: `carry` keeps the moments of what was there and gives new entries none; their age begins under
                `aged_adam`. `reset` begins Adam anew.
            carry_out: As in `params`.

        Raises:
            UnknownStateError: a part of the state is of a type that the library does not know how to grow.
        """
        return grow_opt_state(self, opt_state, policy, carry_out)

    def __call__(
        self, state: Any, rng: jax.Array, policy: str = "carry", carry_out: CarryOut = inline
    ) -> Any:
        """Grows a `TrainState`, or any named tuple with `params` and `opt_state`; pure."""
        return state._replace(
            params=self.params(state.params, rng, carry_out),
            opt_state=self.opt_state(state.opt_state, policy, carry_out),
        )

    def multipliers(self, source: Multipliers) -> Multipliers:
        """The optimizer's multipliers under which everything that was there trains on as it did.

        Where the value is w times the old and the gradient s times, Adam's epsilon is s times the old, the learning
        rate w times, the weight decay 1/w times. µP's own multipliers for matrices do not fall with the new width:
        what is carried keeps its rate.
        """
        rows = parameters.table(self.target)

        def scaled(mults: Any, factor: Any) -> Any:
            return jax.tree.map(
                lambda row, mult: mult * factor(row), rows, mults, is_leaf=parameters.is_parameter
            )

        return Multipliers(
            learning_rate=scaled(source.learning_rate, self.weight),
            weight_decay=scaled(source.weight_decay, lambda row: 1 / self.weight(row)),
            epsilon=scaled(source.epsilon, self.gradient_weight),
        )

    def mask(self, value: Any) -> GrowthMask | None:
        """The `growth=` of `Decoder` at a value of the ramp, from 0 (the old function) to 1 (no mask).

        None when the plan needs no mask.

        Raises:
            GrowthError: a number outside of 0 to 1.
        """
        if isinstance(value, int | float) and not 0 <= value <= 1:
            raise GrowthError(f"a mask opens from 0 to 1, found {value}")
        if not self.masked:
            return None
        value = jnp.asarray(value, jnp.promote_types(jnp.float32, jnp.result_type(float)))
        return GrowthMask(
            **{
                axis: jnp.where(self.maps[axis].is_new, value, jnp.ones_like(value))
                for axis, operator in self.chosen.items()
                if operator.masked
            }
        )

    def explain(self) -> str:
        """What grows, how, and what is kept to which precision, for people."""
        return explain(self)


def plan(source: ModelConfig, target: ModelConfig, method: str | Mapping[str, str] = "msg") -> GrowthPlan:
    """Decides how `source` becomes `target`; nothing is computed but index vectors.

    Args:
        source: The model as it is; of a model that has grown, the `target` of its last plan.
        target: The wanted sizes. Its `norm_epsilon` is not read: `GrowthPlan.target` has the one that must run.
        method: `msg` (everything under a ramped mask), `lemon` (no mask), `gstack` (layers only, not exact), or axis
            to operator, such as `{"embed": "average", "layers": "mask"}`.

    Raises:
        UnknownMethodError: the method does not exist, or says nothing of an axis that grows.
        ShrinkingError: an axis gets smaller.
        FixedFieldError: head_dim, the vocabulary or a constant of the function changes.
        GrowthError: nothing grows.
    """
    _check_fixed(source, target)
    sizes = {axis: (source.size(axis), target.size(axis)) for axis in FIELDS}
    for axis, (old, new) in sizes.items():
        if new < old:
            raise ShrinkingError(
                f"growth cannot make {FIELDS[axis]} smaller: the source has {old}, the target {new}; bind "
                f"ModelConfig.{FIELDS[axis]} of this stage to {old} or more"
            )
    growing = tuple(axis for axis, (old, new) in sizes.items() if new > old)
    chosen = operators.choose(method, growing)
    if not growing:
        raise GrowthError(
            "nothing grows: the target has the source's sizes; bind a larger ModelConfig."
            + ", ".join(FIELDS.values())
        )
    epsilon = source.norm_epsilon
    for axis, name in chosen.items():
        epsilon *= operators.OPERATORS[axis][name].epsilon(source, target)
    return GrowthPlan(
        source=source,
        target=dataclasses.replace(target, norm_epsilon=epsilon),
        operators=chosen,
        maps={axis: operators.OPERATORS[axis][name].make_map(*sizes[axis]) for axis, name in chosen.items()},
    )


def _check_fixed(source: ModelConfig, target: ModelConfig) -> None:
    reasons = {
        "head_dim": "xPos gives every pair of a head a frequency that depends on head_dim; grow num_heads instead",
        "vocab_size": "new rows would change the softmax over the old tokens; train with the final vocabulary",
    }
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for name in sorted(fields - set(FIELDS.values()) - set(_FREE_FIELDS)):
        old, new = getattr(source, name), getattr(target, name)
        if old != new:
            raise FixedFieldError(
                f"growth cannot change {name}: the source has {old!r}, the target {new!r}; "
                f"{reasons.get(name, 'the function would be another')}. Bind this stage's "
                f"ModelConfig.{name} to {old!r}"
            )
