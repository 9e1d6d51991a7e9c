import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.model import LanguageModel
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.examples import tokenize
from flm_jax.tasks.packing import cut, features, pack
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask, evaluation_batches
from flm_jax.tasks.problems import Problem
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.sources import JsonLines, Problems
from flm_jax.tasks.teacher import Classification, MultipleChoice, Teacher
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.held_out import HeldOutEvaluator
from tests.models import random_params, small_config
from tests.prepared_data import write_jsonl

pytestmark = pytest.mark.usefixtures("quick_compilation")

TRUE, FALSE = "😈", "😡"
SENTIMENT = {"positive": "{text}\n这条评论是正面的。", "negative": "{text}\n这条评论是负面的。"}
PAIRS = {
    label: f"{{sentence1}}\n{{sentence2}}\n后一句与前一句{relation}。"
    for label, relation in {"entailment": "一致", "neutral": "无关", "contradiction": "矛盾"}.items()
}


def sentiment(path: Path | str = "x.jsonl", **settings: Any) -> Classification:
    settings = {"name": "sentiment", "statements": SENTIMENT, **settings}
    return Classification(source=JsonLines(str(path), fields=None), **settings)


def choices(**settings: Any) -> MultipleChoice:
    return MultipleChoice("choices", JsonLines("x.jsonl", fields=None), **settings)


def signals(task: Teacher, document: dict[str, Any]) -> dict[str, str]:
    """Statement to label."""
    found = {}
    for (turn,) in task.examples(document):
        assert not turn.ends
        assert turn.only_last == (task.supervise == "last")
        assert turn.inputs not in found
        found[turn.inputs] = turn.targets
    return found


def rows_of(task: Any, vocabulary: Vocabulary, length: int) -> dict[str, np.ndarray]:
    """The batch that a task's documents become."""
    tokens = [
        tokenize(example, vocabulary)
        for document in task.read("train", Problems())
        for example in document.examples
    ]
    rows = list(pack((part for ids, weights in tokens for part in cut(ids, weights, length)), length))
    return features(
        *(np.stack([getattr(row, name) for row in rows]) for name in rows[0].__dataclass_fields__)
    )


def reviews(path: Path, count: int) -> Path:
    words = ["ka lo", "mi", "tan re su", "天地", "人 山水", "vor"]
    records = [
        {"text": f"{words[number % 6]} {number}", "label": "positive" if number % 3 else "negative"}
        for number in range(count)
    ]
    return write_jsonl(path, records)


def test_the_statement_of_the_label_is_true_and_another_false() -> None:
    document = {"text": "值 {得}", "label": "negative"}
    positive, negative = "值 {得}\n这条评论是正面的。", "值 {得}\n这条评论是负面的。"
    assert signals(sentiment(), document) == {positive: FALSE, negative: TRUE}
    swapped = sentiment(true_label=FALSE, false_label=TRUE)
    assert signals(swapped, document) == {positive: TRUE, negative: FALSE}
    words = sentiment(
        true_label="对", false_label="错", label="meta[stars]", statements={1: "{text}差", 5: "{text}好"}
    )
    assert signals(words, {"text": "a", "meta": {"stars": 5}}) == {"a好": "对", "a差": "错"}


def test_pairs() -> None:
    document = {"sentence1": "a", "sentence2": "b", "label": "neutral"}
    task = sentiment(statements=PAIRS, num_false=-1)
    assert signals(task, document) == {
        "a\nb\n后一句与前一句一致。": FALSE,
        "a\nb\n后一句与前一句无关。": TRUE,
        "a\nb\n后一句与前一句矛盾。": FALSE,
    }
    one = signals(sentiment(statements=PAIRS), document)
    assert Counter(one.values()) == {TRUE: 1, FALSE: 1}
    assert one["a\nb\n后一句与前一句无关。"] == TRUE


