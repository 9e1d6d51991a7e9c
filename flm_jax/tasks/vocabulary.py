"""The vocabulary: sentencepiece with byte pieces, made so that any Unicode text comes back as it went in.

Three things make it exact: unseen characters fall back to the pieces of their UTF-8 bytes; text is neither
normalised nor stripped; and the model does not escape spaces. sentencepiece writes a space as U+2581 inside
its pieces, so that a text which holds a real U+2581 (a block element, "lower one eighth block") would come
back with a space. It can only be trained that way, but a trained model can have its pieces rewritten with
plain spaces and the escaping switched off: the same ids for all other text, and U+2581 then falls back to
bytes like any other character.
"""

import hashlib
import io
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from flm_jax.tasks.sampling import sample_files, sample_texts

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

# FreeLM's teacher signals end a statement in one of these (one piece each, wherever they occur).
TEACHER_LABELS = ("😈", "😡")

_SPACE_MARK = "\u2581"
# sentencepiece sums its statistics thread by thread: a fixed number of threads makes it repeatable.
_TRAINING_THREADS = 16


class Vocabulary:
    """A sentencepiece model: text to ids and back; pad 0, eos 1 and unk 2 never come out of text.

    Any sentencepiece model with these ids and with byte pieces will do; `train_tokenizer` makes one that is
    exact for all text. Importing and using it does not import TensorFlow.

    Attributes:
        path: the model file.
        size: number of pieces V.
        sha256: of the model file, in hexadecimal.
        piece_bytes: int32 [V], the UTF-8 bytes that each piece stands for: 1 for byte pieces, 0 for pad, eos
            and unk. `piece_bytes[encode(text)].sum() == len(text.encode())`, which makes bits per byte exact.

    Example: `encode("ab ")` might be `[280, 261]`, then `decode([280, 261, 1, 0, 0])` is `"ab "`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a sentencepiece model, or one with other ids, or without byte pieces.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"expected a sentencepiece model, found no file at {self.path}: change the gin binding "
                "`VOCABULARY`, or make the file with `flm tokenizer train`"
            )
        model = self.path.read_bytes()
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"expected a sentencepiece model, found something else in {self.path} "
                f"({len(model):,} bytes): "
                "change the gin binding `VOCABULARY`, or make the file with `flm tokenizer train`"
            ) from error
        self.size: int = self._processor.get_piece_size()
        self._check_pieces()
        self.piece_bytes = np.array([self._bytes_of(piece) for piece in range(self.size)], np.int32)
        self._check_exact()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without eos."""
        return self._processor.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; pad and eos leave no trace.

        Raises:
            ValueError: an id is outside of the vocabulary.
        """
        known = [int(piece) for piece in ids]
        if known and not 0 <= min(known) <= max(known) < self.size:
            raise ValueError(
                f"expected ids from 0 to {self.size - 1} ({self.path}), found {min(known)} to {max(known)}"
            )
        return self._processor.decode([piece for piece in known if piece not in (PAD_ID, EOS_ID)])

    def as_seqio(self) -> Any:
        """The same model as a `seqio.SentencePieceVocabulary`, with the same ids. Imports TensorFlow.

        Raises:
            ValueError: the file is no longer what this process has read.
        """
        import seqio
        from sentencepiece import sentencepiece_model_pb2

        vocabulary = seqio.SentencePieceVocabulary(str(self.path))
        # seqio keeps every model it has read under its path for as long as the process lives.
        model = sentencepiece_model_pb2.ModelProto.FromString(self._processor.serialized_model_proto())
        if sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model) != model:
            raise ValueError(
                f"{self.path} has changed since this process first gave it to seqio: restart the process, or "
                "write the new tokenizer to a file with another name"
            )
        return vocabulary

    def _check_pieces(self) -> None:
        processor = self._processor
        found = (processor.pad_id(), processor.eos_id(), processor.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise ValueError(
                f"expected pad, eos and unk to be 0, 1 and 2, found {found[0]}, {found[1]} and {found[2]} in "
                f"{self.path} (-1: there is none): train one with `flm tokenizer train`"
            )
        if not any(processor.is_byte(piece) for piece in range(self.size)):
            raise ValueError(
                f"expected byte pieces (<0x00> to <0xFF>), found none in {self.path}, so characters it does "
                "not know would be lost: train one with `flm tokenizer train`"
            )

    def _check_exact(self) -> None:
        probe = "  a ｂ\u3000中\n"
        ids = self.encode(probe)
        if self.decode(ids) != probe or int(self.piece_bytes[ids].sum()) != len(probe.encode()):
            raise ValueError(
                f"expected text to come back as it went in, found {self.decode(ids)!r} for {probe!r} with {self.path}: "
                "it normalises text, adds a space in front or drops spaces, and bits per byte would be wrong; train "
                "one with `flm tokenizer train`"
            )

    def _bytes_of(self, piece: int) -> int:
        processor = self._processor
        if processor.is_byte(piece):
            return 1
        if processor.is_control(piece) or processor.is_unknown(piece):
            return 0
        return len(processor.id_to_piece(piece).replace(_SPACE_MARK, " ").encode("utf-8"))


def train_tokenizer(
    texts: Iterable[str],
    out: str | Path,
    vocab_size: int,
    *,
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    max_bytes: int = 20_000_000,
    seed: int = 0,
) -> Vocabulary:
    """Trains a sentencepiece model and writes it to `out`, whole or not at all.

    Ids: pad 0, eos 1, unk 2, the teacher labels 3 and 4, 256 byte pieces from 5, then what is learnt. Digits
        are split. The same arguments give the same file.

    Args:
        texts: documents of any length; they are cut for training, none is left out for being long.
        out: the model file.
        vocab_size: number of pieces, all kinds together.
        model_type: `unigram` or `bpe`.
        character_coverage: share of the characters of the texts that get a piece of their own.
        max_bytes: of UTF-8 text to train on; of more text, a random sample is used.
        seed: of that sample.

    Raises:
        ValueError: the texts do not support `vocab_size`, or their characters alone are more.
    """
    pieces = sample_texts(texts, max_bytes, seed)
    if not any(piece.strip() for piece in pieces):
        raise ValueError("expected text to train a tokenizer on, found none: change --input or --field")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(pieces),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            character_coverage=character_coverage,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            user_defined_symbols=list(TEACHER_LABELS),
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"no tokenizer of {vocab_size:,} pieces ({model_type}) can be trained on these {len(pieces):,} "
            f"pieces of text; change --vocab_size, or give more text. sentencepiece says: {error}"
        ) from error
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_bytes(_without_space_marks(model.getvalue()))
    partial.replace(out)
    return Vocabulary(out)


def train_tokenizer_from_files(
    files: Sequence[str | Path],
    out: str | Path,
    vocab_size: int,
    *,
    field: str = "text",
    model_type: str = "unigram",
    character_coverage: float = 0.9995,
    max_bytes: int = 20_000_000,
    seed: int = 0,
) -> Vocabulary:
    """`train_tokenizer` on `.jsonl` and text files (also `.gz`), the same number of bytes from each of them.

    Args:
        files: paths; a language's share of the text is its number of files, as far as they have enough text.
        field: key of the text in the objects of `.jsonl` files.
        out, vocab_size, model_type, character_coverage, max_bytes, seed: as in `train_tokenizer`.

    Prints what could not be read, and a line about the result.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: as `train_tokenizer`.
    """
    texts, problems = sample_files(files, field, max_bytes, seed)
    if problems.count:
        print(problems.report(), file=sys.stderr)
    size = sum(len(text.encode("utf-8")) for text in texts)
    print(
        f"training {vocab_size:,} pieces on {size / 1e6:,.1f} MB of text from {len(files)} files", flush=True
    )
    vocabulary = train_tokenizer(
        texts,
        out,
        vocab_size,
        model_type=model_type,
        character_coverage=character_coverage,
        max_bytes=max_bytes,
        seed=seed,
    )
    tokens = sum(len(vocabulary.encode(text)) for text in texts)
    print(
        f"tokenizer: {vocabulary.size:,} pieces, {size / tokens:.2f} bytes per token; wrote {vocabulary.path}"
    )
    return vocabulary


def _without_space_marks(model: bytes) -> bytes:
    """The model with plain spaces in its pieces and no escaping of spaces (see the top of this file)."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.escape_whitespaces = False
    for piece in proto.pieces:
        piece.piece = piece.piece.replace(_SPACE_MARK, " ")
    return proto.SerializeToString(deterministic=True)
