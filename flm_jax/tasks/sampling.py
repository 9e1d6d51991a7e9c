"""A fair sample of text for training a tokenizer: a bounded number of bytes, balanced over languages."""

import heapq
import os
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from flm_jax.tasks.sources import JsonLines, PlainText, Problems
from flm_jax.tasks.sources import files as files_of

# sentencepiece leaves out lines above 4,192 bytes: documents are cut below that (a character has up to 4
# bytes).
PIECE_CHARACTERS = 1000

_LABELLED = re.compile(r"(?P<language>[A-Za-z][\w-]*)=(?P<pattern>.+)", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """Pieces of text of at most `PIECE_CHARACTERS` characters.

    Attributes:
        texts: what was drawn.
        held_out: drawn from the rest; empty where all of the text was drawn.
    """

    texts: list[str]
    held_out: list[str]


def cut(text: str) -> Iterator[str]:
    """Cuts a text into pieces that sentencepiece's trainer accepts."""
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def sample_texts(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """`draw_sample` with nothing held out: the pieces.

    Example: of 10 texts of 100 bytes each, `sample_texts(texts, 350, seed=0)` keeps 3.
    """
    return draw_sample(texts, max_bytes, seed).texts


def draw_sample(texts: Iterable[str], max_bytes: int, seed: int, held_out_bytes: int = 0) -> Sample:
    """At most `max_bytes` (UTF-8) of the texts, each piece of them equally likely, in their order.

    One pass, in memory of about `max_bytes + held_out_bytes`: every piece draws a number, and the pieces with the
    lowest stay; of the others, those with the lowest are held out. The result depends on the arguments only.

    Example: of 10 texts of 100 bytes each, `draw_sample(texts, 350, seed=0, held_out_bytes=250)` draws 3 and holds
    2 others out.
    """
    draw = random.Random(seed)
    drawn, held_out = _Lowest(max_bytes), _Lowest(held_out_bytes)
    pieces = (piece for text in texts for piece in cut(text))
    for index, piece in enumerate(pieces):
        for number, place, left in drawn.add(draw.random(), index, piece):
            held_out.add(number, place, left)
    return Sample(drawn.in_order(), held_out.in_order())


class _Lowest:
    """Keeps the pieces with the lowest numbers, of at most `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes
        self._heap: list[tuple[float, int, str]] = []  # the highest number on top

    def add(self, number: float, index: int, piece: str) -> list[tuple[float, int, str]]:
        """Adds a piece; what no longer fits, as `(number, index, piece)`."""
        heapq.heappush(self._heap, (-number, index, piece))
        self._left -= _bytes(piece)
        dropped = []
        while self._left < 0:
            negative, place, text = heapq.heappop(self._heap)
            self._left += _bytes(text)
            dropped.append((-negative, place, text))
        return dropped

    def in_order(self) -> list[str]:
        """What is kept, by index."""
        return [piece for _, _, piece in sorted(self._heap, key=lambda entry: entry[1])]


def language_files(inputs: Sequence[str | Path]) -> dict[str, list[str]]:
    """The files of each language, from what `--input` takes.

    Args:
        inputs: `LANGUAGE=PATTERN`, or a pattern or path alone, of which each file is a language: named by its name up
            to the first dot, by its path if two have the same. Patterns of one language are put together.

    Raises:
        FileNotFoundError: a pattern matches no file.

    Example: `["zh=zh/*.jsonl", "en.txt"]` gives `{"zh": ["zh/a.jsonl", "zh/b.jsonl"], "en": ["en.txt"]}`.
    """
    languages: dict[str, list[str]] = {}
    alone: list[str] = []
    for given in map(str, inputs):
        labelled = _LABELLED.fullmatch(given)
        if labelled and not os.path.exists(given):
            languages.setdefault(labelled["language"], []).extend(_files(labelled["pattern"]))
        else:
            alone.extend(_files(given))
    stems = [Path(path).name.split(".")[0] for path in alone]
    for path, stem in zip(alone, stems, strict=True):
        name = stem if stems.count(stem) == 1 and stem not in languages else path
        languages.setdefault(name, []).append(path)
    return {language: list(dict.fromkeys(paths)) for language, paths in languages.items()}


def sample_languages(
    languages: Mapping[str, Sequence[str | Path]],
    field: str,
    max_bytes: int,
    seed: int,
    held_out_bytes: int = 0,
) -> tuple[dict[str, Sample], Problems]:
    """A sample of at most `max_bytes`, the same number of bytes from each language as far as it has them.

    Args:
        languages: language -> files: `.jsonl` or `.json` (one object a line), anything else is plain text; each of
            them also with a compression's suffix.
        field: key of the text in JSON objects.
        max_bytes: of UTF-8 text in all.
        seed: of the choice.
        held_out_bytes: of each language, at most, from what was not drawn.

    Returns:
        the samples, and what could not be read.

    Raises:
        FileNotFoundError: a file is not there.
    """
    problems = Problems()
    samples: dict[str, Sample] = {}
    # Small languages first: what they lack of their share goes to the larger ones.
    ordered = sorted(languages.items(), key=lambda item: (sum(map(_size, item[1])), [*map(str, item[1])]))
    left = max_bytes
    for number, (language, files) in enumerate(
        tqdm(ordered, desc="reading text", unit="language", disable=None)
    ):
        texts = (text for path in files for text in _texts(str(path), field, problems))
        share = left // (len(ordered) - number)
        samples[language] = draw_sample(texts, share, seed, held_out_bytes)
        left -= sum(map(_bytes, samples[language].texts))
    return samples, problems


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _files(pattern: str) -> list[str]:
    found = files_of.find(pattern)
    if not found:
        raise _missing(pattern)
    return found


def _size(path: str | Path) -> int:
    size: int | None = files_of.stamp(str(path))["bytes"]
    if size is None:
        raise _missing(path)
    return size


def _missing(path: str | Path) -> FileNotFoundError:
    return FileNotFoundError(f"expected a file of text, found nothing at {path}: change --input")


def _texts(path: str, field: str, problems: Problems) -> Iterator[str]:
    source: JsonLines | PlainText
    if {".jsonl", ".json"} & set(Path(path).suffixes[-2:]):
        source = JsonLines(path, fields={"targets": field})
    else:
        source = PlainText(path)
    return (document["targets"] for document in source.read("train", problems))
