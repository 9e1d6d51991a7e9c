"""The report's figure: held-out loss over what it cost, and the shares of each suite, checkpoint beside checkpoint."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flm_jax import figure_file
from flm_jax.evaluation.measured import BENCHMARKS, CHANCE, HELD_OUT, IQ, Measured

if TYPE_CHECKING:
    from flm_jax.evaluation.report import Report


def draw(report: "Report", path: Path) -> None:
    """Writes a PNG: bits per byte against model FLOPs (parameters, where those are not known), a bar for each share."""
    plt = figure_file.pyplot()
    bars = [
        (suite, metric)
        for suite, metric in dict.fromkeys(
            (measure.suite, measure.metric)
            for each in report.checkpoints
            for measure in each.measures
            if measure.share and measure.suite in (IQ, BENCHMARKS)
        )
    ]
    with_text = any(measure.suite == HELD_OUT for each in report.checkpoints for measure in each.measures)
    panels = (1 if with_text else 0) + len(bars)
    widest = max((len(_tasks(report, *bar)) for bar in bars), default=0)
    drawing, axes = plt.subplots(
        max(panels, 1),
        1,
        figsize=(max(7.0, 1.0 + 0.22 * widest * len(report.checkpoints)), 3.6 * max(panels, 1)),
        squeeze=False,
        layout="constrained",
    )
    left = list(axes[:, 0])
    if with_text:
        _held_out(left.pop(0), report)
    for (suite, metric), ax in zip(bars, left, strict=False):
        _bars(ax, report, suite, metric)
    figure_file.save(drawing, path)


def _held_out(ax: Any, report: "Report") -> None:
    known = all(each.spent.model_flops for each in report.checkpoints)
    places = [float(each.spent.model_flops if known else each.num_params) for each in report.checkpoints]  # type: ignore[arg-type]
    tasks = dict.fromkeys(m.task for each in report.checkpoints for m in each.measures if m.suite == HELD_OUT)
    for task in tasks:
        points = [
            (place, measure.value, label)
            for place, each, label in zip(places, report.checkpoints, report.labels, strict=True)
            for measure in each.measures
            if (measure.suite, measure.task, measure.metric) == (HELD_OUT, task, "bits_per_byte")
        ]
        (line,) = ax.plot([x for x, _, _ in points], [y for _, y, _ in points], "o", label=task)
        for x, y, label in points:
            ax.annotate(
                label, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=7, color=line.get_color()
            )
    ax.set(xscale="log", ylabel="bits per byte", title="Held-out text")
    ax.set_xlabel("model FLOPs spent" if known else "parameters (FLOPs are not known of all)")
    ax.margins(x=0.2, y=0.15)  # for the labels
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)


def _bars(ax: Any, report: "Report", suite: str, metric: str) -> None:
    tasks = _tasks(report, suite, metric)
    width = 0.8 / len(report.checkpoints)
    for index, (label, each) in enumerate(zip(report.labels, report.checkpoints, strict=True)):
        found = {m.task: m for m in each.measures if (m.suite, m.metric) == (suite, metric)}
        there = [(place, found[task]) for place, task in enumerate(tasks) if task in found]
        ax.bar(
            [place + (index + 0.5) * width - 0.4 for place, _ in there],
            [measure.value for _, measure in there],
            width,
            yerr=[[_down(measure) for _, measure in there], [_up(measure) for _, measure in there]],
            error_kw={"linewidth": 0.8},
            label=label,
        )
    chances = {
        m.task: m.baselines[CHANCE]
        for each in report.checkpoints
        for m in each.measures
        if (m.suite, m.metric) == (suite, metric) and CHANCE in m.baselines
    }
    for place, task in enumerate(tasks):
        if task in chances:
            ax.hlines(
                chances[task],
                place - 0.42,
                place + 0.42,
                color="black",
                linestyle="--",
                linewidth=1,
                label="chance" if place == 0 else None,
            )
    ax.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", fontsize=8)
    ax.set(ylim=(0, 1.02), ylabel=f"{metric}, share", title=f"{suite}: {metric}")
    ax.grid(alpha=0.3, axis="y")
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _tasks(report: "Report", suite: str, metric: str) -> list[str]:
    return list(
        dict.fromkeys(
            m.task for e in report.checkpoints for m in e.measures if (m.suite, m.metric) == (suite, metric)
        )
    )


def _down(measure: Measured) -> float:
    return 0.0 if measure.low is None else max(0.0, measure.value - measure.low)


def _up(measure: Measured) -> float:
    return 0.0 if measure.high is None else max(0.0, measure.high - measure.value)
