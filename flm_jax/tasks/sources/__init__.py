"""Where documents come from: JSON lines, plain text, Parquet, TFRecord, TFDS.

A source yields *records* split by split, in a fixed order, and makes a *document* of each: `{feature: text}`
(`targets`, for instruction data also `inputs` and whatever its template names). What cannot be read is a `Problem` at
its place; nothing is dropped in silence. A source is a frozen dataclass, so that gin can configure it:

    >>> JsonLines("en/*.jsonl.gz", fields={"targets": "text"}, validation_every=100)
"""

from flm_jax.tasks.problems import Problem, Problems
from flm_jax.tasks.sources.base import START, TRAIN, VALIDATION, Document, Position, Record, Source
from flm_jax.tasks.sources.file_source import FileSource
from flm_jax.tasks.sources.tables import Parquet, TFRecord
from flm_jax.tasks.sources.text import JsonLines, PlainText
from flm_jax.tasks.sources.tfds import Tfds

__all__ = [
    "START",
    "TRAIN",
    "VALIDATION",
    "Document",
    "FileSource",
    "JsonLines",
    "Parquet",
    "PlainText",
    "Position",
    "Problem",
    "Problems",
    "Record",
    "Source",
    "TFRecord",
    "Tfds",
]
