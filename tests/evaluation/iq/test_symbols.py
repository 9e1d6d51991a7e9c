"""Published sets with symbols for labels."""

import re
from collections import Counter
from pathlib import Path

import pytest

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq import published, rows
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.symbols import symbols
from tests.evaluation.iq.published_files import SETS, write, write_all

SYMBOL = re.compile(r"<[^<>\s]{8}>")
NUM_ITEMS = 20


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("published"))


def read_back(prompt: str) -> tuple[str, list[tuple[str, str]], str]:
    """Instruction, shots with their symbols, and what is asked."""
    intro, *shots, asked = prompt.split("\n\n")
    split = [re.split(r"\n(?:Answer: |答案：)", shot) for shot in shots]
    return intro, [(text, symbol) for text, symbol in split], re.sub(r"\n(?:Answer:|答案：)$", "", asked)


def test_symbols_are_fresh_strings() -> None:
    drawn = [symbols(Draws("symbols", seed), 3) for seed in range(200)]
    assert all(SYMBOL.fullmatch(symbol) for each in drawn for symbol in each)
    assert len({symbol for each in drawn for symbol in each}) == 600
    assert all(len({symbol[1] for symbol in each}) == 3 for each in drawn)


@pytest.mark.parametrize(("task", "row"), [(each[0], each[-1]) for each in SETS])
def test_a_published_set(task: str, row, data_dir: Path) -> None:
    """Every symbol stands for one label, in shots and answers, and no row is its own shot."""
    items = published.load(task, data_dir, num_items=NUM_ITEMS)
    made = published.SETS[task]
    meanings = {}
    for number in (*range(40), *range(1000, 1040)):
        label = row(number)["label"]
        meanings[made._text(rows.Row(row(number), "", ""))] = str(label).lower()
    labels = {}
    for item in items.items:
        intro, shots, asked = read_back(item.prompt)
        assert intro.startswith(made.instruction) and set(SYMBOL.findall(intro)) == {
            option.strip() for option in item.options
        }
        assert Counter(Counter(symbol for _, symbol in shots).values()) == {2: len(made.labels)}
        assert len({asked, *(text for text, _ in shots)}) == len(shots) + 1
        for text, symbol in (*shots, (asked, item.answer.strip())):
            assert labels.setdefault(symbol, meanings[text]) == meanings[text]
    assert set(labels.values()) == set(made.labels)  # and none of those that are skipped
    assert items.shots == 2 * len(made.labels) and len(items.items) == NUM_ITEMS
    assert items.exact_chance == pytest.approx(1 / len(made.labels)) == items.choice_chance
    assert items.baseline == max(Counter(item.answer for item in items.items).values()) / NUM_ITEMS


def test_sets_are_the_same_for_a_seed_and_fresh_for_another(data_dir: Path) -> None:
    first, again, other = (published.load("rte", data_dir, seed, 10) for seed in (0, 0, 1))
    assert first == again
    assert not {*first.items[0].options} & {*other.items[0].options}


def test_the_suite_takes_the_sets_that_are_there(data_dir: Path, tmp_path: Path) -> None:
    sets = iq.suite(num_items=10, data_dir=data_dir)
    assert [each.task for each in sets[18:]] == [each[0] for each in SETS]
    results = iq.run(iq.Guesser(sets), sets)
    means = {(each.group, each.language): (each.tasks, each.of) for each in results.groups()}
    assert means["SuperGLUE-IQ", "en"] == means["CLUE-IQ", "zh"] == (4, 4)
    assert all(each.oracle is None for each in results.tasks[18:])
    row = next(line for line in results.table().splitlines() if line.startswith("afqmc"))
    assert f"{100 * sets[22].baseline:.1f}" in row.split()  # type: ignore[operator]
    assert [each.task for each in iq.suite(("zh",), num_items=5, data_dir=data_dir)[9:]] == [
        "afqmc", "csl", "ocnli", "cluewsc2020"]  # fmt: skip
    with pytest.raises(
        FileNotFoundError, match="expected rte's published files in a folder rte or rte_public"
    ):
        iq.suite(tasks=["rte"], data_dir=tmp_path)
    with pytest.raises(FileNotFoundError):
        iq.suite(data_dir=tmp_path / "nowhere")


def test_a_row_that_is_in_both_files_is_not_its_own_shot(tmp_path: Path) -> None:
    row = SETS[0][-1]
    same = [row(number) for number in range(6)]
    evaluation, train = write(tmp_path / "val.jsonl", same), write(tmp_path / "train.jsonl", same * 2)
    for item in published.SETS["boolq"].items(evaluation, train, shots_per_label=1).items:
        _, shots, asked = read_back(item.prompt)
        assert asked not in [text for text, _ in shots]
    with pytest.raises(
        ValueError, match=r"expected at least 2 other rows of each label .* found 1 in .*train.jsonl"
    ):
        published.SETS["boolq"].items(evaluation, train, shots_per_label=2)
    with pytest.raises(
        ValueError, match=r"found 0 left in .*val.jsonl beside the 6 asked: give a training file"
    ):
        published.SETS["boolq"].items(evaluation)


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    own = iq.Classification(
        "mood",
        "en",
        "Say how it sounds.",
        "Review: {text}",
        ("good", "bad"),
        label_field="meta[mood]",
        num_items=4,
    )
    reviews = [
        {"text": f"No. {number}", "meta": {"mood": ("good", "bad")[number % 2]}} for number in range(12)
    ]
    items = own.items(write(tmp_path / "mine.jsonl", reviews))
    assert (items.task, items.group, len(items.items), items.shots) == ("mood", "custom", 4, 4)
    assert "mood" in iq.run(iq.Guesser([items]), [items]).table()
    for wrong, message in (
        ({"language": "fr"}, "expected Classification.language to be en or zh; found 'fr'"),
        ({"template": "Review"}, "expected a field in Classification.template"),
        ({"template": "{text"}, "Classification.template"),
        ({"labels": ("good",)}, "expected two different Classification.labels or more"),
    ):
        fields = {
            "task": "mood",
            "language": "en",
            "instruction": "Say.",
            "template": "{text}",
            "labels": ("a", "b"),
        }
        with pytest.raises(ValueError, match=message):
            iq.Classification(**{**fields, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="found num_items = 4 and shots_per_label = 0"):
        own.items(tmp_path / "mine.jsonl", shots_per_label=0)
