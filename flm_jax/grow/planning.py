"""A growth from one model to another, decided on sizes alone: `plan(source, target, method)`."""

import dataclasses
import math
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import parameters
from flm_jax.config import ModelConfig
from flm_jax.grow import operators
from flm_jax.grow.axis_map import AxisMap, along
from flm_jax.grow.errors import (
    FixedFieldError,
    GrowthError,
    ShrinkingError,
    SymmetryWarning,
    UnsuitableOperatorError,
)
from flm_jax.grow.explain import explain, symmetry_warning
from flm_jax.grow.leaf import CarryOut, check_shapes, grow_parameter, inline
from flm_jax.grow.multipliers import grown_multipliers
from flm_jax.grow.operators import field
from flm_jax.grow.optimizer_state import grow_opt_state
from flm_jax.grow.rule import Factor, Fill, Growing, Operator, Rule
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import Multipliers
from flm_jax.parameters import LAYERS, Parameter

_SIZES = ("vocab_size", "d_model", "num_heads", "num_kv_heads", "d_ff", "num_layers")
# What a target may differ in besides its sizes; the norms' constants are the plan's to set.
_FREE_FIELDS = ("dtype", "attention", "remat", "max_length", "init_std", "norm_epsilon", "norm_denominator")


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
        """Whether the function is kept, with the mask at 0 where there is one; on the old tokens' logits."""
        return all(operator.exact for operator in self.chosen.values())

    @property
    def bitwise(self) -> bool:
        """Whether the logits are kept to the last bit: new layers add zeros, and nothing else grows.

        A sum over more terms is cut into other parts by the libraries that compute it, even if the terms are zeros, so
        a matrix that grows is never claimed to be; now and then it is.
        """
        same = [getattr(self.source, name) == getattr(self.target, name) for name in ("dtype", "param_dtype")]
        # xPos is centred at half the length.
        same.append(self.source.xpos_scale_base is None or self.source.max_length == self.target.max_length)
        return all(same) and all(operator.bitwise for operator in self.chosen.values())

    @property
    def masked(self) -> bool:
        """Whether the grown model needs a mask until its ramp is over."""
        return any(operator.masked for operator in self.chosen.values())

    @property
    def symmetric(self) -> tuple[str, ...]:
        """The axes whose copies compute the same, and will for ever if the optimizer treats them alike."""
        drawn = (
            LAYERS in self.chosen and self.rules(parameters.mlp(self.target)["wi_kernel"].stacked())[LAYERS]
        )
        return tuple(
            axis
            for axis, operator in self.chosen.items()
            # Layers that are drawn read the copies of a coordinate with unlike weights.
            if operator.symmetric and not (axis == "embed" and drawn and drawn.fill is Fill.INIT)
        )

    @property
    def chosen(self) -> dict[str, Operator]:
        """Axis to operator, of the axes that grow."""
        return {axis: operators.OPERATORS[axis][name] for axis, name in self.operators.items()}

    def rules(self, row: Parameter) -> dict[str, Rule]:
        """What is done to a parameter, for each of its axes that grows."""
        return {
            axis: operator.rule(row, Growing(axis, self.maps[axis], self.source, self.target))
            for axis, operator in self.chosen.items()
            if axis in row.axes
        }

    def weight(self, row: Parameter) -> Factor:
        """New value over that of the old entry it comes from: a number, or an array that broadcasts over it."""
        return self._factor(row, lambda rule: rule.weight)

    def gradient_weight(self, row: Parameter) -> Factor:
        """New gradient over old, likewise."""
        return self._factor(row, lambda rule: rule.gradient_weight)

    def rate(self, row: Parameter) -> Factor:
        """New learning rate over old, likewise."""
        return self._factor(row, lambda rule: rule.rate)

    def _factor(self, row: Parameter, of: Callable[[Rule], Factor]) -> Factor:
        def spread(axis: str, factor: Factor) -> Factor:
            return (
                along(factor, row.axes.index(axis), len(row.axes))
                if isinstance(factor, np.ndarray)
                else factor
            )

        return math.prod(spread(axis, of(rule)) for axis, rule in self.rules(row).items())

    def is_new(self) -> Any:
        """For every parameter which entries the growth has added: bools that broadcast over it, numpy, in its tree.

        `jax.tree.map(np.any, plan.is_new())` is a mask for `optax.masked`: the parameters with new entries.
        """

        def one(row: Parameter) -> np.ndarray:
            found = np.zeros([1] * len(row.axes), bool)
            for dim, axis in enumerate(row.axes):
                if axis in self.maps:
                    found = found | along(self.maps[axis].is_new, dim, found.ndim)
            return found

        return jax.tree.map(one, parameters.table(self.target), is_leaf=parameters.is_parameter)

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
            return carry_out(grow_parameter, self, row, old, parameter_key(rng, path))

        return jax.tree_util.tree_map_with_path(one, rows, params, is_leaf=parameters.is_parameter)

    def opt_state(
        self, opt_state: Any, policy: str = "carry", carry_out: CarryOut = inline, like: Any = None
    ) -> Any:
        """The grown optimizer state; pure.

        Args:
            opt_state: Of an optimizer over the parameters of `source`.
            policy: `carry` keeps the moments and ages of what was there, and gives copies their source's. `age` gives
                copies none, as it gives none to other new entries: all begin now, which takes `aged_adam` or an
                optimizer without bias correction. `asymmetric` is `age`, for an optimizer that warms what is new up
                again (`optimizer.adamw(rewarm_steps=)`). `reset` begins anew for all.
            carry_out: As in `params`.
            like: The state of the target's optimizer, or its shapes (`jax.eval_shape(optimizer.init, params)`).
                The result is compared with it, and Adafactor learns from it what the target factors.

        Raises:
            UnknownStateError: a part of the state is of a type that the library does not know how to grow.
            GrowthError: the result is not `like` what it should be; an unknown policy.
        """
        return grow_opt_state(self, opt_state, policy, carry_out, like)

    def __call__(
        self,
        state: Any,
        rng: jax.Array,
        policy: str = "carry",
        carry_out: CarryOut = inline,
        like: Any = None,
    ) -> Any:
        """Grows a `TrainState`, or any named tuple with `params` and `opt_state`; pure.

        `like` is the state's of the target, or its shapes.
        """
        return state._replace(
            params=self.params(state.params, rng, carry_out),
            opt_state=self.opt_state(
                state.opt_state, policy, carry_out, None if like is None else like.opt_state
            ),
        )

    def multipliers(self, source: Multipliers, policy: str = "carry") -> Multipliers:
        """The optimizer's multipliers for the grown model; see `grow.multipliers`.

        Args:
            source: Those of the model as it is.
            policy: `carry`: everything that was there trains on as it did. `rederive`: matrices have what µP gives the
                new width.
        """
        return grown_multipliers(self, source, policy)

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


