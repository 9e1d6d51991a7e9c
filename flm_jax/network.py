"""The decoder: embedding, scanned blocks, final norm, readout."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.partitioning import scan_with_axes

from flm_jax.config import ModelConfig
from flm_jax.layers import remat
from flm_jax.layers.attention import choose, see
from flm_jax.layers.block import Block
from flm_jax.layers.embedding import Embedding
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.layers.norm import Norm
from flm_jax.layers.pipeline import STAGE, pipelined
from flm_jax.layers.readout import Readout
from flm_jax.layers.xpos import rotation
from flm_jax.parameters import LAYERS, final_norm
from flm_jax.partitioning import axis_size, constrain, platform


class Decoder(nn.Module):
    """The decoder: `Decoder(config).init(rng, tokens)`, `.apply({"params": params}, tokens)`."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array | None = None,
        decoder_segment_ids: jax.Array | None = None,
        decoder_positions: jax.Array | None = None,
        decoder_causal_attention: jax.Array | None = None,
        *,
        decode: bool = False,
        prefill: bool = False,
        prefill_lengths: jax.Array | None = None,
        max_decode_length: int | None = None,
        enable_dropout: bool = False,
        growth: GrowthMask | None = None,
        num_microbatches: int = 1,
        return_hidden: bool = False,
    ) -> jax.Array:
        """Scores the next token at every position. The names are those by which t5x calls a decoder.

        Args:
            decoder_input_tokens: `[B, L]`, token 0 where a document begins.
            decoder_target_tokens: Ignored: a causal model needs no padding mask.
            decoder_segment_ids: `[B, L]`, equal within a document, 0 for padding; None is one document a row.
            decoder_positions: `[B, L]`, from 0 in each document; None counts along the row.
            decoder_causal_attention: Must be None: prefixes are read causally.
            decode: Use the key-value cache (collection `cache`, mutable): the L tokens are written behind those
                that it holds. Initialise with `decode=True` on tokens of the wanted cache length.
            prefill: With `decode`, take the tokens as right-padded prompts of `prefill_lengths`.
            prefill_lengths: `[B]`, the prompts' lengths; the cache goes on from there.
            max_decode_length: Ignored: the cache has the length that it was initialised with.
            enable_dropout: Ignored: the model has no dropout.
            growth: What hides the new entries of a growth while its mask ramps: `GrowthPlan.mask(value)`.
            num_microbatches: Into which the batch is divided where the mesh has pipeline stages; a divisor of B.
            return_hidden: Stop before the readout.

        Returns:
            Logits `[B, L, V]`, in at least float32; or what the readout reads, `[B, L, D]`.

        Raises:
            ValueError: a bidirectional prefix, prefill without lengths, or float64 without `JAX_ENABLE_X64`.
        """
        del decoder_target_tokens, max_decode_length, enable_dropout
        _refuse(self.config, decoder_causal_attention, prefill, prefill_lengths)
        tokens = decoder_input_tokens
        steps = jnp.arange(tokens.shape[1])[None, :]
        cache_index = None
        if decode or prefill:
            cache_index = self._advance(tokens, prefill_lengths if prefill else None)
            positions = cache_index[:, None] + steps
        else:
            positions = steps if decoder_positions is None else decoder_positions

        embedding = Embedding(self.config, name="token_embedding")
        x = constrain(embedding(tokens), "batch", "residual", "embed")
        x = x.astype(remat.kept_dtype(x.dtype))
        growth = GrowthMask() if growth is None else growth
        if axis_size(STAGE) > 1 and cache_index is None and not self.is_initializing():
            positions = jnp.broadcast_to(positions, tokens.shape)
            x = self._pipelined(x, positions, decoder_segment_ids, growth, num_microbatches)
        else:
            blocks = _scanned(self.config)(self.config, name=LAYERS)
            visible = None
            if cache_index is None:
                # Parameters are drawn on a token or two, which a kernel would refuse.
                initializing = self.is_initializing()
                backend = "dense" if initializing else choose(self.config, tokens.shape[1], platform())
                visible = see(backend, tokens.shape, decoder_segment_ids)
            x, _ = blocks(x, rotation(positions, self.config), visible, cache_index, growth, growth.layers)
        x = x.astype(self.config.dtype)
        x = Norm(self.config, final_norm(self.config), name="final_norm")(x, growth.embed)
        readout = embedding.logits if self.config.tied_readout else Readout(self.config, name="readout")
        if return_hidden:
            return x
        return constrain(readout(x), "batch", "length", "vocab")

    def _pipelined(
        self,
        x: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None,
        growth: GrowthMask,
        num_microbatches: int,
    ) -> jax.Array:
        """The blocks as pipeline stages."""
        layers = (self.variables["params"][LAYERS], growth.layers)
        layer = _Layer(self.config, choose(self.config, positions.shape[1], platform()))
        beside = (positions, segment_ids)
        shared = growth._replace(layers=None)
        return pipelined(layer, layers, shared, x, beside, num_microbatches, self.config.remat)

    def _advance(self, tokens: jax.Array, prefill_lengths: jax.Array | None) -> jax.Array:
        """Where in the cache each example's `tokens` `[B, L]` go, `[B]`; moves the index behind them."""
        initialised = self.has_variable("cache", "cache_index")
        index = self.variable("cache", "cache_index", jnp.zeros, (tokens.shape[0],), jnp.int32)
        start = index.value
        if initialised:
            # What right padding left in the cache is overwritten before a later token can look at it.
            end = start + tokens.shape[1] if prefill_lengths is None else start + prefill_lengths
            index.value = end.astype(jnp.int32)
        return start


