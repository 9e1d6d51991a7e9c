import json
from typing import Any

import pytest

from flm_jax.tasks import formats
from flm_jax.tasks.problems import Problem

U, A, S = "user", "assistant", "system"


def _exam(**changes: Any) -> dict[str, Any]:
    return {
        "textbox_q_instruction": "选择题",
        "textbox_q_context": "",
        "textbox_question": "一加一？",
        "textbox_answer": "二",
        "textbox_answer_analysis": "数一数。",
        **changes,
    }


def _round(question: str, answer: str) -> dict[str, str]:
    return {"prompt": "x", "response": json.dumps({"Q": question, "A": answer})}


@pytest.mark.parametrize(
    ("read", "record", "messages"),
    [
        (formats.alpaca, {"instruction": "i", "input": "x", "output": "o"}, [(U, "i\nx"), (A, "o")]),
        (formats.alpaca, {"instruction": "i", "input": "", "output": "o"}, [(U, "i"), (A, "o")]),
        (formats.alpaca, {"instruction": "i", "output": "o"}, [(U, "i"), (A, "o")]),
        (formats.flan, {"inputs": "i", "targets": "t"}, [(U, "i"), (A, "t")]),
        (
            formats.oig,
            {"text": "<human>: a <bot>: b\n<bot>: c\n\nd\n<human>: e\n<bot>:f"},
            [(S, ""), (U, "a <bot>: b"), (A, "c\n\nd"), (U, "e"), (A, "f")],
        ),
        (
            formats.oig,
            {"text": "Background: x\n<human>: a\n<bot>: b"},
            [(S, "Background: x"), (U, "a"), (A, "b")],
        ),
        (formats.coig, _exam(), [(U, "选择题\n一加一？"), (A, "数一数。\n二")]),
        (
            formats.coig,
            _exam(textbox_q_context="看图", textbox_answer_analysis=None),
            [(U, "选择题\n看图\n一加一？"), (A, "二")],
        ),
        (
            formats.coig,
            {"instruction": "翻", "trans_instruction": "译", "trans_input": "x", "trans_output": "y"},
            [(U, "译\nx"), (A, "y")],
        ),
        (formats.coig, {"instruction": "i", "input": "", "output": "o"}, [(U, "i"), (A, "o")]),
        (
            formats.coig,
            {"round_10": _round("c", "d"), "round_2": _round("a", "b"), "meta": 1},
            [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
        ),
        (
            formats.coig,
            {"instruction": "", "conversations": [{"question": "a", "answer": "b"}]},
            [(S, ""), (U, "a"), (A, "b")],
        ),
        (
            formats.openai_chat,
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {
                        "role": "user",
                        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                    },
                    {"role": "assistant", "content": "c"},
                ]
            },
            [(S, "s"), (U, "ab"), (A, "c")],
        ),
        (
            formats.sharegpt,
            {
                "conversations": [
                    {"from": "system", "value": "s"},
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "b"},
                ]
            },
            [(S, "s"), (U, "a"), (A, "b")],
        ),
    ],
)
def test_a_record_becomes_its_messages(read: Any, record: dict, messages: list[tuple[str, str]]) -> None:
    assert read(record) == messages


@pytest.mark.parametrize(
    ("read", "record", "message"),
    [
        (formats.alpaca, {"input": "x"}, r"field 'instruction' is missing \(found \['input'\]\)"),
        (formats.alpaca, {"instruction": "i"}, "field 'output' is missing"),
        (
            formats.alpaca,
            {"instruction": "i", "input": 3, "output": "o"},
            "a string in field 'input', found int",
        ),
        (formats.flan, {"inputs": "i", "targets": ["t"]}, "a string in field 'targets', found list"),
        (formats.oig, {"text": "no marks"}, "lines that begin with '<human>:'"),
        (formats.oig, {}, "field 'text' is missing"),
        (formats.coig, {"question": "x"}, r"one of COIG's keys .* found \['question'\]"),
        (formats.coig, {"round_0": "x"}, "an object in field 'round_0', found str"),
        (formats.coig, {"round_0": {"response": "{"}}, "JSON in field 'round_0.response'"),
        (formats.coig, {"round_0": {"response": "[]"}}, "an object in field 'round_0.response', found list"),
        (formats.coig, {"round_0": {"response": '{"Q": "a"}'}}, "field 'round_0.response.A' is missing"),
        (
            formats.coig,
            {"conversations": [{"question": "x"}]},
            r"field 'conversations\[0\]\.answer' is missing",
        ),
        (formats.openai_chat, {"messages": "hello"}, "a list in field 'messages', found str"),
        (formats.openai_chat, {"messages": ["hello"]}, r"an object in field 'messages\[0\]', found str"),
        (
            formats.openai_chat,
            {"messages": [{"role": "tool", "content": "x"}]},
            r"a role of \['assistant'.*'messages\[0\]\.role', found 'tool'",
        ),
        (
            formats.openai_chat,
            {"messages": [{"role": "assistant", "content": None}]},
            r"a string in field 'messages\[0\]\.content', found NoneType",
        ),
        (
            formats.openai_chat,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"parts of type 'text' in field 'messages\[0\]\.content'",
        ),
        (formats.sharegpt, {}, "field 'conversations' is missing"),
        (
            formats.sharegpt,
            {"conversations": [{"value": "x"}]},
            r"field 'conversations\[0\]\.from' is missing",
        ),
    ],
)
def test_what_is_missing_is_named(read: Any, record: dict, message: str) -> None:
    with pytest.raises(Problem, match=message):
        read(record)
