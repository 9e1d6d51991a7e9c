"""Removes training documents that contain evaluation data.

A document is removed when it shares a run of n = 13 units with an evaluation text: the collision of GPT-3 (Brown et
al. 2020, appendix C; PaLM, Chowdhery et al. 2022, section 8, splits evaluation data by 8-grams instead and removes
nothing from training). GPT-3 cuts 200 characters around a collision and drops what is left in more than 10 pieces;
here the whole document goes, so that no document has a hole.
"""

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from flm_jax.tasks.ngrams import Units, definition, units
from flm_jax.tasks.sources.files import DamagedError, find_all, open_file, open_stored, stamp


@dataclass(frozen=True)
class Decontamination:
    """Refuses a document that shares an n-gram with evaluation data.

    A unit is a lower-cased word without punctuation or one character of Han or kana (`ngrams.units`). Evaluation
    texts of `min_n` to n - 1 units count when the document contains them whole; shorter ones cannot be told from
    ordinary language and are counted by `summary`. The files are read once per process, at the first document.

    Attributes:
        files: the evaluation data, JSON lines, plain, gzip or zstd, here or in the cloud as the files of a source: a
            glob pattern or several.
        fields: the keys of each object whose texts count, e.g. `("question", "choices")`; lists and objects below
            them are searched for strings. None: every string of the object.
        n: units of an n-gram.
        min_n: units of the shortest text that counts whole; n: no text shorter than n counts. GPT-3's range of n
            was 8 to 13.

    Raises:
        ValueError: a setting is out of its range; on reading, a line is not a JSON object, a field is in no
            object, or a file has no text of `min_n` units.
        FileNotFoundError: a pattern matches no file.
    """

    files: str | Sequence[str]
    fields: Sequence[str] | None = None
    n: int = 13
    min_n: int = 8
    kind: ClassVar[str] = "contaminated"

    def __post_init__(self) -> None:
        # Tuples, as gin gives lists and the index is kept by these settings.
        object.__setattr__(self, "files", (self.files,) if isinstance(self.files, str) else tuple(self.files))
        if self.fields is not None:
            fields = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
            object.__setattr__(self, "fields", fields)
        if not 1 <= self.min_n <= self.n:
            raise ValueError(
                f"expected 1 <= min_n <= n, found min_n {self.min_n} and n {self.n}: change the gin bindings "
                "`Decontamination.min_n` and `Decontamination.n`"
            )

    def refusal(self, text: str) -> str | None:
        """Why a document is removed: its first run of units that evaluation data has, and in which file."""
        return _index(self).first_overlap(units(text))

    def summary(self) -> dict[str, Any]:
        """What is looked for, as JSON.

        Returns:
            `ngrams`: different ones; `files`: for each file the `texts` found, how many of them were matched `whole`
            (of `min_n` to n - 1 units) and how many were `too_short` and are not looked for.
        """
        return _index(self).summary

    def describe(self) -> str:
        """The sums of `summary` in a line."""
        found = self.summary()
        texts, whole, short = (
            sum(file[key] for file in found["files"].values()) for key in ("texts", "whole", "too_short")
        )
        return (
            f"looks for {found['ngrams']:,} {self.n}-grams of {texts:,} texts in {len(found['files']):,} evaluation "
            f"files, {whole:,} of them whole; {short:,} have less than {self.min_n} units and are not looked for"
        )

    def fingerprint(self) -> dict[str, Any]:
        """The settings, with the size and SHA-256 of each file."""
        fields = None if self.fields is None else list(self.fields)
        files = {path: _stamp(path) for path in self.paths()}
        settings = {**asdict(self), "fields": fields, "files": files}
        return {"type": type(self).__name__, **settings, **definition()}

    def paths(self) -> list[str]:
        """The files, each once, each pattern's matches in alphabetical order.

        Raises:
            FileNotFoundError: a pattern matches no file.
            ValueError: a file's name is not UTF-8.
        """
        paths = find_all(self.files, "the evaluation data", "`Decontamination.files`")
        if not paths:
            raise FileNotFoundError(
                "expected at least one evaluation file, found no pattern: set the gin binding "
                "`Decontamination.files`"
            )
        return paths


