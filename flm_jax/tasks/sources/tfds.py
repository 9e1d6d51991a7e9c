"""A source of TensorFlow Datasets."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources.base import START, TRAIN, Document, Position, Record, check_split, chosen, read
from flm_jax.tasks.sources.values import num_bytes, plain


@dataclass(frozen=True)
class Tfds:
    """A TensorFlow Datasets data set that has been downloaded and prepared.

    Attributes:
        name: e.g. `"wikipedia/20230601.en"`; give the version to keep the prepared files reproducible.
        splits: split -> TFDS split, e.g. `{"train": "train[:99%]", "validation": "train[99%:]"}`.
        fields: feature -> key of the TFDS example; None: all of them (see `JsonLines`).
        data_dir: where TFDS keeps its data sets; None: its default.
    """

    name: str
    splits: Mapping[str, str] = field(default_factory=lambda: {TRAIN: "train"})
    fields: Mapping[str, str] | None = field(default_factory=lambda: {"targets": "text"})
    data_dir: str | None = None

    @property
    def features(self) -> tuple[str, ...] | None:
        """The keys of every document."""
        return None if self.fields is None else tuple(self.fields)

    def records(self, split: str, after: Position = START) -> Iterator[Record]:
        """The examples of a split in TFDS's own order; a problem where its files break off. Imports TensorFlow.

        Raises:
            FileNotFoundError: the data set was never built.
        """
        import tensorflow as tf
        import tensorflow_datasets as tfds

        check_split(split, self.splits)
        try:
            examples, info = tfds.load(
                self.name,
                split=self.splits[split],
                data_dir=self.data_dir,
                shuffle_files=False,
                download=False,
                with_info=True,
                read_config=tfds.ReadConfig(interleave_cycle_length=1),
            )
        except AssertionError as error:  # how TFDS says that a data set was never built
            raise FileNotFoundError(
                f"expected the TFDS data set {self.name!r} to be on disk, found none: {error} Build it first, "
                "or change the gin bindings `Tfds.name` and `Tfds.data_dir`"
            ) from error
        number, part = 0, self.splits[split]
        try:
            for example in tfds.as_numpy(examples):
                if number >= after.overall:
                    place, end = f"{self.name} {part}, example {number}", Position(0, number + 1, number + 1)
                    yield Record(place, example, num_bytes(example), end)
                number += 1
        except (tf.errors.DataLossError, tf.errors.NotFoundError) as error:
            if number >= after.overall:
                lost = info.splits[part].num_examples - number
                reason = f"its files are damaged ({error.message}); {lost:,} examples are lost"
                end = Position(0, number + 1, number + 1)
                yield Record(f"{self.name} {part}, example {number}", Problem(reason, lost), 0, end)

    def document(self, raw: Any) -> Document:
        """The document of an example."""
        if isinstance(raw, Problem):
            raise raw
        wanted = raw if self.fields is None else [key for key in raw if key in self.fields.values()]
        return chosen({key: plain(raw[key], key) for key in wanted}, self.fields)

    def read(self, split: str, problems: Problems) -> Iterator[Document]:
        """The documents of a split; what cannot be read is recorded in `problems`."""
        return read(self, split, problems)

    def fingerprint(self) -> dict[str, Any]:
        """The settings; a data set of TFDS is identified by its name and version."""
        return {"type": type(self).__name__, **asdict(self)}
