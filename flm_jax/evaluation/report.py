"""Several checkpoints side by side: what each cost and what was measured of it, as a table, Markdown and JSON."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flm_jax.evaluation import report_figure
from flm_jax.evaluation.measured import BENCHMARKS, CHANCE, HELD_OUT, IQ, Measured
from flm_jax.evaluation.spent import Spent
from flm_jax.json_file import write_json, write_text
from flm_jax.table import aligned, number

JSON_FILE, MARKDOWN_FILE, FIGURE_FILE = "report.json", "report.md", "report.png"

HEADINGS = {
    HELD_OUT: "Held-out text",
    IQ: "IQ suite",
    BENCHMARKS: "Benchmarks (lm-eval)",
}
READING = {
    HELD_OUT: "Loss in nats per token with loss, its exponential, bits per UTF-8 byte, share of tokens predicted. Only "
    "bits per byte may be compared between tokenizers.",
    IQ: "`exact`: the share of questions answered word for word. `choice`: in which the right answer is the likeliest "
    "of those offered. In brackets the 95 % interval (Wilson); `chance` is what guessing gives. A model whose interval "
    "holds the chance level has shown nothing. `oracle` is a program that solves the generated tasks by "
    "reading them, `baseline` a rule that understands nothing: the commonest label, or the place that a story "
    "names last.",
    BENCHMARKS: "Metrics by lm-eval's names, with the 95 % interval of a normal mean (1.96 standard errors), of "
    "shares cut to what shares can be, and Wilson's where all answers are right or none is.",
}


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One checkpoint.

    Attributes:
        model_dir: The run's directory.
        step: Of the checkpoint.
        num_params: Of its model.
        spent: On it.
        measures: All that was found, in order.
        notes: What a reader must know of how it was found, such as questions that were cut.
    """

    model_dir: str
    step: int
    num_params: int
    spent: Spent
    measures: tuple[Measured, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `tasks` has the held-out measures by task."""
        tasks: dict[str, dict[str, float | int | None]] = {}
        for measure in self.measures:
            if measure.suite == HELD_OUT:
                tasks.setdefault(measure.task, {"tokens": measure.count})[measure.metric] = measure.value
        return {
            "model_dir": self.model_dir,
            "step": self.step,
            "num_params": self.num_params,
            "spent": dataclasses.asdict(self.spent),
            "tasks": tasks,
            "measures": [measure.to_json() for measure in self.measures],
            "notes": list(self.notes),
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What `flm eval` has found.

    Attributes:
        checkpoints: In the order in which they were asked for; at least one.
        published: Model to its figures, by `Measured.name`: what the paper printed, to stand beside the IQ suite.
        caveats: What of the published figures is not comparable.
    """

    checkpoints: tuple[Evaluated, ...]
    published: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """A name for each checkpoint: `run@250`, with as much of the path as tells the runs apart."""
        parts = [Path(each.model_dir).expanduser().absolute().parts for each in self.checkpoints]
        depth = 1
        while len({each[-depth:] for each in parts}) < len(set(parts)):
            depth += 1
        return [
            f"{'/'.join(path[-depth:])}@{each.step}"
            for path, each in zip(parts, self.checkpoints, strict=True)
        ]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        checkpoints = [
            {"label": label, **each.to_json()}
            for label, each in zip(self.labels, self.checkpoints, strict=True)
        ]
        return {"checkpoints": checkpoints, "published": self.published, "caveats": list(self.caveats)}

    def table(self) -> str:
        """For people: a column for each checkpoint, or of one checkpoint a column for each measure."""
        if len(self.checkpoints) == 1:
            of = self.checkpoints[0]
            head = f"{of.model_dir}/checkpoint_{of.step}: {of.num_params:,} parameters"
            sections = [aligned(self._rows_of_one(suite)) for suite in self._suites]
            beside = self._beside_published()
            return "\n\n".join([f"{head}\n{sections[0]}", *sections[1:], *beside, *of.notes])
        sections = [aligned([["", *self.labels], *self._sizes()])]
        for suite in self._suites:
            sections.append(f"{HEADINGS[suite]}\n{aligned(self._rows(suite))}")
        return "\n\n".join([*sections, *self._beside_published(), *self._notes()])

    def markdown(self) -> str:
        """The same as Markdown, with how to read it."""
        lines = ["# Evaluation", "", *_markdown([["", *self.labels], *self._sizes()])]
        for suite in self._suites:
            lines += ["", f"## {HEADINGS[suite]}", "", READING[suite], "", *_markdown(self._rows(suite))]
            if suite == IQ and self._published_of(suite):
                lines += ["", "Beside the published figures:", "", *(f"- {line}" for line in self.caveats)]
        if notes := self._notes():
            lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
        lines += ["", f"![figure]({FIGURE_FILE})", ""]
        return "\n".join(lines)

    def write(self, directory: str | Path) -> list[Path]:
        """Writes JSON, Markdown and a figure; the paths."""
        folder = Path(directory).expanduser()
        write_json(folder / JSON_FILE, self.to_json())
        write_text(folder / MARKDOWN_FILE, self.markdown())
        report_figure.draw(self, folder / FIGURE_FILE)
        return [folder / name for name in (JSON_FILE, MARKDOWN_FILE, FIGURE_FILE)]

    @property
    def _suites(self) -> list[str]:
        found = {measure.suite for each in self.checkpoints for measure in each.measures}
        return [suite for suite in HEADINGS if suite in found]

    def _sizes(self) -> list[list[str]]:
        of = self.checkpoints
        return [
            ["parameters", *(f"{each.num_params:,}" for each in of)],
            ["tokens, padding included", *(number(each.spent.tokens, ",") for each in of)],
            ["model FLOPs", *(number(each.spent.model_flops, ".4g") for each in of)],
            ["FLOPs carried out", *(number(each.spent.hardware_flops, ".4g") for each in of)],
            ["device-hours", *(number(each.spent.device_hours) for each in of)],
        ]

    def _beside_published(self) -> list[str]:
        """What is not comparable, as a paragraph, where published figures are shown."""
        shown = any(self._published_of(suite) for suite in self._suites)
        return ["\n".join(f"- {line}" for line in self.caveats)] if shown and self.caveats else []

    def _published_of(self, suite: str) -> list[str]:
        return [
            model
            for model, figures in self.published.items()
            if any(name.startswith(f"{suite}/") for name in figures)
        ]

    def _rows(self, suite: str) -> list[list[str]]:
        """A row for each measure that any of the checkpoints has."""
        by_name = [
            {measure.name: measure for measure in each.measures if measure.suite == suite}
            for each in self.checkpoints
        ]
        first = {name: measure for found in reversed(by_name) for name, measure in found.items()}
        order = dict.fromkeys(name for found in by_name for name in found)
        baselines = dict.fromkeys(name for measure in first.values() for name in measure.baselines)
        models = self._published_of(suite)
        settings = any(measure.setting for measure in first.values())
        rows = [["task", *["setting"] * settings, "measure", "n", *self.labels, *baselines, *models]]
        for name in order:
            measure = first[name]
            counts = {found[name].count for found in by_name if name in found}
            row = [measure.task, *[measure.setting or "-"] * settings, measure.metric]
            row.append(number(measure.count, ",") if len(counts) == 1 else "differs")
            row += [found[name].text if name in found else "-" for found in by_name]
            row += [_share(measure.baselines.get(baseline)) for baseline in baselines]
            row += [_share(self.published[model].get(name)) for model in models]
            rows.append(row)
        return rows

    def _rows_of_one(self, suite: str) -> list[list[str]]:
        """A row for each task of the one checkpoint."""
        found = [measure for measure in self.checkpoints[0].measures if measure.suite == suite]
        metrics = dict.fromkeys(measure.metric for measure in found)
        of_metric = {
            metric: [
                name for each in found if each.metric == metric for name in each.baselines if name == CHANCE
            ][:1]
            for metric in metrics
        }
        others = dict.fromkeys(name for each in found for name in each.baselines if name != CHANCE)
        models = self._published_of(suite)
        settings = any(measure.setting for measure in found)
        head = ["task", *["setting"] * settings, "n"]
        for metric in metrics:
            head += [metric, *of_metric[metric]]
        rows = [[*head, *others, *models]]
        for task in dict.fromkeys(measure.task for measure in found):
            of = {measure.metric: measure for measure in found if measure.task == task}
            counts = [measure.count for measure in of.values() if measure.count is not None]
            setting = next(measure.setting for measure in of.values()) or "-"
            row = [task, *[setting] * settings, number(max(counts, default=None), ",")]
            for metric in metrics:
                row.append(of[metric].text if metric in of else "-")
                if of_metric[metric]:
                    row.append(_share(of[metric].baselines.get(CHANCE)) if metric in of else "-")
            row += [_share(_first(measure.baselines.get(name) for measure in of.values())) for name in others]
            row += [
                _share(_first(self.published[model].get(measure.name) for measure in of.values()))
                for model in models
            ]
            rows.append(row)
        return rows

    def _notes(self) -> list[str]:
        return [
            f"{label}: {note}"
            for label, each in zip(self.labels, self.checkpoints, strict=True)
            for note in each.notes
        ]


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _share(value: float | None) -> str:
    """In per cent; what rounds to nothing as a power of ten."""
    if value is None:
        return "-"
    return f"{value:.1%}" if value == 0 or value >= 5e-4 else f"{100 * value:.0e}%"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; the first row is its head."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [
        f"| {' | '.join(cells[0])} |",
        f"|{'---|' * len(cells[0])}",
        *(f"| {' | '.join(row)} |" for row in cells[1:]),
    ]
