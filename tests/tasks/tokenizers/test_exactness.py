"""The probes find a tokenizer that changes text, each for its reason."""

import re
import unicodedata
from collections.abc import Callable

import pytest

from flm_jax.tasks.tokenizers.exactness import PROBES, check_exact


class Bytes:
    """A tokenizer of bytes that changes text first."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self.change = change
        self.pieces = [bytes([byte]) for byte in range(256)]

    def encode(self, text: str) -> list[int]:
        return list(self.change(text).encode("utf-8"))

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8")


CHANGES: list[tuple[Callable[[str], str], str]] = [
    (lambda text: f" {text}", "adds a space in front"),
    (lambda text: text if text.startswith(" ") else f" {text}", "adds a space in front"),
    (lambda text: text.strip(" "), "strips or joins spaces"),
    (lambda text: text.rstrip(" "), "strips or joins spaces"),
    (lambda text: re.sub(" +", " ", text), "strips or joins spaces"),
    (lambda text: text.strip("\n"), "line ends"),
    (lambda text: text.replace("\r\n", "\n"), "line ends"),
    (lambda text: text.replace("\t", " "), "line ends"),
    (str.lower, "changes case"),
    (str.casefold, "changes case"),
    (lambda text: unicodedata.normalize("NFC", text), "NFC"),
    (lambda text: unicodedata.normalize("NFD", text), "changes case|NFD"),
    (lambda text: unicodedata.normalize("NFKC", text), "NFC|NFKC"),
    (lambda text: text.replace("\u3000", " "), "NFKC"),
    (lambda text: re.sub(r"\d", "0", text), "digits"),
    (lambda text: re.sub(r"(\d)(?=\d)", r"\1 ", text), "digits"),
    (lambda text: text.replace("\0", ""), "control characters"),
    (lambda text: re.sub("[\u200b\u200d\ufeff]", "", text), "control characters"),
    (lambda text: "".join(c for c in text if c <= "\uffff"), "not know every character"),
    (lambda text: text.replace("</s>", ""), "its own marks"),
    (lambda text: text.replace("\u2581", " "), "writes spaces as U\\+2581"),
    (lambda text: text.replace(" ,", ","), "around punctuation"),
]


@pytest.mark.parametrize(("change", "reason"), CHANGES)
def test_a_change_is_found(change: Callable[[str], str], reason: str) -> None:
    with pytest.raises(ValueError, match=rf"(?s)text to come back.*some\.file.*({reason})"):
        check_exact(Bytes(change), "some.file")


def test_what_changes_nothing_passes() -> None:
    check_exact(Bytes(str), "some.file")
    check_exact(Bytes(lambda text: text.replace("\u2581", " ")), "x", without=[list(PROBES)[-2]])


def test_wrong_sizes_are_found() -> None:
    tokenizer = Bytes(str)
    tokenizer.pieces[ord("w")] = b"ww"
    with pytest.raises(ValueError, match=r"pieces of 4 bytes for 'word', found 5 with some\.file"):
        check_exact(tokenizer, "some.file")
