"""What a source is: records in a fixed order, and a document out of each."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from flm_jax.tasks.problems import Problem, Problems

TRAIN, VALIDATION = "train", "validation"

# Feature to text; of a source without `fields`, the record's own keys to whatever they hold.
Document = dict[str, Any]


class Position(NamedTuple):
    """A place between two records, from which the reading can go on.

    Attributes:
        file: number of the file, from 0.
        record: records of that file before it.
        overall: records of all files before it.
    """

    file: int = 0
    record: int = 0
    overall: int = 0


START = Position()


class Record(NamedTuple):
    """What a source reads, before it is made into a document.

    Attributes:
        place: for people, e.g. `"en.jsonl:7"`.
        raw: what `Source.document` takes; can be pickled. A `Problem` where there is nothing to be read.
        size: about how many bytes it has.
        end: the position behind it.
    """

    place: str
    raw: Any
    size: int
    end: Position


class Source(Protocol):
    """What a task needs of its source."""

    @property
    def splits(self) -> Collection[str]:
        """The splits that `records` accepts."""

    @property
    def features(self) -> tuple[str, ...] | None:
        """The keys of every document, e.g. `("inputs", "targets")`; None: those of its records."""

    def records(self, split: str, after: Position = START) -> Iterator[Record]:
        """The records of a split behind a position, always in the same order."""

    def document(self, raw: Any) -> Document:
        """The document of a record's `raw`.

        Raises:
            Problem: there is none in it.
        """

    def fingerprint(self) -> dict[str, Any]:
        """A JSON description that differs when the documents may differ (files, their sizes and times)."""


def read(source: Source, split: str, problems: Problems) -> Iterator[Document]:
    """The documents of a split; what cannot be read is recorded in `problems`."""
    for record in source.records(split):
        try:
            document = source.document(record.raw)
        except Problem as problem:
            problems.add(record.place, str(problem), problem.records)
            continue
        yield document


def check_split(split: str, splits: Collection[str]) -> None:
    """Refuses a split that is not there."""
    if split not in splits:
        raise ValueError(f"expected one of the splits {list(splits)}, found {split!r}")


def chosen(record: Mapping[str, Any], fields: Mapping[str, str] | None) -> Document:
    """The document of a record's fields: a string each, `targets` not empty; without `fields` the record itself.

    Raises:
        Problem: a field is missing or holds something else.
    """
    if fields is None:
        return dict(record)
    return {feature: _text(record, feature, key) for feature, key in fields.items()}


def _text(record: Mapping[str, Any], feature: str, key: str) -> str:
    if key not in record:
        raise Problem(f"field {key!r} is missing (found {sorted(map(str, record))})")
    text = record[key]
    if not isinstance(text, str):
        raise Problem(f"expected a string in field {key!r}, found {type(text).__name__}")
    if feature == "targets" and not text:
        raise Problem(f"field {key!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair, which is no character
        raise Problem(f"field {key!r} has a lone surrogate at character {error.start}") from error
    return text
