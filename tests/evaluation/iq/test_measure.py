"""How a model is asked and judged."""

import dataclasses
import json
import math
from collections.abc import Sequence

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq import generated, paper
from flm_jax.evaluation.iq.published import SETS
from flm_jax.evaluation.text_model import Score


class Scripted:
    """Says and scores what it is told to, and notes what it is asked."""

    def __init__(self, outputs: Sequence[str], likelihoods: Sequence[float]) -> None:
        self.outputs, self.likelihoods = list(outputs), list(likelihoods)
        self.asked: list = []

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        self.asked.append(list(pairs))
        return [Score(each, False) for each in self.likelihoods]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        self.asked.append((list(prompts), max_new_tokens, tuple(stop)))
        return self.outputs


SPACE = iq.Space(("ab",))
ITEMS = iq.ItemSet(
    "mine",
    "en",
    "custom",
    0,
    3,
    (
        iq.Item("p", " yes", (" yes", " no"), SPACE),
        iq.Item("q", " 不", (" 是", " 不"), SPACE),
        iq.Item("r", " no", (" yes", " no"), SPACE),
    ),
)


def test_what_is_asked_and_how_it_is_judged() -> None:
    model = Scripted(["yes ", " 不是", "No"], [-2.0, -3.0, -1.0, -1.0, -9.0, -8.0])
    result = iq.measure(model, ITEMS)
    assert model.asked[0] == (["p", "q", "r"], 4 + 8, ("\n",))  # " yes" and " 不" have four bytes
    assert model.asked[1][:2] == [("p", " yes"), ("p", " no")]
    assert result.exact.correct == 1  # space around is nothing, what follows and capitals are something
    assert result.choice.correct == 2  # of equals the first counts
    assert (result.exact.chance, result.choice.chance, result.oracle) == (0.5, 0.5, None)


def test_the_oracle_is_of_generated_tasks_alone() -> None:
    """A set of one's own may be written as one of them is: that does not make it one."""
    items = (iq.Item("Text: a Fine film\nAnswer:", " <sYm1>", (" <sYm1>", " <oTh2>"), SPACE),)
    mine = dataclasses.replace(ITEMS, items=items)
    assert iq.measure(Scripted(["<sYm1>"], [-1.0, -2.0]), mine).oracle is None


@pytest.mark.parametrize("likelihoods", [[math.nan] + [0.0] * 5, [0.0] * 5])
def test_scores_that_are_no_scores(likelihoods: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected a log-likelihood of each of 6 options \(mine\)"):
        iq.measure(Scripted(["", "", ""], likelihoods), ITEMS)


def test_wilsons_interval_by_its_formula() -> None:
    for correct, total in ((0, 10), (7, 10), (150, 300), (300, 300)):
        z, share = 1.959963984540054, correct / total
        middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
        half = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
        found = iq.Rate(correct, total, 0.5).interval
        assert found == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_groups_are_averaged_as_in_the_paper() -> None:
    for group, scores in paper.GROUPS.items():
        tasks = [task for task in paper.TASKS if ({**generated.TASKS, **SETS})[task].group == group]
        for column in range(3):
            values = [paper.TASKS[task][column] for task in tasks]
            if scores[column] is not None:
                assert sum(values) / len(values) == pytest.approx(scores[column], abs=0.011)  # type: ignore[arg-type]


def test_what_the_notes_say_of_the_papers_symbols() -> None:
    for task, made in SETS.items():
        chance = 1 / len(made.labels)
        sigma = math.sqrt(chance * (1 - chance) / made.num_items)
        assert all(score is None or score / 100 < chance + 2 * sigma for score in paper.TASKS[task])


def test_table_and_json_say_the_same() -> None:
    sets = iq.suite(("en",), ["counting", "replace_word", "replace_lowercase", "single_fact"], num_items=20)
    seen: list[str] = []
    results = iq.run(iq.Oracle(), sets, progress=lambda result: seen.append(result.task))
    assert seen == ["counting", "replace_word", "replace_lowercase", "single_fact"]
    written = json.loads(json.dumps(results.to_json()))
    assert [each["exact"]["accuracy"] for each in written["tasks"]] == [1, 1, 1, 1]
    assert written["tasks"][0]["paper_percent"] == {"gpt3": 82.43, "glm_130b": 60.81, "flm_101b": 69.59}
    rule, interference = written["groups"]
    assert (rule["group"], rule["tasks"], rule["of"], rule["exact"]) == ("Rule", 3, 3, 1)
    assert rule["paper_percent"]["flm_101b"] == 76.42
    assert (interference["tasks"], interference["of"], interference["paper_percent"]) == (1, 3, None)
    table = results.table()
    row = next(line for line in table.splitlines() if line.startswith("counting"))
    assert row.split() == ["counting", "en", "20", "0", "100.0", "(83.9-100.0)", "<0.1", "100.0", "(83.9-100.0)",
                           "25.0", "-", "100.0", "82.43", "60.81", "69.59"]  # fmt: skip
    assert "Anti-interference, mean of 1 of 3" in table and "prompts are not published" in table


def test_a_wrong_oracle_would_be_seen() -> None:
    items = iq.generate("counting", "en", num_items=4)
    broken = dataclasses.replace(items.items[0], answer=" 1", options=(" 1", " 2"))
    assert (
        iq.measure(iq.Oracle(), dataclasses.replace(items, items=(broken, *items.items[1:]))).oracle == 0.75
    )


def test_parts_of_the_suite() -> None:
    assert len(iq.suite()) == 18
    assert [each.language for each in iq.suite(("zh",), num_items=2)] == ["zh"] * 9
    with pytest.raises(ValueError, match=r"expected tasks among counting, .*cluewsc2020; found sorting"):
        iq.suite(tasks=["counting", "sorting"])
    with pytest.raises(ValueError, match="expected languages among en, zh; found none"):
        iq.suite(languages=())
    with pytest.raises(
        ValueError, match="expected data_dir, the folder that holds the published files of rte"
    ):
        iq.suite(tasks=["rte"])
    with pytest.raises(ValueError, match="expected a task in one of the languages zh; found boolq"):
        iq.suite(("zh",), tasks=["boolq"], data_dir=".")
