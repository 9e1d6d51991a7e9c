"""One implementation in a process of its own: answers `steps N` with the seconds of a step, `peak` with FLOP/s."""

import functools
import importlib
import itertools
import json
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Of the model and its batch."""

    d_model: int
    num_layers: int
    batch: int
    dtype: str  # of activations and matmuls; parameters are float32
    length: int = 256
    vocab: int = 8_192
    head_dim: int = 64

    @property
    def num_heads(self) -> int:
        """Of head_dim each."""
        return self.d_model // self.head_dim


_MODULES = {
    "ours": "ours",  # and `ours-without-…`, see there
    "plain_jax": "plain_jax",
    "t5x_decoder": "t5x_decoder",
    "nanogpt_eager": "torch_gpt",
    "nanogpt_compiled": "torch_gpt",
    "huggingface": "torch_gpt",
}


def _module(name: str) -> str:
    return _MODULES[name.partition("-without-")[0]]


def peak(name: str, dtype: str, size: int = 2048) -> float:
    """FLOP/s of the fastest of some matmuls."""
    if "torch" in _module(name):
        import torch

        x = torch.ones(size, size, dtype=getattr(torch, dtype))
        multiply = lambda: x @ x  # noqa: E731
    else:
        import jax
        import jax.numpy as jnp

        y = jnp.ones((size, size), dtype)
        # With the sums given out in float32 XLA for CPUs multiplies bfloat16 at another rate.
        compiled = [
            jax.jit(functools.partial(jnp.matmul, preferred_element_type=result))
            for result in (dtype, "float32")
        ]
        turn = itertools.cycle(compiled)
        multiply = lambda: next(turn)(y, y).block_until_ready()  # noqa: E731
    times = []
    for _ in range(10):
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times[2:])  # behind compilation


def main() -> None:
    """Makes the step, says so, and answers until its input ends."""
    name, d_model, layers, batch, dtype = sys.argv[1:]
    shape = Shape(int(d_model), int(layers), int(batch), dtype)
    step = importlib.import_module(_module(name)).make(shape, name)
    tokens = shape.batch * shape.length
    forward = 2 * (12 * shape.num_layers * shape.d_model**2 + shape.vocab * shape.d_model)
    attention = 2 * shape.num_layers * 2 * shape.d_model * (shape.length + 1) / 2
    print(json.dumps({"flops": 3 * tokens * (forward + attention)}), flush=True)
    for line in sys.stdin:
        if line.strip() == "peak":
            value = peak(name, dtype)
        else:
            count = int(line.split()[1])
            start = time.perf_counter()
            for _ in range(count):
                step()  # returns when it is done
            value = (time.perf_counter() - start) / count
        print(json.dumps({"value": value}), flush=True)


if __name__ == "__main__":
    main()
