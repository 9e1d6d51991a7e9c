"""Streamed documents are cut to seqio's lengths, and nothing of them is lost."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.packing import chunk


def cut(
    documents: list[tuple[list[int], list[int]]], lengths: dict[str, int] | None, needs: bool = False
) -> list:
    """`[(inputs, targets)]` after the preprocessor."""
    import tensorflow as tf

    from flm_jax.tasks.lengths import cut_to_lengths

    spec = tf.TensorSpec([None], tf.int32)
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"inputs": inputs, "targets": targets, "name": "x"} for inputs, targets in documents),
        output_signature={"inputs": spec, "targets": spec, "name": tf.TensorSpec([], tf.string)},
    )
    found = cut_to_lengths(dataset, lengths, task="task", needs_inputs=needs).as_numpy_iterator()
    return [(example["inputs"].tolist(), example["targets"].tolist()) for example in found]


tokens = st.lists(st.integers(1, 99), max_size=12)
documents = st.lists(st.tuples(tokens, st.lists(st.integers(1, 99), min_size=1, max_size=12)), max_size=4)


@given(documents, st.integers(1, 5), st.integers(1, 5))
def test_no_token_is_lost_and_none_is_too_long(made: Any, inputs: int, targets: int) -> None:
    from flm_jax.tasks.lengths import num_pieces

    lengths = {"inputs": inputs, "targets": targets}
    found = cut(made, lengths, needs=True)
    assert all(len(i) <= inputs and len(t) <= targets and i + t for i, t in found)
    assert [token for pair in found for token in pair[0] + pair[1]] == [
        token for pair in made for token in pair[0] + pair[1]
    ]
    assert len(found) == sum(num_pieces(len(i), len(t), lengths) for i, t in made)


def test_the_last_inputs_stand_with_the_first_targets() -> None:
    document = ([1, 2, 3, 4, 5, 6], [7, 8, 9])
    assert cut([document], {"inputs": 4, "targets": 2}) == [([1, 2, 3, 4], []), ([5, 6], [7, 8]), ([], [9])]


def test_the_texts_are_left_out_of_the_pieces() -> None:
    import tensorflow as tf

    from flm_jax.tasks.lengths import cut_to_lengths

    document = {"inputs": [[1]], "targets": [[2, 3]], "targets_pretokenized": ["long"]}
    (first, _) = cut_to_lengths(
        tf.data.Dataset.from_tensor_slices(document), {"inputs": 1, "targets": 1}, task="t", needs_inputs=True
    ).as_numpy_iterator()
    assert set(first) == {"inputs", "targets"}


def test_without_lengths_nothing_is_cut() -> None:
    document = ([1] * 30, [2] * 40)
    assert cut([document], None, needs=True) == [document]


def test_a_corpus_needs_targets_alone_and_is_cut_as_prepare_cuts_it() -> None:
    text = list(range(1, 12))
    found = cut([([], text)], {"targets": 4})
    assert [targets for _, targets in found] == [
        part.tokens.tolist() for part in chunk([], np.array(text), 4)
    ]


@pytest.mark.parametrize("lengths", [{"targets": 4}, {"inputs": 4}, {"inputs": 0, "targets": 4}])
def test_prompts_without_room_are_refused(lengths: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"inputs and targets to stream task 'task'.*TASK_FEATURE_LENGTHS"):
        cut([([1], [2])], lengths, needs=True)
