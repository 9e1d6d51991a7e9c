"""The vocabulary: one file, of any of three kinds, that turns any Unicode text into ids and back as it went in."""

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flm_jax.tasks import tokenizer_report
from flm_jax.tasks.sampling import language_files, sample_languages, sample_texts
from flm_jax.tasks.tokenizers import huggingface_json, tiktoken_ranks
from flm_jax.tasks.tokenizers.byte_tokens import ByteTokens
from flm_jax.tasks.tokenizers.exactness import PROBES, SPACE_MARK, check_exact
from flm_jax.tasks.tokenizers.reserved import EOS_ID, PAD_ID, TEACHER_LABELS, UNK_ID
from flm_jax.tasks.tokenizers.sentencepiece_model import SentencePieceModel
from flm_jax.tasks.tokenizers.sentencepiece_training import train_model

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "TEACHER_LABELS",
    "UNK_ID",
    "Vocabulary",
    "train_tokenizer",
    "train_tokenizer_from_files",
    "wrap_huggingface",
    "wrap_tiktoken",
]


class Vocabulary:
    """Text to ids and back; pad 0, eos 1 and unk 2 never come out of text. Does not import TensorFlow.

    The file's content says what it is: a sentencepiece model with these ids and byte pieces (`train_tokenizer` makes
    one), an encoding of tiktoken (`wrap_tiktoken`) or a `tokenizer.json` of Hugging Face. Ids of the latter two are
    theirs + 3, but for a `tokenizer.json` that was made with our ids (`tokenizers.export`, `tokenizers.reordering`).
    Special tokens in a text are text.

    Attributes:
        path: the file.
        kind: `sentencepiece`, `tiktoken` or `huggingface`.
        size: number of pieces V.
        sha256: of the file, in hexadecimal.
        pieces: V byte strings, the UTF-8 bytes that each piece stands for; empty for pad, eos, unk and special tokens.
        piece_bytes: int32 [V], their lengths. `piece_bytes[encode(text)].sum() == len(text.encode())`, which makes
            bits per byte exact.
        is_byte: bool [V], whether a piece is a byte of a character (or several), not whole characters.

    Example: `encode("ab ")` might be `[280, 261]`, then `decode([280, 261, 1, 0, 0])` is `"ab "`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of these, or is damaged, or changes text, or needs a package that is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"expected a tokenizer, found no file at {self.path}: change --tokenizer, or the gin "
                "binding `VOCABULARY`, or make the file with `flm tokenizer train` or `flm tokenizer wrap`"
            )
        content = self.path.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._tokenizer = _open(content, self.path)
        self.kind = self._tokenizer.kind
        self.pieces = self._tokenizer.pieces
        self.size = len(self.pieces)
        self.piece_bytes = np.array([len(piece) for piece in self.pieces], np.int32)
        self.is_byte = np.array(self._tokenizer.is_byte)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without eos."""
        return self._tokenizer.encode(text)

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
        return self._tokenizer.decode([piece for piece in known if piece not in (PAD_ID, EOS_ID)])

    def as_seqio(self) -> Any:
        """The same as a `seqio.Vocabulary` with the same ids. Imports TensorFlow.

        A sentencepiece model becomes a `seqio.SentencePieceVocabulary`, the others a `SeqioVocabulary`.

        Raises:
            ValueError: the sentencepiece file is no longer what this process has read.
        """
        if not isinstance(self._tokenizer, SentencePieceModel):
            from flm_jax.tasks.tokenizers.seqio_vocabulary import SeqioVocabulary

            return SeqioVocabulary(self)
        import seqio
        from sentencepiece import sentencepiece_model_pb2

        vocabulary = seqio.SentencePieceVocabulary(str(self.path))
        # seqio keeps every model it has read under its path for as long as the process lives.
        model = sentencepiece_model_pb2.ModelProto.FromString(self._tokenizer.serialized())
        if sentencepiece_model_pb2.ModelProto.FromString(vocabulary.sp_model) != model:
            raise ValueError(
                f"{self.path} has changed since this process first gave it to seqio: restart the process, or "
                "write the new tokenizer to a file with another name"
            )
        return vocabulary


