"""A prepared task as training sees it: its manifest, checked against the files, and its sequences."""

import resource
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from grain.sources import ArrayRecordDataSource

from flm_jax.tasks.manifest import MANIFEST, TOKENIZER, Manifest, SplitManifest, read_manifest
from flm_jax.tasks.records import decode_records
from flm_jax.tasks.vocabulary import Vocabulary


class PreparedTask:
    """The folder that `prepare` wrote for one task.

    Attributes:
        directory: the folder.
        manifest: what it holds.
        name: of the task.
        length: tokens per sequence.
        splits: the names of its splits.

    Raises:
        FileNotFoundError: there is no manifest, or a file that it lists is missing.
        ValueError: the manifest cannot be read, or a file has another size than it says.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest: Manifest = read_manifest(self.directory)
        self.name, self.length = self.manifest.name, self.manifest.length
        self.splits = tuple(self.manifest.splits)
        for split in self.manifest.splits.values():
            for file in split.files:
                self._check(file.name, file.size)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer of the task, from its copy beside the files."""
        vocabulary = Vocabulary(self.directory / TOKENIZER)
        if vocabulary.sha256 != self.manifest.vocabulary["sha256"]:
            raise ValueError(
                f"expected the tokenizer with SHA-256 {self.manifest.vocabulary['sha256']}, found "
                f"{vocabulary.sha256} in {vocabulary.path}: prepare the task again with --overwrite"
            )
        return vocabulary

    def tokens(self, split: str) -> int:
        """Number of tokens of a split, without padding."""
        return self.counts(split).tokens

    def bytes(self, split: str) -> int:
        """UTF-8 bytes of the targets of a split."""
        return self.counts(split).bytes

    def num_sequences(self, split: str) -> int:
        """Number of packed sequences of a split."""
        return self.counts(split).sequences

    def counts(self, split: str) -> SplitManifest:
        """What the manifest says of a split.

        Raises:
            ValueError: the task has no such split.
        """
        if split not in self.manifest.splits:
            raise ValueError(
                f"expected one of the splits {list(self.splits)} of the prepared task {self.name!r}, found "
                f"{split!r} ({self.directory}); a split is written by `flm data prepare` if its source has it"
            )
        return self.manifest.splits[split]

    def source(self, split: str) -> ArrayRecordDataSource:
        """The records of a split by index, as bytes; a file is opened when the first of its records is read.

        Raises:
            ValueError: the manifest contradicts itself, or the process may not open so many files.
        """
        files = self.counts(split).files
        if (records := sum(file.records for file in files)) != self.num_sequences(split):
            raise ValueError(
                f"expected {self.num_sequences(split):,} sequences in the split {split!r} of "
                f"{self.directory}, found {records:,} in its files: prepare the task again with --overwrite"
            )
        _allow_open_files({str(self.directory / file.name) for file in files})
        # With the number of records nothing has to be opened to count them.
        return ArrayRecordDataSource([f"{self.directory / file.name}[0:{file.records}]" for file in files])

    def _check(self, name: str, size: int) -> None:
        path = self.directory / name
        if not path.is_file():
            raise FileNotFoundError(
                f"expected the prepared file {path}, which {MANIFEST} beside it lists, found none: prepare "
                "the task again with --overwrite"
            )
        if path.stat().st_size != size:
            raise ValueError(
                f"expected {size:,} bytes in {path} as {MANIFEST} beside it says, found "
                f"{path.stat().st_size:,}: prepare the task again with --overwrite"
            )


def prepared_tasks(directory: str | Path) -> list[str]:
    """The names of the tasks that a folder (`PREPARED_DIR`) holds, in alphabetical order."""
    return sorted(path.parent.name for path in Path(directory).glob(f"[!.]*/{MANIFEST}"))


def evaluation_batches(
    task: PreparedTask,
    split: str,
    size: int,
    max_sequences: int | None = None,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """A split once, in order, in batches of one shape.

    The last batch is filled up with rows of padding, whose loss weights are 0.

    Args:
        task: the prepared task.
        split: one of its splits.
        size: sequences in a batch, over all processes.
        max_sequences: read only so many, spread evenly over the split.
        rows: those of each batch that this process reads; all unless given.

    Returns:
        batches as `Reader.batch` gives them, int32 [len(rows), length].
    """
    total = task.num_sequences(split)
    count = total if max_sequences is None else min(max_sequences, total)
    return _read_in_order(
        task,
        split,
        [index * total // count for index in range(count)],
        size,
        range(size) if rows is None else rows,
    )


def _read_in_order(
    task: PreparedTask, split: str, indices: Sequence[int], size: int, rows: Sequence[int]
) -> Iterator[dict[str, np.ndarray]]:
    source = task.source(split)
    for first in range(0, len(indices), size):
        mine = [indices[first + row] for row in rows if first + row < len(indices)]
        batch = decode_records([source[index] for index in mine], task.length)
        missing = len(rows) - len(mine)
        yield {name: np.pad(values, ((0, missing), (0, 0))) for name, values in batch.items()}


# Beside prepared files: what Python, JAX and checkpoints keep open.
_OTHER_FILES = 1024
_record_files: set[str] = set()


def _allow_open_files(paths: set[str]) -> None:
    """Makes room for these open files; a record file that has been read from stays open.

    Raises:
        ValueError: the system does not allow as many.
    """
    _record_files.update(paths)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(_record_files) + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise ValueError(
            f"expected a limit of at least {needed:,} open files, for {len(_record_files):,} prepared ones, found "
            f"{hard:,}: raise it (`ulimit -Hn`), or prepare fewer and larger files"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