def parameter_key(rng: jax.Array, path: Any) -> jax.Array:
    """Of a parameter's draws; `path` is its key path in the tree."""
    name = "/".join(str(key.key) for key in path)
    # Python's own hash differs from process to process.
    return jax.random.fold_in(rng, zlib.crc32(name.encode()))


def plan(source: ModelConfig, target: ModelConfig, method: str | Mapping[str, str] = "msg") -> GrowthPlan:
    """Decides how `source` becomes `target`; nothing is computed but index vectors.

    Args:
        source: The model as it is; of a model that has grown, the `target` of its last plan.
        target: The wanted sizes. Its `norm_epsilon` and `norm_denominator` are not read: `GrowthPlan.target` has those
            that must run.
        method: One of `operators.METHODS`, such as `msg` (everything under a ramped mask), `lemon` (no mask) or
            `hypercloning` (copies), or axis to operator, such as `{"embed": "average", "layers": "mask"}`; `none` for
            a target of the same sizes.

    Warns:
        SymmetryWarning: copies that nothing tells apart.

    Raises:
        UnknownMethodError: the method does not exist, or says nothing of an axis that grows.
        UnsuitableOperatorError: an operator cannot grow this model, or not by this factor.
        ShrinkingError: an axis gets smaller.
        FixedFieldError: head_dim, the kind of attention, or a constant of the function changes.
        GrowthError: nothing grows, and the method is not `none`.
    """
    found = decide(source, target, method)
    if found.symmetric:
        warnings.warn(symmetry_warning(found), SymmetryWarning, stacklevel=2)
    return found


