"""From the bytes of tokens to text that can be shown at once: whole characters, up to the first stop string."""

import codecs
from collections.abc import Sequence


class TextStream:
    r"""The text of a growing sequence of byte strings, cut before the first of some stop strings.

    Text is handed out as soon as it cannot be the beginning of a stop string. Tokens may end anywhere: bytes wait until
    their character is whole, and a stop string may begin and end inside tokens. Bytes that are no UTF-8, and a
    character that is never finished, are left out, as in `bytes.decode("utf-8", errors="ignore")`.

    The text is read a character at a time: the first stop string to be complete counts, and of those that are complete
    at the same character the longest. So where the cut is does not depend on where tokens end.

        >>> text = TextStream(stop=["\n\n"])
        >>> [text.add(b"a\n"), text.add(b"b\n"), text.add(b"\nc"), text.end()]
        ['a', '\nb', '', '']

    Attributes:
        stopped: Whether a stop string has been found; nothing is handed out after that.

    Raises:
        ValueError: a stop string is empty, or `stop` is a string itself.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        if isinstance(stop, str) or not all(stop):
            raise ValueError(
                f"expected a list of stop strings (--stop), each of a character or more, found {stop!r}"
            )
        self._stop = list(stop)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._held = ""  # the beginning of a stop string, perhaps
        self.stopped = False

    def add(self, piece: bytes) -> str:
        """What can be shown now that `piece` has come."""
        return self._show(self._decoder.decode(piece))

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        return self._show(self._decoder.decode(b"", final=True)) + self._release()

    def _show(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        waiting = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - waiting :]
        return text[: len(text) - waiting]

    def _release(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of `stop`, short of all of it, that `text` ends in."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
