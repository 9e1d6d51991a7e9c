"""Seconds of a training step, ours beside others', at the same shapes and interleaved in one run.

Every implementation has a process of its own, in which its step is compiled and waits. In a round each takes some steps
in turn, so that what slows the machine down meets all of them. The peak is that of float32 and bfloat16 matmuls of JAX
and of PyTorch in the same rounds.

    python benchmarks/throughput.py --torch_python=/path/to/python       # with PyTorch and transformers in it
    python benchmarks/throughput.py --t5x=t5x:airio:jestimator --json=throughput.json
    python benchmarks/throughput.py --peers ours-without-allocator ours-without-matmuls    # see peers/ours.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
# d_model, layers, sequences; length 256, heads of 64, FFN of 4 d_model, vocabulary 8,192.
SHAPES = {"4x256": (256, 4, 8), "8x512": (512, 8, 8)}
TORCH = ("nanogpt_eager", "nanogpt_compiled", "huggingface")


class Peer:
    """A process with one implementation."""

    def __init__(self, name: str, shape: str, dtype: str, options: argparse.Namespace) -> None:
        d_model, layers, batch = SHAPES[shape]
        python = options.torch_python if name in TORCH else sys.executable
        env = {**os.environ, "JAX_PLATFORMS": options.platform, "OMP_NUM_THREADS": str(os.cpu_count())}
        if options.t5x:
            env["PYTHONPATH"] = ":".join([options.t5x, env.get("PYTHONPATH", "")])
        self.name = name
        self.process = subprocess.Popen(
            [python, str(PEERS / "worker.py"), name, str(d_model), str(layers), str(batch), dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        self.about = self._answer()

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with code {self.process.wait()}")

    def ask(self, what: str) -> float:
        """`steps N` or `peak`: seconds of a step, or FLOP/s."""
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._answer()["value"]

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(shape: str, dtype: str, names: list[str], options: argparse.Namespace) -> dict:
    """Medians over the rounds."""
    peers, left_out = [], []
    for name in names:
        try:
            peers.append(Peer(name, shape, dtype, options))
        except RuntimeError as error:
            print(f"  left out: {error}", flush=True)
            left_out.append(name)
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    peaks: dict[str, list[float]] = {}
    for peer in peers:
        peer.ask("steps 2")
    for turn in range(options.rounds):
        # Another begins each round: what runs behind the peaks' matmuls, or behind threads that still spin, is slower.
        first = turn % len(peers)
        for peer in peers[first:] + peers[:first]:
            seconds[peer.name].append(peer.ask(f"steps {options.steps}"))
        for kind in ("ours", "nanogpt_eager"):
            for peer in peers:
                if peer.name == kind:
                    peaks.setdefault(kind, []).append(peer.ask("peak"))
    if not peaks or "ours" not in seconds:
        raise SystemExit("throughput: neither peak nor ratios without our own step, which did not start")
    flops = peers[0].about["flops"]
    for peer in peers:
        peer.close()
    peak = max(max(values) for values in peaks.values())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{shape}, {dtype}: peak {peak / 1e9:.0f} GFLOP/s")
    for name, value in medians.items():
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(
            f"  {name:<26} {value:.3f} s/step ({spread})  {flops / value / peak:4.0%} of the peak  "
            f"ours is {value / medians['ours']:.2f} x as fast",
            flush=True,
        )
    return {
        "seconds": medians, "rounds": seconds, "peak": peak, "flops_per_step": flops, "left_out": left_out,
        "steps": options.steps, "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """What this runs on, and how busy that is."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("jax", "flax", "optax"))
    return f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions}"


def main() -> int:
    """Every shape in every precision."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--torch_python", help="an interpreter with PyTorch; without it no PyTorch peers")
    parser.add_argument("--t5x", help="source trees of t5x, airio and jestimator, with colons between them")
    parser.add_argument("--platform", default="cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--peers", nargs="+", help="beside ours; all unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    parser.add_argument("--json")
    options = parser.parse_args()
    # The allocator's setting would speed up JAX peers, too: so ours is shown without it as well.
    names = ["ours", "ours-without-allocator", "plain_jax"] + (["t5x_decoder"] if options.t5x else [])
    names += list(TORCH) if options.torch_python else []
    if options.peers:
        names = ["ours", *options.peers]
    if not options.torch_python and set(names) & set(TORCH):
        parser.error("PyTorch's peers need --torch_python")
    print(f"{machine()}; {options.rounds} rounds of {options.steps} steps")
    found = {
        f"{shape} {dtype}": compare(shape, dtype, names, options)
        for shape in options.shapes
        for dtype in options.dtypes
    }
    if options.json:
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
