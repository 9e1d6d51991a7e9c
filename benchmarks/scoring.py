"""Requests scored a second: ours, without sharing what rows begin with, and one pass for each request.

Two sets of requests of random tokens, in the shapes of MMLU with five worked examples (four one-letter options behind a
question, a text of about 500 tokens in front of each subject's questions) and of HellaSwag (four endings behind a
context). All three answer the same requests with the same parameters in turn, everything compiled before; the adapter
that asks one by one, whose speed is the same throughout, answers every eighth. Batches without sharing compute equal
rows once, too: else the four letters of a question would cost four passes.

    python benchmarks/scoring.py --shapes 4x256 8x512 --json=scoring.json
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax import Decoder, ModelConfig
from flm_jax.evaluation.prefix_sharing import batches, rounded
from flm_jax.evaluation.scored_rows import Questions, Request
from flm_jax.evaluation.scoring import Scorer
from flm_jax.evaluation.text_model import Score

# d_model, layers; heads of 64, FFN of 4 d_model, vocabulary 8,192.
SHAPES = {"4x256": (256, 4), "8x512": (512, 8), "24x2048": (2048, 24)}
VOCAB_SIZE = 8_192
ONE_IN = 8  # of the requests, to the one-by-one adapter


def model(shape: str, dtype: str) -> tuple[ModelConfig, Any]:
    d_model, layers = SHAPES[shape]
    config = ModelConfig(
        vocab_size=VOCAB_SIZE, d_model=d_model, num_layers=layers, num_heads=d_model // 64, head_dim=64,
        d_ff=4 * d_model, max_length=2048, dtype=dtype, param_dtype=dtype,
    )  # fmt: skip
    return config, jax.jit(Decoder(config).init)(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]


def like_mmlu(draw: np.random.Generator, subjects: int = 3, questions: int = 32) -> list[Request]:
    requests: list[Request] = []
    for _ in range(subjects):
        examples = [0, *_text(draw, 400, 600)]
        contexts = [[*examples, *_text(draw, 30, 120)] for _ in range(questions)]
        requests += [(context, [letter]) for context in contexts for letter in (10, 11, 12, 13)]
    return requests


def like_hellaswag(draw: np.random.Generator, questions: int = 96) -> list[Request]:
    contexts = [[0, *_text(draw, 40, 100)] for _ in range(questions)]
    return [(context, _text(draw, 10, 30)) for context in contexts for _ in range(4)]


def _text(draw: np.random.Generator, least: int, most: int) -> list[int]:
    return draw.integers(20, VOCAB_SIZE, draw.integers(least, most)).tolist()


class OneByOne:
    """A full forward pass for each request; lengths rounded up as ours, so that as few programs are compiled."""

    def __init__(self, config: ModelConfig, params: Any) -> None:
        self._params = params

        def answer(params: Any, tokens: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = jax.nn.log_softmax(Decoder(config).apply({"params": params}, tokens)[0])
            chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
            return chosen, jnp.argmax(logits, axis=1) == targets

        self._answer = jax.jit(answer)

    def scores(self, requests: Sequence[Request]) -> list[Score]:
        return [self._score(*request) for request in requests]

    def _score(self, context: Sequence[int], continuation: Sequence[int]) -> Score:
        whole = [*context, *continuation]
        length = len(whole) - 1
        tokens, targets = np.zeros((1, rounded(length)), np.int32), np.zeros(rounded(length), np.int32)
        tokens[0, :length], targets[:length] = whole[:-1], whole[1:]
        log_probabilities, greedy = jax.device_get(self._answer(self._params, tokens, targets))
        scored = slice(length - len(continuation), length)
        return Score(float(log_probabilities[scored].sum()), bool(greedy[scored].all()))


def scoring(shape: str, dtype: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Medians over the rounds, printed and returned."""
    config, params = model(shape, dtype)
    sides = {
        "one by one": OneByOne(config, params),
        "batches": Scorer(config, params, batch_size=batch_size, share_prefixes=False),
        "ours": Scorer(config, params, batch_size=batch_size),
    }
    draw = np.random.default_rng(0)
    found: dict[str, Any] = {}
    for name, requests in (("like MMLU", like_mmlu(draw)), ("like HellaSwag", like_hellaswag(draw))):
        asked = {side: requests[::ONE_IN] if side == "one by one" else requests for side in sides}
        first = {side: scorer.scores(asked[side]) for side, scorer in sides.items()}  # compiles
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(rounds):
            order = list(sides)
            for side in order[turn % 3 :] + order[: turn % 3]:
                seconds[side].append(_timed(sides[side], asked[side]))
        rates = {side: len(asked[side]) / statistics.median(each) for side, each in seconds.items()}
        apart = max(
            abs(one.log_likelihood - other.log_likelihood) / max(abs(one.log_likelihood), 1.0)
            for side in ("batches", "ours")
            for one, other in zip(first["one by one"], first[side][::ONE_IN], strict=True)
        )
        positions = {side: _positions(requests, batch_size, side) for side in sides}
        print(
            f"{shape} {dtype}, {name}: {len(requests)} requests, log-likelihoods apart by at most {apart:.1e}"
        )
        for side, rate in rates.items():
            spread = (
                f"{len(asked[side]) / max(seconds[side]):.1f} to {len(asked[side]) / min(seconds[side]):.1f}"
            )
            print(
                f"  {side:<10} {rate:>8.1f} requests/s ({spread})  {positions[side]:>9,} token positions  "
                f"ours is {rates['ours'] / rate:.1f} x as fast",
                flush=True,
            )
        found[name] = {
            "requests_per_second": rates,
            "rounds": seconds,
            "positions": positions,
            "apart": apart,
        }
    return found


