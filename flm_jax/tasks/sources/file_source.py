"""A source of files: patterns, splits, and documents held out."""

import abc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources import files as files_of
from flm_jax.tasks.sources.base import START, TRAIN, VALIDATION, Document, Position, Record, check_split, read

Files = str | Sequence[str]

MAX_RECORD_BYTES = 32 << 20


class Raw(NamedTuple):
    """One record of a file: where, what (a `Problem` where there is nothing to be read), and about how many bytes."""

    place: str
    raw: Any
    size: int


@dataclass(frozen=True)
class FileSource(abc.ABC):
    """Records in files; the validation split has files of its own or is held out of training.

    Attributes:
        files: a glob pattern, several, or `{split: pattern or patterns}`; without splits, all are `train`. Local, or
            with a scheme that fsspec knows (`gs://bucket/en-*.jsonl.gz`).
        validation_every: hold every n-th record out as `validation`, where no files are given for that split; 0
            holds nothing out.
        max_record_bytes: a longer line or document is a problem, and is not read into memory.
    """

    files: Files | Mapping[str, Files]
    validation_every: int = field(default=0, kw_only=True)
    max_record_bytes: int = field(default=MAX_RECORD_BYTES, kw_only=True)

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.validation_every < 0 or self.validation_every == 1:
            raise ValueError(
                f"expected 0 (hold nothing out) or at least 2 for {name}.validation_every, "
                f"found {self.validation_every}"
            )
        if self.max_record_bytes < 1:
            raise ValueError(
                f"expected at least 1 for {name}.max_record_bytes, found {self.max_record_bytes}"
            )
        if TRAIN not in self._patterns():
            raise ValueError(
                f"expected files for the split {TRAIN!r}, found {sorted(self._patterns())}: "
                f"change the gin binding `{name}.files`"
            )

    def _patterns(self) -> dict[str, tuple[str, ...]]:
        files = self.files if isinstance(self.files, Mapping) else {TRAIN: self.files}
        return {
            split: (patterns,) if isinstance(patterns, str) else tuple(patterns)
            for split, patterns in files.items()
        }

    @property
    def _holds_out(self) -> bool:
        return self.validation_every > 0 and VALIDATION not in self._patterns()

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits with files, and `validation` where records are held out for it."""
        return (*self._patterns(), *([VALIDATION] if self._holds_out else []))

    def paths(self, split: str) -> list[str]:
        """The files of a split, each once, each pattern's matches in alphabetical order.

        Raises:
            FileNotFoundError: a pattern matches no file.
            ValueError: a file's name is not UTF-8.
        """
        binding = f"`{type(self).__name__}.files`, or the macro that feeds it (FILES, EN_FILES, ...)"
        return files_of.find_all(self._patterns()[split], f"the split {split!r}", binding)

    def records(self, split: str, after: Position = START) -> Iterator[Record]:
        """The records of a split behind a position, file by file.

        With `validation_every=3` and no validation files, records 2, 5, 8, ... (counted from 0 over all files, with
        those that cannot be read) are `validation` and the others are `train`.
        """
        check_split(split, self.splits)
        held_out, every = split == VALIDATION, self.validation_every
        overall = after.overall
        for number, path in enumerate(self.paths(TRAIN if self._holds_out else split)):
            if number < after.file:
                continue
            skip = after.record if number == after.file else 0
            for count, found in enumerate(self._file(path), start=1):
                if count <= skip:
                    continue
                overall += 1
                if not self._holds_out or (overall % every == 0) == held_out:
                    yield Record(*found, Position(number, count, overall))

    def read(self, split: str, problems: Problems) -> Iterator[Document]:
        """The documents of a split; what cannot be read is recorded in `problems`."""
        return read(self, split, problems)

    def fingerprint(self) -> dict[str, Any]:
        """The settings with each split's files, their sizes in bytes and modification times in ns."""
        settings = {key: value for key, value in asdict(self).items() if key != "files"}
        files = {
            split: {path: files_of.stamp(path) for path in self.paths(split)} for split in self._patterns()
        }
        return {"type": type(self).__name__, **settings, "files": files}

    def _file(self, path: str) -> Iterator[Raw]:
        """The records of one file; a problem where it breaks off, and if it is empty or has disappeared."""
        found, place = 0, path
        try:
            for raw in self._raw(path):
                found, place = found + 1, raw.place
                yield raw
        except FileNotFoundError:
            gone = "the file has disappeared since it was found; how many records are lost is unknown"
            yield Raw(path, Problem(gone), 0)
            return
        except files_of.DamagedError as error:
            yield Raw(place, error.problem(found), 0)
            return
        if not found:
            yield Raw(path, Problem("the file is empty"), 0)

    @abc.abstractmethod
    def _raw(self, path: str) -> Iterator[Raw]:
        """The records of one file.

        Raises:
            FileNotFoundError: it has disappeared.
            files.DamagedError: it breaks off.
        """

    @property
    @abc.abstractmethod
    def features(self) -> tuple[str, ...] | None:
        """The keys of every document; None: those of its records."""

    @abc.abstractmethod
    def document(self, raw: Any) -> Document:
        """The document of a record."""


@dataclass(frozen=True)
class FieldsSource(FileSource):
    """Records with fields, some of which are a document's features.

    Attributes:
        fields: feature -> field, e.g. `{"inputs": "prompt", "targets": "response"}`. None: the document is the record
            as it is, for a task that knows its format (`dialogues`, `teacher`).
    """

    fields: Mapping[str, str] | None = field(default_factory=lambda: {"targets": "text"})

    @property
    def features(self) -> tuple[str, ...] | None:
        """The keys of every document."""
        return None if self.fields is None else tuple(self.fields)
