"""`flm data prepare`: runs a task once and writes what training reads, packed sequences with a manifest.

    out/en/tokenizer.model               the vocabulary, copied
    out/en/train-00000.array_record      packed sequences, one a record (see `records.py`), one file a shard
    out/en/validation-00000.array_record
    out/en/manifest.json                 counts, hashes, the task's definition

A task is built in a folder beside its place (`.en.partial`) and renamed when it is whole. A run that was killed goes on
there, behind the shards that are whole (`shards.py`), and ends with the same files as one that was not.
"""

import functools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flm_jax.tasks import duplicate_search
from flm_jax.tasks.corpora import Task
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.manifest import (
    MANIFEST,
    RECORDS,
    TOKENIZER,
    Manifest,
    SplitManifest,
    differences,
)
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.shards import Shard, ShardReport, shard_name, shards, write_json, write_shard
from flm_jax.tasks.sources import START, TRAIN, VALIDATION, Problems
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.tasks.workers import Workers, num_cores

_DEFINITION = "definition.json"
# So many records are read before their bad ones are a share of anything.
_FEW_RECORDS = 1_000


def prepare(
    tasks: Sequence[Task],
    vocabulary: Vocabulary,
    length: int | Mapping[str, int],
    out: str | Path,
    splits: Sequence[str] = (TRAIN, VALIDATION),
    shard_bytes: int = 64 << 20,
    num_workers: int | None = None,
    max_bad_share: float = 0.1,
    overwrite: bool = False,
) -> dict[str, Manifest]:
    """Tokenizes, chunks and packs tasks into files, one folder a task.

    A task that is already there and was made from the same files with the same settings is kept. The files do not
    depend on the number of processes, nor on how often the run was killed and started again.

    Args:
        tasks: what to prepare.
        vocabulary: tokenizer of them all.
        length: tokens per sequence, or t5x's `TASK_FEATURE_LENGTHS`.
        out: the folder of the tasks' folders (`PREPARED_DIR`).
        splits: to write; `train` must have documents, other splits are left out where a task has none.
        shard_bytes: of text that a process works on at a time, and whose sequences make one file.
        num_workers: processes; None for one a core. Each holds about three times `shard_bytes` of text.
        max_bad_share: of the records that may be unreadable, 0 to 1; above it the run stops and lists them.
        overwrite: replace tasks that are there and differ.

    Returns:
        task name -> its manifest.

    Raises:
        FileNotFoundError: a source's files are not there.
        FileExistsError: a task is there and differs, and `overwrite` is not given.
        ValueError: two tasks of one name, a length below 2, a task without training documents, or too many bad ones.
        RuntimeError: a process died.
    """
    names = [task.name for task in tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"expected tasks with names of their own, found {names}: change the gin binding `prepare.tasks`"
        )
    _check_settings(shard_bytes, num_workers, max_bad_share)
    length, out = sequence_length(length), Path(out).expanduser()
    # Everything that can be wrong with the request is found before the first task is run.
    for task in tasks:
        task.check(vocabulary)
    definitions = {task.name: _definition(task, vocabulary, length, splits) for task in tasks}
    kept = {name: _existing(out / name, definitions[name], overwrite) for name in names}
    manifests = {}
    for task in tasks:
        directory = out / task.name
        manifest = kept[task.name]
        if manifest is None:
            settings = _Settings(
                task, str(vocabulary.path), vocabulary.sha256, length, directory, shard_bytes, max_bad_share
            )
            manifest = _prepare_task(settings, vocabulary, definitions[task.name], num_workers or num_cores())
        print(_summary(manifest, directory, already=kept[task.name] is not None), flush=True)
        manifests[task.name] = manifest
    return manifests


def _definition(task: Task, vocabulary: Vocabulary, length: int, splits: Sequence[str]) -> dict[str, Any]:
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


def _check_settings(shard_bytes: int, num_workers: int | None, max_bad_share: float) -> None:
    if shard_bytes < 1 or (num_workers is not None and num_workers < 1) or not 0 <= max_bad_share <= 1:
        raise ValueError(
            "expected prepare.shard_bytes and prepare.num_workers of at least 1 and prepare.max_bad_share from 0 to 1, "
            f"found {shard_bytes}, {num_workers} and {max_bad_share}"
        )


@dataclass(frozen=True)
class _Settings:
    """What a process needs to work on a task's shards."""

    task: Task
    vocabulary: str  # its path
    tokenizer: str  # its SHA-256
    length: int
    directory: Path
    shard_bytes: int
    max_bad_share: float

    @property
    def partial(self) -> Path:
        return self.directory.with_name(f".{self.directory.name}.partial")

    def shards(self, split: str, number: int = 0, after: Any = START) -> Iterator[Shard]:
        return shards(self.task.source, split, self.shard_bytes, number, after)


