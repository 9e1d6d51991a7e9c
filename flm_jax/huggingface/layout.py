"""Where each parameter of ours lies among another format's tensors: one mapping, read both ways.

A format says what its tensors are called. How they lie follows from a parameter's axes and role alone: a matrix's
inputs are the axes that its product sums over (`Parameter.fan_in`), flattened, and so are its outputs; what is stacked
on `layers` is a tensor for each layer; parameters with one name are concatenated along their outputs.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import numpy as np

from flm_jax import parameters
from flm_jax.config import ModelConfig
from flm_jax.parameters import LAYERS, Parameter

KeyPath = tuple[str, ...]
Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Format:
    """The names of a format.

    Attributes:
        names: `group/parameter`, as in `parameters.table` but for `layers`, to the tensor's name; `{layer}` is the
            number of the block. Those that share a name are concatenated in this order.
        outputs_first: Whether matrices are [outputs, inputs], as torch's `Linear` has them; or [inputs, outputs], as
            GPT-2's `Conv1D`.
        ignored: Endings of tensors that may be there and hold nothing that was learnt.
    """

    names: Mapping[str, str]
    outputs_first: bool
    ignored: tuple[str, ...] = ()


LLAMA = Format(
    {
        "token_embedding/embedding": "model.embed_tokens.weight",
        "attention_norm/scale": "model.layers.{layer}.input_layernorm.weight",
        "attention/query_kernel": "model.layers.{layer}.self_attn.q_proj.weight",
        "attention/query_bias": "model.layers.{layer}.self_attn.q_proj.bias",
        "attention/key_kernel": "model.layers.{layer}.self_attn.k_proj.weight",
        "attention/key_bias": "model.layers.{layer}.self_attn.k_proj.bias",
        "attention/value_kernel": "model.layers.{layer}.self_attn.v_proj.weight",
        "attention/value_bias": "model.layers.{layer}.self_attn.v_proj.bias",
        "attention/out_kernel": "model.layers.{layer}.self_attn.o_proj.weight",
        "attention/out_bias": "model.layers.{layer}.self_attn.o_proj.bias",
        "mlp_norm/scale": "model.layers.{layer}.post_attention_layernorm.weight",
        "mlp/gate_kernel": "model.layers.{layer}.mlp.gate_proj.weight",
        "mlp/gate_bias": "model.layers.{layer}.mlp.gate_proj.bias",
        "mlp/wi_kernel": "model.layers.{layer}.mlp.up_proj.weight",
        "mlp/wi_bias": "model.layers.{layer}.mlp.up_proj.bias",
        "mlp/wo_kernel": "model.layers.{layer}.mlp.down_proj.weight",
        "mlp/wo_bias": "model.layers.{layer}.mlp.down_proj.bias",
        "final_norm/scale": "model.norm.weight",
        "readout/kernel": "lm_head.weight",
    },
    outputs_first=True,
    ignored=(".rotary_emb.inv_freq",),
)

# FLM-101B's own, which is GPT-2's; the names of what that block has not (SwiGLU's gate) are ours.
FLM = Format(
    {
        "token_embedding/embedding": "transformer.wte.weight",
        "attention_norm/scale": "transformer.h.{layer}.ln_1.weight",
        "attention_norm/bias": "transformer.h.{layer}.ln_1.bias",
        "attention/query_kernel": "transformer.h.{layer}.attn.c_attn.weight",
        "attention/key_kernel": "transformer.h.{layer}.attn.c_attn.weight",
        "attention/value_kernel": "transformer.h.{layer}.attn.c_attn.weight",
        "attention/query_bias": "transformer.h.{layer}.attn.c_attn.bias",
        "attention/key_bias": "transformer.h.{layer}.attn.c_attn.bias",
        "attention/value_bias": "transformer.h.{layer}.attn.c_attn.bias",
        "attention/out_kernel": "transformer.h.{layer}.attn.c_proj.weight",
        "attention/out_bias": "transformer.h.{layer}.attn.c_proj.bias",
        "mlp_norm/scale": "transformer.h.{layer}.ln_2.weight",
        "mlp_norm/bias": "transformer.h.{layer}.ln_2.bias",
        "mlp/wi_kernel": "transformer.h.{layer}.mlp.c_fc.weight",
        "mlp/wi_bias": "transformer.h.{layer}.mlp.c_fc.bias",
        "mlp/gate_kernel": "transformer.h.{layer}.mlp.c_gate.weight",
        "mlp/gate_bias": "transformer.h.{layer}.mlp.c_gate.bias",
        "mlp/wo_kernel": "transformer.h.{layer}.mlp.c_proj.weight",
        "mlp/wo_bias": "transformer.h.{layer}.mlp.c_proj.bias",
        "final_norm/scale": "transformer.ln_f.weight",
        "final_norm/bias": "transformer.ln_f.bias",
        "readout/kernel": "lm_head.weight",
    },
    outputs_first=False,
    ignored=(".attn.bias", ".attn.masked_bias", ".inv_freq"),
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A parameter of ours, or one layer of it, within a tensor.

    Attributes:
        path: Of the parameter in `parameters.table`.
        row: Of the table, one layer's share where it is stacked.
        start: Of its outputs among the tensor's.
        shape: In the tensor: flattened, and transposed where the format has outputs first.
    """

    path: KeyPath
    row: Parameter
    start: int
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of the format.

    Attributes:
        name: As it is stored.
        layer: The block's number; None outside of the blocks.
        parts: What is concatenated in it.
        shape: Of the whole.
        outputs_first: As in `Format`.
    """

    name: str
    layer: int | None
    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    outputs_first: bool

    def make(self, read: Callable[[KeyPath, int | None], np.ndarray]) -> np.ndarray:
        """The tensor, from our parameters: `read(path, layer)` gives one, or one layer of it."""
        arrays = [self._there(part, read(part.path, self.layer)) for part in self.parts]
        return np.ascontiguousarray(np.concatenate(arrays, axis=self._outputs) if arrays[1:] else arrays[0])

    def take(self, part: Part, read: Callable[[Index], np.ndarray], config: ModelConfig) -> np.ndarray:
        """One of our parameters, from the tensor: `read(index)` gives a part of that."""
        index = [slice(0, size) for size in self.shape]
        index[self._outputs] = slice(part.start, part.start + part.shape[self._outputs])
        array = read(tuple(index))
        return np.ascontiguousarray(self._turned(part, array)).reshape(part.row.shape(config))

    @property
    def _outputs(self) -> int:
        """The axis of a tensor along which parameters are concatenated."""
        return 0 if self.outputs_first else len(self.shape) - 1

    def _there(self, part: Part, array: np.ndarray) -> np.ndarray:
        turned = part.row.fan_in and self.outputs_first
        flat = array.reshape(part.shape[::-1] if turned else part.shape)
        return self._turned(part, flat)

    def _turned(self, part: Part, array: np.ndarray) -> np.ndarray:
        return array.T if part.row.fan_in and self.outputs_first else array


def tensors(config: ModelConfig, form: Format) -> list[Tensor]:
    """Every tensor of a model in a format: the embedding, block after block, final norm, readout."""
    blocks = [
        _tensor(config, form, name, rows, layer)
        for layer in range(config.num_layers)
        for name, rows in _named(config, form, stacked=True).items()
    ]
    outside = [
        _tensor(config, form, name, rows, None) for name, rows in _named(config, form, stacked=False).items()
    ]
    return [outside[0], *blocks, *outside[1:]]


def _named(config: ModelConfig, form: Format, stacked: bool) -> dict[str, list[tuple[KeyPath, Parameter]]]:
    """The parameters by the tensor that they are in, in the format's order; those of the blocks, or the others."""
    table = jax.tree_util.tree_leaves_with_path(parameters.table(config), is_leaf=parameters.is_parameter)
    rows = {tuple(str(entry.key) for entry in path): row for path, row in table}
    keys = {"/".join(path[-2:]): path for path, row in rows.items() if (LAYERS in row.axes) == stacked}
    found: dict[str, list[tuple[KeyPath, Parameter]]] = {}
    for key, name in form.names.items():
        if key in keys:
            found.setdefault(name, []).append((keys[key], rows[keys[key]]))
    if unnamed := keys.keys() - form.names.keys():
        raise ValueError(f"the format has no name for {', '.join(sorted(unnamed))}")
    return found


def _tensor(
    config: ModelConfig, form: Format, name: str, rows: list[tuple[KeyPath, Parameter]], layer: int | None
) -> Tensor:
    parts: list[Part] = []
    start = 0
    for path, stacked in rows:
        row = stacked.unstacked()
        shape = _flat(row, config)
        parts.append(Part(path, row, start, shape[::-1] if form.outputs_first and row.fan_in else shape))
        start += shape[-1]
    whole = list(parts[0].shape)
    if len(parts) > 1:
        whole[0 if form.outputs_first else -1] = start
    return Tensor(name.format(layer=layer), layer, tuple(parts), tuple(whole), form.outputs_first)


def _flat(row: Parameter, config: ModelConfig) -> tuple[int, ...]:
    """(inputs, outputs) of a matrix, (vocab, embed) of a table, (entries,) of a bias or a gain."""
    sizes = [config.size(axis) for axis in row.axes]
    if not row.fan_in:
        return tuple(sizes) if "vocab" in row.axes else (math.prod(sizes),)
    inputs = len(row.fan_in)
    return math.prod(sizes[:inputs]), math.prod(sizes[inputs:])
