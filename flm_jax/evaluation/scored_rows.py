"""From requests for log-likelihoods to the distinct rows that answer them, and from what these say to scores."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flm_jax.evaluation.text_model import Score

Request = tuple[Sequence[int], Sequence[int]]  # ids of a context, ids of a continuation
BEGINNING = 0  # the decoder's input where a document begins


@dataclasses.dataclass
class Row:
    """Decoder inputs that answer one request or several.

    Attributes:
        tokens: int32 `[L]`.
        context: The tokens that came as the context, as a key: rows that share it are options of one question.
        targets: For each position that is asked about, the tokens whose log-probability is wanted there, each with
            its place among them.
    """

    tokens: np.ndarray
    context: bytes
    targets: dict[int, dict[int, int]]

    @property
    def first_scored(self) -> int:
        """The first position whose prediction is wanted."""
        return min(self.targets)


class Found(NamedTuple):
    """What was found at the positions of a row that are asked about, in their order."""

    log_probabilities: np.ndarray  # [positions, targets]
    greedy: np.ndarray  # [positions, targets], whether the target is the likeliest token


class Questions:
    """Requests as rows.

    A row that begins another one is not computed: a causal model says the same about their common tokens. So the four
    one-token options of an MMLU question are one row.

    Args:
        requests: A context begins with token 0 where a document begins; an empty one is that token.
        max_length: Of a row; a longer one loses tokens on the left, as lm-eval's models cut it.

    Attributes:
        rows: Distinct, none the beginning of another, in lexicographic order.
        num_cut: Requests that were too long.

    Raises:
        ValueError: a continuation alone is longer than `max_length`.
    """

    def __init__(self, requests: Sequence[Request], max_length: int) -> None:
        inputs: list[bytes] = []
        contexts: dict[bytes, bytes] = {}
        self._continuations = [tuple(continuation) for _, continuation in requests]
        self.num_cut = 0
        for context, continuation in requests:
            if len(continuation) > max_length:
                raise ValueError(
                    f"expected a continuation of at most {max_length} tokens, the model's max_length, found "
                    f"{len(continuation)}; score a whole text in windows (CheckpointModel.rolling), or raise max_length"
                )
            whole = [*(context or (BEGINNING,)), *continuation][:-1] if continuation else []
            self.num_cut += len(whole) > max_length
            inputs.append(_key(whole[-max_length:]))
            contexts.setdefault(inputs[-1], _key(context))
        owners = _owners({key for key in inputs if key})
        names = sorted(set(owners.values()))
        number = {name: index for index, name in enumerate(names)}
        self.rows = [Row(np.frombuffer(name, ">i4").astype(np.int32), contexts[name], {}) for name in names]
        self._places: list[tuple[int, int]] = []  # of each request: row, first scored position
        for key, continuation in zip(inputs, self._continuations, strict=True):
            row = number[owners[key]] if key else -1
            first = len(key) // 4 - len(continuation)
            self._places.append((row, first))
            for position, target in enumerate(continuation, first):
                wanted = self.rows[row].targets.setdefault(position, {})
                wanted.setdefault(target, len(wanted))

    def scores(self, found: Sequence[Found]) -> list[Score]:
        """The score of each request, from what was found in each row; an empty continuation is certain."""
        order = [{position: index for index, position in enumerate(sorted(row.targets))} for row in self.rows]
        scores = []
        for (row, first), continuation in zip(self._places, self._continuations, strict=True):
            total, greedy = 0.0, True
            for position, target in enumerate(continuation, first):
                place = order[row][position], self.rows[row].targets[position][target]
                total += float(found[row].log_probabilities[place])
                greedy &= bool(found[row].greedy[place])
            scores.append(Score(total, greedy))
        return scores


def _key(tokens: Sequence[int]) -> bytes:
    """Bytes that compare as the tokens do, which for long rows is far quicker."""
    return np.asarray(tokens, ">i4").tobytes()


def _owners(keys: set[bytes]) -> dict[bytes, bytes]:
    """Each key to the longest that it begins: among sorted keys what begins with one stands right behind it."""
    owners: dict[bytes, bytes] = {}
    behind = None
    for key in sorted(keys, reverse=True):
        owners[key] = owners[behind] if behind is not None and behind.startswith(key) else key
        behind = key
    return owners
