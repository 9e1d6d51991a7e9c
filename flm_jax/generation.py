"""Decoding with a key-value cache: greedy, or sampled with temperature, top-k and top-p."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.config import ModelConfig
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.network import Decoder

if TYPE_CHECKING:
    from flm_jax.tasks.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw among the k likeliest tokens only, and those as likely as the k-th; 0 for no limit.
        top_p: Draw among the likeliest tokens that together hold this probability (nucleus sampling).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"expected Sampling.temperature >= 0, Sampling.top_k >= 0 and 0 < Sampling.top_p <= 1; found {self}"
            )


class Generated(NamedTuple):
    """What `generate` returns."""

    tokens: jax.Array  # [B, N] new tokens, 0 behind the end-of-sequence token
    scores: jax.Array  # [B] their summed log-probability under the model, temperature and limits aside


def candidates(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits over the temperature, minus infinity outside top-k and top-p; `[B, V]`.

    Logits (0, 1, 2) with top_k=2 become (-inf, 1, 2). With top_p the smallest set of likeliest tokens is kept
    whose probability reaches top_p: probabilities (0.5, 0.3, 0.2) and top_p=0.6 keep the first two.
    """
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, sampling: Sampling, rng: jax.Array) -> jax.Array:
    """The next token of each row of `logits` `[B, V]`: `[B]`."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.random.categorical(rng, candidates(logits, sampling), axis=-1).astype(jnp.int32)


def empty_cache(decoder: nn.Module, batch: int, length: int) -> dict:
    """A key-value cache for `length` tokens of `batch` examples, all zeros."""
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = jax.eval_shape(
        lambda rng, tokens: decoder.init(rng, tokens, decode=True), jax.random.key(0), tokens
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["cache"])


def generate(
    decoder: nn.Module,
    params: dict,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    max_new_tokens: int,
    rng: jax.Array,
    sampling: Sampling = Sampling(),
    eos_id: int = 1,
    growth: GrowthMask | None = None,
) -> Generated:
    """Continues prompts of different lengths until the end-of-sequence token or `max_new_tokens`.

    Args:
        decoder: The module.
        params: Its parameters.
        prompts: `[B, P]` decoder inputs, padded on the right: token 0, which begins every document, then the
            prompt's tokens.
        prompt_lengths: `[B]`, at least 1, the leading 0 counted.
        max_new_tokens: Static.
        rng: Key for sampling.
        sampling: How to draw.
        eos_id: Ends an example.
        growth: The mask of a model that was saved while it ramped.

    Returns:
        `Generated` with N = `max_new_tokens`.
    """
    batch = prompts.shape[0]
    cache = empty_cache(decoder, batch, prompts.shape[1] + max_new_tokens)
    apply = functools.partial(decoder.apply, mutable=["cache"], growth=growth)
    logits, state = apply(
        {"params": params, "cache": cache}, prompts, prefill=True, prefill_lengths=prompt_lengths
    )
    last = jnp.take_along_axis(logits, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]

    class Loop(NamedTuple):
        step: jax.Array
        logits: jax.Array  # [B, V] of the token to choose next
        cache: dict
        tokens: jax.Array  # [B, N]
        scores: jax.Array  # [B]
        ended: jax.Array  # [B]

    def go_on(loop: Loop) -> jax.Array:
        return (loop.step < max_new_tokens) & ~jnp.all(loop.ended)

    def one_token(loop: Loop) -> Loop:
        drawn = choose(loop.logits, sampling, jax.random.fold_in(rng, loop.step))
        token = jnp.where(loop.ended, 0, drawn)
        log_probability = jnp.take_along_axis(jax.nn.log_softmax(loop.logits), drawn[:, None], axis=1)[:, 0]
        logits, state = apply({"params": params, "cache": loop.cache}, token[:, None], decode=True)
        return Loop(
            loop.step + 1,
            logits[:, 0],
            state["cache"],
            loop.tokens.at[:, loop.step].set(token),
            loop.scores + jnp.where(loop.ended, 0, log_probability),
            loop.ended | (token == eos_id),
        )

    start = Loop(
        jnp.int32(0),
        last,
        state["cache"],
        jnp.zeros((batch, max_new_tokens), jnp.int32),
        jnp.zeros((batch,), last.dtype),
        jnp.zeros((batch,), bool),
    )
    end = jax.lax.while_loop(go_on, one_token, start)
    return Generated(end.tokens, end.scores)


def continue_texts(
    config: ModelConfig,
    params: dict,
    vocabulary: "Vocabulary",
    prompts: Sequence[str],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    growth: GrowthMask | None = None,
) -> list[str]:
    """What the model writes behind each of `prompts`, as text; an empty prompt begins a document.

    `growth` is the mask of a model that was saved while it ramped.

    Raises:
        ValueError: a prompt and its continuation are longer than the model's `max_length`, or the tokenizer has
            more pieces than the model has rows.
    """
    if vocabulary.size > config.vocab_size:
        raise ValueError(
            f"expected a tokenizer of at most ModelConfig.vocab_size = {config.vocab_size} pieces, found "
            f"{vocabulary.size}"
        )
    encoded = [[0, *vocabulary.encode(prompt)] for prompt in prompts]
    longest = max(map(len, encoded))
    if longest + max_new_tokens > config.max_length:
        raise ValueError(
            f"expected at most ModelConfig.max_length = {config.max_length} tokens, found a prompt of {longest} and "
            f"{max_new_tokens} new ones; shorten the prompt or lower --max_new_tokens"
        )
    padded = np.zeros((len(prompts), longest), np.int32)
    for row, tokens in zip(padded, encoded, strict=True):
        row[: len(tokens)] = tokens
    write = jax.jit(
        functools.partial(generate, Decoder(config), max_new_tokens=max_new_tokens, sampling=sampling)
    )
    lengths = jnp.array([len(tokens) for tokens in encoded], jnp.int32)
    generated = write(params, jnp.asarray(padded), lengths, rng=jax.random.key(seed), growth=growth)
    pieces = vocabulary.size  # rows of the table beyond the vocabulary's pieces are never trained
    return [
        vocabulary.decode([token for token in row if token < pieces]) for row in generated.tokens.tolist()
    ]
