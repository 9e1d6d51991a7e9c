"""Cross-entropy over a large vocabulary whose logits exist for a chunk of tokens at a time.

A chunk's logits give its part of the loss and, where gradients are wanted, of the gradients too, so nothing is computed
twice and what is left of a chunk is its rows of the hidden state's gradient. The table of V rows is split over the
devices of the mesh axes of `vocab` (Megatron, arXiv 1909.08053, section 3): each has the logits of its rows, and
maxima, sums and targets' logits go between them, [tokens] each.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from flm_jax.config import at_least_float32
from flm_jax.layers.product import product
from flm_jax.partitioning import axes_of, mesh_spec


class Sums(NamedTuple):
    """Of a batch's tokens, each weighted; all in at least float32."""

    total: jax.Array  # nll + z_loss; the one that gradients flow through
    nll: jax.Array  # negative log-likelihood, nats
    z_loss: jax.Array  # squared log of the softmax's normaliser, times the coefficient
    correct: jax.Array  # tokens whose target has the highest logit
    weight: jax.Array


class Tokens(NamedTuple):
    """Figures of every token, `[batch, length]`, not weighted."""

    nll: jax.Array
    correct: jax.Array


class Settings(NamedTuple):
    """What does not change from call to call.

    `scale` multiplies the hidden state before the readout; `z_loss` is the coefficient; `chunk` tokens of a device are
    looked at together; with `each` the figures of every token are wanted too.
    """

    scale: float
    z_loss: float
    chunk: int
    each: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_loss(
    settings: Settings, hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[Sums, Tokens | None]:
    """The loss of `targets` under the logits `scale * hidden @ table.T`, which never exist together.

    Two tokens with logits (0, 0) and (0, log 3), targets 0 and 1, weights 1 and 2: nll is log 2 + 2 log(4/3), weight 3.

    Args:
        settings: See there.
        hidden: `[batch, length, d_model]`.
        table: `[vocab, d_model]`.
        targets: `[batch, length]`, integers.
        weights: `[batch, length]`.

    Returns:
        Sums, of which `total` alone has a gradient, to `hidden` and `table`; and figures of every token, or None.
    """
    sums, each, _ = _over_mesh(settings, False, hidden, table, targets, weights)
    return sums, each


def _forward(
    settings: Settings, hidden: jax.Array, table: jax.Array, targets: jax.Array, weights: jax.Array
) -> tuple[tuple[Sums, Tokens | None], tuple[jax.Array, jax.Array]]:
    sums, each, gradients = _over_mesh(settings, True, hidden, table, targets, weights)
    assert gradients is not None
    return (sums, each), (gradients[0], gradients[1].astype(table.dtype))


def _backward(
    settings: Settings, gradients: tuple[jax.Array, jax.Array], cotangents: tuple[Sums, Tokens | None]
) -> tuple[jax.Array, jax.Array, None, None]:
    by_hidden, by_table = gradients
    factor = cotangents[0].total
    by_hidden = (by_hidden.astype(factor.dtype) * factor).astype(by_hidden.dtype)
    return by_hidden, (by_table.astype(factor.dtype) * factor).astype(by_table.dtype), None, None


chunked_loss.defvjp(_forward, _backward)


def _over_mesh(
    settings: Settings,
    differentiate: bool,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[Sums, Tokens | None, tuple[jax.Array, jax.Array] | None]:
    """`_on_device`, on every device of the mesh with its tokens and its rows of the table."""
    table = table.astype(hidden.dtype)  # before it is gathered
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _on_device(settings, differentiate, _Split((), (), None), hidden, table, targets, weights)
    rows = mesh_spec("batch", "length")
    tokens = tuple(axis for entry in rows for axis in axes_of(entry))
    split = _Split(tokens, axes_of(mesh_spec("vocab")[0]), mesh_spec("vocab", "embed")[1])
    by_hidden, whole = PartitionSpec(*rows, None), PartitionSpec()
    parts = (by_hidden, PartitionSpec(split.vocab, split.columns)) if differentiate else None
    return jax.shard_map(
        functools.partial(_on_device, settings, differentiate, split),
        in_specs=(by_hidden, PartitionSpec(split.vocab, None), rows, rows),
        out_specs=(Sums(*[whole] * len(Sums._fields)), Tokens(rows, rows) if settings.each else None, parts),
        check_vma=False,
    )(hidden, table, targets, weights)


class _Split(NamedTuple):
    """Mesh axes over which tokens, the table's rows and its gradient's columns are split."""

    tokens: tuple[str, ...]
    vocab: tuple[str, ...]
    columns: str | None


def _on_device(
    settings: Settings,
    differentiate: bool,
    split: _Split,
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[Sums, Tokens | None, tuple[jax.Array, jax.Array] | None]:
    """The sums over all devices, and this device's part of the rest."""
    wide = at_least_float32(hidden.dtype)
    shape = targets.shape
    inputs = _Inputs(
        hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1), weights.reshape(-1).astype(wide)
    )
    look = functools.partial(_chunk, settings, split.vocab, table, inputs)
    count = len(inputs.targets)
    zero, zeros = jnp.zeros((), wide), jnp.zeros(count, wide)
    carry = _Carry(
        Sums(*[zero] * len(Sums._fields)),
        Tokens(zeros, zeros) if settings.each else None,
        (jnp.zeros_like(inputs.hidden), jnp.zeros(table.shape, wide)) if differentiate else None,
    )
    size = min(settings.chunk, count)
    chunks, rest = divmod(count, size)
    if chunks == 1:
        carry = look(0, size, carry)
    else:
        carry = jax.lax.fori_loop(0, chunks, lambda index, carry: look(index * size, size, carry), carry)
    if rest:
        carry = look(chunks * size, rest, carry)
    sums = jax.tree.map(lambda value: _sum(value, split.tokens), carry.sums)
    each = jax.tree.map(lambda values: values.reshape(shape), carry.each)
    if carry.gradients is None:
        return sums, each, None
    by_hidden, by_table = carry.gradients
    if split.columns is not None:  # first, so that the rest of the sum is over a part
        by_table = jax.lax.psum_scatter(by_table, split.columns, scatter_dimension=1, tiled=True)
    by_table = _sum(by_table, tuple(axis for axis in split.tokens if axis != split.columns))
    return sums, each, (by_hidden.reshape(*shape, -1), by_table)


class _Inputs(NamedTuple):
    """Of this device's tokens: `[tokens, d_model]`, and twice `[tokens]`."""

    hidden: jax.Array
    targets: jax.Array
    weights: jax.Array


class _Carry(NamedTuple):
    """What the chunks before have added up to, and their rows of what has one for each token."""

    sums: Sums
    each: Tokens | None
    # To the hidden state and, of these tokens alone, to the table.
    gradients: tuple[jax.Array, jax.Array] | None


def _chunk(
    settings: Settings,
    over_vocab: tuple[str, ...],
    matrix: jax.Array,
    inputs: _Inputs,
    start: jax.Array | int,
    size: int,
    carry: _Carry,
) -> _Carry:
    """Adds the `size` tokens from `start` on."""
    x, target, weight = (jax.lax.dynamic_slice_in_dim(values, start, size) for values in inputs)
    wide = weight.dtype
    x = (x.astype(wide) * settings.scale).astype(x.dtype)
    logits = product("CD,VD->CV", x, matrix)
    first_row = jax.lax.axis_index(over_vocab) * len(matrix) if over_vocab else 0
    row = target - first_row  # of the target, on this device; another one's is outside
    highest = _max(jnp.max(logits, axis=-1), over_vocab)
    powers = jnp.exp(logits - highest[:, None])
    total = _sum(jnp.sum(powers, axis=-1), over_vocab)
    chosen = jnp.take_along_axis(logits, row[:, None], axis=-1, mode="fill", fill_value=0)[:, 0]
    chosen = _sum(jnp.where(row >= 0, chosen, 0), over_vocab)  # negative ones would count from the end
    log_total = highest + jnp.log(total)
    nll, squared = log_total - chosen, settings.z_loss * jnp.square(log_total)
    correct = (chosen == highest).astype(wide)
    terms = Sums(nll + squared, nll, squared, correct, jnp.ones_like(weight))
    sums = jax.tree.map(lambda before, term: before + jnp.sum(term * weight), carry.sums, terms)
    each = carry.each
    if each is not None:
        each = Tokens(_put(each.nll, nll, start), _put(each.correct, correct, start))
    if carry.gradients is None:
        return _Carry(sums, each, None)
    share = weight * (1 + 2 * settings.z_loss * log_total) / total
    here = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == row[:, None]
    by_logits = (powers * share[:, None] - jnp.where(here, weight[:, None], 0)).astype(x.dtype)
    by_x = _sum(product("CV,VD->CD", by_logits, matrix), over_vocab)
    by_hidden = _put(carry.gradients[0], (by_x * settings.scale).astype(x.dtype), start)
    by_table = product("CV,CD->VD", by_logits, x)
    return _Carry(sums, each, (by_hidden, carry.gradients[1] + by_table))


def _put(values: jax.Array, new: jax.Array, start: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, new, start, axis=0)


def _sum(values: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.psum(values, axes) if axes else values


def _max(values: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    return jax.lax.pmax(values, axes) if axes else values