@pytest.mark.parametrize(
    ("settings", "document"),
    [
        ({}, {"choices": ["p", "q", "r"], "answer": 1}),
        ({"answer_is": "name"}, {"choices": ["p", "q", "r"], "answer": "B"}),
        ({"answer_is": "name"}, {"choices": ["p", "q", "r"], "answer": "2"}),
        ({"answer_is": "text"}, {"choices": ["p", "q", "r"], "answer": "q"}),
        (
            {"choices": "choices[text]", "answer": "answerKey", "answer_is": "name"},
            {"choices": {"text": ["p", "q", "r"], "label": ["A", "B", "C"]}, "answerKey": "B"},
        ),
    ],
)
def test_multiple_choice(settings: dict[str, Any], document: dict[str, Any]) -> None:
    document = {"question": "Which?", **document}
    all_of_them = signals(choices(num_false=-1, **settings), document)
    assert all_of_them == {"Which?\np\n": FALSE, "Which?\nq\n": TRUE, "Which?\nr\n": FALSE}
    two = signals(choices(**settings), document)
    assert two.items() < all_of_them.items()
    assert Counter(two.values()) == {TRUE: 1, FALSE: 1}


def test_the_false_statement_and_the_order_follow_from_the_document_alone() -> None:
    documents = [{"question": str(n), "choices": ["p", "q", "r", "s"], "answer": n % 4} for n in range(400)]
    task, again = choices(), choices()
    chosen, first = Counter(), Counter()
    for document in documents:
        found = task.examples(document)
        assert again.examples(dict(reversed(document.items()))) == found
        (false,) = (turn.inputs for (turn,) in found if turn.targets == FALSE)
        chosen["pqrs".index(false.split("\n")[1]) - document["answer"]] += 1
        first[found[0][0].targets] += 1
    # Neither the place of a choice nor the order tells what is true: 400 draws, four standard deviations.
    assert all(abs(first[label] - 200) < 40 for label in (TRUE, FALSE))
    places = Counter({place % 4: 0 for place in (1, 2, 3)})
    for place, count in chosen.items():
        places[place % 4] += count
    assert all(abs(count - 400 / 3) < 4 * (400 * 2 / 9) ** 0.5 for count in places.values())


def test_the_loss_is_on_the_label_token_by_token(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "ka", "label": "positive"}])
    batch = rows_of(sentiment(path), vocabulary, 128)
    tokens, weights, segments = (
        batch[f"decoder_{name}"][0] for name in ("target_tokens", "loss_weights", "segment_ids")
    )
    for segment in (1, 2):
        mine = tokens[segments == segment].tolist()
        statement, label = vocabulary.decode(mine[:-1]), vocabulary.decode(mine[-1:])
        assert label == (TRUE if "正面" in statement else FALSE)
        assert mine == vocabulary.encode(statement) + vocabulary.encode(label)  # without eos
        assert weights[segments == segment].tolist() == [0] * (len(mine) - 1) + [1]
    assert weights.sum() == 2


@pytest.mark.parametrize(("supervise", "loss"), [("last", [0, 0, 0, 1]), ("all", [1, 1, 1, 1])])
def test_labels_of_several_tokens(supervise: str, loss: list[int], vocabulary: Vocabulary) -> None:
    # U+1F44D and U+1F44E are four byte pieces each, of which the last differs: as the emoji are in cl100k.
    task = sentiment(true_label="👍", false_label="👎", supervise=supervise)
    task.check(vocabulary)
    for example in task.examples({"text": "ka", "label": "positive"}):
        ids, weights = tokenize(example, vocabulary)
        before = len(vocabulary.encode(example[0].inputs))
        assert ids[before:].tolist() == vocabulary.encode(example[0].targets)
        assert weights.tolist() == [0] * before + loss


