"""The whole suite, or a part of it."""

from collections.abc import Sequence
from pathlib import Path

from flm_jax.evaluation.iq import published
from flm_jax.evaluation.iq.classification import SHOTS_PER_LABEL
from flm_jax.evaluation.iq.generated import LANGUAGES, TASKS, generate
from flm_jax.evaluation.iq.items import ItemSet


def suite(
    languages: Sequence[str] = LANGUAGES,
    tasks: Sequence[str] | None = None,
    num_items: int | None = None,
    shots: int | None = None,
    data_dir: str | Path | None = None,
    seed: int = 0,
) -> list[ItemSet]:
    """The sets of the suite.

    Args:
        languages: `en`, `zh` or both; a published set has one language, and is left out without it.
        tasks: Names of generated tasks and of published sets; None for all generated ones and, with `data_dir`, those
            of the published sets that are there.
        num_items: Of each set; the paper's numbers if None.
        shots: Of each prompt, for published sets of each label; the paper's if None, and 2 of each label.
        data_dir: Holds the published sets' folders.
        seed: Of all random choices.

    Raises:
        FileNotFoundError: a published set that was named is not there.
        ValueError: a name is unknown, or none is left, or a set cannot be made so.
    """
    _check("languages", languages, LANGUAGES)
    if tasks is None:
        tasks = (*TASKS, *(published.available(data_dir) if data_dir is not None else ()))
    _check("tasks", tasks, (*TASKS, *published.SETS))
    sets = [
        generate(task, language, "test", seed, num_items, shots)
        for language in languages
        for task in tasks
        if task in TASKS
    ]
    for task in tasks:
        if task in TASKS or published.SETS[task].language not in languages:
            continue
        if data_dir is None:
            raise ValueError(
                f"expected data_dir, the folder that holds the published files of {task} (--symbolic_dir, or the gin "
                f"binding IqSuite.symbolic_dir); found none"
            )
        per_label = SHOTS_PER_LABEL if shots is None else shots
        sets.append(published.load(task, data_dir, seed, num_items, per_label))
    if not sets:
        raise ValueError(
            f"expected a task in one of the languages {', '.join(languages)}; found {', '.join(tasks)}, which are not"
        )
    return sets


def _check(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown or not values:
        raise ValueError(f"expected {name} among {', '.join(known)}; found {', '.join(unknown) or 'none'}")
