"""A vocabulary whose pieces end anywhere in a text, for a model that knows no language."""

from typing import NamedTuple

import numpy as np

from flm_jax.generation import Writer
from tests.models import random_params, small_config

# Parts of characters, whole ones and several: whatever a model writes with them, something has to wait.
PIECES = [
    b"", b"", b"",
    *(bytes([byte]) for byte in "中é😈".encode()),
    *("ab", "a", "b\n", "\n", "\nc", "中", "天\n", " d", "😈"),
    b"a\xe4\xb8", b"\xad\n", b"\xff",
]  # fmt: skip


class Pieces(NamedTuple):
    """What a `Writer` asks of a `Vocabulary`; a text is its characters' code points, modulo the pieces."""

    pieces: list[bytes]

    @property
    def size(self) -> int:
        return len(self.pieces)

    @property
    def piece_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode(self, text: str) -> list[int]:
        return [3 + ord(character) % (self.size - 3) for character in text]


VOCABULARY = Pieces([piece.encode() if isinstance(piece, str) else piece for piece in PIECES])
# Rows without a piece, as a table that is padded to a multiple of 32 has them.
# A tied readout would write its last token again and again.
CONFIG = small_config(vocab_size=32, tied_readout=False, output_mult=0.2)
PARAMS = random_params(CONFIG)
WRITER = Writer(CONFIG, PARAMS, VOCABULARY)  # type: ignore[arg-type]
PROMPTS = [
    "",
    "b",
    "some words",
    "中天",
    "a rather long prompt, of more than sixteen tokens",
    "x" * 30,
    "end",
]
EOS = 1
