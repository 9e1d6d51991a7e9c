"""What a run says: a line for people, `metrics.jsonl` for programs, TensorBoard event files for both."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorboardX
from tqdm import tqdm

from flm_jax.json_file import write_text
from flm_jax.training import processes

METRICS_FILE = "metrics.jsonl"
# With which the names of what was measured between steps begin.
EVAL, SUITE = "eval/", "suite/"


class RunLog:
    """Writes scalars and lines of one run; a context manager.

    Args:
        model_dir: Where `metrics.jsonl` and `tensorboard/` go.
        step: The step that the run begins or resumes at. What an earlier, killed, run wrote of later steps is
            taken out, so that each step is there once.
        total_steps: For the progress bar, which is shown on terminals only.
        growths: The steps at which the model has grown. A growth that is recorded at another step was undone by the
            return to a checkpoint before it, and is taken out.

    Of several processes that train together the first writes, and the others are silent.
    """

    def __init__(self, model_dir: Path, step: int, total_steps: int, growths: Sequence[int] = ()) -> None:
        self._writes = processes.is_first()
        self._path = Path(model_dir) / METRICS_FILE
        earlier = read_metrics(model_dir)
        kept = [
            record
            for record in earlier
            if record["step"] <= step and ("growth/gap" not in record or record["step"] in growths)
        ]
        self._measured: set[tuple[int, str]] = set()
        for record in kept:
            self._remember(int(record["step"]), record)
        if not self._writes:
            return
        write_text(self._path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = self._path.open("a", encoding="utf-8")
        # tensorboardX warns of steps that it purges, which is just what is meant here.
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        self._tensorboard = tensorboardX.SummaryWriter(
            str(Path(model_dir) / "tensorboard"), purge_step=step + 1 if earlier else None
        )
        self._bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=not sys.stderr.isatty()
        )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: Any) -> None:
        if not self._writes:
            return
        self._bar.close()
        self._tensorboard.close()
        self._file.close()

    def measured_at(self, step: int, kind: str) -> bool:
        """Whether a measurement of `step` is recorded: `EVAL` or `SUITE`."""
        return (step, kind) in self._measured

    def _remember(self, step: int, values: Mapping[str, float]) -> None:
        self._measured |= {(step, kind) for kind in (EVAL, SUITE) for name in values if name.startswith(kind)}

    def line(self, text: str) -> None:
        """Prints one line, above the progress bar where there is one."""
        if self._writes:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records named scalars of a step; names have the form `train/loss`."""
        self._remember(step, values)
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        self._tensorboard.flush()

    def advance(self) -> None:
        """Moves the progress bar by one step."""
        if self._writes:
            self._bar.update()


def read_metrics(model_dir: Path) -> list[dict[str, float]]:
    """The records of `metrics.jsonl`, in order; none where there is no file.

    A last line that a killed process left unfinished is left out.

    Raises:
        ValueError: another line is no JSON.
    """
    path = Path(model_dir) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"expected a JSON object in line {number} of {path}, found {line[:80]!r}; repair or remove the line"
            ) from error
    return records
