"""Puts the suite's questions to a model: to be answered in writing, and by choosing among options."""

import math
from collections.abc import Callable, Sequence

from flm_jax.evaluation.iq.generated import TASKS
from flm_jax.evaluation.iq.items import ItemSet
from flm_jax.evaluation.iq.oracle import Oracle
from flm_jax.evaluation.iq.results import Rate, Results, TaskResult
from flm_jax.evaluation.text_model import TextModel

_MARGIN = 8  # tokens beyond an answer's bytes, so that a longer answer is not cut to the right one


def run(
    model: TextModel, sets: Sequence[ItemSet], progress: Callable[[TaskResult], None] | None = None
) -> Results:
    """What a model scores on each set, in their order.

    Args:
        model: A `TextModel`.
        sets: Of `suite`, or your own.
        progress: Called with each set's result as soon as it is there.

    Raises:
        ValueError: the model's scores are not numbers, or are not as many as were asked for.
    """
    results = []
    for items in sets:
        results.append(measure(model, items))
        if progress:
            progress(results[-1])
    return Results(tuple(results))


def measure(model: TextModel, items: ItemSet) -> TaskResult:
    """What a model scores on one set."""
    exact, choice = written(model, items), chosen(model, items)
    return TaskResult(
        items.task,
        items.language,
        items.group,
        items.shots,
        items.seed,
        Rate(sum(exact), len(exact), items.exact_chance),
        Rate(sum(choice), len(choice), items.choice_chance),
        items.baseline,
        _oracle(items),
    )


def written(model: TextModel, items: ItemSet) -> list[bool]:
    """Whether the model writes each item's answer and nothing else, the space around it aside.

    Each token is at least one byte, so that an answer has no more tokens than bytes.
    """
    longest = max(len(item.answer.encode()) for item in items.items)
    outputs = model.complete([item.prompt for item in items.items], longest + _MARGIN, items.stop)
    return [output.strip() == item.answer.strip() for output, item in zip(outputs, items.items, strict=True)]


def chosen(model: TextModel, items: ItemSet) -> list[bool]:
    """Whether the right option of each item is the likeliest as a whole; of equals the first counts.

    The likelihoods are not divided by lengths: options are symbols or texts of one form, and where they are places'
    names, each is as often right, so that a model which prefers short ones gains nothing by it.
    """
    pairs = [(item.prompt, option) for item in items.items for option in item.options]
    scores = model.log_likelihoods(pairs)
    if len(scores) != len(pairs) or any(math.isnan(score.log_likelihood) for score in scores):
        raise ValueError(
            f"expected a log-likelihood of each of {len(pairs)} options ({items.task}), found {len(scores)} scores, "
            f"{sum(math.isnan(score.log_likelihood) for score in scores)} of them not a number"
        )
    values = iter(score.log_likelihood for score in scores)
    right = []
    for item in items.items:
        likelihoods = [next(values) for _ in item.options]
        right.append(item.options[likelihoods.index(max(likelihoods))] == item.answer)
    return right


def _oracle(items: ItemSet) -> float | None:
    if items.task not in TASKS:
        return None
    oracle = Oracle()
    solved = zip(written(oracle, items), chosen(oracle, items), strict=True)
    return sum(map(all, solved)) / len(items.items)