def _open(content: bytes, where: Path) -> SentencePieceModel | ByteTokens:
    if not content.startswith(b"{"):  # with which no sentencepiece model can begin
        model = SentencePieceModel(content, where)
        _check(model, where)
        return model
    try:
        record = json.loads(content)
    except ValueError as error:
        raise ValueError(
            f"expected a tokenizer, found damaged JSON in {where} ({error}): make the file again"
        ) from error
    tokenizer: ByteTokens
    if record.get("format") == tiktoken_ranks.FORMAT:
        tokenizer = tiktoken_ranks.TiktokenRanks(content, where)
    elif huggingface_json.is_tokenizer_json(record):
        tokenizer = huggingface_json.HuggingFaceJson(content, where)
    else:
        raise ValueError(
            f"expected a tokenizer.json of Hugging Face or a file of `flm tokenizer wrap`, found JSON with "
            f"{sorted(record)[:10]} in {where}: change the gin binding `VOCABULARY`"
        )
    _check(tokenizer, where)
    return tokenizer


def _check(tokenizer: SentencePieceModel | ByteTokens, where: Path) -> None:
    excused = [reason for reason, probe in PROBES.items() if f"a{SPACE_MARK}b" in probe]
    check_exact(tokenizer, str(where), without=excused if tokenizer.marks_spaces else ())


def wrap_tiktoken(name: str, out: str | Path) -> Vocabulary:
    """Writes an encoding of tiktoken, e.g. `cl100k_base`, to one file that needs no download afterwards.

    Raises:
        ValueError: tiktoken has no such encoding, or could not get it, or is not installed.
    """
    return _write(tiktoken_ranks.dump_encoding(name), Path(out))


def wrap_huggingface(source: str | Path, out: str | Path) -> Vocabulary:
    """Copies a `tokenizer.json`, after it was checked to give text back exactly.

    Args:
        source: the file, or the folder of a model that has one.
        out: the file to write.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is none, or changes text, or the package is not installed.
    """
    source = Path(source).expanduser()
    file = source / "tokenizer.json" if source.is_dir() else source
    if not file.is_file():
        raise FileNotFoundError(
            f"expected a tokenizer.json, found no file at {file}: change --huggingface (a tokenizer of transformers "
            "writes one with `save_pretrained` if it is a fast one)"
        )
    if (kind := Vocabulary(file).kind) != "huggingface":
        raise ValueError(
            f"expected a tokenizer.json, found one of kind {kind} at {file}: change --huggingface"
        )
    return _write(file.read_bytes(), Path(out))


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
    return _write(train_model(pieces, vocab_size, model_type, character_coverage), Path(out))


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
    json_file: str | Path | None = None,
) -> Vocabulary:
    """`train_tokenizer` on files of text, the same number of bytes from each language.

    Args:
        files: `LANGUAGE=PATTERN`, or paths and patterns, each file of which is a language (`sampling.language_files`).
            `.jsonl` and `.json` hold objects, others plain text.
        field: key of the text in the objects.
        out, vocab_size, model_type, character_coverage, max_bytes, seed: as in `train_tokenizer`.
        json_file: where to write the report's numbers.

    Prints what could not be read, and a report, on text that was not drawn for training where there is some.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: as `train_tokenizer`, or a language has no text.
    """
    languages = language_files(files)
    samples, problems = sample_languages(languages, field, max_bytes, seed, tokenizer_report.MEASURED_BYTES)
    if problems.count:
        print(problems.report(), file=sys.stderr)
    if empty := [language for language, sample in samples.items() if not sample.texts]:
        raise ValueError(
            f"expected text of each language to train a tokenizer on, found none of {', '.join(empty)}: change --input "
            "or --field"
        )
    texts = [text for sample in samples.values() for text in sample.texts]
    size = sum(len(text.encode("utf-8")) for text in texts)
    print(
        f"training {vocab_size:,} pieces on {size / 1e6:,.1f} MB of text from {len(samples)} languages",
        flush=True,
    )
    vocabulary = _write(train_model(texts, vocab_size, model_type, character_coverage), Path(out))
    report = tokenizer_report.of_training(vocabulary, {name: samples[name] for name in languages})
    print(
        f"tokenizer: {vocabulary.size:,} pieces, {report.bytes_per_token:.2f} bytes per token; "
        f"wrote {vocabulary.path}"
    )
    print(report.table())
    if json_file:
        tokenizer_report.write_json([report], json_file)
    return vocabulary


def _write(content: bytes, out: Path) -> Vocabulary:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(out)
    return Vocabulary(out)
