from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.packing import Chunk, PackedSequence, chunk, features, pack, sequence_length
from flm_jax.tasks.records import decode_records, encode_record

TOKENS = st.lists(st.integers(1, 500), max_size=60)
DOCUMENTS = st.lists(st.tuples(TOKENS, TOKENS).filter(lambda doc: doc[0] or doc[1]), max_size=40)


def _key(tokens: np.ndarray, weights: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(tokens.tolist()), tuple(weights.tolist())


def _segments(sequence: PackedSequence) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    ids = range(1, int(sequence.segment_ids.max(initial=0)) + 1)
    return [
        _key(sequence.tokens[sequence.segment_ids == i], sequence.loss_weights[sequence.segment_ids == i])
        for i in ids
    ]


@given(inputs=TOKENS, targets=TOKENS, length=st.integers(2, 20))
def test_chunks_joined_give_the_document(inputs: list[int], targets: list[int], length: int) -> None:
    chunks = chunk(inputs, targets, length)
    assert [token for part in chunks for token in part.tokens] == inputs + targets
    weights = [weight for part in chunks for weight in part.loss_weights]
    assert weights == [0] * len(inputs) + [1] * len(targets)
    assert all(len(part.tokens) == length for part in chunks[:-1])


@given(documents=DOCUMENTS, length=st.integers(2, 30), open_sequences=st.integers(1, 8))
def test_packing_keeps_every_token_once(
    documents: list[tuple[list[int], list[int]]], length: int, open_sequences: int
) -> None:
    chunks = [part for inputs, targets in documents for part in chunk(inputs, targets, length)]
    sequences = list(pack(chunks, length, open_sequences))
    packed = Counter(segment for sequence in sequences for segment in _segments(sequence))
    assert packed == Counter(_key(part.tokens, part.loss_weights) for part in chunks)
    for sequence in sequences:
        used = int((sequence.segment_ids > 0).sum())
        assert len(sequence.tokens) == length
        assert (np.diff(sequence.segment_ids[:used]) >= 0).all()  # segments lie side by side
        assert not sequence.tokens[used:].any()  # padding at the end, and nowhere else
        assert not sequence.loss_weights[used:].any()
        assert sequence.tokens[:used].all()
    again = list(pack(chunks, length, open_sequences))
    assert [encode_record(sequence) for sequence in again] == [encode_record(s) for s in sequences]


def test_the_fullest_sequence_that_has_room_is_taken() -> None:
    def part(size: int) -> Chunk:
        return Chunk(np.full(size, size, np.int32), np.ones(size, np.uint8))

    packed = list(pack([part(5), part(7), part(3), part(4)], length=10))
    assert [sequence.tokens.tolist() for sequence in packed] == [
        [7] * 7 + [3] * 3,  # not the sequence that 5 had opened, which was older and had more room
        [5] * 5 + [4] * 4 + [0],
    ]
    with pytest.raises(ValueError, match="1 to 4 tokens, found one of 5"):
        list(pack([part(5)], length=4))


def test_little_is_lost_to_padding_on_mixed_lengths() -> None:
    draw = np.random.default_rng(0)
    sizes = draw.lognormal(6, 1.2, 3000).astype(int) + 1
    chunks = [part for size in sizes for part in chunk([], [3] * size, 512)]
    sequences = list(pack(chunks, 512))
    assert 1 - sizes.sum() / (len(sequences) * 512) < 0.015


def test_pad_among_the_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected no pad"):
        chunk([], [5, 0, 1], 4)


def test_features_of_the_worked_example() -> None:
    row = features(
        np.array([[7, 8, 1, 9, 1, 0]]), np.array([[1, 1, 1, 2, 2, 0]]), np.array([[0, 1, 1, 1, 1, 0]])
    )
    assert {name: values[0].tolist() for name, values in row.items()} == {
        "decoder_target_tokens": [7, 8, 1, 9, 1, 0],
        "decoder_input_tokens": [0, 7, 8, 0, 9, 0],
        "decoder_loss_weights": [0, 1, 1, 1, 1, 0],
        "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
        "decoder_positions": [0, 1, 2, 0, 1, 0],
    }
    assert all(values.dtype == np.int32 for values in row.values())


@pytest.mark.parametrize(
    "documents",
    [
        [([7, 8, 5], [3, 9, 1]), ([8, 4], [4, 1])],
        [([], [3, 9, 4, 1]), ([6, 2], [1]), ([], [5, 5, 1])],
        [([7], [3] * 9), ([2, 2], [4, 1])],  # fills the first sequence of seqio to its last position
        [([3, 3, 3], [2] * 10), ([4], [5, 6, 1])],  # two sequences, the first with padding
    ],
)
def test_seqio_gives_the_same_features(documents: list[tuple[list[int], list[int]]]) -> None:
    import seqio
    import tensorflow as tf

    spec = tf.TensorSpec([None], tf.int32)
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": inputs, "targets": targets} for inputs, targets in documents),
        output_signature={"inputs": spec, "targets": spec},
    )
    converter = seqio.DecoderFeatureConverter(pack=True)
    expected = list(converter(dataset, {"inputs": 4, "targets": 10}).as_numpy_iterator())
    chunks = [part for inputs, targets in documents for part in chunk(inputs, targets, 14)]
    sequences = list(pack(chunks, sequence_length({"inputs": 4, "targets": 10})))
    assert len(sequences) == len(expected)
    batch = decode_records([encode_record(sequence) for sequence in sequences], 14)
    by_tokens = sorted(range(len(expected)), key=lambda i: expected[i]["decoder_target_tokens"].tolist())
    ours = sorted(range(len(expected)), key=lambda i: batch["decoder_target_tokens"][i].tolist())
    for theirs, mine in zip(by_tokens, ours, strict=True):
        for name, values in batch.items():
            assert values[mine].tolist() == expected[theirs][name].tolist(), name


@given(documents=DOCUMENTS.filter(bool))
def test_records_come_back(documents: list[tuple[list[int], list[int]]]) -> None:
    sequences = list(pack((part for doc in documents for part in chunk(*doc, 16)), 16))
    batch = decode_records([encode_record(sequence) for sequence in sequences], 16)
    for row, sequence in enumerate(sequences):
        assert (batch["decoder_target_tokens"][row] == sequence.tokens).all()
        assert (batch["decoder_segment_ids"][row] == sequence.segment_ids).all()
        assert (batch["decoder_loss_weights"][row] == sequence.loss_weights).all()


def test_records_of_another_length_are_an_error() -> None:
    sequence = next(pack(chunk([], [5, 1], 8), 8))
    with pytest.raises(ValueError, match=r"expected records of 112 bytes .*found one of 56"):
        decode_records([encode_record(sequence)], 16)


def test_task_feature_lengths_are_summed() -> None:
    assert sequence_length({"targets": 512}) == sequence_length({"inputs": 128, "targets": 384}) == 512
    with pytest.raises(ValueError, match="TASK_FEATURE_LENGTHS"):
        sequence_length({"targets": 0})
