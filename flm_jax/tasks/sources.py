"""Where documents come from: JSON lines, plain text, TFDS.

A source yields documents as `{feature: text}` (`targets`, for instruction data also `inputs` and whatever its
template names), split by split, in a fixed order. What cannot be read is recorded in `Problems` with its
place; nothing is dropped in silence. A source is a frozen dataclass, so that gin can configure it:

    >>> JsonLines("en/*.jsonl.gz", fields={"targets": "text"}, validation_every=100)
"""

import abc
import glob
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Protocol

TRAIN, VALIDATION = "train", "validation"


class Problems:
    """What a source could not read: every place is counted, the first 20 are kept with their reasons."""

    KEPT = 20

    def __init__(self) -> None:
        self.count = 0
        self.places: list[str] = []
        # What stopped the reading altogether. seqio runs a source inside TensorFlow, which replaces an
        # exception by one of its own: `prepare` raises this one again.
        self.failure: BaseException | None = None

    def add(self, place: str, reason: str) -> None:
        """Records one problem, e.g. `add("en.jsonl:7", "field 'text' is missing")`."""
        self.count += 1
        if len(self.places) < self.KEPT:
            self.places.append(f"{place}: {reason}")

    def report(self) -> str:
        """The problems in words, one place a line; an empty string when there were none."""
        if not self.count:
            return ""
        head = (
            "1 document could not be read and was left out:"
            if self.count == 1
            else f"{self.count:,} documents could not be read and were left out:"
        )
        more = [f"  ... and {self.count - len(self.places):,} more"] if self.count > len(self.places) else []
        return "\n".join([head, *(f"  {place}" for place in self.places), *more])


class Source(Protocol):
    """What a task needs of its source."""

    @property
    def splits(self) -> Collection[str]:
        """The splits that `read` accepts."""

    @property
    def features(self) -> tuple[str, ...]:
        """The keys of every document, e.g. `("inputs", "targets")`."""

    def read(self, split: str, problems: Problems) -> Iterator[dict[str, str]]:
        """The documents of a split, always in the same order."""

    def fingerprint(self) -> dict[str, Any]:
        """A JSON description that differs when the documents may differ (files, their sizes and times)."""


Files = str | Sequence[str]