def decide(source: ModelConfig, target: ModelConfig, method: str | Mapping[str, str]) -> GrowthPlan:
    """`plan` without its warning: for a growth that has been planned before."""
    _check_fixed(source, target)
    sizes = {axis: (source.size(axis), target.size(axis)) for axis in operators.AXES}
    for axis, (old, new) in sizes.items():
        if new < old:
            per = " per key-value head" if axis == "queries" else ""
            raise ShrinkingError(
                f"growth cannot make {field(axis, source)}{per} smaller: the source has {old}, the target {new}; bind "
                f"ModelConfig.{field(axis, source)} of this stage so that there are {old}{per} or more"
            )
    growing = tuple(axis for axis, (old, new) in sizes.items() if new > old)
    chosen = operators.choose(method, growing)
    if not growing and method not in (operators.NO_GROWTH, {}):
        raise GrowthError(
            "nothing grows: the target has the source's sizes; bind a larger ModelConfig."
            + ", ".join(_SIZES)
            + " (for flm grow in the --target file, or by --gin.config.ModelConfig.num_layers=...)"
        )
    for axis, name in chosen.items():
        reason = operators.OPERATORS[axis][name].unsuitable(source, target)
        if reason:
            raise UnsuitableOperatorError(
                f"{axis!r}: {name!r} cannot grow {field(axis, source)} {sizes[axis][0]} to {sizes[axis][1]}: {reason} "
                "(Stage.method, or --method of flm grow, takes another method, or an operator for each axis)"
            )
    return GrowthPlan(
        source=source,
        target=dataclasses.replace(target, **_norm_constants(source, target, chosen)),
        operators=chosen,
        maps={axis: operators.OPERATORS[axis][name].make_map(*sizes[axis]) for axis, name in chosen.items()},
    )


def _norm_constants(source: ModelConfig, target: ModelConfig, chosen: Mapping[str, str]) -> dict[str, Any]:
    """What the norms divide by, and what they add before: both follow from what `embed` holds now."""
    if "embed" not in chosen:
        return {"norm_epsilon": source.norm_epsilon, "norm_denominator": source.norm_denominator}
    operator = operators.OPERATORS["embed"][chosen["embed"]]
    denominator = source.norm_denominator
    if operator.keeps_denominator:
        denominator = denominator or source.d_model
    elif denominator is not None:
        denominator *= target.d_model / source.d_model
    return {
        "norm_epsilon": source.norm_epsilon * operator.epsilon(source, target),
        "norm_denominator": denominator,
    }


def _check_fixed(source: ModelConfig, target: ModelConfig) -> None:
    reasons = {
        "head_dim": "the rotation gives every pair of a head a frequency that depends on head_dim; grow num_heads "
        "instead",
        "num_kv_heads": "grouped queries have an axis of their own; a model to be grown into one has num_kv_heads = "
        "num_heads",
    }
    sizes = set(_SIZES)
    if (source.num_kv_heads is None) != (target.num_kv_heads is None):
        sizes.remove("num_kv_heads")
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for name in sorted(fields - sizes - set(_FREE_FIELDS)):
        old, new = getattr(source, name), getattr(target, name)
        if old != new:
            raise FixedFieldError(
                f"growth cannot change {name}: the source has {old!r}, the target {new!r}; "
                f"{reasons.get(name, 'the function would be another')}. Bind this stage's "
                f"ModelConfig.{name} to {old!r}"
            )
