"""`flm data prepare`: runs a task once and writes what training reads, packed sequences with a manifest.

    out/en/tokenizer.model               the vocabulary, copied
    out/en/train-00000.array_record      packed sequences, one a record (see `records.py`)
    out/en/validation-00000.array_record
    out/en/manifest.json                 counts, hashes, the task's definition

A task is built in a folder beside its place and renamed when it is whole. Calling `prepare` imports
TensorFlow.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from tqdm import tqdm

from flm_jax.tasks.corpora import Corpus, Instructions
from flm_jax.tasks.manifest import (
    MANIFEST,
    RECORDS,
    TOKENIZER,
    Manifest,
    PreparedFile,
    SplitManifest,
    differences,
    file_sha256,
)
from flm_jax.tasks.packing import Chunk, PackedSequence, chunk, pack, sequence_length
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.records import encode_record
from flm_jax.tasks.sources import TRAIN, VALIDATION, Problems
from flm_jax.tasks.vocabulary import Vocabulary

# Each record on its own (a reader takes them in any order); zstd makes a packed sequence about 2 bytes a
# token.
_WRITER_OPTIONS = "group_size:1,zstd:3"


def prepare(
    tasks: Sequence[Corpus | Instructions],
    vocabulary: Vocabulary,
    length: int | Mapping[str, int],
    out: str | Path,
    splits: Sequence[str] = (TRAIN, VALIDATION),
    records_per_file: int = 65_536,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Tokenizes, chunks and packs tasks into files, one folder a task.

    A task that is already there and was made from the same files with the same settings is kept.

    Args:
        tasks: what to prepare.
        vocabulary: tokenizer of them all.
        length: tokens per sequence, or t5x's `TASK_FEATURE_LENGTHS`.
        out: the folder of the tasks' folders (`PREPARED_DIR`).
        splits: to write; `train` must have documents, other splits are left out where a task has none.
        records_per_file: sequences in one file.
        overwrite: replace tasks that are there and differ.

    Returns:
        task name -> its manifest.

    Raises:
        FileNotFoundError: a source's files are not there.
        FileExistsError: a task is there and differs, and `overwrite` is not given.
        ValueError: two tasks of one name, a length below 2, or a task without training documents.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected tasks with names of their own, found {names}: change the gin binding `prepare.tasks`"
        )
    length, out = sequence_length(length), Path(out).expanduser()
    # Everything that can be wrong with the request is found before the first task is run.
    definitions = {task.name: _definition(task, vocabulary, length, splits) for task in tasks}
    kept = {name: _existing(out / name, definitions[name], overwrite) for name in names}
    manifests = {}
    for task in tasks:
        directory = out / task.name
        manifest = kept[task.name]
        if manifest is None:
            manifest = _prepare_task(task, vocabulary, definitions[task.name], directory, records_per_file)
        print(_summary(manifest, directory, already=kept[task.name] is not None), flush=True)
        manifests[task.name] = manifest
    return manifests


def _definition(
    task: Corpus | Instructions, vocabulary: Vocabulary, length: int, splits: Sequence[str]
) -> dict[str, Any]:
    """All that the prepared files depend on, as it looks after a round through JSON."""
    definition = {
        "task": task.fingerprint(),
        "length": length,
        "splits": list(splits),
        "vocabulary": {"sha256": vocabulary.sha256, "size": vocabulary.size},
    }
    return json.loads(json.dumps(definition))


def _existing(directory: Path, definition: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest to keep, or None where the task is to be prepared."""
    if not directory.exists():
        return None
    _check_ours(directory)
    try:
        manifest = PreparedTask(directory).manifest  # checks the files, too
        different = differences(manifest.definition, definition)
    except (FileNotFoundError, ValueError) as error:
        different = [str(error)]
    if not different:
        return manifest
    if overwrite:
        return None
    shown = [*different[:10], *([f"... and {len(different) - 10} more"] if len(different) > 10 else [])]
    raise FileExistsError(
        "\n  ".join(
            [
                f"{directory} is there and differs from what was asked for; replace it with --overwrite:",
                *shown,
            ]
        )
    )


def _check_ours(directory: Path) -> None:
    """Refuses a folder with anything in it that `prepare` does not write: `overwrite` would delete that."""
    files = [path.name for path in directory.iterdir()] if directory.is_dir() else [directory.name]
    foreign = [name for name in files if name not in (MANIFEST, TOKENIZER) and not name.endswith(RECORDS)]
    if foreign:
        raise FileExistsError(
            f"expected {directory} to be free for a prepared task, found other files there ({foreign[0]}): "
            "change the gin binding `PREPARED_DIR`"
        )


