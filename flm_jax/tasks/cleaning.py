"""Cleaning of documents by what they are: normal form, length, language.

A step of cleaning is a frozen dataclass that gin can configure. It has a `kind`, under which the manifest counts
what it did, a `fingerprint`, and either `text`, which changes a document's text, or `refusal`, which says in words
why a document is left out (None: it stays). `decontamination` and `duplicates` hold further steps.

    >>> Length(min_characters=200).refusal("short")
    '5 characters, fewer than 200'
"""

import functools
import importlib
import importlib.metadata
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, cast

FORMS = ("NFC", "NFKC", "NFD", "NFKD")


@dataclass(frozen=True)
class Normalize:
    """Unicode normalisation.

    Attributes:
        form: NFC composes letters and their marks and changes no meaning. NFKC also replaces full-width and other
            compatibility forms, which is not lossless: `x²` becomes `x2`. NFD and NFKD decompose.

    Raises:
        ValueError: there is no such form.
    """

    form: str = "NFC"
    kind: ClassVar[str] = "normalized"

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(
                f"expected one of {', '.join(FORMS)}, found {self.form!r}: change the gin binding `Normalize.form`"
            )

    def text(self, text: str) -> str:
        """The text in the normal form; the same text comes back where it has it already."""
        return unicodedata.normalize(cast(Literal["NFC", "NFKC", "NFD", "NFKD"], self.form), text)

    def fingerprint(self) -> dict[str, Any]:
        """The settings, with the version of Unicode that Python has."""
        return {"type": type(self).__name__, **asdict(self), "unicode": unicodedata.unidata_version}


@dataclass(frozen=True)
class Length:
    """Leaves out documents that are too short or too long.

    Attributes:
        min_characters: the fewest characters (Unicode code points) of a document that stays.
        max_characters: the most; None: no limit.

    Raises:
        ValueError: the bounds are negative or contradict each other.
    """

    min_characters: int = 0
    max_characters: int | None = None
    kind: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        if self.min_characters < 0 or (
            self.max_characters is not None and self.max_characters < self.min_characters
        ):
            raise ValueError(
                f"expected 0 <= min_characters <= max_characters, found {self.min_characters} and "
                f"{self.max_characters}: change the gin bindings `Length.min_characters` and `Length.max_characters`"
            )

    def refusal(self, text: str) -> str | None:
        """Why the document is left out: its number of characters and the bound."""
        if len(text) < self.min_characters:
            return f"{len(text):,} characters, fewer than {self.min_characters:,}"
        if self.max_characters is not None and len(text) > self.max_characters:
            return f"{len(text):,} characters, more than {self.max_characters:,}"
        return None

    def fingerprint(self) -> dict[str, Any]:
        """The settings."""
        return {"type": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Language:
    """Leaves out documents in other languages, as py3langid sees them with the model that it comes with.

    All languages of the model compete; `languages` share their probability, so that a document in two of them stays.
    Of a text of more than 3,000 characters, the first, middle and last 1,000 are looked at. A text without any
    letters that the model knows (numbers, symbols) has no language and is left out.

    Attributes:
        languages: codes of the model, e.g. `["en", "zh"]`. It tells Wu (`wuu`) and Cantonese (`yue`) from Chinese
            (`zh`), and takes some classical Chinese for Wu.
        min_probability: the least joint probability of `languages`, in [0, 1].

    Raises:
        ValueError: no languages, a code that the model does not have (when text is prepared), a probability that
            is none.
        ModuleNotFoundError: py3langid is not installed.
    """

    languages: Sequence[str]
    min_probability: float = 0.5
    kind: ClassVar[str] = "language"

    def __post_init__(self) -> None:
        # A tuple, as gin gives a list and the settings are compared and hashed.
        languages = (self.languages,) if isinstance(self.languages, str) else tuple(self.languages)
        object.__setattr__(self, "languages", languages)
        if not languages:
            raise ValueError(
                "expected at least one language, found none: set the gin binding `Language.languages`"
            )
        if not 0 <= self.min_probability <= 1:
            raise ValueError(
                f"expected a probability in [0, 1], found {self.min_probability}: change the gin binding "
                "`Language.min_probability`"
            )

    def refusal(self, text: str) -> str | None:
        """Why the document is left out: the likeliest language and the probability of those asked for."""
        ranked = self._checked_identifier().rank(excerpt(text))
        probability = sum(share for language, share in ranked if language in self.languages)
        if probability >= self.min_probability:
            return None
        return f"{', '.join(self.languages)} have probability {probability:.2f}, likeliest is {ranked[0][0]}"

    def _checked_identifier(self) -> Any:
        identifier = _identifier()
        if unknown := sorted(set(self.languages) - set(identifier.labels)):
            raise ValueError(
                f"expected languages of {', '.join(sorted(identifier.labels))}, found {', '.join(unknown)}: change the "
                "gin binding `Language.languages`"
            )
        return identifier

    def fingerprint(self) -> dict[str, Any]:
        """The settings, with the version of py3langid, which has the model."""
        require("py3langid")
        self._checked_identifier()
        version = importlib.metadata.version("py3langid")
        settings = {**asdict(self), "languages": list(self.languages)}
        return {"type": type(self).__name__, **settings, "py3langid": version}


def excerpt(text: str, part: int = 1000) -> str:
    """The first, middle and last `part` characters, a line each, of a text that is longer than the three."""
    if len(text) <= 3 * part:
        return text
    middle = (len(text) - part) // 2
    return "\n".join((text[:part], text[middle : middle + part], text[-part:]))


def require(library: str) -> Any:
    """Imports a library of the extra `clean`.

    Raises:
        ModuleNotFoundError: it is not installed; says how to get it.
    """
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"expected the library {library}, found it not installed: `pip install 'flm_jax[clean]'`, or take the "
            "step that needs it out of the gin binding `Corpus.cleaning`",
            name=library,
        ) from error


@functools.cache
def _identifier() -> Any:
    """One for the process: the model takes a moment to read."""
    require("py3langid")
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
