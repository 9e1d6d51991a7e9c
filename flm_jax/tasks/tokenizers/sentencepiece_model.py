"""A sentencepiece model with byte pieces."""

from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from flm_jax.tasks.tokenizers.exactness import SPACE_MARK
from flm_jax.tasks.tokenizers.reserved import EOS_ID, PAD_ID, UNK_ID


class SentencePieceModel:
    """Any sentencepiece model with pad 0, eos 1, unk 2 and byte pieces.

    Attributes:
        pieces: bytes of each id; empty for pad, eos, unk and other control symbols.
        is_byte: for each id, whether it is a byte piece.
        marks_spaces: models that were trained elsewhere write spaces as U+2581, and cannot tell the two apart.

    Args:
        content: of the file.
        where: the file, for messages.

    Raises:
        ValueError: it is no such model.
    """

    kind = "sentencepiece"
    marks_spaces = True

    def __init__(self, content: bytes, where: Path) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(content)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"expected a sentencepiece model, a tokenizer.json or what `flm tokenizer wrap` writes, found "
                f"something else in {where} ({len(content):,} bytes): change the gin binding `VOCABULARY`, or make the "
                "file with `flm tokenizer train`"
            ) from error
        size = self._processor.get_piece_size()
        self.is_byte = [self._processor.is_byte(piece) for piece in range(size)]
        self._check(where)
        self.pieces = [self._bytes_of(piece) for piece in range(size)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._processor.decode(list(ids))

    def serialized(self) -> bytes:
        """The model in sentencepiece's format."""
        return self._processor.serialized_model_proto()

    def _check(self, where: Path) -> None:
        processor = self._processor
        found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"expected pad, eos and unk to be 0, 1 and 2, found {found[0]}, {found[1]} and {found[2]} in "
                f"{where} (-1: there is none): train one with `flm tokenizer train`"
            )
        if not any(self.is_byte):
            raise ValueError(
                f"expected byte pieces (<0x00> to <0xFF>), found none in {where}, so characters it does "
                "not know would be lost: train one with `flm tokenizer train`"
            )

    def _bytes_of(self, piece: int) -> bytes:
        processor = self._processor
        name = processor.id_to_piece(piece)
        if processor.is_byte(piece):
            return bytes([int(name[3:5], 16)])  # <0x41>
        if processor.is_control(piece) or processor.is_unknown(piece):
            return b""
        return name.replace(SPACE_MARK, " ").encode("utf-8")
