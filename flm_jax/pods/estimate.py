"""What a layout will need and take, in closed form: for a search through thousands of them (docs/pods.md).

Bytes of the state are counted; activations and gradients follow from what `remat` keeps; what a layer and the loss need
besides at their peak are sums of arrays whose numbers were fitted to compiled programs.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from flm_jax import parameters
from flm_jax.config import ModelConfig
from flm_jax.partitioning import MeshShape, mesh_spec, split_over_data
from flm_jax.pods import step_time
from flm_jax.pods.collectives import Collective
from flm_jax.pods.step_time import StepTime
from flm_jax.pods.topology import Topology

_F32 = 4
_CHUNK = 2048  # `LanguageModel.loss_chunk`, unless bound


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a step is laid out: what a search chooses."""

    mesh: MeshShape
    remat: str
    num_microbatches: int

    def __str__(self) -> str:
        """For people."""
        sizes = [(field.name, getattr(self.mesh, field.name)) for field in dataclasses.fields(self.mesh)]
        mesh = " x ".join(f"{name} {size}" for name, size in sizes if size > 1) or "one device"
        return f"{mesh}, remat {self.remat}, {self.num_microbatches} microbatches"


class Estimate(NamedTuple):
    """Of a layout."""

    peak: float  # bytes of one device
    time: StepTime


class _Sizes(NamedTuple):
    """Of one device and one microbatch, in entries."""

    tokens: int  # between the devices of `tensor` and `sequence` together
    residual: float  # entries of the residual stream
    whole: float  # of the stream with the whole length, as a sublayer reads it
    heads: float  # of queries or mixed values
    keys: float  # of keys or values
    units: float  # of FFN units
    layers: int  # on a stage
    ticks: int  # of a pipeline; 1 without
    layer: float  # parameters of a layer, not split over fsdp
    table: float  # of the token table, not split over fsdp


def sizes(config: ModelConfig, layout: Layout, batch: int, length: int) -> _Sizes:
    """The sizes that memory and exchanges are made of."""
    mesh, count = layout.mesh, layout.num_microbatches
    tokens = batch // (mesh.data * mesh.fsdp * count) * length // mesh.sequence
    heads, keys = config.num_heads * config.head_dim, config.size("heads") * config.head_dim
    ffn = 3 if config.activation == "swiglu" else 2
    layer = config.d_model * (2 * heads + 2 * keys + ffn * config.d_ff) / mesh.tensor
    return _Sizes(
        tokens=tokens,
        residual=tokens * config.d_model / mesh.tensor,
        whole=tokens * config.d_model,
        heads=tokens * heads / mesh.tensor,
        keys=tokens * keys / mesh.tensor,
        units=tokens * config.d_ff * (ffn - 1) / mesh.tensor,
        layers=config.num_layers // mesh.stage,
        ticks=count + mesh.stage - 1 if mesh.stage > 1 else 1,
        layer=layer,
        table=config.vocab_size * config.d_model / (mesh.stage * mesh.tensor),
    )


def kept(config: ModelConfig, layout: Layout, size: _Sizes) -> float:
    """Bytes that wait for the backward pass."""
    linear = size.heads + 2 * size.keys + size.residual + size.units
    attention = size.heads
    of_layer = {
        "full": size.residual,
        "stage": 0.0,
        "dots_no_batch": size.residual + linear,
        "dots": size.residual + linear + attention,
        "none": 3 * size.residual + linear + attention + size.units,
    }[layout.remat]
    found = of_layer * size.layers * size.ticks
    if layout.remat == "stage":
        found = size.residual * (size.ticks + size.layers)
    return jnp.dtype(config.dtype).itemsize * found


class _State(NamedTuple):
    """Bytes of one device."""

    params: int
    optimizer: int


def state_bytes(config: ModelConfig, mesh: Mesh) -> _State:
    """Parameters, and AdamW's two moments."""
    params = optimizer = 0
    size = jnp.dtype(config.param_dtype).itemsize
    for row in jax.tree.leaves(parameters.table(config), is_leaf=parameters.is_parameter):
        shape, sharding = row.shape(config), NamedSharding(mesh, mesh_spec(*row.axes))
        params += size * math.prod(sharding.shard_shape(shape))
        optimizer += 2 * size * math.prod(split_over_data(sharding, shape).shard_shape(shape))
    return _State(params, optimizer)


# How many arrays of a kind there are at the peak of a phase: fitted to the peaks of 37 programs compiled for TPUs
# (docs/pods.md), of which 36 come out within 8 %.
_GATHERED = 0.7  # a layer's parameters in bfloat16
_GRADIENT = 0.35  # a layer's gradient in float32, before it is scattered
_WHOLE = 4.3  # what a sublayer reads, its length whole
_UNITS = 6.5
_HEADS = 5.5
_HIDDEN = 1.8  # what the loss reads, its length whole
_LOGITS = 2.3  # of a chunk, in float32
_TABLE = 2.3  # the readout's gradient in float32, where there are several chunks


