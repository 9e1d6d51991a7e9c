"""Probes: text that a tokenizer which changes text would not give back."""

from collections.abc import Collection, Mapping
from typing import Protocol

import numpy as np

SPACE_MARK = "\u2581"

# What would be wrong -> a text that shows it.
PROBES: Mapping[str, str] = {
    "it adds a space in front": "word",
    "it strips or joins spaces": "  a  b   ",
    "it strips or joins line ends, or changes tabs": "\n\n a\r\n\tb\rc\n\n\n",
    "it changes case": "aA BB ÄäßẞİıΣς",
    "it composes characters (NFC)": "e\u0301 \u1100\u1161 \u212b",
    "it decomposes characters (NFD), or drops accents": "é ñ 각 ü",
    "it replaces compatible characters (NFKC, NFKD)": "ｂ㍿ﬁ① a\u3000中\u00a0x\u2026²",
    "it changes digits or their grouping": "0 00 0123456789 1,234.50 ٣४ ½ 1 2 3",
    "it drops control characters": "\0a\0\0 \x01\x1b\x7f\u200b\u200d\ufeff\u0085\u2028x",
    "it does not know every character": "天地 😈😡👩‍👧 ñ กำ ع \ue000\U0010ffff\ud7ff",
    "it reads text as its own marks": "<s>a</s><unk><pad><mask>[CLS][SEP] [UNK]##a a</w> Ġ<|endoftext|><0x41> <0xE5>",
    "it writes spaces as U+2581": f"a{SPACE_MARK}b {SPACE_MARK}",
    "it adds or drops spaces around punctuation": "a , b . do n't ' s ( x ) !",
}


class Tokenizer(Protocol):
    """What there is to probe."""

    @property
    def pieces(self) -> list[bytes]:
        """The bytes of each id."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""


def check_exact(
    tokenizer: Tokenizer, where: str, probes: Mapping[str, str] = PROBES, without: Collection[str] = ()
) -> None:
    """Every probe must come back, and the bytes of its pieces must be its bytes.

    Args:
        tokenizer: What is probed.
        where: Its file, for the message.
        probes: What would be wrong -> text.
        without: Keys of `probes` to leave out.

    Raises:
        ValueError: text comes back changed; it says which and why.
    """
    sizes = np.array([len(piece) for piece in tokenizer.pieces])
    for reason, probe in probes.items():
        if reason in without:
            continue
        ids = tokenizer.encode(probe)
        found = tokenizer.decode(ids)
        if found != probe:
            raise ValueError(
                f"expected text to come back as it went in, found {found!r} for {probe!r} with {where}: {reason}, and "
                "bits per byte would be wrong; take another tokenizer, or train one with `flm tokenizer train`"
            )
        if (size := int(sizes[ids].sum())) != len(probe.encode()):
            raise ValueError(
                f"expected pieces of {len(probe.encode())} bytes for {probe!r}, found {size} with {where}: {reason}, "
                "and bits per byte would be wrong; take another tokenizer, or train one with `flm tokenizer train`"
            )
