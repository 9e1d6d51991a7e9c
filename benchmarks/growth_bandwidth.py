"""How fast a model grows, beside what must be done at least, measured in the same run.

In memory: growth of parameters and AdamW's state, leaf by leaf as a run does it, beside a copy of the old and the new
bytes plus drawing the new normals. From checkpoint to checkpoint: seconds and peak host memory at two depths, beside
a plain Orbax read of the source and write of the target.

    python benchmarks/growth_bandwidth.py                      # both parts, some minutes
    python benchmarks/growth_bandwidth.py --json out.json      # the numbers, for programs
"""

import argparse
import functools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from flm_jax import LanguageModel, ModelConfig, grow, optimizer, parameters
from flm_jax.grow.rule import Fill
from flm_jax.partitioning import MeshShape
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from flm_jax.training.checkpoints import Checkpoints, Metadata
from flm_jax.training.state import TrainState, abstract_state, create_state
from flm_jax.training.step import skipping_non_finite

GIB = 2**30


def sizes(d_model: int, num_layers: int) -> ModelConfig:
    """A decoder of the FLM block, small vocabulary, so that layers are nearly all of it."""
    return ModelConfig(
        vocab_size=4_096,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=d_model // 64,
        head_dim=64,
        d_ff=4 * d_model,
        dtype="float32",
    )