def test_labels_that_the_tokenizer_cannot_tell_apart(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = reviews(tmp_path / "x.jsonl", 10)
    same_end = {"true_label": "ka\x07", "false_label": "lo\x07"}  # the loss would be on \x07
    sentiment(supervise="all", **same_end).check(vocabulary)
    task = sentiment(path, **same_end)
    message = r"labels of task 'sentiment' to differ.*Classification\.true_label.*Classification\.supervise"
    with pytest.raises(ValueError, match=message):
        prepare([task], vocabulary, 64, tmp_path / "out")
    with pytest.raises(ValueError, match=message):
        task.seqio_task(vocabulary)


@given(labels=st.lists(st.sampled_from(["positive", "negative"]), min_size=1, max_size=30))
def test_labels_are_balanced_whatever_the_classes(labels: list[str]) -> None:
    task = sentiment()
    found = Counter(
        label
        for number, value in enumerate(labels)
        for label in signals(task, {"text": str(number), "label": value}).values()
    )
    assert found == {TRUE: len(labels), FALSE: len(labels)}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, vocabulary: Vocabulary) -> Path:
    """A corpus and a teacher task, prepared."""
    folder = tmp_path_factory.mktemp("mixed")
    texts = write_jsonl(folder / "text.jsonl", [{"text": "ka lo mi 天地 " * (n % 7 + 1)} for n in range(40)])
    path = reviews(folder / "reviews.jsonl", 60)
    teacher = Classification(
        "sentiment", JsonLines(str(path), None, validation_every=6), statements=SENTIMENT
    )
    prepare([Corpus("text", JsonLines(str(texts))), teacher], vocabulary, 64, folder / "out")
    return folder / "out"


def test_prepared_and_mixed_with_language_data(mixed: Path, vocabulary: Vocabulary) -> None:
    reader = Reader(mixed, {"text": 1, "sentiment": 1}, 64, seed=0)
    counts = reader.tasks["sentiment"].counts("train")
    assert (counts.documents, counts.examples, counts.loss_tokens) == (50, 100, 100)
    labels = {vocabulary.encode(label)[0] for label in (TRUE, FALSE)}
    batch = reader.batch(0, 16)
    kinds = Counter()
    for tokens, weights, segments in zip(
        batch["decoder_target_tokens"],
        batch["decoder_loss_weights"],
        batch["decoder_segment_ids"],
        strict=True,
    ):
        is_label = np.isin(tokens, list(labels))
        kinds["teacher" if is_label.any() else "language"] += 1
        # In a teacher's row the loss is on the labels and nowhere else; elsewhere on every token.
        assert (weights == (is_label if is_label.any() else segments > 0)).all()
    assert min(kinds.values()) >= 4


def test_no_gradient_beside_the_labels(mixed: Path, vocabulary: Vocabulary) -> None:
    reader = Reader(mixed, {"text": 1, "sentiment": 1}, 64, seed=0)
    batch = {name: jnp.asarray(values) for name, values in reader.batch(0, 6).items()}
    model = LanguageModel(small_config(vocab_size=vocabulary.size), z_loss=1e-2)
    logits = jax.random.normal(jax.random.key(0), (6, 64, vocabulary.size))

    def loss(logits: jax.Array) -> jax.Array:
        sums = model.sums_of(logits, batch)
        return sums.total

    size = np.asarray(jnp.abs(jax.grad(loss)(logits)).max(-1))  # [batch, length]
    labels = np.isin(batch["decoder_target_tokens"], [vocabulary.encode(label)[0] for label in (TRUE, FALSE)])
    teacher = labels.any(axis=1)
    assert 0 < teacher.sum() < len(teacher)
    assert (size[teacher][~labels[teacher]] == 0.0).all()
    assert (size[labels] > 1e-3).all()
    assert (size[~teacher][np.asarray(batch["decoder_segment_ids"])[~teacher] > 0] > 0).all()


def test_held_out_accuracy_is_that_of_the_labels(mixed: Path, vocabulary: Vocabulary) -> None:
    task = PreparedTask(mixed / "sentiment")
    config = small_config(vocab_size=vocabulary.size)
    model, params = LanguageModel(config), random_params(config)
    true, false = (vocabulary.encode(label)[0] for label in (TRUE, FALSE))
    # A readout that says one of the two labels, whichever way the hidden state points.
    table = params["token_embedding"]["embedding"]
    params["token_embedding"]["embedding"] = table.at[true].multiply(30.0).at[false].set(-30.0 * table[true])
    logits, right, statements = jax.jit(model.logits), 0, 0
    for batch in evaluation_batches(task, "validation", 4):
        guess = np.asarray(logits(params, batch)).argmax(-1)
        at = np.isin(batch["decoder_target_tokens"], [true, false])
        right += int((guess == batch["decoder_target_tokens"])[at].sum())
        statements += int(at.sum())
    mesh = MeshShape(data=1).build(jax.devices()[:1])
    found = HeldOutEvaluator(model, mesh, [task], batch_size=4)(params)
    assert found is not None
    assert statements == 20
    assert 0 < right < 20
    assert found["sentiment"].tokens == statements
    assert found["sentiment"].accuracy == pytest.approx(right / statements)


