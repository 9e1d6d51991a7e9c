"""Sources of binary records: Parquet and TFRecord."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import files
from flm_jax.tasks.sources.base import Document, chosen
from flm_jax.tasks.sources.file_source import FieldsSource, Raw
from flm_jax.tasks.sources.values import num_bytes

_ROWS = 256  # at a time
_TFRECORD_FRAME = 16  # bytes of length and checksums around a record


@dataclass(frozen=True)
class Parquet(FieldsSource):
    """Parquet files, a document a row; a field is a column."""

    def document(self, raw: Any) -> Document:
        """The document of a row."""
        if isinstance(raw, Problem):
            raise raw
        return chosen(raw, self.fields)

    def _raw(self, path: str) -> Iterator[Raw]:
        import pyarrow
        from pyarrow import parquet

        with files.open_file(path) as file:
            try:
                table = parquet.ParquetFile(file, page_checksum_verification=True)
                names = table.schema_arrow.names
            except (pyarrow.ArrowException, OSError) as error:
                _check_is_damage(error)
                raise files.DamagedError(str(error), 0, files.stamp(path)["bytes"], False) from error
            wanted = names if self.fields is None else [n for n in names if n in self.fields.values()]
            before = 0
            for group in range(table.num_row_groups):
                number, last = before, before + table.metadata.row_group(group).num_rows
                try:
                    # Without any column there would be no rows to report.
                    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=wanted or names[:1]):
                        for row in _rows(batch):
                            number += 1
                            yield self._checked(f"{path}, row {number}", row)
                except (pyarrow.ArrowException, OSError) as error:
                    _check_is_damage(error)
                    reason = (
                        f"the file is damaged ({error}); {last - number:,} rows are lost, up to row {last:,}"
                    )
                    yield Raw(f"{path}, row {number + 1}", Problem(reason, last - number), 0)
                before = last

    def _checked(self, place: str, row: Any) -> Raw:
        if isinstance(row, Problem):
            return Raw(place, row, 0)
        if (size := num_bytes(row)) <= self.max_record_bytes:
            return Raw(place, row, size)
        reason = f"a row of {size:,} bytes, more than max_record_bytes = {self.max_record_bytes:,}"
        return Raw(place, Problem(reason), size)


@dataclass(frozen=True)
class TFRecord(FieldsSource):
    """TFRecord files of `tf.train.Example`, plain or gzip (`.gz`). Reading imports TensorFlow.

    A field is a key of the example. With `fields` None a single value is itself, and several are a list.
    """

    def document(self, raw: Any) -> Document:
        """The document of a serialized example."""
        from google.protobuf.message import DecodeError
        from tensorflow.core.example import example_pb2

        if isinstance(raw, Problem):
            raise raw
        try:
            found = example_pb2.Example.FromString(raw).features.feature
        except DecodeError as error:
            raise Problem(f"not a tf.train.Example ({error})") from error
        wanted = found if self.fields is None else [key for key in found if key in self.fields.values()]
        return chosen({key: _value(key, found[key]) for key in wanted}, self.fields)

    def _raw(self, path: str) -> Iterator[Raw]:
        import tensorflow as tf

        number, size = 0, 0
        try:
            for raw in tf.data.TFRecordDataset(
                path, compression_type="GZIP" if path.endswith(".gz") else ""
            ).as_numpy_iterator():
                number, size = number + 1, size + len(raw) + _TFRECORD_FRAME
                too_long = len(raw) > self.max_record_bytes
                reason = (
                    f"a record of {len(raw):,} bytes, more than max_record_bytes = {self.max_record_bytes:,}"
                )
                yield Raw(f"{path}, record {number}", Problem(reason) if too_long else raw, len(raw))
        except tf.errors.NotFoundError as error:
            raise FileNotFoundError(path) from error
        except tf.errors.DataLossError as error:
            # How much of a compressed file was read is not told.
            is_cut = path.endswith(".gz") or "truncated" in error.message
            raise files.DamagedError(error.message, size, files.stamp(path)["bytes"], is_cut) from error


def _check_is_damage(error: Exception) -> None:
    """Lets an error of the disk through: it has a number, and those that pyarrow makes of bad content have none."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _rows(batch: Any) -> Iterator[dict[str, Any] | Problem]:
    """The rows of a batch; a problem in place of one that is not UTF-8."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for number in range(batch.num_rows):
        try:
            yield from batch.slice(number, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield Problem(f"not UTF-8 (byte {error.start} of a value)")


def _value(key: str, feature: Any) -> Any:
    """One value as itself, several as a list; bytes are UTF-8 text."""
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    if kind == "bytes_list":
        try:
            values = [value.decode("utf-8") for value in values]
        except UnicodeDecodeError as error:
            raise Problem(f"field {key!r} is not UTF-8 (byte {error.start})") from error
    return values[0] if len(values) == 1 else values
