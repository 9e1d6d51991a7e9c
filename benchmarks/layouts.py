"""How good the layout search's estimates are: against compiled programs, and its pick against all layouts compiled.

    python benchmarks/layouts.py --estimates      # peaks of a dozen layouts of FLM's models, a minute each
    python benchmarks/layouts.py --exhaustive     # every layout of a small model on v5e:2x2, half a minute each

Needs libtpu, and no TPU.
"""

import argparse
import dataclasses
import os
import platform
from typing import Any

from flm_jax.pods import topology

topology.prepare_environment()  # before JAX is imported

import jax  # noqa: E402

from flm_jax import LanguageModel, optimizer, presets  # noqa: E402
from flm_jax.chips import GIB  # noqa: E402
from flm_jax.grow.lineage import Lineage  # noqa: E402
from flm_jax.grow.schedule import Route, Stage  # noqa: E402
from flm_jax.partitioning import MeshShape  # noqa: E402
from flm_jax.pods.compiling import report_step  # noqa: E402
from flm_jax.pods.estimate import Layout, estimate  # noqa: E402
from flm_jax.pods.report import StageReport  # noqa: E402
from flm_jax.pods.search import laid_out, search  # noqa: E402
from flm_jax.tasks.history import History  # noqa: E402
from flm_jax.training.leg import Leg  # noqa: E402

# Layouts that the estimate's constants were not fitted to.
HELD_OUT = [
    ("flm_101b", "v5p:4x8x8", Layout(MeshShape(1, 256), "dots", 4), 2048),
    ("flm_101b", "v5p:4x8x8", Layout(MeshShape(1, 64, 4), "full", 1), 2048),
    ("flm_101b", "v5p:4x8x8", Layout(MeshShape(1, 16, 16), "dots", 5), 2160),
    ("flm_101b", "v5e:16x16", Layout(MeshShape(1, 128, 2), "full", 16), 2048),
    ("flm_101b", "v5p:4x8x8", Layout(MeshShape(1, 16, 4, stage=4), "stage", 16), 2048),
    ("flm_51b", "v5p:4x8x8", Layout(MeshShape(1, 256), "dots", 3), 2304),
    ("flm_51b", "v5p:4x4x4", Layout(MeshShape(1, 64), "full", 2), 512),
    ("flm_51b", "v6e:16x16", Layout(MeshShape(1, 256), "full", 3), 2304),
    ("flm_51b", "v6e:16x16", Layout(MeshShape(1, 32, 8), "dots_no_batch", 8), 2048),
    ("flm_16b", "v5p:4x8x8", Layout(MeshShape(1, 256), "dots", 3), 2304),
    ("flm_16b", "v5e:16x16", Layout(MeshShape(1, 256), "full", 3), 2304),
    ("flm_16b", "v6e:8x8", Layout(MeshShape(1, 64), "dots", 8), 1024),
]


def compiled(config: Any, where: topology.Topology, devices: list, layout: Layout, batch: int) -> StageReport:
    stage = laid_out(Stage(LanguageModel(config), batch, 1e-3, steps=10), layout)
    route = Route.of([stage], config.max_length)
    history = History.begin("any", batch)
    return report_step(
        Leg(route, Lineage(), optimizer.adamw, optimizer.warmup_cosine, history, devices), where
    )


def estimates() -> None:
    print("model     topology   layout                                            estimated  compiled  GiB")
    worst = 0.0
    for model, name, layout, batch in HELD_OUT:
        where = topology.parse(name)
        devices, config = where.devices(), getattr(presets, model)()
        found = estimate(config, layout, batch, 2048, layout.mesh.build(devices), where)
        report = compiled(config, where, devices, layout, batch)
        if report.program is None:
            print(f"{model:9} {name:10} {layout!s:50} {found.peak / GIB:8.2f}   refused by the compiler")
            continue
        error = found.peak / report.program.memory.peak - 1
        worst = max(worst, abs(error))
        peaks = f"{found.peak / GIB:8.2f}  {report.program.memory.peak / GIB:8.2f}  {error:+.1%}"
        print(f"{model:9} {name:10} {layout!s:50} {peaks}", flush=True)
    print(f"largest error {worst:.1%}")


def exhaustive() -> None:
    where = topology.parse("v5e:2x2")
    devices = where.devices()
    config = dataclasses.replace(
        presets.flm_tiny(), dtype="bfloat16", d_model=1024, num_heads=8, head_dim=128, d_ff=4096, num_layers=4
    )
    batch, length = 4, 512
    found = search(Route.of([Stage(LanguageModel(config), batch, 1e-3, steps=10)], length), 0, where, devices)
    seconds: dict[Layout, float] = {}
    for number, one in enumerate(found.candidates, start=1):
        report = compiled(config, where, devices, one.layout, batch)
        outcome = "does not fit"
        if report.fits and report.time is not None:
            seconds[one.layout] = report.time.seconds
            outcome = f"{report.time.seconds * 1e3:.3f} ms"
        print(f"{number} of {len(found.candidates)}: {one.layout!s:60} {outcome}", flush=True)
    best, pick = min(seconds, key=lambda layout: seconds[layout]), found.fitting[0].layout
    print(f"{len(found.candidates)} layouts compiled, {len(seconds)} fit")
    print(f"best: {best}, {seconds[best] * 1e3:.3f} ms; pick: {pick}, {seconds[pick] * 1e3:.3f} ms")
    print(f"the pick takes {seconds[pick] / seconds[best]:.3f} x the time of the best")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--estimates", action="store_true")
    parser.add_argument("--exhaustive", action="store_true")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, jax {jax.__version__}")
    if options.estimates:
        estimates()
    if options.exhaustive:
        exhaustive()


if __name__ == "__main__":
    main()
