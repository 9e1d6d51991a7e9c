"""What a task is: a source of documents and how each becomes `inputs` and `targets`.

A corpus has empty inputs, so that the loss is on every token; instruction data has the loss on the response
only. Both become real `seqio.Task`s. TensorFlow is imported by `seqio_task`, not before.
"""

import abc
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flm_jax.tasks.sources import Problems, Source
from flm_jax.tasks.vocabulary import Vocabulary

# The tasks that this process has registered with seqio: those may be registered again, others not.
_registered: dict[str, Any] = {}


@dataclass(frozen=True)
class _Task(abc.ABC):
    """A named source.

    Attributes:
        name: of the task, in seqio's registry, in the mixture and as the folder of its prepared files.
        source: its documents.
    """

    name: str
    source: Source

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
        `targets_pretokenized` hold the texts.

        Args:
            vocabulary: of both features.
            problems: where the source records what it cannot read.

        Raises:
            ValueError: seqio has a task of this name that is not ours.
        """
        import seqio
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")  # the accelerator belongs to JAX
        found = Problems() if problems is None else problems

        def texts(split: str) -> Iterator[dict[str, str]]:
            try:
                yield from self.texts(split, found)
            except Exception as error:
                found.failure = error
                raise

        def dataset(split: str, shuffle_files: bool) -> Any:
            del shuffle_files  # a source has one order; shuffling is done where batches are read
            spec = tf.TensorSpec((), tf.string)
            return tf.data.Dataset.from_generator(
                lambda: texts(split), output_signature={"inputs": spec, "targets": spec}
            )

        if self.name in seqio.TaskRegistry.names():
            if seqio.TaskRegistry.get(self.name) is not _registered.get(self.name):
                raise ValueError(
                    f"seqio already has a task {self.name!r} that flm_jax did not define: change the gin "
                    f"binding `{type(self).__name__}.name`"
                )
            seqio.TaskRegistry.remove(self.name)
        model = vocabulary.as_seqio()
        task = seqio.TaskRegistry.add(
            self.name,
            source=seqio.FunctionDataSource(dataset, splits=tuple(self.source.splits)),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={
                "inputs": seqio.Feature(model, add_eos=False, required=False),
                "targets": seqio.Feature(model, add_eos=True),
            },
            metric_fns=[],
        )
        _registered[self.name] = task
        return task


@dataclass(frozen=True)
class Corpus(_Task):
    """Text to learn as it is: the loss is on every token and on the eos at the end of a document."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None}
        self._expect_features(names)

    def inputs(self, document: dict[str, str]) -> str:
        """The template, filled with the document's features."""
        return self.template.format_map(document)
