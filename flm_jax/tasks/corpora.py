"""What a task is: a source of documents and how each becomes `inputs` and `targets`.

A corpus has empty inputs, so that the loss is on every token; instruction data has the loss on the response only
(`dialogues` has further formats, `teacher` the teacher signals). All become real `seqio.Task`s. TensorFlow is imported
by `seqio_task`, not before.
"""

import abc
import functools
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from flm_jax.tasks.documents import Cleaning, Duplicates, Read, check_order, read_documents
from flm_jax.tasks.examples import Example, Turn, pairs
from flm_jax.tasks.metrics import exact_match, log_likelihood
from flm_jax.tasks.problems import Problems
from flm_jax.tasks.sources import Document, Source
from flm_jax.tasks.vocabulary import Vocabulary


@dataclass(frozen=True)
class Task(abc.ABC):
    """A named source.

    Attributes:
        name: of the task, in seqio's registry, in the mixture and as the folder of its prepared files.
        source: its documents.
        cleaning: what is done to documents before they are used, in this order: first what rewrites text, then
            filters, then duplicates (`cleaning`, `decontamination`, `duplicates`); nothing unless given.
    """

    name: str
    source: Source
    cleaning: Sequence[Cleaning] = field(default=(), kw_only=True)
    needed: ClassVar[frozenset[str] | None] = frozenset({"targets"})  # features; None: whole records
    has_inputs: ClassVar[bool]  # and makes no sense without them
    is_whole: ClassVar[bool] = False  # an example that is longer than a sequence is left out, not cut

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set(string.ascii_letters + string.digits + "_"):
            raise ValueError(
                f"expected a task's name of letters, digits and '_', found {self.name!r}: change the gin "
                f"binding `{type(self).__name__}.name`"
            )
        check_order(self.cleaning)
        if self.needed is None:
            self._expect_records()
        else:
            self._expect_features(self.needed)

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuses a tokenizer that the task cannot be learnt with.

        Raises:
            ValueError: naming the binding to change.
        """
        del vocabulary  # any will do

    def oddities(self, document: Document) -> Iterable[tuple[str, str]]:
        """What is odd about a document that is kept, `(kind, in words)`."""
        del document
        return ()

    def _expect_records(self) -> None:
        if self.source.features is not None:
            raise ValueError(
                f"expected task {self.name!r} to get whole records, found the features "
                f"{sorted(self.source.features)}: bind `{type(self.source).__name__}.fields = None`, or change the gin "
                f"binding `{type(self).__name__}.source` to a source of records (JsonLines, Parquet, ...)"
            )

    def _expect_features(self, needed: Collection[str]) -> None:
        found = self.source.features or ()
        if missing := set(needed) - set(found):
            raise ValueError(
                f"expected task {self.name!r} to have the features {sorted(needed)}, found "
                f"{sorted(found)}: name the key of {sorted(missing)} in the gin binding "
                f"`{type(self.source).__name__}.fields`"
            )

    @abc.abstractmethod
    def examples(self, document: Document) -> Sequence[Example]:
        """What is learnt from a document.

        Raises:
            Problem: it is not of the form that the task needs.
        """

    def read(self, split: str, problems: Problems) -> Iterator[Read]:
        """The documents of a split, cleaned, with their examples; duplicates are found by `prepare` only."""
        return read_documents(self, self.source.records(split), problems)

    def fingerprint(self) -> dict[str, Any]:
        """A JSON description that differs when the task's examples may differ."""
        settings = {key: value for key, value in vars(self).items() if key not in ("source", "cleaning")}
        return {
            "type": type(self).__name__,
            **settings,
            **({"cleaning": [step.fingerprint() for step in self.cleaning]} if self.cleaning else {}),
            "source": self.source.fingerprint(),
        }

    def seqio_task(self, vocabulary: Vocabulary, problems: Problems | None = None) -> Any:
        """Registers the task with seqio, once more if this process already did, and returns the `seqio.Task`.

        Its features are `inputs` (no eos) and `targets` (with eos), int32; `inputs_pretokenized` and
        `targets_pretokenized` hold the texts. An example of several turns becomes one for each
        (`examples.pairs`). Asked for with feature lengths, it cuts what is longer into several examples, without the
        texts (`lengths.cut_to_lengths`).

        Args:
            vocabulary: of both features.
            problems: where the source records what it cannot read.

        Raises:
            ValueError: seqio has a task of this name that is not ours, or duplicates would have to be found.
        """
        from flm_jax.tasks import lengths

        if any(isinstance(step, Duplicates) for step in self.cleaning):
            raise ValueError(
                f"expected no search for duplicates in task {self.name!r}, which is to be streamed: `flm data prepare` "
                f"does it; leave it out of the gin binding `{type(self).__name__}.cleaning`, or prepare the task"
            )
        fit = lengths.leave_out_longer if self.is_whole else lengths.cut_to_lengths
        cut = functools.partial(fit, task=self.name, needs_inputs=self.has_inputs)
        return self._registered(self.name, vocabulary, Problems() if problems is None else problems, cut, ())

    def seqio_examples(
        self, vocabulary: Vocabulary, split: str, problems: Problems
    ) -> Iterator[dict[str, Any]]:
        """Seqio's examples of a split: `inputs` and `targets` in tokens, and their texts."""
        for document in self.read(split, problems):
            for example in document.examples:
                before = ""
                for turn, (inputs, targets) in zip(example, pairs(example, vocabulary), strict=True):
                    before += turn.inputs
                    yield {
                        "inputs": inputs,
                        "targets": targets,
                        "inputs_pretokenized": before,
                        "targets_pretokenized": turn.targets,
                    }
                    before += turn.targets

    def _registered(
        self,
        name: str,
        vocabulary: Vocabulary,
        problems: Problems,
        preprocessor: Callable,
        metrics: tuple[Callable[..., dict[str, float]], ...],
    ) -> Any:
        import seqio
        import tensorflow as tf

        from flm_jax.tasks import registration, seqio_sources

        self.check(vocabulary)
        tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX

        def examples(split: str) -> Iterator[Mapping[str, Any]]:
            try:
                yield from self.seqio_examples(vocabulary, split, problems)
            except Exception as error:
                problems.failure = error
                raise

        model = vocabulary.as_seqio()
        return registration.add_task(
            name,
            f"{type(self).__name__}.name",
            source=seqio_sources.ExampleSource(examples, self.source.splits),
            preprocessors=[preprocessor],
            output_features={
                "inputs": seqio.Feature(model, add_eos=False, required=False),
                "targets": seqio.Feature(model, add_eos=True),
            },
            metric_fns=metrics,
        )


