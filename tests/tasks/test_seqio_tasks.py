"""What t5x finds by name: prepared and streamed mixtures, and what a converter makes of them."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flm_jax.tasks import tiny
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.metrics import exact_match, log_likelihood
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary
from tests import prepared_data

SHARES = {"en": 50.0, "zh": 40.0, "instruct": 10.0}
LENGTHS = {"inputs": 32, "targets": 32}


@pytest.fixture(scope="module")
def seqio_tasks() -> Any:
    """The module, which imports TensorFlow."""
    from flm_jax.tasks import seqio_tasks

    return seqio_tasks


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list:
    return prepared_data.tasks(prepared_data.write_texts(tmp_path_factory.mktemp("texts")))


def batches(name: str, lengths: dict[str, int], **how: Any) -> Any:
    """As t5x reads them (`utils.get_dataset_inner`): batches of 4."""
    import seqio

    from flm_jax import LanguageModel, presets

    converter = LanguageModel(presets.flm_tiny()).FEATURE_CONVERTER_CLS(
        pack=how.pop("pack", True), use_custom_packing_ops=False
    )
    settings = {"dataset_split": "train", "shuffle": True, "seed": 0, "num_epochs": None, **how}
    return seqio.get_dataset(
        seqio.get_mixture_or_task(name), lengths, feature_converter=converter, batch_size=4, **settings
    ).as_numpy_iterator()


def test_prepared_batches_are_those_of_the_reader(seqio_tasks: Any, prepared: Path) -> None:
    name = seqio_tasks.prepared(prepared, SHARES, {"targets": 64}, first_sequence=8)
    assert name == seqio_tasks.prepared(prepared, SHARES, {"targets": 64}, first_sequence=8)  # gin asks again
    # A second one of that name would take its place before t5x has read from it.
    with pytest.raises(ValueError, match=r"'prepared' would stand for two things.*prepared\.name"):
        seqio_tasks.prepared(prepared, SHARES, {"targets": 64})
    assert seqio_tasks.prepared(prepared, SHARES, {"targets": 64}, name="another") == "another"
    found = list(itertools.islice(batches(name, {"targets": 64}), 3))
    reader = Reader(prepared, SHARES, 64, seed=0)
    for index, batch in enumerate(found):
        expected = reader.batch(8 + 4 * index, 4)
        assert set(batch) == set(expected)
        assert all(np.array_equal(batch[feature], expected[feature]) for feature in batch)


def test_held_out_tasks_are_evaluated_one_by_one(seqio_tasks: Any, prepared: Path) -> None:
    """As t5x does: each task of the mixture, not shuffled, once."""
    import seqio

    mixture = seqio.get_mixture_or_task(seqio_tasks.held_out(prepared, SHARES, 64))
    names = {task.name for task in seqio.get_subtasks(mixture)}
    assert names == {"en_held_out", "zh_held_out", "instruct_held_out"}
    task = PreparedTask(prepared / "en")
    rows = seqio.TaskRegistry.get("en_held_out").get_dataset(
        {"targets": 64}, split="validation", shuffle=False
    )
    assert sum(1 for _ in rows) == task.num_sequences("validation")
    # The mixture as a whole too, whose tasks must have one tokenizer.
    assert next(batches("held_out", {"targets": 64}, dataset_split="validation", shuffle=False))


def test_streamed_shares_of_tokens(
    seqio_tasks: Any, tasks: list, prepared: Path, vocabulary: Vocabulary
) -> None:
    """Within 3 points, by tokens of each kind of text; the document lengths of the three differ tenfold."""
    import seqio

    name = seqio_tasks.streamed(tasks, vocabulary, SHARES, LENGTHS)
    mixture = seqio.get_mixture_or_task(name)
    examples = mixture.get_dataset(LENGTHS, split="train", shuffle=False, seed=0, num_epochs=None)
    counts = dict.fromkeys(SHARES, 0)
    for example in itertools.islice(examples.as_numpy_iterator(), 3000):
        text = vocabulary.decode(example["targets"])
        kind = "instruct" if len(example["inputs"]) else "en" if text.isascii() else "zh"
        counts[kind] += len(example["inputs"]) + len(example["targets"])
    total = sum(counts.values())
    assert {kind: count / total * 100 for kind, count in counts.items()} == pytest.approx(SHARES, abs=3)


def test_streamed_batches(seqio_tasks: Any, tasks: list, vocabulary: Vocabulary) -> None:
    """Packed to both lengths together, with the loss on responses only."""
    batch = next(batches(seqio_tasks.streamed(tasks, vocabulary, "instruct", LENGTHS, name="few"), LENGTHS))
    assert batch["decoder_target_tokens"].shape == (4, 64)
    assert batch["decoder_segment_ids"].max() > 1
    for weights, segments in zip(batch["decoder_loss_weights"], batch["decoder_segment_ids"], strict=True):
        for segment in range(1, segments.max() + 1):
            inside = weights[segments == segment]
            assert inside[0] == 0 and inside[-1] == 1 and (np.diff(inside) >= 0).all()


def test_questions_are_the_tasks_with_prompts(seqio_tasks: Any, tasks: list, vocabulary: Vocabulary) -> None:
    import seqio

    mixture = seqio.get_mixture_or_task(seqio_tasks.questions(tasks, vocabulary, SHARES, LENGTHS))
    (task,) = seqio.get_subtasks(mixture)
    assert task.name == "instruct_questions" and len(task.metric_fns) == 2
    batch = next(batches("questions", LENGTHS, pack=False, shuffle=False, dataset_split="validation"))
    assert "decoder_segment_ids" not in batch and batch["decoder_causal_attention"].any()
    with pytest.raises(ValueError, match=r"expected instruction tasks.*MIXTURE_OR_TASK_NAME"):
        seqio_tasks.questions(tasks, vocabulary, {"en": 1.0}, LENGTHS)
    # Half a question is no question.
    few = {"inputs": 32, "targets": 3}
    with pytest.raises(Exception, match=r"targets of at most 3 tokens in task .*instruct.*INFER_LENGTHS"):
        next(batches("questions", few, pack=False, shuffle=False, dataset_split="validation"))


def test_mistakes_are_named(
    seqio_tasks: Any, tasks: list, vocabulary: Vocabulary, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"found \['fr'\].*MIXTURE_OR_TASK_NAME.*TASKS"):
        seqio_tasks.streamed(tasks, vocabulary, {"en": 1, "fr": 1}, LENGTHS)
    with pytest.raises(ValueError, match=r"stream task 'instruct', found \{'targets': 64\}"):
        seqio_tasks.streamed(tasks, vocabulary, SHARES, {"targets": 64})
    with pytest.raises(FileNotFoundError, match="PREPARED_DIR"):
        seqio_tasks.prepared(tmp_path, SHARES, 64)
    empty = Corpus("empty", JsonLines(str(prepared_data.write_jsonl(tmp_path / "x.jsonl", []))))
    with pytest.raises(ValueError, match=r"expected documents .* of task 'empty'"):
        seqio_tasks.mean_length(empty, vocabulary, LENGTHS)


def test_the_vocabulary_is_that_of_the_tasks(seqio_tasks: Any, tasks: list, vocabulary: Vocabulary) -> None:
    """t5x compares them; seqio's are the same if their files are."""
    import seqio

    seqio_tasks.questions(tasks, vocabulary, "instruct", LENGTHS)
    features = seqio.TaskRegistry.get("instruct_questions").output_features
    assert features["targets"].vocabulary == seqio_tasks.vocabulary(vocabulary.path)


