"""From records to cleaned documents and their examples, with all that is found wrong on the way."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from flm_jax.tasks.examples import Example
from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources import Document, Record

if TYPE_CHECKING:
    from flm_jax.tasks.corpora import Task


class Cleaning(Protocol):
    """A step of `Task.cleaning`: one of the three below.

    Attributes:
        kind: its key in the manifest's counts.
    """

    kind: ClassVar[str]

    def fingerprint(self) -> dict[str, Any]:
        """A JSON description that differs when its results may differ."""


@runtime_checkable
class Rewriting(Cleaning, Protocol):
    """Changes text."""

    def text(self, text: str) -> str:
        """The text as it is to be."""


@runtime_checkable
class Filter(Cleaning, Protocol):
    """Takes documents out, each by itself."""

    def refusal(self, text: str) -> str | None:
        """Why a document of this text is taken out; None to keep it."""


@runtime_checkable
class Duplicates(Cleaning, Protocol):
    """Takes out documents that came before; found by `prepare`, which sees all of them."""

    def signature(self, text: str) -> Any:
        """What is compared; the same in every process."""

    def index(self) -> "DuplicateIndex":
        """An empty index."""


class DuplicateIndex(Protocol):
    """The signatures so far."""

    def first(self, signature: Any, place: int) -> int | None:
        """The place of the document that this one repeats; None, and it is remembered, where there is none."""


class Read(NamedTuple):
    """One document that is kept.

    Attributes:
        number: of its record among those given, from 0.
        place: for people.
        text: all its text, as cleaning sees it.
        examples: what is learnt from it.
    """

    number: int
    place: str
    text: str
    examples: Sequence[Example]


def read_documents(
    task: "Task",
    records: Iterable[Record],
    problems: Problems,
    dropped: Mapping[int, tuple[str, str]] = {},
) -> Iterator[Read]:
    """The documents that a task keeps of records.

    Args:
        task: reads and cleans.
        records: in their order.
        problems: what is left out, removed, changed or odd goes here.
        dropped: index of a record to the kind and the reason for which it is a duplicate.
    """
    for index, record in enumerate(records):
        try:
            document = _cleaned(task, record, problems)
            if document is None:
                continue
            if index in dropped:
                kind, reason = dropped[index]
                problems.remove(kind, record.place, reason)
                continue
            examples = task.examples(document)
            _check_encodable(examples)
        except Problem as problem:
            problems.add(record.place, str(problem), problem.records)
            continue
        text = joined(document)
        _look_at(text, record.place, problems)
        yield Read(index, record.place, text, examples)


def _cleaned(task: "Task", record: Record, problems: Problems) -> Document | None:
    """The document after rewriting and filters; None where a filter refuses it."""
    document = task.source.document(record.raw)
    for step in task.cleaning:
        if isinstance(step, Rewriting):
            rewritten = _mapped(document, step)
            if rewritten != document:
                problems.change(step.kind)
            document = rewritten
        elif isinstance(step, Filter):
            reason = step.refusal(joined(document))
            if reason is not None:
                problems.remove(step.kind, record.place, reason)
                return None
    return document


def joined(document: Any) -> str:
    """All text of a document, its strings line by line."""
    return "\n".join(_strings(document))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _mapped(value: Any, step: Rewriting) -> Any:
    if isinstance(value, str):
        return step.text(value)
    if isinstance(value, Mapping):
        return {key: _mapped(inner, step) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, step) for inner in value]
    return value


def _check_encodable(examples: Collection[Example]) -> None:
    if not examples:
        raise Problem("there is nothing to learn in it")
    for example in examples:
        if not example:
            raise Problem("there is nothing to learn in it")
        for turn in example:
            text = turn.inputs + turn.targets
            try:
                if not text.isascii():
                    text.encode("utf-8")
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair: no character
                raise Problem(f"a lone surrogate at character {error.start}") from error


def _look_at(text: str, place: str, problems: Problems) -> None:
    """Notices what is likely to be damage, and may be wanted."""
    if len(text) < 10 and len(text.strip()) <= 1:
        problems.notice("one character or none", place, repr(text))
    if "\0" in text:
        problems.notice("null character", place, f"at character {text.index(chr(0))}")


def signatures(task: "Task", records: Iterable[Record]) -> Iterator[tuple[int, str, list[Any]]]:
    """Index, place and signatures of the documents that a task's filters keep, one for each of its `Duplicates`."""
    wanted = [step for step in task.cleaning if isinstance(step, Duplicates)]
    unheard = Problems()  # they are told when the records are read to be written
    for index, record in enumerate(records):
        try:
            document = _cleaned(task, record, unheard)
        except Problem:
            continue
        if document is not None:
            text = joined(document)
            yield index, record.place, [step.signature(text) for step in wanted]
