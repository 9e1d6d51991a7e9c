"""`flm data inspect`: what is in a source before anything is made of it, and in prepared tasks afterwards."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flm_jax.json_file import write_json
from flm_jax.tasks import duplicate_search
from flm_jax.tasks.corpora import Task
from flm_jax.tasks.documents import read_documents, signatures
from flm_jax.tasks.examples import Example, tokenize
from flm_jax.tasks.manifest import SplitManifest, read_manifest
from flm_jax.tasks.prepared import prepared_tasks
from flm_jax.tasks.problems import Problems
from flm_jax.tasks.scripts import script_counts
from flm_jax.tasks.sources import TRAIN, FileSource, Record
from flm_jax.tasks.vocabulary import Vocabulary

_SHOWN = 240  # characters of a sample's text


@dataclass
class Inspection:
    """What was found in one split of one task.

    Attributes:
        task: its name.
        split: of it.
        files: path to size in bytes, of a source of files.
        records: read.
        is_all: whether there are no more.
        counts: as in a manifest; without tokens where there is no vocabulary.
        problems: what was found wrong.
        samples: of the examples, in words: what is given and what is learnt.
    """

    task: str
    split: str
    files: dict[str, int | None] = field(default_factory=dict)
    records: int = 0
    is_all: bool = True
    counts: SplitManifest = field(default_factory=SplitManifest)
    problems: Problems = field(default_factory=Problems)
    samples: list[list[dict[str, str]]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "problems": self.problems.to_json()}

    def report(self) -> str:
        """For people."""
        lines = [f"{self.task} ({self.split})"]
        if self.files:
            size = sum(value or 0 for value in self.files.values())
            lines.append(f"  {len(self.files):,} files, {size / 1e6:,.1f} MB as they lie there")
        if self.records:
            which = "all" if self.is_all else "the first"
            lines.append(f"  {which} {self.records:,} records: {self.counts.documents:,} documents kept")
        lines += [f"  {line}" for line in count_lines(self.counts)]
        lines += [f"  {line}" for line in self.problems.report().splitlines()]
        for number, sample in enumerate(self.samples, start=1):
            lines.append(f"  sample {number}")
            for turn in sample:
                lines += [f"    {name}: {text}" for name, text in turn.items() if text]
        return "\n".join(lines)


def count_lines(counts: SplitManifest) -> list[str]:
    """What a manifest counts, in words."""
    lines = []
    if counts.documents:
        per_document = f", {counts.characters / counts.documents:,.0f} characters a document" * bool(
            counts.characters
        )
        lines.append(f"{counts.documents:,} documents, {counts.characters:,} characters{per_document}")
    if counts.tokens:
        ratio = counts.bytes / max(counts.loss_tokens, 1)
        lines.append(
            f"{counts.tokens:,} tokens, {counts.loss_tokens:,} with loss, {ratio:.2f} bytes per token with loss"
        )
    if counts.sequences:
        lines.append(
            f"{counts.sequences:,} sequences, {counts.padding:.1%} padding, {len(counts.files):,} files"
        )
    written = {
        name: count for name, count in counts.scripts.items() if name not in ("space", "other", "digit")
    }
    if total := sum(written.values()):
        shares = sorted(written.items(), key=lambda item: -item[1])
        lines.append(
            "letters: "
            + ", ".join(f"{name} {count / total:.1%}" for name, count in shares if count >= total / 1000)
        )
    if counts.removed:
        lines.append("removed: " + ", ".join(f"{count:,} {kind}" for kind, count in counts.removed.items()))
    if counts.tokens_per_document:
        lines += ["tokens per document", *_histogram(counts.tokens_per_document)]
    return lines


def _histogram(buckets: Mapping[str, int]) -> list[str]:
    bounds = sorted(map(int, buckets))
    bounds = [1 << power for power in range(int(math.log2(bounds[0])), int(math.log2(bounds[-1])) + 1)]
    most = max(buckets.values())
    return [
        f"  <= {bound:>9,} {buckets.get(str(bound), 0):>11,} {'#' * math.ceil(40 * buckets.get(str(bound), 0) / most)}"
        for bound in bounds
    ]


def inspect(
    tasks: Sequence[Task],
    vocabulary: str | None = None,
    names: Sequence[str] = (),
    split: str = TRAIN,
    num_documents: int | None = 1000,
    num_samples: int = 2,
) -> list[Inspection]:
    """Reads tasks as `prepare` would, in one process, and writes nothing.

    Args:
        tasks: defined in gin.
        vocabulary: path of the tokenizer; tokens are not counted while there is no such file.
        names: of the tasks; empty for all.
        split: of the tasks that have it.
        num_documents: records of each task; None for all.
        num_samples: examples of each task that are shown, spread over what was read.

    Raises:
        FileNotFoundError: a source's files are not there.
        ValueError: there is no task of a name.
    """
    known = {task.name: task for task in tasks}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"expected --task of {sorted(known)}, found {unknown}")
    opened = None
    if vocabulary is not None and Path(vocabulary).expanduser().is_file():
        opened = Vocabulary(vocabulary)
    chosen = [task for task in tasks if not names or task.name in names]
    splits = sorted({each for task in chosen for each in task.source.splits})
    if split not in splits:
        raise ValueError(f"expected --split of {splits}, found {split!r}")
    return [
        _inspect(task, split, opened, num_documents, num_samples)
        for task in chosen
        if split in task.source.splits
    ]


def _inspect(
    task: Task, split: str, vocabulary: Vocabulary | None, num_documents: int | None, num_samples: int
) -> Inspection:
    found = Inspection(task.name, split)
    if isinstance(task.source, FileSource):
        patterns = task.source.fingerprint()["files"]
        found.files = {path: stamp["bytes"] for path, stamp in patterns.get(split, patterns[TRAIN]).items()}
    records = task.source.records(split)
    taken = tqdm(itertools.islice(records, num_documents), desc=task.name, unit=" records", disable=None)
    dropped: duplicate_search.Dropped = {}
    scripts, histogram, spread = Counter[str](), Counter[int](), _Spread(num_samples)
    counts = found.counts
    looked_at = _with_duplicates(task, _counted(taken, found), dropped)
    for document in read_documents(task, looked_at, found.problems, dropped):
        spread.add(document.examples[0])
        counts.documents += 1
        counts.characters += len(document.text)
        scripts.update(script_counts(document.text))
        if vocabulary is None:
            continue
        before = counts.tokens
        for example in document.examples:
            ids, weights = tokenize(example, vocabulary)
            counts.examples += 1
            counts.tokens += len(ids)
            counts.loss_tokens += int((weights > 0).sum())
            counts.bytes += sum(len(turn.targets.encode()) for turn in example)
        histogram[max(counts.tokens - before - 1, 0).bit_length()] += 1
    counts.scripts = dict(scripts)
    counts.tokens_per_document = {str(1 << power): histogram[power] for power in sorted(histogram)}
    counts.removed = {kind: tally.count for kind, tally in found.problems.removed.items()}
    found.is_all = next(records, None) is None
    found.samples = [_shown(example) for example in spread.chosen()]
    return found


def _counted(records: Iterable[Record], found: Inspection) -> Iterator[Record]:
    for record in records:
        found.records += 1
        yield record


def _with_duplicates(
    task: Task, records: Iterable[Record], dropped: duplicate_search.Dropped
) -> Iterator[Record]:
    """The records, each of which is put into `dropped` before it is handed on if it repeats an earlier one.

    Keeps signatures and places, no documents.
    """
    looking = [(step, step.index()) for step in duplicate_search.steps(task)]
    places: list[str] = []
    for index, record in enumerate(records):
        if looking:
            places.append(record.place)
            for _, _, signed in signatures(task, [record]):
                for (step, known), signature in zip(looking, signed, strict=True):
                    first = known.first(signature, index)
                    if first is not None:
                        dropped[index] = (step.kind, f"repeats {places[first]}")
                        break
        yield record


class _Spread:
    """A few examples, evenly spread over all that are added; at most twice as many are held."""

    def __init__(self, number: int) -> None:
        self._number, self._stride, self._added = number, 1, 0
        self._held: list[Example] = []

    def add(self, example: Example) -> None:
        """Adds the next example, which is held or forgotten."""
        if self._number and self._added % self._stride == 0:
            self._held.append(example)
            if len(self._held) > 2 * self._number:
                self._held, self._stride = self._held[::2], 2 * self._stride
        self._added += 1

    def chosen(self) -> list[Example]:
        """At most the number asked for, in order."""
        held, number = self._held, min(self._number, len(self._held))
        return [held[index * len(held) // number] for index in range(number)]


def _shown(example: Example) -> list[dict[str, str]]:
    return [{"given": _short(turn.inputs), "learnt": _short(turn.targets)} for turn in example]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...")[1:-1]


def inspect_prepared(directory: str | Path, names: Sequence[str] = ()) -> list[Inspection]:
    """What the manifests of prepared tasks say.

    Raises:
        FileNotFoundError: nothing is prepared there, or not a task of a name.
    """
    folder = Path(directory).expanduser()
    there = prepared_tasks(folder)
    if not there or set(names) - set(there):
        raise FileNotFoundError(
            f"expected {', '.join(names) or 'prepared tasks'} in {folder}, found {', '.join(there) or 'none'}: change "
            "--prepared_dir or --task"
        )
    found = []
    for name in names or there:
        manifest = read_manifest(folder / name)
        for split, counts in manifest.splits.items():
            sizes: dict[str, int | None] = {
                str(folder / name / file.name): file.size for file in counts.files
            }
            problems = Problems.from_json(manifest.problems) if split == TRAIN else Problems()
            found.append(Inspection(name, split, sizes, counts=counts, problems=problems))
    return found


def write(path: str, found: Sequence[Inspection]) -> None:
    """Writes what was found as JSON, whole or not at all."""
    write_json(path, [each.to_json() for each in found])
