"""The table: for every parameter of the decoder the names of its axes and its role.

Whatever treats parameters differently (partitioning, initialisation, µP, growth, optimizer,
checkpoints, export) is a function of a row of this table and of the config, never of a parameter's
path. The modules under `layers/` declare their parameters from it, and `table(config)` gives it
in the shape of the parameter tree, so that such a function is one `jax.tree.map`.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.linen.partitioning import param_with_axes
from jax.nn import initializers

from flm_jax.config import ModelConfig

LAYERS = "layers"  # the axis on which the blocks' parameters are stacked


class Role(enum.Enum):
    """What a parameter does to the residual stream."""

    EMBEDDING = "embedding"  # token table; tied, it is the readout too
    READOUT = "readout"  # the readout's own table where it is not tied
    READ = "read"  # a matrix from the residual stream into a sublayer
    WRITE = "write"  # a matrix from a sublayer onto the residual stream
    NORM_GAIN = "norm_gain"
    NORM_BIAS = "norm_bias"
    READOUT_GAIN = (
        "readout_gain"  # of the norm before the readout, where growth folds in the readout's multiplier
    )
    READOUT_BIAS = "readout_bias"
    BIAS = "bias"  # of a matrix; it writes to the residual stream if its axes say `embed`


# µP divides the readout's input by the width multiplier (`ModelConfig.logit_scale`), so that its table is, like
# the embedding's, a parameter that width leaves alone: neither has a `fan_in`.
_TABLES = (Role.EMBEDDING, Role.READOUT)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
        axes: Names of the array's axes in order, of `vocab, embed, heads, queries, kv, mlp, layers`.
        role: What the parameter does.
        fan_in: For a matrix, the axes that its product sums over.
    """

    axes: tuple[str, ...]
    role: Role
    fan_in: tuple[str, ...] = ()

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Shape of the array in a model of this size."""
        return tuple(config.size(axis) for axis in self.axes)

    def init_std(self, config: ModelConfig) -> float:
        """Standard deviation of the initial normal draw; 0 for what starts constant.

        µScaling's rule with m the width multiplier of the fan-in: embedding and readout σ, matrices that read
        σ/√m, matrices that write σ/√(2 L m), where L is the number of layers.
        """
        mult = config.width_mult(*self.fan_in) if self.fan_in else 1.0
        if self.role in _TABLES:
            return config.init_std
        if self.role is Role.READ:
            return config.init_std / math.sqrt(mult)
        if self.role is Role.WRITE:
            return config.init_std / math.sqrt(2 * config.num_layers * mult)
        return 0.0

    def learning_rate_mult(self, config: ModelConfig) -> float:
        """µP's factor on the learning rate: 1/m for matrices, 1 for everything vector-like."""
        return 1 / config.width_mult(*self.fan_in) if self.fan_in else 1.0

    def weight_decay_mult(self, config: ModelConfig) -> float:
        """Factor on the weight decay: m for matrices, so that learning rate times decay is the same at every
        width under a decoupled AdamW; 0 for norms and biases; 1 for embedding and readout.
        """
        if self.fan_in:
            return config.width_mult(*self.fan_in)
        return 1.0 if self.role in _TABLES else 0.0

    def stacked(self) -> "Parameter":
        """The same parameter of all blocks together, the new axis `layers` in front."""
        return dataclasses.replace(self, axes=(LAYERS, *self.axes))

    def unstacked(self) -> "Parameter":
        """One block's share of a stacked parameter; itself where nothing is stacked."""
        return dataclasses.replace(self, axes=tuple(axis for axis in self.axes if axis != LAYERS))


def _read(*outputs: str) -> tuple[Parameter, Parameter]:
    return Parameter(("embed", *outputs), Role.READ, fan_in=("embed",)), Parameter(outputs, Role.BIAS)


def _write(*inputs: str) -> tuple[Parameter, Parameter]:
    return Parameter((*inputs, "embed"), Role.WRITE, fan_in=inputs), Parameter(("embed",), Role.BIAS)