def temporaries(config: ModelConfig, layout: Layout, size: _Sizes, params: float) -> float:
    """Bytes that a step needs besides its state: the most of three phases.

    In the backward pass there are gradients, parameters in bfloat16, what waits for it, and what a layer needs; in the
    loss the logits of a chunk and the readout's gradient; in the update gradients and updates.

    Args:
        config: The model.
        layout: Of the step.
        size: Its sizes.
        params: Bytes of parameters on one device.
    """
    mesh, count, act = layout.mesh, layout.num_microbatches, jnp.dtype(config.dtype).itemsize
    pipelined = mesh.stage > 1
    parts = math.gcd(mesh.data, config.d_model)  # in which gradients lie over the data axis
    # Of a pipeline that is differentiated automatically each tick makes a whole set of gradients besides.
    gradients = params / parts if layout.remat in ("full", "stage") or not pipelined else 2 * params
    summed = params / parts if count > 1 and not pipelined else 0.0
    copies = params / 2 if config.dtype == "bfloat16" else 0.0  # of all layers, made before the loop
    waiting = kept(config, layout, size) + copies + summed
    rows = count if pipelined else 1
    layer = size.layer * (act * _GATHERED + _F32 * _GRADIENT)
    layer += act * (_WHOLE * size.whole + _UNITS * size.units + _HEADS * size.heads)
    if pipelined:
        layer += act * 4 * size.residual * rows
    tokens = size.tokens * rows
    chunk = min(_CHUNK, tokens) * config.vocab_size / (mesh.tensor * mesh.stage)
    loss = act * _HIDDEN * size.whole * rows + _F32 * _LOGITS * chunk
    if tokens > _CHUNK:
        loss += _F32 * _TABLE * size.table
    update = 2 * params / parts + (params if parts > 1 else 0)
    return max(gradients + waiting + layer, waiting + loss, update)


def estimate(
    config: ModelConfig, layout: Layout, batch: int, length: int, mesh: Mesh, topology: Topology
) -> Estimate:
    """Memory and time of a layout.

    Args:
        config: The model; its `remat` is not looked at.
        layout: Of the step.
        batch: Sequences a step.
        length: Tokens of a sequence.
        mesh: The layout's, of the topology's devices.
        topology: Where it runs.
    """
    size = sizes(config, layout, batch, length)
    state = state_bytes(config, mesh)
    peak = state.params + state.optimizer + temporaries(config, layout, size, state.params)
    flops = dataclasses.replace(config, remat=layout.remat).hardware_flops_per_token(length) * batch * length
    if layout.mesh.stage > 1:
        flops *= size.ticks / layout.num_microbatches  # idle stages compute what nobody looks at
    moved = 3 * state.params + 2 * state.optimizer
    time = step_time.predict(flops, moved, exchanged(config, layout, batch, length), mesh, topology)
    return Estimate(peak, time)


def exchanged(config: ModelConfig, layout: Layout, batch: int, length: int) -> list[Collective]:
    """What one device sends in a step."""
    mesh, count, size = layout.mesh, layout.num_microbatches, sizes(config, layout, batch, length)
    act = jnp.dtype(config.dtype).itemsize
    again = {"full": 1, "stage": 2}.get(layout.remat, 0)
    ticks = size.ticks if mesh.stage > 1 else count
    passes = ticks * size.layers
    found = []
    if mesh.fsdp > 1:
        gathers = (2 + (layout.remat == "stage")) * passes
        found.append(Collective("all-gather", ("fsdp",), mesh.fsdp, act * size.layer * gathers, gathers))
        found.append(Collective("reduce-scatter", ("fsdp",), mesh.fsdp, _F32 * size.layer * passes, passes))
    if mesh.data > 1:
        own = size.layer / mesh.fsdp
        found.append(Collective("all-reduce", ("data",), mesh.data, _F32 * own * passes, passes))
        found.append(Collective("all-gather", ("data",), mesh.data, _F32 * own * size.layers, size.layers))
    parts = mesh.tensor * mesh.sequence
    if mesh.tensor > 1:
        # Each sublayer gathers what it reads and scatters what it writes; the backward pass the reverse, and gathers
        # what it reads once more.
        gathers, scatters = passes * (2 + 4 + 2 * again), passes * (2 + 2 + again)
        found.append(Collective("all-gather", ("tensor",), parts, act * size.whole * gathers, gathers))
        # The loss adds up the gradient to what it has read, in float32.
        found.append(Collective("all-reduce", ("tensor",), parts, _F32 * size.whole * count, count))
        found.append(Collective("reduce-scatter", ("tensor",), parts, act * size.whole * scatters, scatters))
    if mesh.stage > 1:
        bytes_ = 2 * ticks * act * size.residual
        found.append(Collective("collective-permute", ("stage",), mesh.stage, bytes_, 2 * ticks))
        found.append(Collective("all-reduce", ("stage",), mesh.stage, bytes_, 2 * ticks))
    return found
