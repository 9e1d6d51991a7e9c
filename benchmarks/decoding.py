"""Tokens a second of decoding with the key-value cache, beside a full pass over the text for each token, in one run.

python benchmarks/decoding.py --prompt_length 128 --new_tokens 128 --batch 8 --json=decoding.json
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scoring import machine

from flm_jax import Decoder, ModelConfig
from flm_jax.generation import generate


def uncached(decoder: Decoder, params: dict, prompts: jax.Array, new_tokens: int) -> jax.Array:
    """Greedy decoding `[B, N]` by a pass over the whole text, of one length with room for all, for each token."""
    batch, length = prompts.shape
    text = jnp.zeros((batch, length + new_tokens), jnp.int32).at[:, :length].set(prompts)

    def one_token(step: int, text: jax.Array) -> jax.Array:
        here = length + step
        logits = decoder.apply({"params": params}, text)
        return text.at[:, here].set(jnp.argmax(logits[:, here - 1], axis=-1))

    return jax.lax.fori_loop(0, new_tokens, one_token, text)[:, length:]


def cached(decoder: Decoder, params: dict, prompts: jax.Array, new_tokens: int) -> jax.Array:
    """The same by `generate`, which never ends early here."""
    lengths = jnp.full(prompts.shape[0], prompts.shape[1])
    return generate(decoder, params, prompts, lengths, new_tokens, jax.random.key(0), eos_id=-1).tokens


def decoding(
    config: ModelConfig, batch: int, prompt_length: int, new_tokens: int, rounds: int
) -> dict[str, Any]:
    """Both ways in turn, medians over the rounds: `{"cached", "uncached": tokens/s, "ratio", "same_tokens", ...}`."""
    decoder = Decoder(config)
    params = jax.jit(decoder.init)(jax.random.key(0), jnp.ones((1, 1), jnp.int32))["params"]
    prompts = np.random.default_rng(0).integers(3, config.vocab_size, (batch, prompt_length))
    prompts = jnp.asarray(prompts, jnp.int32).at[:, 0].set(0)
    ways: dict[str, Callable] = {
        way.__name__: jax.jit(functools.partial(way, decoder, new_tokens=new_tokens))
        for way in (cached, uncached)
    }
    tokens = {name: np.asarray(write(params, prompts=prompts)) for name, write in ways.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, write in ways.items():
            start = time.perf_counter()
            write(params, prompts=prompts).block_until_ready()
            seconds[name].append(time.perf_counter() - start)
    speed = {name: batch * new_tokens / statistics.median(each) for name, each in seconds.items()}
    return {
        **speed,
        "ratio": speed["cached"] / speed["uncached"],
        "same_tokens": float(np.mean(tokens["cached"] == tokens["uncached"])),
        "rounds": seconds,
        "parameters": config.num_params,
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """One model, one shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--d_model", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt_length", type=int, default=128)
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    config = ModelConfig(
        vocab_size=8_192, d_model=options.d_model, num_layers=options.layers, num_heads=options.d_model // 64,
        head_dim=64, d_ff=4 * options.d_model, dtype=options.dtype,
    )  # fmt: skip
    found = decoding(config, options.batch, options.prompt_length, options.new_tokens, options.rounds)
    print(
        f"{found['machine']}; {config.num_params:,} parameters, {options.dtype}, {options.batch} prompts of "
        f"{options.prompt_length} tokens, {options.new_tokens} new ones, {options.rounds} rounds"
    )
    for name in ("cached", "uncached"):
        spread = [options.batch * options.new_tokens / each for each in found["rounds"][name]]
        print(f"  {name:<9} {found[name]:>9,.0f} tokens/s ({min(spread):,.0f} to {max(spread):,.0f})")
    print(
        f"  cached is {found['ratio']:.1f} x as fast; {found['same_tokens']:.1%} of the tokens are the same"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
