"""The suite tells a model that has learnt a task from one that has not."""

import dataclasses
import math

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq.measure import chosen
from tests.evaluation.iq.learner import Learner

LENGTH = 104  # characters of prompt, answer and eos


def short(items: iq.ItemSet, count: int) -> iq.ItemSet:
    """The first items that fit, any option and an eos."""
    fitting = [item for item in items.items if len(item.prompt) + max(map(len, item.options)) < LENGTH]
    assert len(fitting) >= count
    return dataclasses.replace(items, items=tuple(fitting[:count]))


@pytest.mark.slow
def test_a_small_model_learns_to_count_from_the_training_split() -> None:
    """100,000 parameters, 300 steps of 32 ranges; it is then asked about ranges that it has not seen."""
    train = short(iq.generate("counting", "en", "train", num_items=18_000), 4_000)
    test = short(iq.generate("counting", "en", "test", num_items=2_400), 400)
    assert not {item.prompt for item in train.items} & {item.prompt for item in test.items}
    learner = Learner([item.prompt + item.answer for item in train.items], LENGTH)
    sigma = math.sqrt(test.choice_chance * (1 - test.choice_chance) / len(test.items))

    untrained = sum(chosen(learner, test)) / len(test.items)
    assert abs(untrained - test.choice_chance) < 3.5 * sigma

    losses = learner.learn(train, steps=300, peak=4e-3)
    (result,) = iq.run(learner, [test]).tasks
    print(f"untrained {untrained:.3f}, trained {result.choice.accuracy:.3f}, exact {result.exact.accuracy:.3f}, "
          f"loss {losses[0]:.2f} to {losses[-1]:.2f}")  # fmt: skip
    assert result.choice.accuracy > test.choice_chance + 10 * sigma
