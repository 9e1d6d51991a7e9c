"""From records to cleaned documents and their examples, with all that is found wrong on the way."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from flm_jax.tasks.examples import Example
from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources import Record

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
        text: that is learnt, and that it is learnt from, part by part on lines; what cleaning compares.
        examples: what is learnt from it.
    """

    number: int
    place: str
    text: str
    examples: Sequence[Example]


# Why a document has no room, judged by its examples; None where it has.
Refusal = Callable[[Sequence[Example]], str | None]


def read_documents(
    task: "Task",
    records: Iterable[Record],
    problems: Problems,
    dropped: Mapping[int, tuple[str, str]] = {},
    has_no_room: Refusal | None = None,
) -> Iterator[Read]:
    """The documents that a task keeps of records.

    Args:
        task: reads and cleans.
        records: in their order.
        problems: what is left out, removed, changed or odd goes here.
        dropped: index of a record to the kind and the reason for which it is a duplicate.
        has_no_room: of a task that is not cut.

    Raises:
        ValueError: the task's own code failed, with the place.
    """
    for index, record in enumerate(records):
        try:
            found = _read(task, record, problems)
            if found is None:
                continue
            text, examples = found
            reason = has_no_room(examples) if has_no_room else None
        except Problem as problem:
            problems.add(record.place, str(problem), problem.records)
            continue
        except Exception as error:
            raise ValueError(f"task {task.name!r} failed at {record.place}: {error!r}") from error
        if reason is not None:
            problems.remove("longer than a sequence", record.place, reason)
        elif index in dropped:
            problems.remove(dropped[index][0], record.place, dropped[index][1])
        else:
            _look_at(text, record.place, problems)
            yield Read(index, record.place, text, examples)


def _read(task: "Task", record: Record, problems: Problems) -> tuple[str, Sequence[Example]] | None:
    """Text and examples of a record; None where a filter refuses it."""
    document = task.source.document(record.raw)
    for step in task.cleaning:
        if isinstance(step, Rewriting):
            rewritten = _mapped(document, step)
            if rewritten != document:
                problems.change(step.kind)
            document = rewritten
    examples = task.examples(document)
    _check_encodable(examples)
    # What is learnt and what it is learnt from: a record may hold more, such as names and numbers.
    text = "\n".join(part for example in examples for turn in example for part in turn[:2] if part)
    for step in task.cleaning:
        if isinstance(step, Filter) and (reason := step.refusal(text)) is not None:
            problems.remove(step.kind, record.place, reason)
            return None
    for kind, reason in task.oddities(document):
        problems.notice(kind, record.place, reason)
    return text, examples


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


def signatures(
    task: "Task", records: Iterable[Record], has_no_room: Refusal | None = None
) -> Iterator[tuple[int, str, list[Any]]]:
    """Index, place and signatures of the documents that a task would keep, one for each of its `Duplicates`."""
    wanted = [step for step in task.cleaning if isinstance(step, Duplicates)]
    unheard = Problems()  # they are told when the records are read to be written
    for read in read_documents(task, records, unheard, has_no_room=has_no_room):
        yield read.number, read.place, [step.signature(read.text) for step in wanted]


def check_order(cleaning: Sequence[Cleaning]) -> None:
    """Refuses cleaning that would not be done in the order of its list.

    Raises:
        ValueError: naming the kinds in the order that they must have.
    """
    kinds: tuple[Any, ...] = (Rewriting, Filter, Duplicates)
    ranks = [
        next(
            (
                rank
                for rank, kind in enumerate(kinds)
                if isinstance(step, kind) and not isinstance(step, type)
            ),
            None,
        )
        for step in cleaning
    ]
    if None in ranks or ranks != sorted(ranks, key=lambda rank: rank or 0):
        raise ValueError(
            "expected cleaning as a list of steps, first what rewrites (cleaning.Normalize), then filters (Length, "
            "Language, Decontamination), then duplicates (Exact, Near), found "
            f"{[type(step).__name__ for step in cleaning]}: change the gin binding `cleaning` of the task"
        )
