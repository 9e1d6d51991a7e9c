r"""The formats of published instruction data: each a function that makes messages of a record.

| format | record |
|---|---|
| `alpaca` | `{"instruction", "input", "output"}` |
| `flan` | `{"inputs", "targets"}` |
| `oig` | `{"text": "<human>: ...\n<bot>: ..."}` |
| `coig` | the files of COIG, whose shapes differ |
| `openai_chat` | `{"messages": [{"role", "content"}, ...]}` |
| `sharegpt` | `{"conversations": [{"from", "value"}, ...]}` |

A format of your own is another such function, at the top of a module. It says what a record holds; what becomes of a
conversation is for `dialogues.Dialogues` to say.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from flm_jax.tasks.problems import Problem

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"

Record = Mapping[str, Any]


class Message(NamedTuple):
    """Who says what.

    Attributes:
        role: `system`, `user` or `assistant`.
        text: may be empty.
    """

    role: str
    text: str


# A tool's messages are not among them: what a model is to learn of them is not ours to guess.
_OPENAI_ROLES = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": ASSISTANT}
_SHAREGPT_ROLES = {
    "system": SYSTEM,
    "human": USER,
    "user": USER,
    "gpt": ASSISTANT,
    "assistant": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
}
_OIG_SPEAKER = re.compile(r"^[ \t]*<(human|bot)>:", re.MULTILINE)
_COIG_ROUND = re.compile(r"round_(\d+)")


def alpaca(record: Record) -> list[Message]:
    """`instruction`, `input` (may be missing or empty; stands on the next line) and `output`."""
    return _instruction(record, "instruction", "input", "output")


def flan(record: Record) -> list[Message]:
    """`inputs` and `targets`, as FLAN, P3 and T0 have them."""
    return [Message(USER, _text(record, "inputs")), Message(ASSISTANT, _text(record, "targets"))]


def oig(record: Record) -> list[Message]:
    """`text`, in which lines begin with `<human>:` and `<bot>:`; what stands before the first is a system message.

    Space around what each says belongs to the marks and is left out.
    """
    text = _text(record, "text")
    start, *parts = _OIG_SPEAKER.split(text)
    if not parts:
        raise Problem("expected lines that begin with '<human>:' and '<bot>:' in field 'text', found none")
    roles = {"human": USER, "bot": ASSISTANT}
    said = zip(parts[::2], parts[1::2], strict=True)
    return [Message(SYSTEM, start.strip()), *(Message(roles[who], what.strip()) for who, what in said)]


def coig(record: Record) -> list[Message]:
    """A record of any of COIG's files, told apart by their keys.

        translated_instructions                      trans_instruction, trans_input, trans_output
        exam_instructions, human_value part 2        textbox_q_instruction, textbox_q_context, textbox_question,
                                                     textbox_answer, textbox_answer_analysis
        human_value part 1, leetcode                 instruction, input, output
        counterfactual multi-round chat              round_0, round_1, ...: {"response": '{"Q": ..., "A": ...}'}
        all, as COIG's own loading script gives them instruction, conversations: [{"question", "answer"}, ...]

    The response to an exam question is the analysis, where there is one, with the answer on the next line.
    """
    if "conversations" in record:
        return _coig_conversations(record)
    if "textbox_question" in record:
        return _coig_exam(record)
    if "trans_instruction" in record:
        return _instruction(record, "trans_instruction", "trans_input", "trans_output")
    if "instruction" in record:
        return alpaca(record)
    if rounds := sorted((int(m[1]), key) for key in record if (m := _COIG_ROUND.fullmatch(key))):
        return [message for _, key in rounds for message in _coig_round(record, key)]
    raise Problem(
        "expected one of COIG's keys 'conversations', 'textbox_question', 'trans_instruction', 'instruction', "
        f"'round_0', found {sorted(map(str, record))}"
    )


def openai_chat(record: Record) -> list[Message]:
    """`messages` with `role` (`system`, `developer`, `user`, `assistant`) and `content`, a string or parts of text."""
    return [
        Message(_role(message, "role", _OPENAI_ROLES, place), _content(message, place))
        for place, message in _listed(record, "messages")
    ]


def sharegpt(record: Record) -> list[Message]:
    """`conversations` with `from` (`human`, `gpt`, `system` and their other names) and `value`."""
    return [
        Message(_role(message, "from", _SHAREGPT_ROLES, place), _text(message, "value", place))
        for place, message in _listed(record, "conversations")
    ]


def _instruction(record: Record, instruction: str, more: str, output: str) -> list[Message]:
    asked = _joined(_text(record, instruction), _optional(record, more))
    return [Message(USER, asked), Message(ASSISTANT, _text(record, output))]


def _coig_exam(record: Record) -> list[Message]:
    asked = _joined(
        _optional(record, "textbox_q_instruction"),
        _optional(record, "textbox_q_context"),
        _text(record, "textbox_question"),
    )
    answer, analysis = _optional(record, "textbox_answer"), _optional(record, "textbox_answer_analysis")
    return [Message(USER, asked), Message(ASSISTANT, _joined(analysis, answer))]


def _coig_conversations(record: Record) -> list[Message]:
    messages = [Message(SYSTEM, _optional(record, "instruction"))]
    for place, pair in _listed(record, "conversations"):
        messages += [
            Message(USER, _text(pair, "question", place)),
            Message(ASSISTANT, _text(pair, "answer", place)),
        ]
    return messages


def _coig_round(record: Record, key: str) -> list[Message]:
    part = record[key]
    if not isinstance(part, Mapping):
        raise Problem(f"expected an object in field {key!r}, found {type(part).__name__}")
    try:
        pair = json.loads(_text(part, "response", f"{key}."))
    except (json.JSONDecodeError, RecursionError) as error:
        raise Problem(f"expected JSON in field '{key}.response' ({error})") from error
    if not isinstance(pair, Mapping):
        raise Problem(f"expected an object in field '{key}.response', found {type(pair).__name__}")
    place = f"{key}.response."
    return [Message(USER, _text(pair, "Q", place)), Message(ASSISTANT, _text(pair, "A", place))]


def _listed(record: Record, key: str) -> list[tuple[str, Record]]:
    """The objects in a list, each with the place of its keys, e.g. `"messages[0]."`."""
    found = record.get(key)
    if key not in record:
        raise Problem(f"field {key!r} is missing (found {sorted(map(str, record))})")
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise Problem(f"expected a list in field {key!r}, found {type(found).__name__}")
    for number, entry in enumerate(found):
        if not isinstance(entry, Mapping):
            raise Problem(f"expected an object in field '{key}[{number}]', found {type(entry).__name__}")
    return [(f"{key}[{number}].", entry) for number, entry in enumerate(found)]


def _role(message: Record, key: str, roles: Mapping[str, str], place: str) -> str:
    role = _text(message, key, place)
    if role not in roles:
        raise Problem(f"expected a role of {sorted(roles)} in field '{place}{key}', found {role!r}")
    return roles[role]


def _content(message: Record, place: str) -> str:
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return _text(message, "content", place)
    parts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise Problem(
                f"expected parts of type 'text' in field '{place}content', found {str(part)[:50]!r}"
            )
        parts.append(_text(part, "text", f"{place}content[]."))
    return "".join(parts)


def _text(record: Record, key: str, place: str = "") -> str:
    if key not in record:
        raise Problem(f"field '{place}{key}' is missing (found {sorted(map(str, record))})")
    if not isinstance(record[key], str):
        raise Problem(f"expected a string in field '{place}{key}', found {type(record[key]).__name__}")
    return record[key]


def _optional(record: Record, key: str) -> str:
    """The text of a field that may be missing or null; then it is empty."""
    return "" if record.get(key) is None else _text(record, key)


def _joined(*parts: str) -> str:
    """What is not blank, line by line."""
    return "\n".join(part for part in parts if part.strip())