@dataclass(frozen=True)
class Corpus(Task):
    """Text to learn as it is: the loss is on every token and on the eos at the end of a document."""

    has_inputs = False

    def examples(self, document: Document) -> Sequence[Example]:
        """One turn with empty inputs."""
        return [[Turn("", document["targets"])]]


class Questions(Task):
    """A task whose inputs can be put to a model as questions."""

    has_inputs = True

    def questions(self, vocabulary: Vocabulary) -> Any:
        """Registers the task for inference, as `<name>_questions`, and returns the `seqio.Task`.

        As `seqio_task`, but whole: a question or an answer that is longer than it may be is an error. Its metrics are
        exact match and the log-likelihood of the response.
        """
        from flm_jax.tasks import lengths

        name = f"{self.name}_questions"
        whole = functools.partial(lengths.refuse_longer, task=self.name)
        return self._registered(name, vocabulary, Problems(), whole, (exact_match, log_likelihood))


@dataclass(frozen=True)
class Instructions(Questions):
    r"""Instruction data: the loss is on the response (`targets`) and its eos only.

    Attributes:
        template: how a document's features become the text before the response, e.g. `"{inputs}\n"` or
            `"问：{inputs}\n答："`; any feature that the source's `fields` name can stand in braces.
    """

    template: str = "{inputs}\n"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        self._expect_features(names)

    def examples(self, document: Document) -> Sequence[Example]:
        """One turn: the template filled with the document's features, and its targets."""
        return [[Turn(self.template.format_map(document), document["targets"])]]
