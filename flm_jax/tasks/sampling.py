"""A fair sample of text for training a tokenizer: a bounded number of bytes, balanced over files."""

import glob
import heapq
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from flm_jax.tasks.sources import JsonLines, PlainText, Problems

# sentencepiece leaves out lines above 4,192 bytes: documents are cut below that (a character has up to 4
# bytes).
PIECE_CHARACTERS = 1000

# What sentencepiece's trainer cannot take inside a line: NUL, and the marks it uses itself for a space and
# for unknown text, for which it leaves out the whole line. Their bytes are encoded by byte pieces all the
# same.
_RESERVED = str.maketrans({"\0": " ", "\u2581": " ", "\u2585": " "})


def cut(text: str) -> Iterator[str]:
    """Cuts a text into pieces that sentencepiece's trainer accepts, nothing left out but what it reserves."""
    text = text.translate(_RESERVED)
    for start in range(0, len(text), PIECE_CHARACTERS):
        yield text[start : start + PIECE_CHARACTERS]


def sample_texts(texts: Iterable[str], max_bytes: int, seed: int) -> list[str]:
    """At most `max_bytes` (UTF-8) of the texts, each piece of them equally likely, in their order.

    One pass, in memory of about `max_bytes`: every piece draws a number, and the pieces with the lowest stay.
    The result depends on the texts, `max_bytes` and `seed` only.

    Example: of 10 texts of 100 bytes each, `sample_texts(texts, 350, seed=0)` keeps 3.
    """
    draw = random.Random(seed)
    kept: list[tuple[float, int, str, int]] = []  # a heap with the highest draw on top
    total = 0
    pieces = (piece for text in texts for piece in cut(text))
    for index, piece in enumerate(pieces):
        size = len(piece.encode("utf-8"))
        heapq.heappush(kept, (-draw.random(), index, piece, size))
        total += size
        while total > max_bytes:
            total -= heapq.heappop(kept)[3]
    return [piece for _, _, piece, _ in sorted(kept, key=lambda entry: entry[1])]


def sample_files(
    files: Sequence[str | Path], field: str, max_bytes: int, seed: int
) -> tuple[list[str], Problems]:
    """A sample of at most `max_bytes` from files, the same number of bytes from each as far as it has them.

    Args:
        files: `.jsonl` or `.json` (one object a line), anything else is plain text; each of them also with
            `.gz`.
        field: key of the text in JSON objects.
        max_bytes: of UTF-8 text in all.
        seed: of the choice.

    Returns:
        the texts, and what could not be read.

    Raises:
        FileNotFoundError: a file is not there.
    """
    problems = Problems()
    texts: list[str] = []
    # Small files first: what they lack of their share goes to the larger ones.
    ordered = sorted((str(file) for file in files), key=lambda path: (_size(path), path))
    left = max_bytes
    for number, path in enumerate(tqdm(ordered, desc="reading text", unit="file", disable=None)):
        chosen = sample_texts(_texts(path, field, problems), left // (len(ordered) - number), seed)
        left -= sum(len(piece.encode("utf-8")) for piece in chosen)
        texts += chosen
    return texts, problems


def _size(path: str) -> int:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"expected a file of text, found nothing at {path}: change --input")
    return os.path.getsize(path)


def _texts(path: str, field: str, problems: Problems) -> Iterator[str]:
    pattern = glob.escape(path)  # a source takes patterns, this is one file's name
    source: JsonLines | PlainText
    if path.removesuffix(".gz").endswith((".jsonl", ".json")):
        source = JsonLines(pattern, fields={"targets": field})
    else:
        source = PlainText(pattern)
    return (document["targets"] for document in source.read("train", problems))