def _prepare_task(
    task: Corpus | Instructions,
    vocabulary: Vocabulary,
    definition: dict[str, Any],
    directory: Path,
    records_per_file: int,
) -> Manifest:
    problems = Problems()
    seqio_task = task.seqio_task(vocabulary, problems)
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    partial.mkdir(parents=True)
    found = {}
    for split in definition["splits"]:
        if split not in seqio_task.splits:
            continue
        found[split] = _Split(split, definition["length"], partial, records_per_file).write(
            seqio_task, problems
        )
    if problems.count:
        print(f"{task.name}: {problems.report()}", file=sys.stderr)
    if not found.get(TRAIN, SplitManifest()).documents:
        shutil.rmtree(partial)
        raise ValueError(
            f"expected documents in the split {TRAIN!r} of task {task.name!r}, found none "
            f"({problems.count} could not be read): change the gin binding "
            f"`{type(task.source).__name__}.files`"
        )
    shutil.copyfile(vocabulary.path, partial / TOKENIZER)
    manifest = Manifest(
        name=task.name,
        length=definition["length"],
        vocabulary=definition["vocabulary"],
        definition=definition,
        splits={split: counts for split, counts in found.items() if counts.documents},
        problems={"count": problems.count, "places": problems.places},
    )
    manifest.write(partial)
    if directory.exists():
        # Without its manifest a folder is not read: being killed before the renaming leaves no wrong data.
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)
    partial.rename(directory)
    return manifest


class _Split:
    """Writes one split of one task and counts what goes into it."""

    def __init__(self, name: str, length: int, directory: Path, records_per_file: int) -> None:
        self.name, self.length = name, length
        self.directory, self.records_per_file = directory, records_per_file
        self.counts = SplitManifest()

    def write(self, seqio_task: Any, problems: Problems) -> SplitManifest:
        """Runs the task and writes its sequences in files of `records_per_file`."""
        bar = tqdm(desc=f"{seqio_task.name} {self.name}", unit=" documents", disable=None)
        try:
            numbered = enumerate(pack(self._chunks(seqio_task, bar), self.length))
            for file, group in groupby(numbered, lambda item: item[0] // self.records_per_file):
                path = self.directory / f"{self.name}-{file:05d}{RECORDS}"
                self.counts.files.append(_write_file(path, (sequence for _, sequence in group)))
        except Exception as error:
            if problems.failure is not None and problems.failure is not error:
                raise problems.failure from None  # what TensorFlow made of it says less
            raise
        finally:
            bar.close()
        self.counts.sequences = sum(file.records for file in self.counts.files)
        positions = self.counts.sequences * self.length
        self.counts.padding = 1 - self.counts.tokens / positions if positions else 0.0
        return self.counts

    def _chunks(self, seqio_task: Any, bar: tqdm) -> Iterator[Chunk]:
        dataset = seqio_task.get_dataset(
            sequence_length=None, split=self.name, use_cached=False, shuffle=False, num_epochs=1
        )
        for document in dataset.as_numpy_iterator():
            self.counts.documents += 1
            self.counts.tokens += len(document["inputs"]) + len(document["targets"])
            self.counts.loss_tokens += len(document["targets"])
            self.counts.bytes += len(document["targets_pretokenized"])
            yield from chunk(document["inputs"], document["targets"], self.length)
            bar.update()
            bar.set_postfix(tokens=f"{self.counts.tokens:,}", refresh=False)


def _write_file(path: Path, sequences: Iterator[PackedSequence]) -> PreparedFile:
    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    records = 0
    try:
        for sequence in sequences:
            writer.write(encode_record(sequence))
            records += 1
    finally:
        writer.close()
    return PreparedFile(path.name, records, path.stat().st_size, file_sha256(path))


def _summary(manifest: Manifest, directory: Path, already: bool) -> str:
    """One line about a task: its training split and how much there is to validate on."""
    train, held_out = manifest.splits[TRAIN], manifest.splits.get(VALIDATION)
    parts = [
        f"{train.documents:,} documents",
        f"{train.tokens:,} tokens ({train.bytes / train.loss_tokens:.2f} bytes per token)",
        f"{train.sequences:,} sequences of {manifest.length} ({train.padding:.1%} padding)",
        f"validation {held_out.tokens:,} tokens" if held_out else "no validation split",
        f"{manifest.problems['count']:,} problems",
    ]
    verb = "already prepared, kept" if already else "prepared"
    return f"{manifest.name}: {', '.join(parts)}; {verb} in {directory}"