def test_metrics() -> None:
    assert exact_match(["a", "b", "c"], ["a ", "x", "c"]) == {"exact_match": pytest.approx(2 / 3)}
    assert log_likelihood(["a", "b"], [-1.0, -2.0]) == {"log_likelihood": -1.5}


@pytest.mark.parametrize(
    ("number", "english", "chinese"),
    [(0, "zero", "零"), (10, "ten", "十"), (17, "seventeen", "十七"), (38, "thirty-eight", "三十八")],
)
def test_tiny_numbers(number: int, english: str, chinese: str) -> None:
    assert (tiny.english(number), tiny.chinese(number)) == (english, chinese)


def test_tiny_data_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tiny.text(str(tmp_path), name) for name in ("en", "zh", "instruct")]
    model = Vocabulary(tiny.tokenizer(str(tmp_path)))
    made = [Corpus("en", JsonLines(paths[0])), Corpus("zh", JsonLines(paths[1]))]

    def prepare() -> str:
        return tiny.prepared(str(tmp_path), made, model, {"targets": 64})

    folder = prepare()
    assert PreparedTask(Path(folder) / "en").counts("train").documents == 400
    refuse: Callable[..., None] = lambda *arguments: pytest.fail("made again")  # noqa: E731
    monkeypatch.setattr(tiny, "prepare", refuse)
    monkeypatch.setattr(tiny, "train_tokenizer_from_files", refuse)
    assert prepare() == folder and tiny.tokenizer(str(tmp_path)) == str(model.path)
