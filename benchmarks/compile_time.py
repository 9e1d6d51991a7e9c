"""What depth does to the training step's program and to the time that compiling it takes: nothing, layers are scanned.

python benchmarks/compile_time.py --layers 4 16 64
"""

import argparse
import os
import platform
import re
import statistics
import time

import jax
import numpy as np

from flm_jax import LanguageModel, ModelConfig, optimizer, partitioning
from flm_jax.model import PACKED_FEATURES
from flm_jax.partitioning import MeshShape
from flm_jax.training.state import abstract_state
from flm_jax.training.step import skipping_non_finite, train_step


def compile_step(num_layers: int) -> tuple[float, int, int]:
    """Seconds of lowering and compiling, operations in the lowered and in the compiled program."""
    config = ModelConfig(
        vocab_size=8_192,
        d_model=256,
        num_layers=num_layers,
        num_heads=4,
        head_dim=64,
        d_ff=1_024,
        max_length=256,
    )
    model, tx = LanguageModel(config), skipping_non_finite(optimizer.adamw(config, 1e-3))
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    with jax.set_mesh(mesh), partitioning.axis_rules():
        state = abstract_state(config, tx, mesh)
        batch = dict.fromkeys(PACKED_FEATURES, jax.ShapeDtypeStruct((8, 256), np.int32))
        start = time.perf_counter()
        lowered = jax.jit(train_step(model, tx), donate_argnums=0).lower(state, batch)
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
    operations = re.findall(r"^ +(?:ROOT )?\S+ = ", compiled.as_text(), re.MULTILINE)
    return seconds, lowered.as_text().count("\n"), len(operations)


def main() -> int:
    """Every depth in turn, several rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}")
    compile_step(2)  # what is imported and traced once
    found: dict[int, list[tuple[float, int, int]]] = {layers: [] for layers in options.layers}
    for _ in range(options.rounds):
        for layers in options.layers:
            found[layers].append(compile_step(layers))
            jax.clear_caches()
    for layers, rounds in found.items():
        seconds = statistics.median(each[0] for each in rounds)
        print(
            f"{layers:3} layers: {seconds:.1f} s; {rounds[0][1]:,} lines lowered, {rounds[0][2]:,} operations compiled"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
