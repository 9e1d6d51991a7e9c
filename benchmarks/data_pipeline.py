"""How fast text is prepared and read, beside the tokenizer alone and beside plain seqio, in one run on one core.

Preparing: `write_shard` (what each process of `flm data prepare` does: JSON to packed record files) beside the
tokenizer on texts in memory, and beside seqio's own pipeline from the same JSON lines (tokenize, append eos, trim,
pack), which drops what is longer than a sequence.

Reading: `Reader.batch` of five tasks, shuffled, mixed by tokens, decoded to features, beside seqio's mixture of five
tasks that tokenizes and packs while it is read (its buffers are filled anew in every round, which counts).

    python benchmarks/data_pipeline.py                       # the demo's English and Chinese text
    python benchmarks/data_pipeline.py --text en.jsonl.gz --text zh.jsonl.gz --tokenizer tokenizer.model
    python benchmarks/data_pipeline.py --json out.json       # the numbers, for programs

Restarting: seconds from the start of a new process to its batch of step 1,000,000, imports included.

Rounds are interleaved; figures are medians, in tokens a second of this process's one core.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flm_jax.demo import text as demo_text
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.shards import shards, write_shard
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer_from_files

SHARD_BYTES = 4 << 20
LENGTHS = (512, 2048)
SHARES = {"a": 40.0, "b": 30.0, "c": 15.0, "d": 10.0, "e": 5.0}
BATCH = 64


def one_core() -> int:
    """Keeps this process, with all threads that it will have, on one core; returns its number."""
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def rate(work: Callable[[], int]) -> float:
    """Tokens a second of work that returns its tokens."""
    started = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - started)


def preparing(path: Path, vocabulary: Vocabulary, folder: Path) -> dict[str, Callable[[], int]]:
    """One shard of a file's text, three ways."""
    task = Corpus("benchmark", JsonLines(str(path)))
    shard = next(shards(task.source, "train", SHARD_BYTES))
    texts = [task.source.document(record.raw)["targets"] for record in shard.records]
    lines = folder / f"{path.name}.shard.jsonl"
    lines.write_bytes(b"".join(record.raw for record in shard.records))
    (folder / "parts").mkdir(exist_ok=True)
    return {
        "tokenizer alone": lambda: sum(len(vocabulary.encode(text)) for text in texts),
        "flm prepare": lambda: write_shard(shard, task, vocabulary, LENGTHS[0], folder, {}).counts.tokens,
        "plain seqio": lambda: seqio_tokens(seqio_task(lines, vocabulary), LENGTHS[0], repeat=False),
    }


def seqio_task(lines: Path, vocabulary: Vocabulary) -> str:
    """Registers what a user of seqio would write for JSON lines; returns its name."""
    import seqio
    import tensorflow as tf

    name = "seqio_" + "".join(letter if letter.isalnum() else "_" for letter in str(lines))
    if name in seqio.TaskRegistry.names():
        return name

    def parse(dataset: Any) -> Any:
        def text(line: bytes) -> str:
            return json.loads(line)["text"]

        def example(line: Any) -> dict[str, Any]:
            found = tf.numpy_function(text, [line], tf.string)
            return {"targets": tf.ensure_shape(found, [])}

        return dataset.map(example)

    seqio.TaskRegistry.add(
        name,
        source=seqio.TextLineDataSource({"train": str(lines)}),
        preprocessors=[parse, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocabulary.as_seqio(), add_eos=True)},
    )
    return name


def seqio_batches(name: str, length: int, repeat: bool) -> Iterator[dict[str, Any]]:
    """Packed batches as t5x would ask for them."""
    import seqio

    dataset = seqio.get_dataset(
        name,
        {"targets": length},
        dataset_split="train",
        shuffle=repeat,
        seed=0,
        num_epochs=None if repeat else 1,
        feature_converter=seqio.LMFeatureConverter(pack=True),
        batch_size=BATCH if repeat else 1,
    )
    return dataset.as_numpy_iterator()


def seqio_tokens(name: str, length: int, repeat: bool) -> int:
    """The tokens of one epoch, as far as seqio keeps them."""
    return sum(int((batch["decoder_segment_ids"] > 0).sum()) for batch in seqio_batches(name, length, repeat))


