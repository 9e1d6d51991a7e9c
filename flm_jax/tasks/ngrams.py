"""Texts as runs of words and Chinese characters, and the 64-bit hashes of their n-grams.

Two documents are compared by their *units*. A unit is a word, lower-cased and without punctuation, or one
character of Han or kana, which are written without spaces. Full-width forms agree with their plain ones, and composed
letters with decomposed ones. Apostrophes are dropped ("don't" is one unit), all other punctuation separates.
Thai, Lao, Khmer and Burmese have no spaces either, but are not cut: a unit is there what stands between two spaces.

The hashes are those of numpy's wrapping 64-bit arithmetic, the same in every process and on every machine.
"""

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from flm_jax.tasks.scripts import SCRIPTS, code_points, script_table

_APOSTROPHES = "'\u2019\u02bc"
_ALONE = np.uint32(1 << 31)  # marks, in `_letters`, a character that is a unit of its own
_BLOCK = 4096  # units at a time: what numpy holds of them stays in the processor's cache
# Odd, with well mixed bits: those of splitmix64 and of MurmurHash3's finalizer.
_LETTER_BASE, _UNIT_BASE = 0x9E3779B97F4A7C15, 0xC4CEB9FE1A85EC53
_INVERSES = {base: pow(base, -1, 1 << 64) for base in (_LETTER_BASE, _UNIT_BASE)}


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one text.

    Attributes:
        text: the text, composed (NFC) and without apostrophes.
        starts: where each unit begins in it, int64 `[units]`.
        ends: where its last character is, int64 `[units]`.
        hashes: of each unit, uint64 `[units]`.
    """

    text: str
    starts: np.ndarray
    ends: np.ndarray
    hashes: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def ngrams(self, n: int) -> np.ndarray:
        """The hash of each run of n units, uint64 `[max(0, units - n + 1)]`."""
        count = max(0, len(self) - n + 1)
        return _sums(self.hashes, np.arange(count), np.arange(n - 1, n - 1 + count), _UNIT_BASE)

    def quote(self, first: int, n: int) -> str:
        """The text from unit `first` over n units, with single spaces."""
        return " ".join(self.text[self.starts[first] : self.ends[first + n - 1] + 1].split())


def units(text: str) -> Units:
    """Cuts a text into units.

    Example: `"Don't say 你好!"` has the units `dont`, `say`, `你`, `好`.
    """
    for apostrophe in _APOSTROPHES:
        text = text.replace(apostrophe, "")
    text = unicodedata.normalize("NFC", text)
    letters = _letters()[code_points(text)]
    inside = letters != 0
    word = inside & (letters < _ALONE)
    joined = word[:-1] & word[1:]  # a character belongs to one word with the next
    begins, ends = inside.copy(), inside
    begins[1:] &= ~joined
    ends[:-1] &= ~joined
    first, last = np.flatnonzero(begins), np.flatnonzero(ends)
    hashes = np.empty(len(first), np.uint64)
    for block in range(0, len(first), _BLOCK):
        chosen = slice(block, block + _BLOCK)
        low, high = first[block], last[chosen][-1] + 1
        hashes[chosen] = _sums(
            letters[low:high].astype(np.uint64), first[chosen] - low, last[chosen] - low, _LETTER_BASE
        )
    return Units(text, first, last, mix(hashes))


def mix(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's 64-bit finalizer: one to one, every bit of the input changes half of the output's. uint64."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def definition() -> dict[str, Any]:
    """What the units depend on beside the text: for fingerprints."""
    return {"units": 1, "unicode": unicodedata.unidata_version}


def _sums(values: np.ndarray, first: np.ndarray, last: np.ndarray, base: int) -> np.ndarray:
    """The polynomial hash of values[first..last] for each pair: sum of values[first + i] base^i modulo 2^64.

    All from one running sum of values[j] base^j: the difference of two, divided by base^first. `base` is odd, so
    that its inverse modulo 2^64 exists.
    """
    inverse = _INVERSES[base]
    size = 1 << max(0, len(values) - 1).bit_length()  # powers of two, so that few tables are kept
    running = np.cumsum(values * _powers(base, size)[: len(values)], dtype=np.uint64)
    before = running - values * _powers(base, size)[: len(values)]
    return (running[last] - before[first]) * _powers(inverse, size)[first]


@functools.cache
def _letters() -> np.ndarray:
    """For each code point 0 if it separates, else its folded code point, with `_ALONE` where it is a unit. uint32.

    Folded is lower case and NFKC (full-width forms and the like), where that is a single character.
    """
    letters = np.zeros(0x110000, np.uint32)
    scripts = script_table()
    alone = {SCRIPTS.index("han"), SCRIPTS.index("kana")}
    for code in range(len(letters)):
        character = chr(code)
        if unicodedata.category(character)[0] not in "LNM":
            continue
        folded = unicodedata.normalize("NFKC", character).lower()
        letter = ord(folded) if len(folded) == 1 else code
        letters[code] = letter | (int(_ALONE) if scripts[letter] in alone else 0)
    letters.flags.writeable = False
    return letters


@functools.lru_cache(maxsize=64)
def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, ..., modulo 2^64, uint64 `[count]`."""
    factors = np.full(count, base, np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)
