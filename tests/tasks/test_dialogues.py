import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks import formats
from flm_jax.tasks.dialogues import Dialogues
from flm_jax.tasks.examples import tokenize
from flm_jax.tasks.formats import Message
from flm_jax.tasks.packing import cut, features, pack
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.problems import Problem
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.sources import JsonLines, PlainText, Problems
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary
from tests.prepared_data import write_jsonl

PROMPT = "问：{user}\n答："


def listed(record: Any) -> list[Message]:
    """A format of the tests' own."""
    return [Message(*message) for message in record["messages"]]


def task(path: Path | str = "x.jsonl", **settings: Any) -> Dialogues:
    settings = {"name": "chat", "format": listed, "prompt": PROMPT, "system": "{system}\n", **settings}
    return Dialogues(source=JsonLines(str(path), fields=None), **settings)


def turns(*messages: tuple[str, str]) -> list[tuple[str, str]]:
    (example,) = task().examples({"messages": messages})
    assert all(turn.ends and not turn.only_last for turn in example)
    return [(turn.inputs, turn.targets) for turn in example]


def batch_of(path: Path, vocabulary: Vocabulary, length: int, **settings: Any) -> dict[str, np.ndarray]:
    """The one row that a file's documents become."""
    documents = task(path, **settings).read("train", Problems())
    tokens = [tokenize(example, vocabulary) for document in documents for example in document.examples]
    (row,) = pack((part for ids, weights in tokens for part in cut(ids, weights, length)), length)
    return features(row.tokens[None], row.segment_ids[None], row.loss_weights[None])


def trained(batch: dict[str, np.ndarray]) -> list[int]:
    return batch["decoder_target_tokens"][batch["decoder_loss_weights"] == 1].tolist()


def test_one_turn_token_by_token(tmp_path: Path, vocabulary: Vocabulary) -> None:
    record = {"instruction": "ka {lo}", "input": "天地", "output": "mi 人"}
    path = write_jsonl(tmp_path / "x.jsonl", [record])
    batch = batch_of(path, vocabulary, 96, format=formats.alpaca)
    asked, said = vocabulary.encode("问：ka {lo}\n天地\n答："), [*vocabulary.encode("mi 人"), EOS_ID]
    rest = 96 - len(asked) - len(said)
    assert batch["decoder_target_tokens"][0].tolist() == asked + said + [0] * rest
    assert batch["decoder_loss_weights"][0].tolist() == [0] * len(asked) + [1] * len(said) + [0] * rest
    # What predicts the first token of the response is the last token of the prompt.
    assert batch["decoder_input_tokens"][0, len(asked)] == asked[-1]


def test_several_turns_token_by_token(tmp_path: Path, vocabulary: Vocabulary) -> None:
    chat = [("system", "ne"), ("user", "ka"), ("assistant", "天"), ("user", "lo"), ("assistant", "地")]
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": chat}])  # type: ignore[dict-item]
    batch = batch_of(path, vocabulary, 64)
    parts = [("ne\n问：ka\n答：", 0), ("天", 1), ("问：lo\n答：", 0), ("地", 1)]
    ids, weights = [], []
    for text, weight in parts:
        found = vocabulary.encode(text) + [EOS_ID] * weight
        ids, weights = ids + found, weights + [weight] * len(found)
    rest = [0] * (64 - len(ids))
    assert batch["decoder_target_tokens"][0].tolist() == ids + rest
    assert batch["decoder_loss_weights"][0].tolist() == weights + rest
    # One document: the second response is read behind the first.
    assert set(batch["decoder_segment_ids"][0, : len(ids)]) == {1}


def test_templates_have_no_loss_in_either_language(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"inputs": "ka", "targets": "mi"}])
    for prompt in ("{user}\n", "问：{user}\n答：", "### Question {{1}}\n{user}\n### Answer\n"):
        batch = batch_of(path, vocabulary, 64, format=formats.flan, prompt=prompt)
        assert trained(batch) == [*vocabulary.encode("mi"), EOS_ID]
        text = vocabulary.decode(batch["decoder_target_tokens"][0])
        assert text == prompt.format(user="ka") + "mi"


