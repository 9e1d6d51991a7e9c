"""Builds one prepared task, shard by shard in any number of processes.

A task is built in a folder beside its place (`.en.partial`) and renamed when it is whole. A run that was killed goes on
there, behind the shards that are whole (`shards.py`), and ends with the same files as one that was not.
"""

import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flm_jax import __version__
from flm_jax.json_file import write_json
from flm_jax.tasks import duplicate_search
from flm_jax.tasks.corpora import Task
from flm_jax.tasks.decontamination import Decontamination
from flm_jax.tasks.manifest import FORMAT, MANIFEST, TOKENIZER, Manifest, SplitManifest
from flm_jax.tasks.problems import Problems
from flm_jax.tasks.shards import Shard, ShardReport, shard_name, shards, write_shard
from flm_jax.tasks.sources import START, TRAIN, Position
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.tasks.workers import Workers

_DEFINITION, _PARTS = "definition.json", "parts"
# What is left in a task's folder by a run that was killed when all was done but tidying up.
LEFTOVERS = (_DEFINITION, _PARTS)
# So many records are read before their bad ones are a share of anything.
_FEW_RECORDS = 1_000


@dataclass(frozen=True)
class Settings:
    """What a process needs to work on a task's shards.

    Attributes:
        task: to build.
        vocabulary: path of the tokenizer.
        tokenizer: its SHA-256.
        length: tokens per sequence.
        directory: the task's place.
        shard_bytes: of text that a process works on at a time.
        max_bad_share: of the records that may be unreadable.
        definition: all that the files depend on.
    """

    task: Task
    vocabulary: str
    tokenizer: str
    length: int
    directory: Path
    shard_bytes: int
    max_bad_share: float
    definition: dict[str, Any]

    @property
    def partial(self) -> Path:
        """Where the task is built."""
        return self.directory.with_name(f".{self.directory.name}.partial")

    @property
    def asked(self) -> dict[str, Any]:
        """What shards must have in common to be of one task."""
        made_by = {"shard_bytes": self.shard_bytes, "format": FORMAT, "version": __version__}
        return {**self.definition, **made_by}

    @functools.cached_property
    def request(self) -> str:
        """`asked`, as a hash."""
        return hashlib.sha256(json.dumps(self.asked, sort_keys=True).encode()).hexdigest()

    def shards(self, split: str, number: int = 0, after: Position = START) -> Iterator[Shard]:
        """The shards of a split behind a position."""
        return shards(self.task.source, split, self.shard_bytes, number, after)


