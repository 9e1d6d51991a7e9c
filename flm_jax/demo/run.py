"""The demo: the verbs that a user would give, one after the other, and a report of what came out.

Every verb runs in a process of its own, as it does by hand, so that TensorFlow is gone when training begins. What is
there already is kept and a stopped run is continued, so the demo can be stopped and started again.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flm_jax.demo import report, text
from flm_jax.grow.lineage import Lineage
from flm_jax.json_file import write_json
from flm_jax.training.checkpoints import load_params
from flm_jax.training.run_log import read_metrics
from flm_jax.training.stop import stop_on_sigterm

VOCAB_SIZE = 8_192  # of every stage
TOKENIZER_BYTES = 4_000_000  # of text that the tokenizer learns from
PROMPTS = ("The function returns", "Python is", "中国", "这本书")


class DemoError(RuntimeError):
    """A verb of the demo failed; its own message is above."""


def demo(out: str | Path, json_file: str | Path | None, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Trains a small bilingual model that grows twice, on text of this machine.

    Args:
        out: Directory of everything: `text/`, `tokenizer.model`, `prepared/`, `run/`, `curves.png`.
        json_file: Where the closing table's numbers go; None for nowhere.
        flags: Further gin flags of `flm train`, such as `--gin.STEPS_SMALL=50`.

    Returns:
        The closing table's numbers.
    """
    out = Path(out)
    run, tokenizer = out / "run", out / "tokenizer.model"

    _headline("1/5 text: what this machine has in English and Chinese")
    files = text.write(out / "text")

    _headline("2/5 tokenizer")
    if tokenizer.exists():
        print(f"{tokenizer} is there already and is kept")
    else:
        inputs = [f"--input={files[name]}" for name in ("en", "zh")]
        _flm("tokenizer", "train", *inputs, f"--vocab_size={VOCAB_SIZE}", f"--max_bytes={TOKENIZER_BYTES}",
             f"--out={tokenizer}")  # fmt: skip

    paths = [
        *(f"--gin.{name.upper()}_FILES={path}" for name, path in files.items()),
        f"--gin.VOCABULARY={tokenizer}",
        f"--gin.PREPARED_DIR={out / 'prepared'}",
    ]
    _headline("3/5 prepared data")
    _flm("data", "prepare", "--gin_file=gin_configs/data/demo.gin", *paths)

    _headline("4/5 training")
    before = _steps(run)
    started = time.monotonic()
    _flm("train", "--gin_file=gin_configs/runs/demo.gin", *paths, *flags, f"--gin.MODEL_DIR={run}")
    seconds = time.monotonic() - started

    _headline("5/5 what came out")
    metadata, _, _ = load_params(run)
    sources = [growth.source for growth in Lineage.from_json(metadata.growth_record).records]
    numbers = report.summary(run, [*sources, metadata.config], seconds)
    numbers["resumed_from_step"] = int(before)
    if before:
        print(f"training went on from step {before:.0f}; its seconds are those of the rest\n")
    _flm(
        "generate",
        f"--model_dir={run}",
        f"--tokenizer={tokenizer}",
        *(f"--prompt={prompt}" for prompt in PROMPTS),
    )
    figure = out / "curves.png"
    report.figure(run, figure)
    print(f"\n{report.table(numbers)}\n\ncurves: {figure}")
    if json_file is not None:
        write_json(json_file, numbers)
        print(f"numbers: {json_file}")
    print(
        f"the stages side by side: flm eval --model_dir={run} --stages --prepared_dir={out / 'prepared'} --suite=iq "
        f"--num_items=50 --report={out / 'report'}"
    )
    return numbers


def _headline(words: str) -> None:
    print(f"\n== {words} ==", flush=True)


def _flm(*arguments: str) -> None:
    print(f"$ flm {' '.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "flm_jax", *arguments])
    with stop_on_sigterm() as stop:
        while process.poll() is None:
            if stop.received:
                process.terminate()
            time.sleep(0.2)
    if process.returncode:
        raise DemoError(f"`flm {' '.join(arguments[:2])} ...` ended with exit code {process.returncode}")


def _steps(run: Path) -> float:
    return max((record["step"] for record in read_metrics(run)), default=0)
