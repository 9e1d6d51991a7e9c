"""docs/iq.md shows what the generator gives, and the paper's scores as the code has them."""

import re
from pathlib import Path

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq import paper
from flm_jax.evaluation.iq.generated import LANGUAGES, TASKS
from flm_jax.evaluation.iq.published import SETS

PAGE = (Path(__file__).parents[3] / "docs" / "iq.md").read_text("utf-8")
EXAMPLES = re.findall(r"(?ms)^```text (\w+) (\w+) shots=(\d+)\n(.*?)\n```$", PAGE)


def test_every_task_is_shown_but_the_long_one() -> None:
    shown = {(task, language) for task, language, _, _ in EXAMPLES}
    assert shown == {
        (task, language) for task in TASKS for language in LANGUAGES if task != "multiple_key_retrieval"
    }


@pytest.mark.parametrize(("task", "language", "shots", "text"), EXAMPLES)
def test_an_example_is_what_is_generated(task: str, language: str, shots: str, text: str) -> None:
    item = iq.generate(task, language, num_items=1, shots=int(shots)).items[0]
    assert f"{item.prompt}|{item.answer}" == text


def test_a_long_example_is_made_of_the_words_that_are_shown() -> None:
    prompts = [item.prompt for item in iq.generate("multiple_key_retrieval", "en").items]
    shown = re.findall(r"`(Pass key \d is [^`]+|What is pass key [^`]+)`", PAGE.replace("\n", " "))
    assert len(shown) == 2
    for text in shown:
        form = re.sub(r"\\?\d+", r"\\d+", re.escape(text))
        assert any(re.search(form, prompt) for prompt in prompts)


def test_the_papers_scores() -> None:
    rows = re.findall(
        r"(?m)^\| (?:`(\w+)`|\*\*([\w-]+)\*\*) \| (\d*) ?\| ([\d.-]+) \| ([\d.-]+) \| ([\d.-]+) \|$", PAGE
    )
    assert len(rows) == len(paper.TASKS) + len(paper.GROUPS)
    for task, group, items, *scores in rows:
        expected = paper.TASKS[task] if task else paper.GROUPS[group]
        assert scores == ["-" if score is None else f"{score:.2f}" for score in expected]
        assert not task or int(items) == {**TASKS, **SETS}[task].num_items  # type: ignore[attr-defined]


def test_the_share_of_negatives_and_of_last_places() -> None:
    """As the table of columns says; AFQMC's is of the published file."""
    for task, share in (("single_fact", 0.51), ("two_facts", 0.40)):
        items = iq.generate(task, "en", num_items=3000, shots=0)
        assert items.baseline == pytest.approx(share, abs=0.01)