def test_streamed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    task = sentiment(reviews(tmp_path / "x.jsonl", 5), name="sentiment_streamed")
    expected = []
    for document in task.read("train", Problems()):
        for example in document.examples:
            ids, weights = tokenize(example, vocabulary)
            expected.append((ids[weights == 0].tolist(), ids[weights == 1].tolist()))
    assert len(expected) == 10
    streamed = task.seqio_task(vocabulary)

    def read(lengths: dict[str, int] | None) -> list[tuple[list[int], list[int]]]:
        examples = streamed.get_dataset(lengths, "train", shuffle=False).as_numpy_iterator()
        return [(example["inputs"].tolist(), example["targets"].tolist()) for example in examples]

    assert read(None) == expected
    # Half of a statement is no statement: what has no room is left out, as `prepare` does.
    room = sorted(len(inputs) for inputs, _ in expected)[4]
    short = [pair for pair in expected if len(pair[0]) <= room]
    assert read({"inputs": room, "targets": 4}) == short
    assert 0 < len(short) < 10


def test_what_is_longer_than_a_sequence_is_left_out_and_counted(
    tmp_path: Path, vocabulary: Vocabulary
) -> None:
    records = [{"text": "ka", "label": "positive"}, {"text": "ka lo mi " * 40, "label": "positive"}]
    path = write_jsonl(tmp_path / "x.jsonl", records)
    manifest = prepare([sentiment(path)], vocabulary, 64, tmp_path / "out")["sentiment"]
    assert manifest.splits["train"].loss_tokens == 2
    removed = manifest.problems["removed"]["longer than a sequence"]
    assert removed["count"] == 1  # the document, with both of its statements
    assert removed["places"][0].startswith(f"{path}:2: an example of ")


def test_the_definition(tmp_path: Path) -> None:
    path = reviews(tmp_path / "x.jsonl", 3)
    task = sentiment(path)
    first = task.fingerprint()
    assert json.loads(json.dumps(first)) == first
    for settings in ({"num_false": 2}, {"supervise": "all"}, {"true_label": "对"}, {"statements": PAIRS}):
        assert sentiment(path, **settings).fingerprint() != first
    assert pickle.loads(pickle.dumps(task)) == task


def test_one_statement_for_two_classes() -> None:
    """Its truth is the class: a text has one statement, and not both of a pair."""
    path = Path("x.jsonl")
    task = sentiment(path, statements={"positive": "{text} good ", "negative": None})
    for label, truth in (("positive", "😈"), ("negative", "😡")):
        ((turn,),) = task.examples({"text": "ka lo", "label": label})
        assert (turn.inputs, turn.targets) == ("ka lo good ", truth)
    with pytest.raises(Problem, match="one of the labels"):
        task.examples({"text": "ka lo", "label": None})
    with pytest.raises(ValueError, match=r"at least two labels.*Classification\.statements"):
        sentiment(path, statements={"positive": None, "negative": None})


def test_a_label_may_weigh_more_than_a_token_of_language(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "ka", "label": "positive"}])
    manifest = prepare([sentiment(path, weight=200)], vocabulary, 64, tmp_path / "out")["sentiment"]
    assert manifest.splits["train"].loss_tokens == 2
    (weights,) = Reader(tmp_path / "out", "sentiment", 64, 0).batch(0, 1)["decoder_loss_weights"]
    assert sorted(weights.tolist()) == [0] * 62 + [200] * 2
    for wrong in (0, 256, 1.5):
        with pytest.raises(ValueError, match=r"weight of 1 to 255.*Classification\.weight"):
            sentiment(path, weight=wrong)