def _refuse(
    config: ModelConfig,
    decoder_causal_attention: jax.Array | None,
    prefill: bool,
    prefill_lengths: jax.Array | None,
) -> None:
    """Raises for arguments that the decoder would have to leave out of account."""
    if decoder_causal_attention is not None:
        raise ValueError(
            "the FLM decoder reads prefixes causally: expected decoder_causal_attention=None, found an array "
            "(under t5x bind DecoderOnlyModel.inputs_bidirectional_attention = False)"
        )
    if "float64" in (config.dtype, config.param_dtype) and not jax.config.jax_enable_x64:
        raise ValueError(
            "ModelConfig asks for float64, which JAX would make float32 in silence; set JAX_ENABLE_X64=1, or bind "
            'ModelConfig.dtype and ModelConfig.param_dtype to "float32"'
        )
    if prefill and prefill_lengths is None:
        raise ValueError("prefill=True needs prefill_lengths [batch], found None")


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A block as a pipeline stage applies it."""

    config: ModelConfig
    backend: str

    def __call__(
        self,
        layer: tuple[Any, jax.Array | None],
        growth: GrowthMask,
        x: jax.Array,
        beside: tuple[jax.Array, jax.Array | None],
    ) -> jax.Array:
        """The next layer's x, from one layer's parameters and factor, and positions and segments of the rows."""
        params, keep = layer
        positions, segment_ids = beside
        visible = see(self.backend, positions.shape, segment_ids)
        block = Block(self.config, parent=None)
        turned = rotation(positions, self.config)
        return block.apply({"params": params}, x, turned, visible, None, growth, keep)[0]


def readout_table(params: Any, config: ModelConfig) -> jax.Array:
    """The table `[V, D]` of the readout, which is the embedding's where it is tied."""
    return params["token_embedding"]["embedding"] if config.tied_readout else params["readout"]["kernel"]


def _scanned(config: ModelConfig) -> Any:
    block: Any = Block
    if config.remat != "none":
        block = nn.remat(Block, **remat.settings(config.remat))
    return scan_with_axes(
        block,
        variable_axes={"params": 0, "cache": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0),
        length=config.num_layers,
        axis_name=LAYERS,
        axes_collections=("params",),
    )
