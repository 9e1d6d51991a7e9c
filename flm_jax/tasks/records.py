"""One packed sequence as the bytes of one record: 7 bytes a token before the file's own compression.

A record of a sequence of L tokens is, one after the other and little-endian: tokens uint32 [L], segment ids
uint16 [L], loss weights uint8 [L]. Input tokens and positions follow from these when a batch is read.
"""

from collections.abc import Sequence

import numpy as np

from flm_jax.tasks.packing import PackedSequence, features

BYTES_PER_TOKEN = 7
_MAX_SEGMENTS = np.iinfo(np.uint16).max


def encode_record(sequence: PackedSequence) -> bytes:
    """The bytes of a packed sequence.

    Raises:
        ValueError: it has more than 65,535 segments.
    """
    if sequence.segment_ids.max(initial=0) > _MAX_SEGMENTS:
        raise ValueError(
            f"expected at most {_MAX_SEGMENTS:,} documents in a sequence, found "
            f"{sequence.segment_ids.max():,}: prepare with shorter TASK_FEATURE_LENGTHS"
        )
    return b"".join(
        (
            sequence.tokens.astype("<u4").tobytes(),
            sequence.segment_ids.astype("<u2").tobytes(),
            sequence.loss_weights.astype("u1").tobytes(),
        )
    )


def decode_records(records: Sequence[bytes], length: int) -> dict[str, np.ndarray]:
    """The features (`packing.features`, int32 [len(records), length]) of records.

    Raises:
        ValueError: a record has not the size that sequences of `length` have.
    """
    for record in records:
        if len(record) != BYTES_PER_TOKEN * length:
            raise ValueError(
                f"expected records of {BYTES_PER_TOKEN * length} bytes (sequences of {length} tokens), found "
                f"one of {len(record)}: the files do not belong to their manifest, prepare them again"
            )
    raw = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), BYTES_PER_TOKEN * length)
    tokens, segment_ids, loss_weights = np.split(raw, [4 * length, 6 * length], axis=1)
    return features(
        np.ascontiguousarray(tokens).view("<u4"), np.ascontiguousarray(segment_ids).view("<u2"), loss_weights
    )
