"""A source of TensorFlow Datasets."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources.base import START, TRAIN, Document, Position, Record, check_split, chosen, read


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
        """The examples of a split in TFDS's own order. Imports TensorFlow."""
        import tensorflow_datasets as tfds

        check_split(split, self.splits)
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
            if number >= after.overall:
                place = f"{self.name} {self.splits[split]}, example {number}"
                size = sum(len(value) for value in example.values() if isinstance(value, bytes))
                yield Record(place, example, size, Position(0, number + 1, number + 1))

    def document(self, raw: Any) -> Document:
        """The document of an example."""
        try:
            values = {
                key: value.decode("utf-8") if isinstance(value, bytes) else _plain(value)
                for key, value in raw.items()
            }
        except UnicodeDecodeError as error:
            raise Problem(f"not UTF-8 (byte {error.start}: {error})") from error
        return chosen(values, self.fields)

    def read(self, split: str, problems: Problems) -> Iterator[Document]:
        """The documents of a split; what cannot be read is recorded in `problems`."""
        return read(self, split, problems)

    def fingerprint(self) -> dict[str, Any]:
        """The settings; a data set of TFDS is identified by its name and version."""
        return {"type": type(self).__name__, **asdict(self)}


def _plain(value: Any) -> Any:
    """A number or a list of numpy's as Python's."""
    return value.tolist() if hasattr(value, "tolist") else value
