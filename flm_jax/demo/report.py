"""What the demo shows at its end: a figure of the curves, a table, the same numbers as JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flm_jax.config import ModelConfig
from flm_jax.training.run_log import read_metrics

LANGUAGES = {"en": "English", "zh": "Chinese", "instruct": "instructions"}


def summary(model_dir: Path, config: ModelConfig, length: int, seconds: float) -> dict[str, Any]:
    """The run's numbers: sizes, speed, and each task's held-out loss before and after.

    Args:
        model_dir: The run's directory.
        config: Its model.
        length: Tokens of a sequence.
        seconds: That training took, compilation and evaluation included.
    """
    records = read_metrics(model_dir)
    steps = [record for record in records if "train/loss" in record]
    tokens = steps[-1]["train/tokens"]
    timed = [record for record in steps if "speed/tokens_per_second" in record]
    held_out = {}
    for task in LANGUAGES:
        found = [record for record in records if f"eval/{task}/loss" in record]
        held_out[task] = {
            name: {"start": found[0][f"eval/{task}/{name}"], "end": found[-1][f"eval/{task}/{name}"]}
            for name in ("loss", "bits_per_byte")
        }
    return {
        "parameters": config.num_params,
        "steps": int(steps[-1]["step"]),
        "tokens": int(tokens),
        "flops": config.flops_per_token(length) * tokens,
        "seconds": seconds,
        "tokens_per_second": _median([record["speed/tokens_per_second"] for record in timed]),
        "mfu": _median([record["speed/mfu"] for record in timed]),
        "hfu": _median([record["speed/hfu"] for record in timed]),
        "train_loss": steps[-1]["train/loss"],
        "skipped_steps": int(steps[-1]["train/skipped"]),
        "held_out": held_out,
    }


def table(numbers: Mapping[str, Any]) -> str:
    """The summary for people."""
    rows = [
        ("parameters", f"{numbers['parameters']:,}"),
        ("steps, skipped", f"{numbers['steps']:,}, {numbers['skipped_steps']}"),
        ("tokens (padding included)", f"{numbers['tokens']:,}"),
        ("model FLOPs", f"{numbers['flops']:.3g}"),
        ("seconds of training", f"{numbers['seconds']:,.0f}"),
        ("tokens per second (median)", f"{numbers['tokens_per_second']:,.0f}"),
        ("MFU, HFU (median)", f"{numbers['mfu']:.1%}, {numbers['hfu']:.1%}"),
        ("training loss at the end", f"{numbers['train_loss']:.3f} nats/token"),
    ]
    for task, found in numbers["held_out"].items():
        loss, bits = found["loss"], found["bits_per_byte"]
        rows.append(
            (
                f"held-out {LANGUAGES[task]}",
                f"{loss['start']:.3f} -> {loss['end']:.3f} nats/token, "
                f"{bits['start']:.3f} -> {bits['end']:.3f} bits/byte",
            )
        )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def write_json(path: Path, numbers: Mapping[str, Any]) -> None:
    """Writes the summary, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def figure(model_dir: Path, path: Path) -> None:
    """Draws training loss and each task's held-out loss and bits per byte against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    records = read_metrics(model_dir)
    steps = [record for record in records if "train/loss" in record]
    per_step = steps[-1]["train/tokens"] / steps[-1]["step"]
    plot, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), constrained_layout=True)
    left.plot(
        [record["train/tokens"] for record in steps],
        [record["train/loss"] for record in steps],
        color="0.7",
        label="training",
    )
    for task, name in LANGUAGES.items():
        found = [record for record in records if f"eval/{task}/loss" in record]
        tokens = [record["step"] * per_step for record in found]
        left.plot(tokens, [record[f"eval/{task}/loss"] for record in found], "o-", label=f"held-out {name}")
        right.plot(tokens, [record[f"eval/{task}/bits_per_byte"] for record in found], "o-", label=name)
    left.set(xlabel="tokens", ylabel="loss, nats per token", title="Loss")
    right.set(xlabel="tokens", ylabel="bits per byte of text", title="Held-out compression")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    plot.savefig(path, dpi=130)
    pyplot.close(plot)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else float("nan")
