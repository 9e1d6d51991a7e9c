"""A tokenizer whose tokens are byte strings, behind the three reserved ids: tiktoken's and Hugging Face's."""

import abc
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flm_jax.tasks.tokenizers.reserved import NUM_RESERVED

# Both libraries' regular expressions look behind a run of white space (`\s+(?!\S)`) and panic on a long one:
# tiktoken 0.14 between 100,000 and 1,000,000 characters, tokenizers 0.23 between 1,000,000 and 10,000,000.
LONGEST_SPACE = 50_000
# The look behind keeps the search linear: it begins at the beginning of a run only.
_LONG_SPACE = re.compile(rf"(?<!\s)\s{{{LONGEST_SPACE + 1},}}")


class ByteTokens(abc.ABC):
    """Ids are the library's + 3, or the library's if it has the reserved ids itself; decoding joins the tokens' bytes.

    Args:
        content: of the file.
        where: the file, for messages.
        tokens: bytes of each of the library's ids.
        offset: our ids less the library's.

    Attributes:
        pieces: bytes of each id; empty for the reserved ids, special tokens and gaps.
        is_byte: for each id, whether it is part of a character, not whole ones.
        offset: as given.
        marks_spaces: whether its pieces hold U+2581 for a space, so that a U+2581 in a text comes back as a space.
    """

    kind: ClassVar[str]
    marks_spaces = False

    def __init__(
        self, content: bytes, where: Path, tokens: Sequence[bytes], offset: int = NUM_RESERVED
    ) -> None:
        self._made_of = (content, where)
        self.offset = offset
        self.pieces = [b""] * offset + list(tokens)
        self.is_byte = [not _is_text(piece) for piece in self.pieces]

    def __reduce__(self) -> Any:
        # gin copies its arguments deeply. The libraries' own copies are slow or forget settings.
        return type(self), self._made_of

    @abc.abstractmethod
    def _ids(self, text: str) -> list[int]:
        """The library's ids of a text."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text. White space of more than `LONGEST_SPACE` characters is encoded in parts.

        Raises:
            UnicodeEncodeError: half of a surrogate pair, which is no character (a ValueError).
        """
        text.encode("utf-8")  # tiktoken would replace it in silence
        return [token + self.offset for part in _parts(text) for token in self._ids(part)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no characters become U+FFFD."""
        return b"".join(self.pieces[token] for token in ids).decode("utf-8", errors="replace")


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _parts(text: str) -> Iterator[str]:
    start = 0
    if len(text) > LONGEST_SPACE:
        for run in _LONG_SPACE.finditer(text):
            for end in range(run.start() + LONGEST_SPACE, run.end(), LONGEST_SPACE):
                yield text[start:end]
                start = end
    yield text[start:]
