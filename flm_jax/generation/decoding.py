"""Decoding with a key-value cache: `begin` reads the prompts, `advance` writes some tokens behind them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.config import at_least_float32
from flm_jax.generation.sampling import Sampling, choose, penalised
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.network import Decoder
from flm_jax.partitioning import constrain
from flm_jax.tasks.tokenizers.reserved import EOS_ID


class Decoding(NamedTuple):
    """Where a batch of B texts stands."""

    cache: Any  # keys and values of all tokens before `token`
    token: jax.Array  # [B], the last of each text, not yet read
    count: jax.Array  # how many have been written
    ended: jax.Array  # [B]
    seen: jax.Array | None  # [B, V], tokens of the prompt and of the text; None where nothing asks for them


class Generated(NamedTuple):
    """New tokens."""

    tokens: jax.Array  # [B, N] new tokens, 0 behind the end-of-sequence token
    scores: (
        jax.Array
    )  # [B] their summed log-probability under the model, penalty, temperature and limits aside


def empty_cache(decoder: Decoder, batch: int, length: int) -> dict:
    """A key-value cache for `length` tokens of `batch` examples, all zeros."""
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    shapes = jax.eval_shape(
        lambda rng, tokens: decoder.init(rng, tokens, decode=True), jax.random.key(0), tokens
    )
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["cache"])


def begin(
    decoder: Decoder,
    params: dict,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    ended: jax.Array,
    growth: GrowthMask | None = None,
    *,
    cache_length: int,
    remembers: bool = False,
) -> Decoding:
    """Reads prompts of different lengths, each but for its last token.

    Args:
        decoder: The module.
        params: Its parameters.
        prompts: `[B, P]` decoder inputs, padded on the right: token 0, which begins every document, then the
            prompt's tokens.
        prompt_lengths: `[B]`, at least 1, the leading 0 counted.
        ended: `[B]`, rows that there is nothing to write in.
        growth: The mask of a model that was saved while it ramped.
        cache_length: Room for tokens, those of the prompts counted; at least P.
        remembers: Whether a repetition penalty will ask which tokens there were.
    """
    batch, length = prompts.shape
    # What is read without its last token needs no logits: [B, P, V] of a long prompt would be the largest array of all.
    _, state = decoder.apply(
        {"params": params, "cache": empty_cache(decoder, batch, cache_length)},
        prompts,
        prefill=True,
        prefill_lengths=prompt_lengths - 1,
        growth=growth,
        return_hidden=True,
        mutable=["cache"],
    )
    rows = jnp.arange(batch)
    seen = None
    if remembers:
        is_prompt = jnp.arange(length) < prompt_lengths[:, None]
        seen = jnp.zeros((batch, decoder.config.vocab_size), bool).at[rows[:, None], prompts].max(is_prompt)
    return Decoding(state["cache"], prompts[rows, prompt_lengths - 1], jnp.int32(0), ended, seen)


def advance(
    decoder: Decoder,
    params: dict,
    state: Decoding,
    keys: jax.Array,
    limit: jax.Array,
    drawable: jax.Array | None = None,
    growth: GrowthMask | None = None,
    *,
    num_tokens: int,
    sampling: Sampling,
    eos_id: int = EOS_ID,
) -> tuple[Decoding, Generated]:
    """Writes up to `limit` tokens in each text, fewer where all have ended before.

    Args:
        decoder: The module.
        params: Its parameters.
        state: Where the texts stand.
        keys: `[B]`, of the random draws; a text's n-th token depends on its key and n alone.
        limit: At most `num_tokens`; not part of the compiled program.
        drawable: `[V]`, False for tokens that must not be written; None: all may be.
        growth: As in `begin`.
        num_tokens: N of what is returned.
        sampling: How to draw.
        eos_id: Ends a text.
    """

    class Loop(NamedTuple):
        step: jax.Array
        state: Decoding
        tokens: jax.Array
        scores: jax.Array

    def go_on(loop: Loop) -> jax.Array:
        return (loop.step < limit) & ~jnp.all(loop.state.ended)

    def one_token(loop: Loop) -> Loop:
        cache, token, count, ended, seen = loop.state
        read, written = decoder.apply(
            {"params": params, "cache": cache}, token[:, None], decode=True, growth=growth, mutable=["cache"]
        )
        raw = read[:, 0]
        logits = raw if seen is None else penalised(raw, seen, sampling.repetition_penalty)
        logits = logits if drawable is None else jnp.where(drawable, logits, -jnp.inf)
        drawn = choose(logits, sampling, jax.vmap(jax.random.fold_in, (0, None))(keys, count))
        score = jnp.take_along_axis(jax.nn.log_softmax(raw), drawn[:, None], axis=1)[:, 0]
        token = jnp.where(ended, 0, drawn)
        seen = None if seen is None else seen.at[jnp.arange(len(token)), token].set(True)
        return Loop(
            loop.step + 1,
            Decoding(written["cache"], token, count + 1, ended | (token == eos_id), seen),
            loop.tokens.at[:, loop.step].set(token),
            loop.scores + jnp.where(ended, 0, score),
        )

    batch = state.token.shape[0]
    start = Loop(
        jnp.int32(0),
        state,
        jnp.zeros((batch, num_tokens), jnp.int32),
        jnp.zeros((batch,), at_least_float32(decoder.config.dtype)),
    )
    end = jax.lax.while_loop(go_on, one_token, start)
    # Known to every process, whose batch may be split over all of them.
    return end.state, Generated(constrain(end.tokens, None, None), constrain(end.scores, None))


def generate(
    decoder: Decoder,
    params: dict,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    max_new_tokens: int,
    rng: jax.Array,
    sampling: Sampling = Sampling(),
    eos_id: int = EOS_ID,
    growth: GrowthMask | None = None,
) -> Generated:
    """Continues prompts of different lengths until the end-of-sequence token or `max_new_tokens`, in one program.

    Args:
        decoder: The module.
        params: Its parameters.
        prompts: `[B, P]` decoder inputs, as in `begin`.
        prompt_lengths: `[B]`, at least 1, the leading 0 counted.
        max_new_tokens: Static.
        rng: Key for sampling; row b draws with what it and b give.
        sampling: How to draw.
        eos_id: Ends an example.
        growth: The mask of a model that was saved while it ramped.

    Returns:
        `Generated` with N = `max_new_tokens`.
    """
    batch, length = prompts.shape
    state = begin(
        decoder,
        params,
        jnp.asarray(prompts),
        jnp.asarray(prompt_lengths),
        jnp.zeros((batch,), bool),
        growth,
        cache_length=length + max_new_tokens,
        remembers=sampling.repetition_penalty != 1,
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, jnp.arange(batch))
    limit = jnp.int32(max_new_tokens)
    return advance(
        decoder, params, state, keys, limit, growth=growth, num_tokens=max_new_tokens, sampling=sampling,
        eos_id=eos_id,
    )[1]  # fmt: skip