def test_what_is_not_question_and_answer_in_turn() -> None:
    asked, said = ("user", "a"), ("assistant", "b")
    assert turns(asked, ("user", "c"), said) == [("问：a\nc\n答：", "b")]
    assert turns(asked, said, ("assistant", "c")) == [("问：a\n答：", "b\nc")]
    assert turns(asked, said, ("user", "nobody answers"), ("system", "x")) == [("问：a\n答：", "b")]
    assert turns(("system", " "), asked, said) == [("问：a\n答：", "b")]
    assert turns(asked, said, ("system", "s"), asked, said)[1] == ("s\n问：a\n答：", "b")
    for messages, message in [
        ([said, asked, said], "no question .* before it"),
        ([("system", "s"), said], "no question .* before it"),
        ([asked, said, ("system", "s"), said], "no question .* before it"),
        ([asked, ("assistant", "\n")], r"role 'assistant' is empty \(message 1"),
        ([("user", ""), said], r"role 'user' is empty \(message 0"),
        ([asked], "there is no response"),
        ([], "there is no response"),
        ([("tool", "x"), asked, said], r"found 'tool' \(message 0\)"),
    ]:
        with pytest.raises(Problem, match=message):
            turns(*messages)


TEXT = st.text("ab天 {}\n<>", min_size=1, max_size=6).filter(lambda text: text.strip())
ROUNDS = st.lists(
    st.tuples(st.booleans(), st.lists(TEXT, min_size=1, max_size=2), TEXT), min_size=1, max_size=4
)


@given(rounds=ROUNDS, length=st.integers(2, 40))
def test_the_tokens_with_loss_are_the_responses(rounds: list, length: int, vocabulary: Vocabulary) -> None:
    messages = []
    for has_system, asked, said in rounds:
        messages += (
            [("system", "s")] * has_system + [("user", text) for text in asked] + [("assistant", said)]
        )
    (example,) = task().examples({"messages": messages})
    ids, weights = tokenize(example, vocabulary)
    responses = [[*vocabulary.encode(said), EOS_ID] for _, _, said in rounds]
    assert ids[weights == 1].tolist() == [token for response in responses for token in response]
    ends = np.flatnonzero(ids == EOS_ID)
    assert [vocabulary.decode(part[mask == 1]) for part, mask in _split(ids, weights, ends)] == [
        said for _, _, said in rounds
    ]
    rows = list(pack(cut(ids, weights, length), length))  # chunks of one document, in any rows
    assert sum(int(row.loss_weights.sum()) for row in rows) == sum(map(len, responses))


