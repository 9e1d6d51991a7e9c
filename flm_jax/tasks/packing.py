"""From documents of any length to sequences of one length, without losing a token.

A document longer than a sequence is cut into consecutive chunks (never truncated); chunks are packed side by
side into sequences, each a segment of its own. The features of a batch have seqio's names and values, those
of `seqio.PrefixLMFeatureConverter(pack=True)`.
"""

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flm_jax.tasks.vocabulary import PAD_ID

# How many sequences may be open for further chunks. More pack tighter; with 256, English and Chinese text of
# mixed lengths left 0.2 to 0.6 % of the positions at length 512 to padding.
OPEN_SEQUENCES = 256


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one document.

    Attributes:
        tokens: int32 [n], none of them pad.
        loss_weights: uint8 [n], 0 where the loss does not count, mostly 1 where it does.
    """

    tokens: np.ndarray
    loss_weights: np.ndarray


@dataclass(frozen=True)
class PackedSequence:
    """Chunks side by side.

    Attributes:
        tokens: int32 [length], pad (0) at the end.
        segment_ids: int32 [length], 1, 2, ... for the chunks in their order, 0 where there is padding.
        loss_weights: uint8 [length], 0 on inputs and padding, mostly 1 where the loss counts.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    loss_weights: np.ndarray


def sequence_length(lengths: int | Mapping[str, int]) -> int:
    """Tokens per packed sequence, from t5x's `TASK_FEATURE_LENGTHS` or a plain number.

    A decoder reads inputs and targets in one sequence, so its length is their sum, as in seqio: 512 from
    `{"targets": 512}` and from `{"inputs": 128, "targets": 384}`.
    """
    length = sum(lengths.values()) if isinstance(lengths, Mapping) else lengths
    if not isinstance(length, int) or length < 2:
        raise ValueError(
            f"expected at least 2 tokens per sequence, found {lengths!r}: change the gin binding "
            "`TASK_FEATURE_LENGTHS`"
        )
    return length


def chunk(
    inputs: Sequence[int] | np.ndarray, targets: Sequence[int] | np.ndarray, length: int
) -> list[Chunk]:
    """Cuts a document's inputs and targets, joined, into chunks of at most `length` tokens.

    Example: `chunk([7, 8], [5, 6, 1], length=3)` is `[7, 8, 5]` with loss weights `[0, 0, 1]` and `[6, 1]`
    with `[1, 1]`.
    """
    tokens = np.concatenate([np.asarray(inputs, np.int32), np.asarray(targets, np.int32)])
    weights = np.concatenate([np.zeros(len(inputs), np.uint8), np.ones(len(targets), np.uint8)])
    return cut(tokens, weights, length)


def cut(tokens: np.ndarray, weights: np.ndarray, length: int) -> list[Chunk]:
    """`chunk` for tokens that know their loss weights: int32 and uint8 `[n]`."""
    if (tokens == PAD_ID).any():
        raise ValueError(
            f"expected no pad ({PAD_ID}) among the tokens of a document, found one: no text becomes pad"
        )
    return [
        Chunk(tokens[start : start + length], weights[start : start + length])
        for start in range(0, len(tokens), length)
    ]


def pack(
    chunks: Iterable[Chunk], length: int, open_sequences: int = OPEN_SEQUENCES
) -> Iterator[PackedSequence]:
    """Packs chunks into sequences of `length`: each goes where the least room stays free (best fit).

    At most `open_sequences` are kept open; when none has room, the fullest of them is closed. The same chunks
    in the same order give the same sequences, in the order in which they are closed.

    Example: chunks of 3, 2 and 1 tokens with `length=4` give the sequences (3, 1) and (2).

    Raises:
        ValueError: a chunk has no token, or more than `length`.
    """
    # Sorted by room, then by age. Contents lie apart, because chunks cannot be compared.
    rooms: list[tuple[int, int]] = []
    contents: dict[int, list[Chunk]] = {}
    for serial, new in enumerate(chunks):
        size = len(new.tokens)
        if not 1 <= size <= length:
            raise ValueError(f"expected chunks of 1 to {length} tokens, found one of {size}")
        fit = bisect.bisect_left(rooms, (size, -1))
        if fit < len(rooms):
            room, key = rooms.pop(fit)
        else:
            if len(rooms) == open_sequences:
                yield _join(contents.pop(rooms.pop(0)[1]), length)
            room, key = length, serial
            contents[key] = []
        contents[key].append(new)
        if room == size:
            yield _join(contents.pop(key), length)
        else:
            bisect.insort(rooms, (room - size, key))
    for _, key in rooms:
        yield _join(contents[key], length)


def _join(chunks: list[Chunk], length: int) -> PackedSequence:
    tokens, segment_ids = np.full(length, PAD_ID, np.int32), np.zeros(length, np.int32)
    loss_weights = np.zeros(length, np.uint8)
    start = 0
    for segment, part in enumerate(chunks, start=1):
        end = start + len(part.tokens)
        tokens[start:end], segment_ids[start:end], loss_weights[start:end] = (
            part.tokens,
            segment,
            part.loss_weights,
        )
        start = end
    return PackedSequence(tokens, segment_ids, loss_weights)


def features(tokens: np.ndarray, segment_ids: np.ndarray, loss_weights: np.ndarray) -> dict[str, np.ndarray]:
    """The features that a decoder trains on, named and valued as by seqio, all int32 [batch, length].

    Args:
        tokens, segment_ids, loss_weights: [batch, length], rows as in `PackedSequence`.

    Example of one row, two documents of 3 and 2 tokens, the first with one token of input:

        decoder_target_tokens  [7, 8, 1, 9, 1, 0]
        decoder_input_tokens   [0, 7, 8, 0, 9, 0]   targets shifted right inside each segment
        decoder_loss_weights   [0, 1, 1, 1, 1, 0]
        decoder_segment_ids    [1, 1, 1, 2, 2, 0]
        decoder_positions      [0, 1, 2, 0, 1, 0]
    """
    tokens, segment_ids = tokens.astype(np.int32), segment_ids.astype(np.int32)
    within = np.zeros(tokens.shape, bool)  # the position to the left is of the same document
    within[:, 1:] = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    shifted = np.zeros_like(tokens)
    shifted[:, 1:] = tokens[:, :-1]
    index = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    start = np.maximum.accumulate(np.where(within, 0, index), axis=1)
    return {
        "decoder_target_tokens": tokens,
        "decoder_input_tokens": np.where(within, shifted, 0).astype(np.int32),
        "decoder_loss_weights": loss_weights.astype(np.int32),
        "decoder_segment_ids": segment_ids,
        "decoder_positions": (index - start).astype(np.int32),
    }
