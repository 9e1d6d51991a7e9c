"""From a document's text to tokens and loss weights.

An example is one or more turns, each `inputs` that the model is given and `targets` that it learns:

    a corpus             one turn, empty inputs
    an instruction       one turn
    a conversation       a turn for each response
    a teacher statement  one turn, whose targets are the label
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary


class Turn(NamedTuple):
    """A part of an example.

    Attributes:
        inputs: text without loss.
        targets: text with loss.
        ends: whether eos follows the targets, with loss.
        only_last: the loss is on the last token of the targets alone.
        weight: of each token with loss, 1 to 255.
    """

    inputs: str
    targets: str
    ends: bool = True
    only_last: bool = False
    weight: int = 1


Example = Sequence[Turn]


class Tokens(NamedTuple):
    """An example as a model reads it.

    Attributes:
        ids: int32 [n].
        loss_weights: uint8 [n], 0 where the loss does not count, else 1 or the turn's weight.
    """

    ids: np.ndarray
    loss_weights: np.ndarray


def tokenize(example: Example, vocabulary: Vocabulary) -> Tokens:
    """All turns of an example, one behind the other.

    Example: if "ab" is the token 7 and "c" the token 8, the turns ("ab", "c") and ("c", "c") give ids
    `[7, 8, 1, 8, 8, 1]` with loss weights `[0, 1, 1, 0, 1, 1]`; 1 is eos.
    """
    ids: list[int] = []
    with_loss: list[tuple[int, int, int]] = []
    for turn, (inputs, targets) in zip(example, _by_turn(example, vocabulary), strict=True):
        ids += inputs
        with_loss.append((len(ids), len(ids) + len(targets), turn.weight))
        ids += targets
    weights = np.zeros(len(ids), np.uint8)
    for start, end, weight in with_loss:
        weights[start:end] = weight
    return Tokens(np.array(ids, np.int32), weights)


def pairs(example: Example, vocabulary: Vocabulary) -> Iterator[tuple[list[int], list[int]]]:
    """`(inputs, targets)` in tokens for each turn: what lies before it, all of it without loss, and its response.

    Seqio's examples have one response each. A conversation of several becomes as many: every token with loss once,
    behind the same tokens as in `tokenize`.
    """
    before: list[int] = []
    for inputs, targets in _by_turn(example, vocabulary):
        yield before + inputs, targets
        before = before + inputs + targets


def _by_turn(example: Example, vocabulary: Vocabulary) -> Iterator[tuple[list[int], list[int]]]:
    for turn in example:
        inputs = vocabulary.encode(turn.inputs) if turn.inputs else []
        targets = vocabulary.encode(turn.targets)
        if turn.only_last:
            inputs, targets = inputs + targets[:-1], targets[-1:]
        if turn.ends:
            targets.append(EOS_ID)
        yield inputs, targets