def _timed(scorer: OneByOne | Scorer, requests: Sequence[Request]) -> float:
    start = time.perf_counter()
    scorer.scores(requests)
    return time.perf_counter() - start


def _positions(requests: Sequence[Request], batch_size: int, side: str) -> int:
    """Token positions computed for all requests, padding too."""
    if side == "one by one":
        return sum(rounded(len(context) + len(continuation) - 1) for context, continuation in requests)
    made = batches(Questions(requests, 2048).rows, batch_size, share=side == "ours")
    return sum(level.tokens.size for batch in made for level in batch.levels)


def cache_cost(shape: str, dtype: str, rows: int = 32, length: int = 64, rounds: int = 5) -> float:
    """What a position of a row's cache costs beside a computed token (`prefix_sharing.CACHE_COST`).

    The same ends behind a common beginning of 384 tokens and of 1,536, and without one.
    """
    config, params = model(shape, dtype)
    draw = np.random.default_rng(0)
    seconds = {}
    for common in (0, 384, 1536):
        beginning = [0, *draw.integers(20, VOCAB_SIZE, common).tolist()][:common] or [0]
        ends = draw.integers(20, VOCAB_SIZE, (rows, length)).tolist()
        requests: list[Request] = [([*beginning, *end], [5]) for end in ends]
        scorer = Scorer(config, params, batch_size=rows, share_prefixes=common > 0)
        scorer.scores(requests)
        seconds[common] = statistics.median(_timed(scorer, requests) for _ in range(rounds))
    token = seconds[0] / (rows * rounded(length + 1))
    more = seconds[1536] - seconds[384] - (1536 - 384) * token
    cost = more / (rows * (1792 - 512) * token)  # lengths of the two caches
    print(f"{shape} {dtype}: a position of a row's cache costs {cost:.3f} of a computed token")
    return cost


def machine() -> str:
    """What this runs on, and how busy that is."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    device = jax.devices()[0].device_kind
    return f"{device} ({name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}); jax {metadata.version('jax')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Every shape."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["4x256"], choices=SHAPES)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache_cost", action="store_true", help="measure what decides about sharing, too")
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    print(f"{machine()}; {options.rounds} rounds, batches of {options.batch_size} rows")
    found: dict[str, Any] = {"machine": machine(), "batch_size": options.batch_size}
    for shape in options.shapes:
        found[shape] = scoring(shape, options.dtype, options.batch_size, options.rounds)
        if options.cache_cost:
            found[shape]["cache_cost"] = cache_cost(shape, options.dtype)
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
