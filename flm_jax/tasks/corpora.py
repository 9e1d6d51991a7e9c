"""What a task is: a source of documents and how each becomes `inputs` and `targets`.

A corpus has empty inputs, so that the loss is on every token; instruction data has the loss on the response
only. Both become real `seqio.Task`s. TensorFlow is imported by `seqio_task`, not before.
"""

import abc
import functools
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flm_jax.tasks.metrics import exact_match, log_likelihood
from flm_jax.tasks.sources import Problems, Source
from flm_jax.tasks.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Task(abc.ABC):
    """A named source.

    Attributes:
        name: of the task, in seqio's registry, in the mixture and as the folder of its prepared files.
        source: its documents.
    """

    name: str
    source: Source
    has_inputs: ClassVar[bool]  # and makes no sense without them

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - set(string.ascii_letters + string.digits + "_"):
            raise ValueError(
                f"expected a task's name of letters, digits and '_', found {self.name!r}: change the gin "
                f"binding `{type(self).__name__}.name`"
            )
        self._expect_features({"targets"})

    def _expect_features(self, needed: set[str]) -> None:
        if missing := needed - set(self.source.features):
            raise ValueError(
                f"expected task {self.name!r} to have the features {sorted(needed)}, found "
                f"{sorted(self.source.features)}: name the key of {sorted(missing)} in the gin binding "
                f"`{type(self.source).__name__}.fields`"
            )

    @abc.abstractmethod
    def inputs(self, document: dict[str, str]) -> str:
        """The text that the model is given and not trained on."""

    def texts(self, split: str, problems: Problems) -> Iterator[dict[str, str]]:
        """The documents of a split as `{"inputs": text, "targets": text}`."""
        for document in self.source.read(split, problems):
            yield {"inputs": self.inputs(document), "targets": document["targets"]}

    def fingerprint(self) -> dict[str, Any]:
        """A JSON description that differs when the task's examples may differ."""
        settings = {key: value for key, value in vars(self).items() if key != "source"}
        return {"type": type(self).__name__, **settings, "source": self.source.fingerprint()}

    def seqio_task(self, vocabulary: Vocabulary, problems: Problems | None = None) -> Any:
        """Registers the task with seqio, once more if this process already did, and returns the `seqio.Task`.

        Its features are `inputs` (no eos) and `targets` (with eos), int32; `inputs_pretokenized` and
        `targets_pretokenized` hold the texts. Asked for with feature lengths, it cuts what is longer into several
        examples, without the texts (`lengths.cut_to_lengths`).

        Args:
            vocabulary: of both features.
            problems: where the source records what it cannot read.

        Raises:
            ValueError: seqio has a task of this name that is not ours.
        """
        from flm_jax.tasks import lengths

        cut = functools.partial(lengths.cut_to_lengths, task=self.name, needs_inputs=self.has_inputs)
        return self._registered(self.name, vocabulary, Problems() if problems is None else problems, cut, ())

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

        tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX

        def texts(split: str) -> Iterator[dict[str, str]]:
            try:
                yield from self.texts(split, problems)
            except Exception as error:
                problems.failure = error
                raise

        model = vocabulary.as_seqio()
        return registration.add_task(
            name,
            f"{type(self).__name__}.name",
            source=seqio_sources.TextSource(texts, self.source.splits),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos, preprocessor],
            output_features={
                "inputs": seqio.Feature(model, add_eos=False, required=False),
                "targets": seqio.Feature(model, add_eos=True),
            },
            metric_fns=metrics,
        )


@dataclass(frozen=True)
class Corpus(_Task):
    """Text to learn as it is: the loss is on every token and on the eos at the end of a document."""

    has_inputs = False

    def inputs(self, document: dict[str, str]) -> str:
        """Empty."""
        return ""


@dataclass(frozen=True)
class Instructions(_Task):
    r"""Instruction data: the loss is on the response (`targets`) and its eos only.

    Attributes:
        template: how a document's features become the text before the response, e.g. `"{inputs}\n"` or
            `"问：{inputs}\n答："`; any feature that the source's `fields` name can stand in braces.
    """

    template: str = "{inputs}\n"
    has_inputs = True

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        self._expect_features(names)

    def inputs(self, document: dict[str, str]) -> str:
        """The template, filled with the document's features."""
        return self.template.format_map(document)

    def questions(self, vocabulary: Vocabulary) -> Any:
        """Registers the task for inference, as `<name>_questions`, and returns the `seqio.Task`.

        As `seqio_task`, but whole: a question or an answer that is longer than it may be is an error. Its metrics are
        exact match and the log-likelihood of the response.
        """
        from flm_jax.tasks import lengths

        name = f"{self.name}_questions"
        whole = functools.partial(lengths.refuse_longer, task=self.name)
        return self._registered(name, vocabulary, Problems(), whole, (exact_match, log_likelihood))
