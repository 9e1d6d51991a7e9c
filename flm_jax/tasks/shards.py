"""Shards: runs of consecutive records of a split, each tokenized, packed and written by itself.

Where a shard begins follows from the records alone, so any number of processes writes the same files, and one that was
killed goes on behind the shards that are whole. A shard is whole when its report is there, written last:

    parts/train-00000.json            counts, problems, where the next one begins
    train-00000.array_record          its sequences, if it has any
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordWriter

from flm_jax.json_file import write_json
from flm_jax.tasks.corpora import Task
from flm_jax.tasks.documents import Refusal, read_documents
from flm_jax.tasks.examples import Example, tokenize
from flm_jax.tasks.manifest import RECORDS, PreparedFile, SplitManifest, file_sha256
from flm_jax.tasks.packing import Chunk, PackedSequence, cut, pack
from flm_jax.tasks.problems import Problems
from flm_jax.tasks.records import encode_record
from flm_jax.tasks.scripts import script_counts
from flm_jax.tasks.sources import START, Position, Record, Source
from flm_jax.tasks.vocabulary import Vocabulary

_TEXTS_AT_ONCE = 64  # whose characters are counted
# Each record on its own (a reader takes them in any order); zstd makes a packed sequence about 2 bytes a
# token.
_WRITER_OPTIONS = "group_size:1,zstd:3"


@dataclass(frozen=True)
class Shard:
    """What one process works on at a time.

    Attributes:
        split: whose records they are.
        number: of the shard in its split, from 0.
        records: consecutive ones.
        end: where the next shard begins.
    """

    split: str
    number: int
    records: list[Record]
    end: Position

    @property
    def name(self) -> str:
        """Of its files, e.g. `train-00000`."""
        return shard_name(self.split, self.number)

    @property
    def size(self) -> int:
        """About how many bytes its records have."""
        return sum(record.size for record in self.records)


def shard_name(split: str, number: int) -> str:
    """Of a shard's files, e.g. `train-00000`."""
    return f"{split}-{number:05d}"


def shards(
    source: Source, split: str, shard_bytes: int, number: int = 0, after: Position = START
) -> Iterator[Shard]:
    """The shards of a split behind a position; each ends with the record that brings it to `shard_bytes`."""
    records: list[Record] = []
    size = 0
    for record in source.records(split, after):
        records.append(record)
        size += record.size
        if size >= shard_bytes:
            yield Shard(split, number, records, record.end)
            number, records, size = number + 1, [], 0
    if records:
        yield Shard(split, number, records, records[-1].end)


@dataclass
class ShardReport:
    """What became of one shard.

    Attributes:
        counts: of its documents and its file; `padding` is of its own sequences.
        problems: what was found wrong.
        records: number of its records.
        end: where the next shard begins.
        request: what was asked for, as a hash: a report of another request is none.
    """

    counts: SplitManifest = field(default_factory=SplitManifest)
    problems: Problems = field(default_factory=Problems)
    records: int = 0
    end: Position = START
    request: str = ""

    def write(self, path: Path) -> None:
        """Writes it whole or not at all."""
        values = {**asdict(self), "problems": self.problems.to_json(), "end": list(self.end)}
        write_json(path, values)

    @staticmethod
    def read(path: Path, request: str) -> "ShardReport | None":
        """The report of a shard that is whole; None where it is not, or was made for another request."""
        if not path.is_file():
            return None
        values = json.loads(path.read_text("utf-8"))
        if values["request"] != request:
            return None
        counts = SplitManifest.from_json(values["counts"])
        problems = Problems.from_json(values["problems"])
        return ShardReport(counts, problems, values["records"], Position(*values["end"]), request)


def write_shard(
    shard: Shard,
    task: Task,
    vocabulary: Vocabulary,
    length: int,
    directory: Path,
    dropped: dict[int, tuple[str, str]],
    advance: Callable[[int], None] = lambda documents: None,
    request: str = "",
) -> ShardReport:
    """Tokenizes, packs and writes one shard; its report last.

    Args:
        shard: the records.
        task: of them.
        vocabulary: tokenizes.
        length: tokens per sequence.
        directory: of the files; the report goes into `parts/` in it.
        dropped: index of a record in the shard to the kind and reason for which it is a duplicate.
        advance: told of every document.
        request: goes into the report.

    Raises:
        ValueError: the task cannot be learnt with the vocabulary.
    """
    task.check(vocabulary)
    report = ShardReport(records=len(shard.records), end=shard.end, request=request)
    chunks = _chunks(shard, task, vocabulary, length, dropped, report, advance)
    name = f"{shard.name}{RECORDS}"
    partial = directory / "parts" / f"{name}.{os.getpid()}"  # with what a killed process leaves there
    file = write_records(partial, pack(chunks, length), name)
    counts = report.counts
    if file.records:
        counts.files = [file]
        partial.replace(directory / name)
    else:
        partial.unlink()
    counts.sequences = file.records
    counts.padding = 1 - counts.tokens / (file.records * length) if file.records else 0.0
    report.write(directory / "parts" / f"{shard.name}.json")
    return report


def _chunks(
    shard: Shard,
    task: Task,
    vocabulary: Vocabulary,
    length: int,
    dropped: dict[int, tuple[str, str]],
    report: ShardReport,
    advance: Callable[[int], None],
) -> Iterator[Chunk]:
    """The chunks of a shard's documents, which are counted on the way."""
    counts, histogram = report.counts, Counter[int]()
    scripts, texts = Counter[str](), list[str]()
    room = no_room(task, vocabulary, length)
    for document in read_documents(task, shard.records, report.problems, dropped, room):
        tokens = 0
        for example in document.examples:
            ids, weights = tokenize(example, vocabulary)
            tokens += len(ids)
            counts.examples += 1
            counts.loss_tokens += int((weights > 0).sum())
            counts.bytes += int(vocabulary.piece_bytes[ids[weights > 0]].sum())
            yield from cut(ids, weights, length)
        advance(1)
        counts.documents += 1
        counts.tokens += tokens
        counts.characters += len(document.text)
        histogram[max(tokens - 1, 0).bit_length()] += 1
        texts.append(document.text)
        if len(texts) == _TEXTS_AT_ONCE:
            scripts.update(script_counts("".join(texts)))
            texts.clear()
    scripts.update(script_counts("".join(texts)))
    counts.scripts = dict(sorted(scripts.items()))
    counts.tokens_per_document = {str(1 << power): histogram[power] for power in sorted(histogram)}


def no_room(task: Task, vocabulary: Vocabulary, length: int) -> Refusal | None:
    """What refuses a document of a task that is not cut: all of it, so that true and false statements stay as many."""
    if not task.is_whole:
        return None

    def refusal(examples: Sequence[Example]) -> str | None:
        longest = max(len(tokenize(example, vocabulary).ids) for example in examples)
        return f"an example of {longest:,} tokens" if longest > length else None

    return refusal


def write_records(path: Path, sequences: Iterator[PackedSequence], name: str | None = None) -> PreparedFile:
    """Writes sequences as the records of a file, which will have this `name` if it is to be moved."""
    writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    records = 0
    try:
        for sequence in sequences:
            writer.write(encode_record(sequence))
            records += 1
    finally:
        writer.close()
    return PreparedFile(name or path.name, records, path.stat().st_size, file_sha256(path))