def _matrices(config: ModelConfig, **matrices: tuple[Parameter, Parameter]) -> dict[str, Parameter]:
    named = {}
    for name, (kernel, bias) in matrices.items():
        named[f"{name}_kernel"] = kernel
        if config.use_bias:
            named[f"{name}_bias"] = bias
    return named


def _norm(config: ModelConfig, gain: Role, bias: Role) -> dict[str, Parameter]:
    rows = {"scale": Parameter(("embed",), gain)}
    if config.use_bias and config.norm == "layernorm":
        rows["bias"] = Parameter(("embed",), bias)
    return rows


def norm(config: ModelConfig) -> dict[str, Parameter]:
    """A norm in front of a sublayer."""
    return _norm(config, Role.NORM_GAIN, Role.NORM_BIAS)


def final_norm(config: ModelConfig) -> dict[str, Parameter]:
    """The norm in front of the readout."""
    return _norm(config, Role.READOUT_GAIN, Role.READOUT_BIAS)


def attention(config: ModelConfig) -> dict[str, Parameter]:
    """Four matrices; in grouped-query attention the query's and the output's have the axis `queries` too."""
    query_heads = ("heads", "queries", "kv") if config.grouped else ("heads", "kv")
    return _matrices(
        config,
        query=_read(*query_heads),
        key=_read("heads", "kv"),
        value=_read("heads", "kv"),
        out=_write(*query_heads),
    )


def mlp(config: ModelConfig) -> dict[str, Parameter]:
    """Two matrices, or three with SwiGLU's gate."""
    gate = {"gate": _read("mlp")} if config.activation == "swiglu" else {}
    return _matrices(config, wi=_read("mlp"), **gate, wo=_write("mlp"))


def block(config: ModelConfig) -> dict[str, dict[str, Parameter]]:
    """One block, not stacked."""
    return {
        "attention_norm": norm(config),
        "attention": attention(config),
        "mlp_norm": norm(config),
        "mlp": mlp(config),
    }


def embedding() -> dict[str, Parameter]:
    """The token table."""
    return {"embedding": Parameter(("vocab", "embed"), Role.EMBEDDING)}


def readout() -> dict[str, Parameter]:
    """The table of a readout that is not tied to the embedding."""
    return {"kernel": Parameter(("vocab", "embed"), Role.READOUT)}


def table(config: ModelConfig) -> dict[str, Any]:
    """The rows in the shape of `Decoder(config).init(...)["params"]`, blocks stacked on `layers`."""
    rows: dict[str, Any] = {
        "token_embedding": embedding(),
        LAYERS: jax.tree.map(Parameter.stacked, block(config), is_leaf=is_parameter),
        "final_norm": final_norm(config),
    }
    if not config.tied_readout:
        rows["readout"] = readout()
    return rows


def is_parameter(node: Any) -> bool:
    """Whether `node` is a row of the table: the `is_leaf` of maps over `table(config)`."""
    return isinstance(node, Parameter)


def declare(module: nn.Module, rows: Mapping[str, Parameter], config: ModelConfig) -> dict[str, jax.Array]:
    """Creates on `module` the parameters named in `rows`, with their axes, and returns their values.

    The axis names go to the collection `params_axes`, where t5x reads them.
    """
    return {
        name: param_with_axes(
            name,
            initializer(row, config),
            row.shape(config),
            config.param_dtype,
            axes=row.axes,
            module=module,
        )
        for name, row in rows.items()
    }


def initializer(row: Parameter, config: ModelConfig) -> initializers.Initializer:
    """Draws the parameter's initial value, `(key, shape, dtype) -> array`; norm gains start at 1, biases at 0."""
    std = row.init_std(config)
    if std:
        return initializers.normal(std)
    return initializers.ones if row.role in (Role.NORM_GAIN, Role.READOUT_GAIN) else initializers.zeros
