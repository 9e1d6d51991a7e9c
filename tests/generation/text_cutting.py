"""Where a text ends at a stop string, written down independently of `TextStream`."""

from collections.abc import Sequence


def cut(text: str, stop: Sequence[str]) -> str:
    """Independently: read a character at a time until the text ends in a stop string; the longest is left out."""
    for end in range(len(text) + 1):
        if found := [len(each) for each in stop if text[:end].endswith(each)]:
            return text[: end - max(found)]
    return text
