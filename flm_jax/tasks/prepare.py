"""`flm data prepare`: runs tasks once and writes what training reads, packed sequences with a manifest.

    out/en/tokenizer.model               the vocabulary, copied
    out/en/train-00000.array_record      packed sequences, one a record (see `records.py`), one file a shard
    out/en/validation-00000.array_record
    out/en/manifest.json                 counts, hashes, the task's definition

How one task is built: `preparation.py`.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flm_jax.tasks.corpora import Task
from flm_jax.tasks.manifest import MANIFEST, RECORDS, TOKENIZER, Manifest, differences
from flm_jax.tasks.packing import sequence_length
from flm_jax.tasks.preparation import LEFTOVERS, Settings, clear_leftovers, prepare_task
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.sources import TRAIN, VALIDATION
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.tasks.workers import num_cores


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
        ChildProcessError: a process died.
        BlockingIOError: another process prepares into `out`.
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
    manifests = {}
    with _locked(out):
        kept = {name: _existing(out / name, definitions[name], overwrite) for name in names}
        for task in tasks:
            directory = out / task.name
            manifest = kept[task.name]
            if manifest is None:
                settings = Settings(
                    task=task,
                    vocabulary=str(vocabulary.path),
                    tokenizer=vocabulary.sha256,
                    length=length,
                    directory=directory,
                    shard_bytes=shard_bytes,
                    max_bad_share=max_bad_share,
                    definition=definitions[task.name],
                )
                manifest = prepare_task(settings, num_workers or num_cores())
            print(_summary(manifest, directory, already=kept[task.name] is not None), flush=True)
            manifests[task.name] = manifest
    return manifests


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Alone in the folder: two that build the same task would mix their shards. The lock ends with the process."""
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another process is preparing data in {out}: wait for it, or change the gin binding `PREPARED_DIR`"
            ) from error
        yield
    finally:
        os.close(folder)


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
        clear_leftovers(directory)
        return manifest
    if overwrite:
        return None
    shown = [*different[:10], *([f"... and {len(different) - 10} more"] if len(different) > 10 else [])]
    raise FileExistsError(
        "\n  ".join(
            [
                f"{directory} is there and differs from what was asked for; replace it with --overwrite, or give "
                "another PREPARED_DIR:",
                *shown,
            ]
        )
    )


def _check_ours(directory: Path) -> None:
    """Refuses a folder with anything in it that `prepare` does not write: `overwrite` would delete that."""
    files = [path.name for path in directory.iterdir()] if directory.is_dir() else [directory.name]
    known = (MANIFEST, TOKENIZER, *LEFTOVERS)
    foreign = [name for name in files if name not in known and not name.endswith(RECORDS)]
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


def _summary(manifest: Manifest, directory: Path, already: bool) -> str:
    """One line about a task: its training split and how much there is to validate on."""
    train, held_out = manifest.splits[TRAIN], manifest.splits.get(VALIDATION)
    parts = [
        f"{train.documents:,} documents",
        f"{train.tokens:,} tokens ({train.bytes / max(train.loss_tokens, 1):.2f} bytes per token)",
        f"{train.sequences:,} sequences of {manifest.length} ({train.padding:.1%} padding)",
        f"validation {held_out.tokens:,} tokens" if held_out else "no validation split",
        f"{manifest.problems['count']:,} problems",
    ]
    verb = "already prepared, kept" if already else "prepared"
    return f"{manifest.name}: {', '.join(parts)}; {verb} in {directory}"
