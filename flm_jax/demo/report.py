"""What the demo shows at its end: a figure of the curves, a table, the same numbers as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flm_jax import figure_file
from flm_jax.config import ModelConfig
from flm_jax.training.run_log import read_metrics

LANGUAGES = {"en": "English", "zh": "Chinese", "instruct": "instructions"}
_OF_A_GROWTH = ("tokens", "flops", "loss_before", "loss_after", "gap", "logits")


def summary(model_dir: Path, configs: Sequence[ModelConfig], seconds: float) -> dict[str, Any]:
    """The run's numbers: sizes, costs and speed of each stage, each task's held-out loss before and after it.

    Args:
        model_dir: The run's directory.
        configs: The models of its stages, in order.
        seconds: That training took; compilation, growth and evaluation included.
    """
    records = read_metrics(model_dir)
    last = [record for record in records if "train/loss" in record][-1]
    growths = [record for record in records if "growth/gap" in record]
    starts = [{"step": 0, "growth/tokens": 0, "growth/flops": 0.0}, *growths]
    ends = [(r["step"], r["growth/tokens"], r["growth/flops"]) for r in growths]
    ends.append((last["step"], last["train/tokens"], last["train/flops"]))
    stages = [
        _stage(records, config, start, end) for config, start, end in zip(configs, starts, ends, strict=True)
    ]
    return {
        "parameters": configs[-1].num_params,
        "steps": int(last["step"]),
        "tokens": int(last["train/tokens"]),
        "flops": last["train/flops"],
        "seconds": seconds,
        "train_loss": last["train/loss"],
        "skipped_steps": int(last["train/skipped"]),
        "stages": stages,
        "growths": [
            {"step": int(record["step"]), **{name: record[f"growth/{name}"] for name in _OF_A_GROWTH}}
            for record in growths
        ],
        "held_out": {
            task: {
                name: {
                    "start": stages[0]["held_out"][task][name]["start"],
                    "end": stages[-1]["held_out"][task][name]["end"],
                }
                for name in ("loss", "bits_per_byte")
            }
            for task in LANGUAGES
        },
    }


def _stage(
    records: Sequence[Mapping[str, float]],
    config: ModelConfig,
    start: Mapping[str, float],
    end: tuple[float, float, float],
) -> dict[str, Any]:
    """From the growth that it began with, or step 0, to (step, tokens, FLOPs)."""
    inside = [record for record in records if start["step"] < record["step"] <= end[0]]
    timed = [record for record in inside if "speed/tokens_per_second" in record]

    def evaluated(step: float, task: str, name: str) -> float:
        return next(r for r in records if r["step"] == step and f"eval/{task}/loss" in r)[
            f"eval/{task}/{name}"
        ]

    return {
        "parameters": config.num_params,
        "steps": int(end[0] - start["step"]),
        "tokens": int(end[1] - start["growth/tokens"]),
        "flops": end[2] - start["growth/flops"],
        **{
            name: _median([record[f"speed/{name}"] for record in timed])
            for name in ("tokens_per_second", "mfu", "hfu")
        },
        "held_out": {
            task: {
                name: {"start": evaluated(start["step"], task, name), "end": evaluated(end[0], task, name)}
                for name in ("loss", "bits_per_byte")
            }
            for task in LANGUAGES
        },
    }


def table(numbers: Mapping[str, Any]) -> str:
    """The summary for people."""
    stages = numbers["stages"]
    rows = [["", *(f"stage {index}" for index in range(1, len(stages) + 1)), "all"]]

    def row(name: str, cells: Sequence[str], whole: str) -> None:
        rows.append([name, *cells, whole])

    first = stages[0]["parameters"]
    row("parameters", [f"{s['parameters']:,}" for s in stages], "")
    row("  against the first", [f"{s['parameters'] / first:.2f}" for s in stages], "")
    row("steps", [f"{s['steps']:,}" for s in stages], f"{numbers['steps']:,}")
    row("tokens (padding included)", [f"{s['tokens']:,}" for s in stages], f"{numbers['tokens']:,}")
    row("  share", [f"{s['tokens'] / numbers['tokens']:.0%}" for s in stages], "")
    row("model FLOPs", [f"{s['flops']:.3g}" for s in stages], f"{numbers['flops']:.3g}")
    row("tokens per second (median)", [f"{s['tokens_per_second']:,.0f}" for s in stages], "")
    row("MFU, HFU (median)", [f"{s['mfu']:.1%}, {s['hfu']:.1%}" for s in stages], "")
    for task, found in numbers["held_out"].items():
        row(
            f"held-out {LANGUAGES[task]}, nats/token",
            [_arrow(stage["held_out"][task]["loss"]) for stage in stages],
            _arrow(found["loss"]),
        )
        row("  bits/byte", [_arrow(s["held_out"][task]["bits_per_byte"]) for s in stages],
            _arrow(found["bits_per_byte"]))  # fmt: skip
    for name, key in (("loss before growth", "loss_before"), ("loss after growth", "loss_after")):
        row(name, ["", *(f"{growth[key]:.6f}" for growth in numbers["growths"])], "")
    row("  gap, nats/token", ["", *(f"{growth['gap']:+.1e}" for growth in numbers["growths"])], "")
    row(
        "  largest logit, relatively", ["", *(f"{growth['logits']:.1e}" for growth in numbers["growths"])], ""
    )
    row("seconds of training", ["" for _ in stages], f"{numbers['seconds']:,.0f}")
    row("training loss at the end", ["" for _ in stages], f"{numbers['train_loss']:.3f}")
    row("steps skipped", ["" for _ in stages], f"{numbers['skipped_steps']}")
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in rows
    )


def figure(model_dir: Path, path: Path) -> None:
    """Draws the training loss and each task's held-out loss against tokens and against FLOPs, growths marked."""
    pyplot = figure_file.pyplot()
    records = read_metrics(model_dir)
    steps = [record for record in records if "train/loss" in record]
    plot, panels = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True, sharey=True)
    for axes, (name, label) in zip(panels, {"tokens": "tokens", "flops": "model FLOPs"}.items(), strict=True):
        # Between two log lines tokens and FLOPs grow evenly, and the last step of a stage has a line.
        known = (
            [0.0, *(record["step"] for record in steps)],
            [0.0, *(record[f"train/{name}"] for record in steps)],
        )
        axes.plot(known[1][1:], [record["train/loss"] for record in steps], color="0.7", label="training")
        for task, language in LANGUAGES.items():
            found = [record for record in records if f"eval/{task}/loss" in record]
            places = np.interp([record["step"] for record in found], *known)
            axes.plot(
                places,
                [r[f"eval/{task}/loss"] for r in found],
                "o-",
                markersize=4,
                label=f"held-out {language}",
            )
        for growth in (record for record in records if "growth/gap" in record):
            axes.axvline(growth[f"growth/{name}"], color="0.3", linestyle="--", linewidth=1)
            axes.annotate(
                f"grown to {growth['growth/parameters'] / 1e6:.1f}M",
                (growth[f"growth/{name}"], 0.98),
                xycoords=("data", "axes fraction"),
                rotation=90,
                va="top",
                ha="right",
                fontsize=8,
            )
        axes.set(xlabel=label, title=f"Loss against {label}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("loss, nats per token")
    panels[1].legend(loc="upper right", fontsize=8)
    figure_file.save(plot, path)


def _arrow(change: Mapping[str, float]) -> str:
    return f"{change['start']:.3f} -> {change['end']:.3f}"


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else float("nan")
