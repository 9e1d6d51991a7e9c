"""What an evaluation asks of a model, and so of an oracle and of a guesser: to score texts and to continue them."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Score(NamedTuple):
    """Of a continuation behind its context."""

    log_likelihood: float  # nats, summed over the continuation's tokens
    is_greedy: bool  # whether each of its tokens is the likeliest in its place


class TextModel(Protocol):
    """Scores and continues texts, in the order in which they are given."""

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Of each (context, continuation); an empty context begins a document."""
        ...

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """What likeliest follows each prompt, a token at a time, up to the first of the strings `stop`, left out."""
        ...
