"""Cutting a streamed document to seqio's feature lengths without losing a token. Imports TensorFlow."""

from collections.abc import Mapping

import tensorflow as tf


def num_pieces(inputs: int, targets: int, lengths: Mapping[str, int]) -> int:
    """How many examples a document of so many tokens becomes.

    With lengths of 4 and 4, a document of 6 and 9 becomes 4 examples: 4 + 0, 2 + 4, 0 + 4 and 0 + 1.
    """
    return max(_parts(inputs, lengths.get("inputs", 0)), 1) + max(_parts(targets, lengths["targets"]), 1) - 1


def cut_to_lengths(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    task: str,
    needs_inputs: bool,
) -> tf.data.Dataset:
    """Seqio preprocessor: each document becomes `num_pieces` examples, none longer than `sequence_length` says.

    Seqio by itself would cut off what is too long. The last of the inputs stands with the first of the targets.
    Without lengths nothing is cut.

    Args:
        dataset: Tokenized documents.
        sequence_length: Feature to tokens, `TASK_FEATURE_LENGTHS`; seqio gives it.
        task: Its name, for the error.
        needs_inputs: Its targets make no sense without its inputs.

    Raises:
        ValueError: there are lengths, but none for targets or for inputs that are needed.
    """
    if not sequence_length:
        return dataset
    check_lengths(sequence_length, task, needs_inputs)
    longest = {name: sequence_length.get(name, 0) for name in ("inputs", "targets")}

    def pieces(document: dict[str, tf.Tensor]) -> tf.data.Dataset:
        counts = {
            name: tf.maximum(-(-tf.size(document[name], tf.int64) // length), 1)
            if length
            else tf.constant(1, tf.int64)
            for name, length in longest.items()
        }
        before = counts["inputs"] - 1  # examples with inputs alone

        def piece(number: tf.Tensor) -> dict[str, tf.Tensor]:
            places = {"inputs": number, "targets": number - before}
            cut = {
                name: document[name][
                    tf.maximum(at, 0) * longest[name] : tf.maximum(at + 1, 0) * longest[name]
                ]
                for name, at in places.items()
                if longest[name]
            }
            # Without the texts: every piece would hold the whole document's, also in a saved shuffling buffer.
            return {name: cut.get(name, document[name]) for name in places}

        return tf.data.Dataset.range(before + counts["targets"]).map(piece)

    return dataset.flat_map(pieces)


def leave_out_longer(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int] | None = None,
    *,
    task: str,
    needs_inputs: bool,
) -> tf.data.Dataset:
    """Seqio preprocessor: examples without room are left out, as in `flm data prepare`, which also counts them.

    Half of a teacher signal's statement would have the label of the whole. Args and Raises as `cut_to_lengths`.
    """
    if not sequence_length:
        return dataset
    check_lengths(sequence_length, task, needs_inputs)

    def has_room(example: dict[str, tf.Tensor]) -> tf.Tensor:
        fits = [tf.size(example[name]) <= sequence_length[name] for name in ("inputs", "targets")]
        return tf.reduce_all(fits)

    return dataset.filter(has_room).map(
        lambda example: {name: example[name] for name in ("inputs", "targets")}
    )


def refuse_longer(
    dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None = None, *, task: str
) -> tf.data.Dataset:
    """Seqio preprocessor: a question or an answer without room is an error, as seqio would cut it off.

    Args:
        dataset: Tokenized questions and answers.
        sequence_length: Feature to tokens; seqio gives it. None is no limit.
        task: Its name, for the error.

    Raises:
        tf.errors.InvalidArgumentError: while the dataset is read.
    """

    def checked(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        for name, length in (sequence_length or {}).items():
            found = tf.size(example[name])
            tf.debugging.Assert(
                found <= length,
                [f"expected {name} of at most {length} tokens in task {task!r}, found", found,
                 f'in {{"{name}": ...}} of INFER_LENGTHS (or INFER_EVAL_LENGTHS) bind as many; the text:',
                 example[f"{name}_pretokenized"]],
            )  # fmt: skip
        return example

    return dataset.map(checked)


def check_lengths(lengths: Mapping[str, int], task: str, needs_inputs: bool) -> None:
    """Refuses to stream a task whose examples would have no room.

    Raises:
        ValueError: naming the binding.
    """
    wanted = ("inputs", "targets") if needs_inputs else ("targets",)
    if any(not isinstance(length, int) or length < 1 for length in lengths.values()) or not set(
        wanted
    ) <= set(lengths):
        raise ValueError(
            f"expected TASK_FEATURE_LENGTHS with tokens for {' and '.join(wanted)} to stream task {task!r}, found "
            f'{dict(lengths)}: bind TASK_FEATURE_LENGTHS = {{"inputs": 256, "targets": 256}}, for example'
        )


def _parts(tokens: int, length: int) -> int:
    return -(-tokens // length) if length else 0