def _split(ids: np.ndarray, weights: np.ndarray, ends: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(zip(np.split(ids, ends + 1)[:-1], np.split(weights, ends + 1)[:-1], strict=True))


CHATS = [
    [("system", "ne"), ("user", "ka lo"), ("assistant", "天地"), ("user", "mi"), ("assistant", "人 山")],
    [("user", "tan"), ("assistant", "re su")],
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    bad = [{"messages": [("user", "ka")]}, {"messages": [("assistant", "ka")]}]
    return write_jsonl(tmp_path / "chats.jsonl", [*({"messages": chat} for chat in CHATS), *bad])  # type: ignore


def test_prepared_and_read(chats: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    # Spawned processes: the task is pickled, and its format found again by its name.
    out = tmp_path / "out"
    manifest = prepare([task(chats)], vocabulary, 64, out, shard_bytes=100, num_workers=2, max_bad_share=0.5)[
        "chat"
    ]
    assert manifest.problems["count"] == 2
    assert manifest.problems["places"] == [
        f"{chats}:3: there is no response (role 'assistant')",
        f"{chats}:4: a response (role 'assistant') has no question (role 'user') before it",
    ]
    responses = [text for chat in CHATS for role, text in chat if role == "assistant"]
    expected = sorted([*vocabulary.encode(text), EOS_ID] for text in responses)
    counts = manifest.splits["train"]
    assert (counts.documents, counts.loss_tokens) == (2, sum(map(len, expected)))
    batch = Reader(out, "chat", 64, seed=0).batch(0, counts.sequences)
    tokens = np.array(trained(batch))
    found = [part.tolist() for part in np.split(tokens, np.flatnonzero(tokens == EOS_ID) + 1)[:-1]]
    assert sorted(found) == expected


def test_streamed_each_response_once_behind_the_same_tokens(chats: Path, vocabulary: Vocabulary) -> None:
    streamed = task(chats, name="chat_streamed")
    dataset = streamed.seqio_task(vocabulary).get_dataset(None, "train", shuffle=False)
    found = [
        (example["inputs"].tolist(), example["targets"].tolist()) for example in dataset.as_numpy_iterator()
    ]
    expected = []
    for document in streamed.read("train", Problems()):
        for example in document.examples:
            ids, weights = tokenize(example, vocabulary)
            starts = np.flatnonzero(np.diff(weights, prepend=0) == 1)
            ends = np.flatnonzero((ids == EOS_ID) & (weights == 1)) + 1
            expected += [
                (ids[:start].tolist(), ids[start:end].tolist())
                for start, end in zip(starts, ends, strict=True)
            ]
    assert found == expected
    assert len(found) == 3


def test_questions_ask_each_turn(chats: Path, vocabulary: Vocabulary) -> None:
    asked = task(chats, name="chat_asked").questions(vocabulary)
    assert asked.name == "chat_asked_questions"
    texts = [
        (example["inputs_pretokenized"].decode(), example["targets_pretokenized"].decode())
        for example in asked.get_dataset(None, "train", shuffle=False).as_numpy_iterator()
    ]
    assert texts == [
        ("ne\n问：ka lo\n答：", "天地"),
        ("ne\n问：ka lo\n答：天地问：mi\n答：", "人 山"),
        ("问：tan\n答：", "re su"),
    ]


def test_the_definition_names_the_format(chats: Path) -> None:
    first = task(chats, format=formats.alpaca).fingerprint()
    assert json.loads(json.dumps(first)) == first
    assert first["format"] == "flm_jax.tasks.formats.alpaca"
    assert first != task(chats, format=formats.coig).fingerprint()
    assert first != task(chats, format=formats.alpaca, prompt="{user}").fingerprint()
    assert pickle.loads(pickle.dumps(task(chats))) == task(chats)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": "no field"}, r"the field \{user\} and no other, found \[\].*Dialogues\.prompt"),
        ({"prompt": "{user} {name}"}, r"found \['name', 'user'\].*Dialogues\.prompt"),
        ({"system": "{}"}, r"fields have names.*Dialogues\.system"),
        ({"system": "{system"}, r"expected a template.*Dialogues\.system"),
        ({"format": lambda record: []}, r"function at the top of a module.*Dialogues\.format"),
        ({"name": "a chat"}, r"Dialogues\.name"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task(**settings)


@pytest.mark.parametrize("source", [JsonLines("x.jsonl"), PlainText("x.txt")])
def test_the_source_must_give_whole_records(source: Any) -> None:
    name = type(source).__name__
    with pytest.raises(
        ValueError, match=rf"'chat' to get whole records.*\['targets'\].*{name}\.fields = None"
    ):
        Dialogues("chat", source, formats.alpaca)


def test_messages_behind_the_last_response_are_noticed(tmp_path: Path, vocabulary: Vocabulary) -> None:
    messages = [["user", "ka"], ["assistant", "lo"], ["user", "why?"]]
    path = write_jsonl(tmp_path / "x.jsonl", [{"messages": messages}, {"messages": messages[:2]}])  # type: ignore[list-item]
    manifest = prepare([task(path)], vocabulary, 64, tmp_path / "out")["chat"]
    noticed = manifest.problems["noticed"]["messages behind the last response"]
    assert noticed == {"count": 1, "places": [f"{path}:1: 1 left out"]}
    assert manifest.splits["train"].characters == 2 * len("问：ka\n答：\nlo")
