"""Chance levels: computed, and met by a guesser."""

import itertools
import math

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.generated import LANGUAGES, TASKS

SEEDS = 4


def test_draws_are_even_and_the_same() -> None:
    draws = Draws("a", 1)
    counts = [0] * 6
    for _ in range(6000):
        counts[draws.between(3, 8) - 3] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5  # chi-square, 5 degrees: p = 0.001
    assert Draws("a", 1).text("abc", 20) == Draws("a", 1).text("abc", 20) != Draws("a", 2).text("abc", 20)
    assert sorted(Draws("a").shuffled("abcdef")) == list("abcdef")
    firsts = [tuple(Draws("s", seed).sample("abc", 2)) for seed in range(3000)]
    counts = [firsts.count(pair) for pair in itertools.permutations("abc", 2)]
    assert sum(counts) == 3000 and all(abs(count - 500) < 4 * math.sqrt(500) for count in counts)


def test_the_space_is_what_is_drawn_from() -> None:
    space = iq.Space(("ab", "-", ("0", "10")))
    draws = Draws("space")
    assert {space.draw(draws) for _ in range(100)} == {"a-0", "a-10", "b-0", "b-10"}
    assert space.size == 4


def test_chance_levels_by_hand() -> None:
    one, two = iq.Space(("ab",)), iq.Space(("ab", "ab"))
    items = (iq.Item("?", "a", ("a", "b"), one), iq.Item("!", "ab", ("ab", "ba", "bb", "aa"), two))
    made = iq.ItemSet("t", "en", "custom", 0, 0, items)
    assert made.exact_chance == (1 / 2 + 1 / 4) / 2
    assert made.choice_chance == (1 / 2 + 1 / 4) / 2


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answer_is_in_the_space(task: str, language: str) -> None:
    for item in iq.generate(task, language, num_items=50).items:
        slots = item.space.slots
        if len(slots) == 1:
            assert item.answer in slots[0]
        else:
            assert len(item.answer) == len(slots)
            assert all(letter in slot for letter, slot in zip(item.answer, slots, strict=True))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_guesser_scores_chance(task: str, language: str) -> None:
    """Within three standard errors over all seeds together; the seeds are fixed, so that it does so always."""
    sets = [iq.generate(task, language, seed=seed) for seed in range(SEEDS)]
    results = iq.run(iq.Guesser(sets, seed=1), sets).tasks
    for rates in ([each.exact for each in results], [each.choice for each in results]):
        total = sum(rate.total for rate in rates)
        chance = sum(rate.chance * rate.total for rate in rates) / total
        sigma = math.sqrt(total * chance * (1 - chance))
        assert abs(sum(rate.correct for rate in rates) - total * chance) <= max(3 * sigma, 0.5)