def reading(
    paths: list[Path], vocabulary: Vocabulary, folder: Path, length: int, batches: int
) -> dict[str, Callable[[], int]]:
    """Batches of a mixture of five tasks, two ways; each call goes on where the one before stopped."""
    import seqio

    out = folder / f"prepared_{length}"
    tasks = [Corpus(name, JsonLines(str(paths[index % len(paths)]))) for index, name in enumerate(SHARES)]
    prepare(tasks, vocabulary, length, out, num_workers=1)
    reader = Reader(out, SHARES, length, seed=0)
    steps = itertools.count()

    def ours() -> int:
        tokens = 0
        for step in itertools.islice(steps, batches):
            tokens += int((reader.batch(step * BATCH, BATCH)["decoder_segment_ids"] > 0).sum())
        return tokens

    mixture = f"mixture_{length}"
    if mixture not in seqio.MixtureRegistry.names():
        names: dict[str, float] = {}
        for index, share in enumerate(SHARES.values()):
            name = seqio_task(paths[index % len(paths)], vocabulary)
            names[name] = names.get(name, 0.0) + share
        seqio.MixtureRegistry.add(mixture, list(names.items()))

    def theirs() -> int:
        # A new pipeline each time: one that stays would read ahead while the other way is measured.
        few = itertools.islice(seqio_batches(mixture, length, repeat=True), max(3, 8 * LENGTHS[0] // length))
        return sum(int((batch["decoder_segment_ids"] > 0).sum()) for batch in few)

    return {"flm reader": ours, "plain seqio": theirs}


RESUME = """
import json, sys, time
started = time.perf_counter()
from flm_jax.tasks.reader import Reader
imported = time.perf_counter()
reader = Reader(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), seed=0)
reader.batch(1_000_000 * int(sys.argv[4]), int(sys.argv[4]))
print(json.dumps([imported - started, time.perf_counter() - imported]))
"""


def resuming(folder: Path, length: int) -> dict[str, float]:
    """Seconds of a new process to the batch of step 1,000,000 of the mixture."""
    arguments = [str(folder / f"prepared_{length}"), json.dumps(SHARES), str(length), str(BATCH)]
    done = subprocess.run(
        [sys.executable, "-c", RESUME, *arguments], check=True, capture_output=True, text=True
    )
    imports, batch = json.loads(done.stdout.splitlines()[-1])
    return {"imports": imports, "open and first batch": batch}


def measured(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, float]:
    """The median rate of each way; one round first that does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            value = rate(work)
            if number:
                found[name].append(value)
    return {name: statistics.median(values) for name, values in found.items()}


def show(title: str, rates: dict[str, float], reference: str) -> None:
    """Prints rates and their ratios to one of them."""
    print(title)
    for name, value in rates.items():
        print(f"  {name:<16} {value / 1e6:>8.3f} M tokens/s   {value / rates[reference]:>7.2f} x {reference}")


def texts_as_lines(paths: list[str], folder: Path) -> list[Path]:
    """The files to read: those given, decompressed for seqio's reader of lines, or the demo's."""
    if not paths:
        return [path for name, path in demo_text.write(folder / "text").items() if name in ("en", "zh")]
    plain = []
    for number, path in enumerate(paths):
        task = Corpus("copy", JsonLines(path))
        copy = folder / f"text{number}.jsonl"
        with open(copy, "wb") as file:
            for shard in itertools.islice(shards(task.source, "train", 16 << 20), 1):
                file.writelines(record.raw for record in shard.records)
        plain.append(copy)
    return plain


def main() -> int:
    """Measures and prints; exit code 1 where the reader is below a million tokens a second."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--text", action="append", default=[], help="JSON lines with `text`; the first 16 MB of each"
    )
    parser.add_argument("--tokenizer", help="a tokenizer; one of 8,192 pieces is trained unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    core = one_core()
    print(f"{platform.processor() or platform.machine()}, core {core}, Python {platform.python_version()}")
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = texts_as_lines(options.text, folder)
        if options.tokenizer:
            vocabulary = Vocabulary(options.tokenizer)
        else:
            vocabulary = train_tokenizer_from_files(
                paths, folder / "tokenizer.model", 8_192, max_bytes=4_000_000
            )
        for path in paths:
            numbers[f"prepare {path.name}"] = measured(preparing(path, vocabulary, folder), options.rounds)
        for length in LENGTHS:
            ways = reading(paths, vocabulary, folder, length, batches=40)
            numbers[f"read, length {length}"] = measured(ways, options.rounds)
        resumed = resuming(folder, LENGTHS[-1])
    for title, rates in numbers.items():
        show(title, rates, "plain seqio")
    print(
        "restart at step 1,000,000: " + ", ".join(f"{name} {value:.2f} s" for name, value in resumed.items())
    )
    numbers["restart at step 1,000,000, seconds"] = resumed
    if options.json:
        Path(options.json).write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    slow = [title for title, rates in numbers.items() if rates.get("flm reader", 1e6) < 1e6]
    print(
        f"below a million tokens a second: {slow}"
        if slow
        else "the reader gives at least a million tokens a second"
    )
    return 1 if slow else 0


if __name__ == "__main__":
    raise SystemExit(main())
