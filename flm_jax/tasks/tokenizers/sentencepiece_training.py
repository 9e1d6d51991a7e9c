"""Training a sentencepiece model that gives any Unicode text back as it went in.

Three things make it exact: unseen characters fall back to the pieces of their UTF-8 bytes; text is neither
normalised nor stripped; and the model does not escape spaces. sentencepiece writes a space as U+2581 inside
its pieces, so that a text which holds a real U+2581 (a block element, "lower one eighth block") would come
back with a space. It can only be trained that way, but a trained model can have its pieces rewritten with
plain spaces and the escaping switched off: the same ids for all other text, and U+2581 then falls back to
bytes like any other character.

A unigram model's scores are rounded to 1/64, which made 708,215 tokens of 708,199. sentencepiece adds them up
in float32, the library tokenizers in float64: where two ways to cut a word are worth the same, rounding would
decide, in each library in its own way. Sums of multiples of 1/64 are exact in both as long as they are below
2^18 (a document of some 30,000 tokens), so that a `tokenizer.json` of the model gives the same ids.
"""

import io
from collections.abc import Sequence

import sentencepiece

from flm_jax.tasks.tokenizers.exactness import SPACE_MARK
from flm_jax.tasks.tokenizers.reserved import EOS_ID, PAD_ID, TEACHER_LABELS, UNK_ID

_SCORE_STEPS = 64  # in 1
# sentencepiece sums its statistics thread by thread: a fixed number of threads makes it repeatable.
_THREADS = 16
# What its trainer cannot take inside a line: NUL, and the marks it uses itself for a space and for unknown
# text, for which it leaves out the whole line. Their bytes are encoded by byte pieces all the same.
_RESERVED = str.maketrans({"\0": " ", SPACE_MARK: " ", "\u2585": " "})


def train_model(texts: Sequence[str], vocab_size: int, model_type: str, character_coverage: float) -> bytes:
    """The content of the model's file.

    Args:
        texts: each of at most 4,192 bytes (sentencepiece leaves longer ones out).
        vocab_size, model_type, character_coverage: as in `vocabulary.train_tokenizer`.

    Raises:
        ValueError: the texts do not support `vocab_size`, or their characters alone are more.
    """
    if not any(text.strip() for text in texts):
        raise ValueError("expected text to train a tokenizer on, found none: change --input or --field")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text.translate(_RESERVED) for text in texts),
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
            num_threads=_THREADS,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"no tokenizer of {vocab_size:,} pieces ({model_type}) can be trained on these {len(texts):,} "
            f"pieces of text; change --vocab_size, or give more text. sentencepiece says: {error}"
        ) from error
    return _exact(model.getvalue())


def _exact(model: bytes) -> bytes:
    """The model with plain spaces, not escaped, in its pieces, and rounded scores (see the top of this file)."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.escape_whitespaces = False
    for piece in proto.pieces:
        piece.piece = piece.piece.replace(SPACE_MARK, " ")
        piece.score = round(piece.score * _SCORE_STEPS) / _SCORE_STEPS
    return proto.SerializeToString(deterministic=True)
