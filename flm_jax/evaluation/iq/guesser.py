"""Guesses among the answers of the right form: what it scores is the chance level."""

from collections.abc import Sequence

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import ItemSet
from flm_jax.evaluation.text_model import Score


class Guesser:
    """A `TextModel` that knows the form of the answers to these sets, and nothing else."""

    def __init__(self, sets: Sequence[ItemSet], seed: int = 0) -> None:
        self._spaces = {item.prompt: item.space for items in sets for item in items.items}
        self._draws = Draws("guesser", seed)

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """Random ones."""
        return [Score(self._draws.uniform() - 1, False) for _ in pairs]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """An answer of each item's space."""
        return [self._spaces[prompt].draw(self._draws) for prompt in prompts]