def _prepare_task(
    settings: _Settings, vocabulary: Vocabulary, definition: dict[str, Any], num_workers: int
) -> Manifest:
    task, partial, directory = settings.task, settings.partial, settings.directory
    _begin(partial, {**definition, "shard_bytes": settings.shard_bytes})
    splits = [split for split in definition["splits"] if split in task.source.splits]
    for step in task.cleaning:
        if isinstance(
            step, Decontamination
        ):  # what is wrong with its files is wrong before the processes start
            print(f"{task.name}: {step.describe()}", file=sys.stderr)
    dropped = _duplicates(settings, splits, num_workers) if duplicate_search.steps(task) else {}
    problems, found = Problems(), {}
    for split in splits:
        counts, bad = _write_split(settings, split, dropped.get(split, {}), num_workers)
        found[split] = counts
        problems.include(bad)
    if report := problems.report():
        print(f"{task.name}: {report}", file=sys.stderr)
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
        length=settings.length,
        vocabulary=definition["vocabulary"],
        definition=definition,
        splits={split: counts for split, counts in found.items() if counts.documents},
        problems=problems.to_json(),
    )
    manifest.write(partial)
    shutil.rmtree(partial / "parts")
    (partial / _DEFINITION).unlink()
    if directory.exists():
        # Without its manifest a folder is not read: being killed before the renaming leaves no wrong data.
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)
    partial.rename(directory)
    return manifest


def _begin(partial: Path, definition: dict[str, Any]) -> None:
    """Keeps what a run with the same definition has left, and nothing else."""
    try:
        same = json.loads((partial / _DEFINITION).read_text("utf-8")) == definition
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(partial, ignore_errors=True)
    (partial / "parts").mkdir(parents=True, exist_ok=True)
    write_json(partial / _DEFINITION, definition)


def _duplicates(
    settings: _Settings, splits: Sequence[str], num_workers: int
) -> dict[str, dict[int, duplicate_search.Dropped]]:
    order = duplicate_search.split_order(splits)
    with (
        tqdm(desc=f"{settings.task.name} duplicates", unit=" documents", disable=None) as bar,
        Workers(num_workers, settings, bar.update) as workers,
    ):
        shards = (shard for split in order for shard in settings.shards(split))
        return duplicate_search.find(settings.task, workers.map(_sign, shards))


def _sign(settings: _Settings, shard: Shard, advance: Callable[[int], None]) -> duplicate_search.Signed:
    return duplicate_search.sign_shard(shard, settings.task, settings.partial, advance)


def _write_split(
    settings: _Settings,
    split: str,
    dropped: Mapping[int, duplicate_search.Dropped],
    num_workers: int,
) -> tuple[SplitManifest, Problems]:
    """Writes a split, or what of it is not there yet; its counts and problems.

    Raises:
        ValueError: too many of its records cannot be read.
    """
    counts, problems, records, after, number = SplitManifest(), Problems(), 0, START, 0

    def include(report: ShardReport) -> None:
        nonlocal records, after, number
        counts.include(report.counts, settings.length)
        problems.include(report.problems)
        records, after, number = records + report.records, report.end, number + 1
        _check_share(settings, problems, max(records, _FEW_RECORDS))

    while (report := _existing_report(settings.partial, split, number)) is not None:
        include(report)
    with (
        tqdm(
            desc=f"{settings.task.name} {split}", unit=" documents", initial=counts.documents, disable=None
        ) as bar,
        Workers(num_workers, settings, bar.update) as workers,
    ):
        if number:
            bar.write(
                f"{settings.task.name}: {number} shards of {split} are there, going on behind them",
                file=sys.stderr,
            )
        jobs = ((shard, dropped.get(shard.number, {})) for shard in settings.shards(split, number, after))
        for report in workers.map(_write, jobs):
            include(report)
            bar.set_postfix(tokens=f"{counts.tokens:,}", refresh=False)
    if counts.documents:  # without any, that is the error
        _check_share(settings, problems, records)
    counts.removed = {kind: tally.count for kind, tally in problems.removed.items()}
    return counts, problems


def _write(
    settings: _Settings, job: tuple[Shard, duplicate_search.Dropped], advance: Callable[[int], None]
) -> ShardReport:
    shard, dropped = job
    report = _existing_report(
        settings.partial, shard.split, shard.number
    )  # written out of order before a kill
    if report is None:
        vocabulary = _vocabulary(settings.vocabulary, settings.tokenizer)
        report = write_shard(
            shard, settings.task, vocabulary, settings.length, settings.partial, dropped, advance
        )
    return report


@functools.cache
def _vocabulary(path: str, sha256: str) -> Vocabulary:
    """Opened once in a process."""
    vocabulary = Vocabulary(path)
    if vocabulary.sha256 != sha256:
        raise ValueError(
            f"expected {path} to stay as it was when the run began, found another tokenizer there"
        )
    return vocabulary


def _existing_report(partial: Path, split: str, number: int) -> ShardReport | None:
    return ShardReport.read(partial / "parts" / f"{shard_name(split, number)}.json")


def _check_share(settings: _Settings, problems: Problems, records: int) -> None:
    records += problems.records - problems.count  # a damaged file is one place, and many records
    if problems.records > settings.max_bad_share * records:
        raise ValueError(
            f"expected at most {settings.max_bad_share:.1%} of the records of task {settings.task.name!r} to be "
            f"unreadable, found {problems.records:,} of {records:,}: mend them, or raise the gin binding "
            f"`prepare.max_bad_share`\n{problems.report()}"
        )


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
