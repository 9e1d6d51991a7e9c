"""Removes documents that repeat an earlier one, exactly or nearly.

The work has two parts. `signature` is a pure function of one text and runs in any process. `index()` remembers
signatures: its `first(signature, place)` is called in the order of the documents, in one process, so that the first of
several copies is the one that stays, whatever number of workers signed them.
"""

import functools
import hashlib
import importlib.metadata
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from flm_jax.tasks.cleaning import require
from flm_jax.tasks.ngrams import definition, mix, units

# datasketch chooses bands and rows that weigh missed pairs against wrong candidates. Wrong candidates cost time only,
# since the estimate refuses them.
_WEIGHTS = (0.1, 0.9)
_BATCH = 4096  # shingles at a time: the permuted hashes take shingles x permutations x 4 bytes


@dataclass(frozen=True)
class Exact:
    """Finds documents with the very same text."""

    kind: ClassVar[str] = "exact_duplicates"

    def signature(self, text: str) -> bytes:
        """BLAKE2b of the UTF-8 text, 16 bytes."""
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def index(self) -> "ExactIndex":
        """An empty index; about 135 bytes of memory a document."""
        return ExactIndex()

    def fingerprint(self) -> dict[str, Any]:
        """The type: there are no settings."""
        return {"type": type(self).__name__}


class ExactIndex:
    """The signatures of the documents so far."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}

    def first(self, signature: bytes, place: int) -> int | None:
        """The place of the first document with this signature; None: there was none, and this one is remembered."""
        known = self._places.setdefault(signature, place)
        return None if known == place else known


@dataclass(frozen=True)
class Near:
    """Finds documents that share most of their n-grams (MinHash and locality-sensitive hashing, by datasketch).

    The set of a document is that of its runs of `ngram` units: lower-cased words without punctuation, and single
    characters of Han and kana (`ngrams.units`). A shorter text is a set of one, the run of all its units; a text
    without any unit is equal to itself only.

    Attributes:
        threshold: the least Jaccard similarity of the two sets, as the MinHashes estimate it, in (0, 0.95]. The
            estimate's standard error is at most 0.5 / sqrt(num_permutations).
        num_permutations: of MinHash; a signature has 4 bytes for each.
        ngram: units of a run.

    Raises:
        ValueError: a setting is out of its range.
        ModuleNotFoundError: datasketch is not installed.
    """

    threshold: float = 0.8
    num_permutations: int = 128
    ngram: int = 5
    kind: ClassVar[str] = "near_duplicates"

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 0.95:
            raise ValueError(
                f"expected a similarity in (0, 0.95], found {self.threshold}: change the gin binding `Near.threshold`, "
                "or take `Exact`"
            )
        if self.num_permutations < 16:
            raise ValueError(
                f"expected at least 16 permutations, found {self.num_permutations}: change the gin binding "
                "`Near.num_permutations`"
            )
        if self.ngram < 1:
            raise ValueError(
                f"expected runs of at least 1 unit, found {self.ngram}: change the gin binding `Near.ngram`"
            )

    def signature(self, text: str) -> np.ndarray:
        """The MinHash of the text's set, uint32 `[num_permutations]`."""
        minhash = _empty_minhash(self.num_permutations).copy()
        shingles = self._shingles(text)
        for start in range(0, len(shingles), _BATCH):
            minhash.update_batch(shingles[start : start + _BATCH].tolist())
        return minhash.hashvalues

    def index(self) -> "NearIndex":
        """An empty index; about 5.3 kB of memory for each document that stays, at the defaults."""
        return NearIndex(self.threshold, self.num_permutations)

    def fingerprint(self) -> dict[str, Any]:
        """The settings, with the versions of datasketch and of Unicode."""
        require("datasketch")
        version = importlib.metadata.version("datasketch")
        return {"type": type(self).__name__, **asdict(self), **definition(), "datasketch": version}

    def _shingles(self, text: str) -> np.ndarray:
        """The set of a text: 32-bit hashes of its different runs."""
        found = units(text)
        if len(found):
            runs = found.ngrams(min(self.ngram, len(found)))
        else:
            runs = np.frombuffer(Exact().signature(text)[:8], "<u8").astype(np.uint64)
        return np.unique((mix(runs) >> np.uint64(32)).astype(np.uint32))


class NearIndex:
    """The signatures of the documents that stayed so far.

    Args:
        threshold: as in `Near`.
        num_permutations: as in `Near`.
    """

    def __init__(self, threshold: float, num_permutations: int) -> None:
        self._threshold = threshold
        self._lsh = require("datasketch").MinHashLSH(
            threshold=threshold, num_perm=num_permutations, weights=_WEIGHTS
        )
        self._empty = _empty_minhash(num_permutations)
        self._signatures: dict[int, np.ndarray] = {}

    def first(self, signature: np.ndarray, place: int) -> int | None:
        """The place of the first document that is so similar; None: there is none, and this one is remembered."""
        minhash = self._empty.copy()
        minhash.hashvalues = signature
        for candidate in sorted(self._lsh.query(minhash)):
            if np.mean(self._signatures[candidate] == signature) >= self._threshold:
                return candidate
        self._lsh.insert(place, minhash)
        self._signatures[place] = signature
        return None


@functools.lru_cache(maxsize=4)
def _empty_minhash(num_permutations: int) -> Any:
    """Copied for each document: its permutations are drawn once per process, from datasketch's fixed seed."""
    return require("datasketch").MinHash(num_perm=num_permutations, hashfunc=int, scheme="affine32")