@dataclass(frozen=True)
class _FileSource(abc.ABC):
    """Documents in local files; the validation split has files of its own or is held out of training."""

    files: Files | Mapping[str, Files]
    validation_every: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.validation_every < 0 or self.validation_every == 1:
            raise ValueError(
                f"expected 0 (hold nothing out) or at least 2 for {type(self).__name__}.validation_every, "
                f"found {self.validation_every}"
            )
        if TRAIN not in self._patterns():
            raise ValueError(
                f"expected files for the split {TRAIN!r}, found {sorted(self._patterns())}: "
                f"change the gin binding `{type(self).__name__}.files`"
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
        """The splits with files, and `validation` where documents are held out for it."""
        return (*self._patterns(), *([VALIDATION] if self._holds_out else []))

    def paths(self, split: str) -> list[str]:
        """The files of a split, each once, each pattern's matches in alphabetical order.

        Raises:
            FileNotFoundError: a pattern matches no file.
        """
        paths = []
        for pattern in self._patterns()[split]:
            found = sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
            if not found:
                raise FileNotFoundError(
                    f"expected at least one file for the split {split!r}, found none that matches "
                    f"{pattern!r} (in {os.getcwd()}): change the gin binding `{type(self).__name__}.files`, or "
                    "the macro that feeds it (FILES, EN_FILES, ...)"
                )
            paths += found
        return list(dict.fromkeys(paths))

    def read(self, split: str, problems: Problems) -> Iterator[dict[str, str]]:
        """The documents of a split, file by file.

        With `validation_every=3` and no validation files, documents 2, 5, 8, ... (counted from 0 over all
        files) are `validation` and the others are `train`.
        """
        _check_split(split, self.splits)
        if not self._holds_out:
            yield from self._all(split, problems)
            return
        # Both splits read the same files: only the training pass reports problems, so that none counts twice.
        held_out = split == VALIDATION
        for index, document in enumerate(self._all(TRAIN, Problems() if held_out else problems)):
            if (index % self.validation_every == self.validation_every - 1) == held_out:
                yield document

    def fingerprint(self) -> dict[str, Any]:
        """The settings with each split's files, their sizes in bytes and modification times in ns."""
        settings = {key: value for key, value in asdict(self).items() if key != "files"}
        files = {split: {path: _stamp(path) for path in self.paths(split)} for split in self._patterns()}
        return {"type": type(self).__name__, **settings, "files": files}

    def _all(self, split: str, problems: Problems) -> Iterator[dict[str, str]]:
        for path in self.paths(split):
            yield from self._documents(path, problems)

    @abc.abstractmethod
    def _documents(self, path: str, problems: Problems) -> Iterator[dict[str, str]]:
        """The documents of one file."""


@dataclass(frozen=True)
class JsonLines(_FileSource):
    """One JSON object a line, plain or gzip (by the suffix `.gz`).

    Attributes:
        files: a glob pattern, several, or `{split: pattern or patterns}`; without splits, all are `train`.
        fields: feature -> key of the JSON object, e.g. `{"inputs": "prompt", "targets": "response"}`.
        validation_every: hold every n-th document out as `validation`, where no files are given for that
            split; 0 holds nothing out.
    """

    fields: Mapping[str, str] = field(default_factory=lambda: {"targets": "text"})

    @property
    def features(self) -> tuple[str, ...]:
        """The keys of every document."""
        return tuple(self.fields)

    def _documents(self, path: str, problems: Problems) -> Iterator[dict[str, str]]:
        with _open(path) as file:
            for number, line in enumerate(_whole_lines(file, path, problems), start=1):
                if not line.strip():
                    continue
                try:
                    document = self._document(line)
                except ValueError as error:
                    problems.add(f"{path}:{number}", str(error))
                    continue
                yield document

    def _document(self, line: bytes) -> dict[str, str]:
        try:
            record = json.loads(line.decode("utf-8"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 (byte {error.start} of the line)") from error
        if not isinstance(record, dict):
            raise ValueError(f"expected a JSON object, found {type(record).__name__}")
        return {feature: _text(record, feature, key) for feature, key in self.fields.items()}


@dataclass(frozen=True)
class PlainText(_FileSource):
    r"""UTF-8 text files, plain or gzip (by the suffix `.gz`).

    Attributes:
        files: as in `JsonLines`.
        separator: what stands between two documents of a file, e.g. `"\n\n"` or `"<|endoftext|>"`; it belongs
            to neither. Empty: each file is one document.
        validation_every: as in `JsonLines`.
    """

    separator: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """The keys of every document."""
        return ("targets",)

    def _documents(self, path: str, problems: Problems) -> Iterator[dict[str, str]]:
        with _open(path) as file:
            for number, document in enumerate(self._split(_blocks(file, path, problems)), start=1):
                if not document.strip():
                    continue  # e.g. the file ends with a separator: there is no text to lose
                try:
                    yield {"targets": document.decode("utf-8")}
                except UnicodeDecodeError as error:
                    problems.add(
                        f"{path}, document {number}", f"not UTF-8 (byte {error.start} of the document)"
                    )

    def _split(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Cuts at the separator in bytes, so that bad UTF-8 costs one document and not the file."""
        if not self.separator:
            yield b"".join(blocks)
            return
        separator, rest = self.separator.encode("utf-8"), b""
        for block in blocks:
            *documents, rest = (rest + block).split(separator)
            yield from documents
        yield rest


@dataclass(frozen=True)
class Tfds:
    """A TensorFlow Datasets data set that has been downloaded and prepared.

    Attributes:
        name: e.g. `"wikipedia/20230601.en"`; give the version to keep the prepared files reproducible.
        splits: split -> TFDS split, e.g. `{"train": "train[:99%]", "validation": "train[99%:]"}`.
        fields: feature -> key of the TFDS example.
        data_dir: where TFDS keeps its data sets; None: its default.
    """

    name: str
    splits: Mapping[str, str] = field(default_factory=lambda: {TRAIN: "train"})
    fields: Mapping[str, str] = field(default_factory=lambda: {"targets": "text"})
    data_dir: str | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The keys of every document."""
        return tuple(self.fields)

    def read(self, split: str, problems: Problems) -> Iterator[dict[str, str]]:
        """The examples of a split in TFDS's own order. Imports TensorFlow."""
        import tensorflow_datasets as tfds

        _check_split(split, self.splits)
        try:
            examples = tfds.load(
                self.name,
                split=self.splits[split],
                data_dir=self.data_dir,
                shuffle_files=False,
                download=False,
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
        except AssertionError as error:  # how TFDS says that a data set was never built
            raise FileNotFoundError(
                f"expected the TFDS data set {self.name!r} to be on disk, found none: {error} Build it first, "
                "or change the gin bindings `Tfds.name` and `Tfds.data_dir`"
            ) from error
        for number, example in enumerate(tfds.as_numpy(examples)):
            try:
                strings = {
                    key: value.decode("utf-8") if isinstance(value, bytes) else value
                    for key, value in example.items()
                }
                document = {feature: _text(strings, feature, key) for feature, key in self.fields.items()}
            except ValueError as error:  # UnicodeDecodeError is one
                problems.add(f"{self.name} {self.splits[split]}, example {number}", str(error))
                continue
            yield document

    def fingerprint(self) -> dict[str, Any]:
        """The settings; a data set of TFDS is identified by its name and version."""
        return {"type": type(self).__name__, **asdict(self)}


def _stamp(path: str) -> dict[str, int]:
    status = os.stat(path)
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _check_split(split: str, splits: Collection[str]) -> None:
    if split not in splits:
        raise ValueError(f"expected one of the splits {list(splits)}, found {split!r}")


def _text(record: Mapping[str, Any], feature: str, key: str) -> str:
    """The string at `key`, or a ValueError that says what is wrong with it."""
    if key not in record:
        raise ValueError(f"field {key!r} is missing (found {sorted(record)})")
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f"expected a string in field {key!r}, found {type(text).__name__}")
    if feature == "targets" and not text:
        raise ValueError(f"field {key!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
        raise ValueError(f"field {key!r} has a lone surrogate at character {error.start}") from error
    return text


def _open(path: str) -> IO[bytes]:
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _whole_lines(file: IO[bytes], path: str, problems: Problems) -> Iterator[bytes]:
    """The lines of a file up to where a damaged gzip stream ends, which is a problem with its place."""
    number = 0
    while True:
        number += 1
        try:
            line = file.readline()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problems.add(f"{path}:{number}", f"the file is damaged and was read up to here ({error})")
            return
        if not line:
            return
        yield line


def _blocks(file: IO[bytes], path: str, problems: Problems) -> Iterator[bytes]:
    """The bytes of a file in blocks of 1 MiB, as far as they can be read."""
    while True:
        try:
            block = file.read(1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            problems.add(path, f"the file is damaged and was read only in part ({error})")
            return
        if not block:
            return
        yield block