def prepare_task(settings: Settings, num_workers: int) -> Manifest:
    """Builds a task and puts it in its place; arguments and errors as of `prepare`."""
    task, partial, directory = settings.task, settings.partial, settings.directory
    _begin(settings)
    splits = [split for split in settings.definition["splits"] if split in task.source.splits]
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
    _check_unchanged(settings)
    if not found.get(TRAIN, SplitManifest()).documents:
        shutil.rmtree(partial)
        raise ValueError(_nothing(task, problems))
    shutil.copyfile(settings.vocabulary, partial / TOKENIZER)
    manifest = Manifest(
        name=task.name,
        length=settings.length,
        vocabulary=settings.definition["vocabulary"],
        definition=settings.definition,
        splits={split: counts for split, counts in found.items() if counts.documents},
        problems=problems.to_json(),
        version=__version__,
    )
    manifest.write(partial)
    if directory.exists():
        # Without its manifest a folder is not read: being killed before the renaming leaves no wrong data.
        (directory / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(directory)
    partial.rename(directory)
    clear_leftovers(directory)
    return manifest


def clear_leftovers(directory: Path) -> None:
    """Removes from a task's folder what building it needed."""
    shutil.rmtree(directory / _PARTS, ignore_errors=True)
    (directory / _DEFINITION).unlink(missing_ok=True)


def _begin(settings: Settings) -> None:
    """Keeps what a run with the same request has left, and nothing else."""
    partial, asked = settings.partial, settings.asked
    try:
        same = json.loads((partial / _DEFINITION).read_text("utf-8")) == asked
    except (OSError, ValueError):
        same = False
    if not same and partial.exists():
        (partial / _DEFINITION).unlink(
            missing_ok=True
        )  # first: a removal cut short leaves nothing to go on from
        shutil.rmtree(partial)
    (partial / _PARTS).mkdir(parents=True, exist_ok=True)
    write_json(partial / _DEFINITION, asked)


def _nothing(task: Task, problems: Problems) -> str:
    removed = ", ".join(f"{tally.count:,} by {kind}" for kind, tally in problems.removed.items())
    if removed:
        return (
            f"expected documents in the split {TRAIN!r} of task {task.name!r}, found that cleaning has removed all "
            f"({removed}): change the gin binding `{type(task).__name__}.cleaning`"
        )
    return (
        f"expected documents in the split {TRAIN!r} of task {task.name!r}, found none "
        f"({problems.count} could not be read): change the gin binding `{type(task.source).__name__}.files`"
    )


def _check_unchanged(settings: Settings) -> None:
    """Refuses files that have changed while they were read: shards, and duplicates above all, would not fit together.

    One that has disappeared is among the problems already, where there was one pass over the text.
    """
    before = settings.definition["task"]["source"].get("files", {})
    try:
        now = json.loads(json.dumps(settings.task.source.fingerprint())).get("files", {})
    except FileNotFoundError:
        now = {}
    old = {path: stamp for files in before.values() for path, stamp in files.items()}
    new = {path: stamp for files in now.values() for path, stamp in files.items()}
    gone = [
        path for path in old if path not in new or (None in new[path].values() and new[path] != old[path])
    ]
    changed = [path for path in new if path not in gone and new[path] != old.get(path)]
    if duplicate_search.steps(settings.task):
        changed += gone
    if changed:
        raise ValueError(
            f"expected the files of task {settings.task.name!r} to stay as they were while they were read, found that "
            f"{', '.join(changed[:3])}{' and others' if len(changed) > 3 else ''} changed: give the command again when "
            "they are whole"
        )


def _duplicates(
    settings: Settings, splits: Sequence[str], num_workers: int
) -> dict[str, dict[int, duplicate_search.Dropped]]:
    order = duplicate_search.split_order(splits)
    with (
        tqdm(desc=f"{settings.task.name} duplicates", unit=" documents", disable=None) as bar,
        Workers(num_workers, settings, bar.update) as workers,
    ):
        found = (shard for split in order for shard in settings.shards(split))
        return duplicate_search.find(settings.task, workers.map(_sign, found))


def _sign(settings: Settings, shard: Shard, advance: Callable[[int], None]) -> duplicate_search.Signed:
    vocabulary = _vocabulary(settings.vocabulary, settings.tokenizer)
    return duplicate_search.sign_shard(
        shard, settings.task, vocabulary, settings.length, settings.partial, advance
    )


def _write_split(
    settings: Settings,
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

    while (report := _existing_report(settings, split, number)) is not None:
        include(report)
    description = f"{settings.task.name} {split}"
    with (
        tqdm(desc=description, unit=" documents", initial=counts.documents, disable=None) as bar,
        Workers(num_workers, settings, bar.update) as workers,
    ):
        if number:
            there = f"{settings.task.name}: {number} shards of {split} are there, going on behind them"
            bar.write(there, file=sys.stderr)
        jobs = ((shard, dropped.get(shard.number, {})) for shard in settings.shards(split, number, after))
        for report in workers.map(_write, jobs):
            include(report)
            bar.set_postfix(tokens=f"{counts.tokens:,}", refresh=False)
    if counts.documents or split != TRAIN:  # no documents to train on are an error of their own
        _check_share(settings, problems, records)
    counts.removed = {kind: tally.count for kind, tally in problems.removed.items()}
    return counts, problems


def _write(
    settings: Settings, job: tuple[Shard, duplicate_search.Dropped], advance: Callable[[int], None]
) -> ShardReport:
    shard, dropped = job
    report = _existing_report(settings, shard.split, shard.number)  # written out of order before a kill
    if report is None:
        vocabulary = _vocabulary(settings.vocabulary, settings.tokenizer)
        report = write_shard(
            shard,
            settings.task,
            vocabulary,
            settings.length,
            settings.partial,
            dropped,
            advance,
            settings.request,
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


def _existing_report(settings: Settings, split: str, number: int) -> ShardReport | None:
    path = settings.partial / _PARTS / f"{shard_name(split, number)}.json"
    return ShardReport.read(path, settings.request)


def _check_share(settings: Settings, problems: Problems, records: int) -> None:
    records += problems.records - problems.count  # a damaged file is one place, and many records
    if problems.records > settings.max_bad_share * records:
        raise ValueError(
            f"expected at most {settings.max_bad_share:.1%} of the records of task {settings.task.name!r} to be "
            f"unreadable, found {problems.records:,} of {records:,}: mend them, or raise the gin binding "
            f"`prepare.max_bad_share`\n{problems.report()}"
        )
