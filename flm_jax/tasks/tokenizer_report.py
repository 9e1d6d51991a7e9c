"""What a tokenizer makes of text, language by language, in the same figures for every kind of tokenizer.

Text is measured in pieces of at most 1,000 characters (`sampling.cut`). After training it is text that was not drawn
for training, where the files have more than was drawn: other pieces, maybe of the same documents. Else it is the
sample itself, which flatters the tokenizer.
"""

import dataclasses
import functools
import itertools
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flm_jax import json_file
from flm_jax.tasks.sampling import Sample, language_files, sample_languages
from flm_jax.tasks.tokenizers.reserved import TEACHER_LABELS

if TYPE_CHECKING:
    from flm_jax.tasks.vocabulary import Vocabulary

MEASURED_BYTES = 1_000_000  # of each language, at most
SCRIPTS = ("Latin", "Han", "other", "byte", "control")

_SCRIPT_OF_NAME = {
    "LATIN": "Latin",
    "FULLWIDTH LATIN": "Latin",
    "CJK UNIFIED IDEOGRAPH": "Han",
    "CJK COMPATIBILITY IDEOGRAPH": "Han",
    "HIRAGANA": "Kana",
    "KATAKANA": "Kana",
    "HALFWIDTH KATAKANA": "Kana",
}


@dataclasses.dataclass(frozen=True)
class LanguageFigures:
    """What was counted in a language's text.

    Attributes:
        language: its name.
        text: `held-out`, `sample` (of training) or `input`.
        bytes: UTF-8 bytes.
        characters: code points.
        tokens: without eos.
        byte_tokens: those of them that are bytes of a character, not whole characters.
        unit: `word` (between white space), or `character` (other than white space) where more than half of the letters
            are Chinese or Japanese.
        units: how many of them.
    """

    language: str
    text: str
    bytes: int
    characters: int
    tokens: int
    byte_tokens: int
    unit: str
    units: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token."""
        return self.bytes / self.tokens

    @property
    def characters_per_token(self) -> float:
        """Code points per token."""
        return self.characters / self.tokens

    @property
    def fertility(self) -> float:
        """Tokens per unit; infinite for text that is white space only."""
        return self.tokens / self.units if self.units else float("inf")

    @property
    def byte_share(self) -> float:
        """Share of the tokens that are bytes of a character."""
        return self.byte_tokens / self.tokens


@dataclasses.dataclass(frozen=True)
class Report:
    """A tokenizer's figures.

    Attributes:
        path, kind, size, sha256: as of `Vocabulary`.
        scripts: share of the pieces by script (`SCRIPTS`); they sum to 1. A piece is Latin or Han if all its letters
            are, byte if it is not whole characters or a byte piece, control if it stands for no text.
        label_tokens: teacher label -> tokens that it is made of.
        languages: of the text.
    """

    path: str
    kind: str
    size: int
    sha256: str
    scripts: dict[str, float]
    label_tokens: dict[str, int]
    languages: list[LanguageFigures]

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token over the text of all languages."""
        return sum(found.bytes for found in self.languages) / sum(found.tokens for found in self.languages)

    def summary(self) -> str:
        """The tokenizer itself, for people."""
        scripts = ", ".join(f"{name} {share:.1%}" for name, share in self.scripts.items())
        labels = ", ".join(f"{label} {count}" for label, count in self.label_tokens.items())
        return (
            f"{self.path}: {self.kind}, {self.size:,} pieces, SHA-256 {self.sha256}\n"
            f"pieces: {scripts}\ntokens per label: {labels}"
        )

    def table(self) -> str:
        """The tokenizer and its figures by language, for people."""
        width = max(len(name) for name in ("language", *(found.language for found in self.languages)))
        head = (
            f"{'language':<{width}}  {'text':<8}  {'MB':>6}  bytes/token  characters/token  {'fertility':<20}  "
            f"{'byte tokens':>11}"
        )
        rows = [
            f"{found.language:<{width}}  {found.text:<8}  {found.bytes / 1e6:>6.2f}  "
            f"{found.bytes_per_token:>11.2f}  {found.characters_per_token:>16.2f}  "
            f"{found.fertility:>6.2f} per {found.unit:<9}  {found.byte_share:>11.1%}"
            for found in self.languages
        ]
        return "\n".join([self.summary(), head, *rows])

    def values(self) -> dict[str, Any]:
        """For programs: the attributes, and each language's ratios."""
        languages = [
            {
                **dataclasses.asdict(found),
                "bytes_per_token": found.bytes_per_token,
                "characters_per_token": found.characters_per_token,
                "fertility": found.fertility if found.units else None,
                "byte_share": found.byte_share,
            }
            for found in self.languages
        ]
        return {
            **dataclasses.asdict(self),
            "bytes_per_token": self.bytes_per_token,
            "languages": languages,
        }