class _Hashes:
    """A set of 64-bit hashes, sorted, each with the number of the first file that has it."""

    def __init__(self, hashes: np.ndarray, files: np.ndarray) -> None:
        self.hashes, first = np.unique(hashes, return_index=True)
        self.files = files[first]
        # A binary search misses the cache at every step. Most hashes are ruled out by one look at a table of
        # their leading bits, which is at most a quarter full.
        bits = max(10, (4 * len(self.hashes)).bit_length())
        self._shift = np.uint64(64 - bits)
        self._seen = np.zeros(1 << bits, bool)
        self._seen[self.hashes >> self._shift] = True

    def known(self, hashes: np.ndarray) -> list[tuple[int, int]]:
        """The places in `hashes` of those that are in the set, ascending, each with its file's number."""
        places = np.flatnonzero(self._seen[hashes >> self._shift])
        if not len(places):
            return []
        found = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        same = self.hashes[found] == hashes[places]
        return list(zip(places[same].tolist(), self.files[found[same]].tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class _Index:
    """What is looked for.

    Attributes:
        paths: of the evaluation files.
        by_length: the n-grams of n units, and the whole texts by their number of units.
        heads: the first `min_n` units of each whole text: few documents have one, and only those are compared
            at every length.
        min_n: of the settings; so is n.
        summary: for the user.
    """

    paths: list[str]
    by_length: dict[int, _Hashes]
    heads: _Hashes | None
    min_n: int
    n: int
    summary: dict[str, Any]

    def first_overlap(self, document: Units) -> str | None:
        """The earliest n-gram that evaluation data have too, quoted, with their file; None where there is none."""
        lengths = [self.n] if self.n in self.by_length else []
        if self.heads is not None and self.heads.known(document.ngrams(self.min_n)):
            lengths = list(self.by_length)
        found = [
            (place, length, file)
            for length in lengths
            for place, file in self.by_length[length].known(document.ngrams(length))[:1]
        ]
        if not found:
            return None
        place, length, file = min(found)
        return f"shares {document.quote(place, length)!r} with {self.paths[file]}"


class _Collected:
    """Arrays of hashes, with the numbers of the files that they are from."""

    def __init__(self) -> None:
        self._hashes: list[np.ndarray] = []
        self._files: list[np.ndarray] = []

    def add(self, hashes: np.ndarray, file: int) -> None:
        """Adds a file's hashes `[hashes]`."""
        self._hashes.append(hashes)
        self._files.append(np.full(len(hashes), file, np.int32))

    def as_set(self) -> _Hashes:
        """All that were added, to be looked up."""
        return _Hashes(np.concatenate(self._hashes), np.concatenate(self._files))


@functools.lru_cache(maxsize=8)
def _index(settings: Decontamination) -> _Index:
    """The n-grams of the evaluation files, read once per process."""
    paths = settings.paths()
    by_length: defaultdict[int, _Collected] = defaultdict(_Collected)
    heads = _Collected()
    summary: dict[str, dict[str, int]] = {}
    seen_fields: set[str] = set()
    for number, path in enumerate(paths):
        counts = Counter(texts=0, whole=0, too_short=0)
        for text in _texts(path, settings.fields, seen_fields):
            counts["texts"] += 1
            if len(text) < settings.min_n:  # labels and names, most of the texts: no need to cut them
                counts["too_short"] += 1
                continue
            found = units(text)
            counts["too_short"] += len(found) < settings.min_n
            if len(found) >= settings.n:
                by_length[settings.n].add(found.ngrams(settings.n), number)
            elif len(found) >= settings.min_n:
                counts["whole"] += 1
                by_length[len(found)].add(found.ngrams(len(found)), number)
                heads.add(found.ngrams(settings.min_n)[:1], number)
        if not counts["texts"]:
            _check_fields(settings, seen_fields)
        if counts["texts"] == counts["too_short"]:
            raise ValueError(
                f"expected texts of at least {settings.min_n} words or Chinese characters in {path}, found "
                f"{counts['texts']:,} texts, all shorter: none of it would be looked for. Change the gin binding "
                "`Decontamination.min_n` or `.fields`, or leave the file out of `.files`"
            )
        summary[path] = dict(counts)
    _check_fields(settings, seen_fields)
    sets = {length: by_length[length].as_set() for length in sorted(by_length)}
    total = sum(len(hashes.hashes) for hashes in sets.values())
    whole = any(length < settings.n for length in sets)
    return _Index(
        paths,
        sets,
        heads.as_set() if whole else None,
        settings.min_n,
        settings.n,
        {"ngrams": total, "files": summary},
    )


def _check_fields(settings: Decontamination, seen: set[str]) -> None:
    if missing := set(settings.fields or ()) - seen:
        raise ValueError(
            f"expected the fields {sorted(missing)} in the evaluation files, found them in no object: change the gin "
            "binding `Decontamination.fields`"
        )


def _texts(path: str, fields: Sequence[str] | None, seen_fields: set[str]) -> Iterator[str]:
    """The strings of each object of a file; the fields that were there are added to `seen_fields`."""
    place = f"{path}:1"
    try:
        with open_file(path) as file:
            for number, line in enumerate(file, start=1):
                place = f"{path}:{number}"
                if not line.strip():
                    continue
                # A file may begin with a byte order mark.
                record = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(record, dict):
                    raise ValueError(f"expected a JSON object, found {type(record).__name__}")
                if fields is not None:
                    record = {key: record[key] for key in fields if key in record}
                    seen_fields.update(record)
                yield from _strings(record)
    except (ValueError, RecursionError, DamagedError) as error:
        raise ValueError(
            f"{place}: the evaluation data cannot be read ({error}). Every line must be a JSON "
            "object: mend the file, or change the gin binding `Decontamination.files`"
        ) from error


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _stamp(path: str) -> dict[str, Any]:
    with open_stored(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    return {"bytes": stamp(path)["bytes"], "sha256": digest}