IN_MEMORY = (sizes(512, 8), sizes(768, 12))
# Source and target at two depths.
ON_DISK = {depth: (sizes(768, depth // 2), sizes(1_024, depth)) for depth in (16, 32)}


def mesh() -> jax.sharding.Mesh:
    """One device."""
    return MeshShape(data=1).build(jax.devices()[:1])


def make_state(config: ModelConfig) -> TrainState:
    """Parameters and AdamW's state, as a run holds them."""
    adamw = skipping_non_finite(optimizer.adamw(config, lambda count: 0.0))
    return jax.block_until_ready(create_state(LanguageModel(config), adamw, mesh(), seed=0))


def seconds(function: Callable[[], Any]) -> float:
    """Of one call, until its arrays are there."""
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def num_drawn(plan: grow.GrowthPlan) -> int:
    """Entries that are drawn from a normal: new ones of matrices and tables, by the plan's own rules."""

    def one(row: parameters.Parameter) -> int:
        if not row.init_std(plan.target):
            return 0
        shape = dict(zip(row.axes, row.shape(plan.source), strict=True))
        drawn = 0
        for axis in plan.maps:
            rule = plan.rules(row).get(axis)
            if rule is None:
                continue
            new = int(plan.maps[axis].is_new.sum())
            if axis == parameters.LAYERS and rule.fill is not Fill.INIT:
                shape[axis] += new
                continue
            if rule.fill is Fill.INIT:
                drawn += new * math.prod(size for other, size in shape.items() if other != axis)
            shape[axis] += new
        return drawn

    rows = jax.tree.leaves(parameters.table(plan.target), is_leaf=parameters.is_parameter)
    return sum(map(one, rows))


def in_memory(method: str, repeats: int = 5) -> dict[str, Any]:
    """Growth beside copying and drawing, in turns; programs are compiled before."""
    source, target = IN_MEMORY
    plan = grow.plan(source, target, method)
    leaf_by_leaf = grow.LeafByLeaf(mesh())
    key = jax.random.key(0)
    count = num_drawn(plan)
    # In pieces of a layer's matrix, as they are needed; one key each.
    piece = target.d_model * target.d_ff
    draw = jax.jit(lambda keys: jax.vmap(lambda key: jax.random.normal(key, (piece,)))(keys))
    keys = jax.random.split(key, math.ceil(count / piece))
    copy = jax.jit(lambda array: array + 0)
    times: dict[str, list[float]] = {"growth": [], "copy": [], "normals": []}
    for turn in range(repeats + 1):
        old = make_state(source)
        states = (old, make_state(target))
        copied = seconds(functools.partial(jax.tree.map, copy, states))
        del states
        normals = seconds(lambda: [draw(keys[i : i + 4]) for i in range(0, len(keys), 4)])
        grew = seconds(functools.partial(plan, old, key, carry_out=leaf_by_leaf))
        if turn:  # the first compiles
            for name, value in (("growth", grew), ("copy", copied), ("normals", normals)):
                times[name].append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "method": method,
        "parameters": [source.num_params, target.num_params],
        "drawn": count,
        **{f"{name}_seconds": value for name, value in medians.items()},
        "ratio": medians["growth"] / (medians["copy"] + medians["normals"]),
    }


def on_disk(depth: int, directory: Path) -> dict[str, Any]:
    """One depth: writes a source, then grows it in one process, and reads and writes plainly in another."""
    source, target = ON_DISK[depth]
    largest = max(
        math.prod(row.unstacked().shape(target)) * 4
        for row in jax.tree.leaves(parameters.table(target), is_leaf=parameters.is_parameter)
    )
    _child("make", depth, directory)
    baseline = _child("nothing", depth, directory)
    grown = _child("grow", depth, directory)
    plain = _child("plain", depth, directory)
    bound = 3 * largest + GIB
    return {
        "depth": depth,
        "parameters": [source.num_params, target.num_params],
        "state_bytes": grown["bytes"],
        "largest_slice_bytes": largest,
        "peak_bytes": grown["peak"],
        "idle_bytes": baseline["peak"],
        "bound_bytes": bound,
        "within": grown["peak"] <= bound,
        "grow_seconds": grown["seconds"],
        "plain_seconds": plain["seconds"],
        "plain_peak_bytes": plain["peak"],
        "ratio": grown["seconds"] / plain["seconds"],
    }


def _child(what: str, depth: int, directory: Path) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--child",
        what,
        "--depth",
        str(depth),
        "--directory",
        str(directory),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{what} at depth {depth} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def child(what: str, depth: int, directory: Path) -> dict[str, Any]:
    """What runs in a process of its own, for its peak of resident memory."""
    source, target = ON_DISK[depth]
    run, out = directory / f"source_{depth}", directory / f"{what}_{depth}"
    started, size = time.perf_counter(), 0
    if what == "make":
        _save(run, make_state(source), source)
    elif what == "grow":
        growth = CheckpointGrowth(run, target, Settings(method="lemon"))
        size = growth.num_bytes
        growth.write(out)
    elif what == "plain":
        # The same bytes: the source read, and a state of the target's size written.
        adamw = skipping_non_finite(optimizer.adamw(source, lambda count: 0.0))
        like = abstract_state(source, adamw, mesh())
        checkpoints = Checkpoints(run)
        jax.block_until_ready(checkpoints.restore(0, like, _metadata(source)))
        checkpoints.close()
        read = time.perf_counter() - started
        state = make_state(target)
        started = time.perf_counter() - read
        _save(out, state, target)
    elapsed = time.perf_counter() - started
    # Not getrusage's: that begins with what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return {"seconds": elapsed, "peak": peak, "bytes": size}


def _save(run: Path, state: TrainState, config: ModelConfig) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.save(state, _metadata(config))
    checkpoints.wait()
    checkpoints.close()


def _metadata(config: ModelConfig) -> Metadata:
    data = {"length": 64, "tokenizer": "none", "tasks": {}}
    return Metadata(config=config, seed=0, batch_size=1, mixture="none", data=data)


def main() -> None:
    """Runs both parts and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--only", choices=("memory", "disk"), help="one part alone")
    parser.add_argument("--child", choices=("nothing", "make", "grow", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--depth", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.depth, Path(options.directory))))
        return
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), {platform.machine()}, jax {jax.__version__}")
    results: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__}
    if options.only != "disk":
        results["memory"] = [in_memory(method) for method in ("msg", "lemon")]
        for found in results["memory"]:
            print(
                f"in memory, {found['method']}: {found['parameters'][0]:,} -> {found['parameters'][1]:,} parameters "
                f"with AdamW's state, {found['drawn']:,} drawn\n  growth {found['growth_seconds']:.2f} s, copy of old "
                f"and new {found['copy_seconds']:.2f} s, normals {found['normals_seconds']:.2f} s: ratio "
                f"{found['ratio']:.2f} (bar 1.5)"
            )
    if options.only != "memory":
        with tempfile.TemporaryDirectory() as directory:
            results["disk"] = [on_disk(depth, Path(directory)) for depth in ON_DISK]
        for found in results["disk"]:
            print(
                f"on disk, {found['depth']} layers: state of {found['state_bytes'] / 1e9:.2f} GB, largest slice "
                f"{found['largest_slice_bytes'] / 2**20:.0f} MiB, peak {found['peak_bytes'] / GIB:.2f} GiB (bound "
                f"{found['bound_bytes'] / GIB:.2f}, an idle process {found['idle_bytes'] / GIB:.2f}); "
                f"{found['grow_seconds']:.1f} s, plain read and write {found['plain_seconds']:.1f} s with "
                f"{found['plain_peak_bytes'] / GIB:.2f} GiB: ratio {found['ratio']:.2f}"
            )
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
    missed = [found for found in results.get("memory", []) if found["ratio"] > 1.5]
    missed += [found for found in results.get("disk", []) if not found["within"]]
    if missed:
        sys.exit(f"{len(missed)} of the bars missed")


if __name__ == "__main__":
    main()