def measure(vocabulary: "Vocabulary", texts: Mapping[str, Sequence[str]], text: str = "input") -> Report:
    """The figures of a tokenizer on texts.

    Args:
        vocabulary: the tokenizer.
        texts: language -> texts.
        text: what they are, for `LanguageFigures.text`.

    Raises:
        ValueError: a language has no text.
    """
    return Report(
        path=str(vocabulary.path),
        kind=vocabulary.kind,
        size=vocabulary.size,
        sha256=vocabulary.sha256,
        scripts=_scripts(vocabulary),
        label_tokens={label: len(vocabulary.encode(label)) for label in TEACHER_LABELS},
        languages=[_figures(vocabulary, name, found, text) for name, found in texts.items()],
    )


def of_training(vocabulary: "Vocabulary", samples: Mapping[str, Sample]) -> Report:
    """The figures on what is held out of each language's sample, else on the sample's first `MEASURED_BYTES`.

    Raises:
        ValueError: a language has no text.
    """
    report = measure(vocabulary, {})
    languages = [
        _figures(vocabulary, name, sample.held_out, "held-out")
        if sample.held_out
        else _figures(vocabulary, name, _first(sample.texts, MEASURED_BYTES), "sample")
        for name, sample in samples.items()
    ]
    return dataclasses.replace(report, languages=languages)


def of_files(
    vocabularies: Iterable["Vocabulary"],
    inputs: Sequence[str | Path],
    field: str = "text",
    max_bytes: int = 20_000_000,
    seed: int = 0,
) -> list[Report]:
    """The figures of several tokenizers on the same text.

    Args:
        vocabularies: the tokenizers.
        inputs, field, max_bytes, seed: which text, as in `vocabulary.train_tokenizer_from_files`.

    Prints what could not be read.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a language has no text.
    """
    languages = language_files(inputs)
    samples, problems = sample_languages(languages, field, max_bytes, seed)
    if problems.count:
        print(problems.report(), file=sys.stderr)
    texts = {language: samples[language].texts for language in languages}
    return [measure(vocabulary, texts) for vocabulary in vocabularies]


def write_json(reports: Sequence[Report], path: str | Path) -> None:
    """Writes `{"tokenizers": [...]}` with each report's values, whole or not at all."""
    values = {"tokenizers": [report.values() for report in reports]}
    json_file.write_json(path, values)


def _figures(vocabulary: "Vocabulary", language: str, texts: Sequence[str], text: str) -> LanguageFigures:
    ids = [token for piece in texts for token in vocabulary.encode(piece)]
    if not ids:
        raise ValueError(f"expected text of the language {language!r}, found none: change --input or --field")
    letters = Counter(_script(letter) for piece in texts for letter in piece if letter.isalpha())
    by_character = 2 * (letters["Han"] + letters["Kana"]) > letters.total()
    words = itertools.chain.from_iterable(piece.split() for piece in texts)
    return LanguageFigures(
        language=language,
        text=text,
        bytes=sum(len(piece.encode("utf-8")) for piece in texts),
        characters=sum(map(len, texts)),
        tokens=len(ids),
        byte_tokens=int(vocabulary.is_byte[ids].sum()),
        unit="character" if by_character else "word",
        units=sum(map(len, words)) if by_character else sum(1 for _ in words),
    )


def _first(texts: Sequence[str], max_bytes: int) -> list[str]:
    """The texts up to the one that reaches `max_bytes`."""
    ends = itertools.accumulate(len(text.encode("utf-8")) for text in texts)
    return [
        text for text, end in zip(texts, ends, strict=True) if end - len(text.encode("utf-8")) < max_bytes
    ]


def _scripts(vocabulary: "Vocabulary") -> dict[str, float]:
    counts: Counter[str] = Counter()
    for piece, is_byte in zip(vocabulary.pieces, vocabulary.is_byte, strict=True):
        counts["byte" if is_byte else _script_of_piece(piece.decode("utf-8")) if piece else "control"] += 1
    return {script: counts[script] / vocabulary.size for script in SCRIPTS}


def _script_of_piece(text: str) -> str:
    found = {_script(letter) for letter in text if letter.isalpha()}
    return found.pop() if len(found) == 1 and found <= {"Latin", "Han"} else "other"


@functools.cache
def _script(letter: str) -> str:
    """By the character's name in Unicode: Latin, Han, Kana (Hiragana and Katakana), other."""
    name = unicodedata.name(letter, "")
    return next((script for start, script in _SCRIPT_OF_NAME.items() if name.startswith(start)), "other")
