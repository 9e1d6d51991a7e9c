r"""Instruction data and conversations in the formats in which they are published.

Of Alpaca's files, for example:

    >>> Dialogues("alpaca", JsonLines("alpaca.jsonl", fields=None), formats.alpaca, prompt="问：{user}\n答：")
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flm_jax.tasks import templates
from flm_jax.tasks.corpora import Questions
from flm_jax.tasks.examples import Example, Turn
from flm_jax.tasks.formats import ASSISTANT, SYSTEM, USER, Message
from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import Document

Format = Callable[[Mapping[str, Any]], list[Message]]


@dataclass(frozen=True)
class Dialogues(Questions):
    r"""Conversations of one or more turns: the loss is on each response and its eos, and on nothing else.

    A conversation is one example:

        system  prompt(user 1)  response 1  eos  prompt(user 2)  response 2  eos
        0    0  0         0  0  1  1  1  1  1    0         0  0  1  1  1  1  1      loss

    What is not of this form:

        several messages of one role in a row    are one message, with a line feed between them
        an empty system message                  is none
        what follows the last response           is left out: it has no loss, and nothing behind it reads it
        a response without a question before it  a problem (also a conversation that begins with the assistant)
        an empty question or response            a problem
        no response                              a problem
        a role that is unknown                   a problem

    A problem leaves the whole conversation out, counted and reported with its place.

    Attributes:
        format: makes messages of a record: one of `formats`, or such a function of your own, at the top of a module.
        prompt: how a question is written, with `{user}` for its text, e.g. `"问：{user}\n答："`; the response follows.
        system: how a system message is written, with `{system}` for its text.

    Raises:
        ValueError: the source does not give whole records (`fields = None`), a template lacks its field, or worker
            processes could not find the format.
    """

    needed: ClassVar[frozenset[str] | None] = None

    format: Format
    prompt: str = "{user}\n"
    system: str = "{system}\n"

    def __post_init__(self) -> None:
        super().__post_init__()
        # What gin hands over is its wrapper, which no other process can unpickle.
        object.__setattr__(self, "format", inspect.unwrap(self.format))
        _check_findable(self.format)
        check_template(self.prompt, "user", "the gin binding `Dialogues.prompt`")
        check_template(self.system, "system", "the gin binding `Dialogues.system`")

    def fingerprint(self) -> dict[str, Any]:
        """As `Task.fingerprint`, with the format's name."""
        return {**super().fingerprint(), "format": _name(self.format)}

    def examples(self, document: Document) -> Sequence[Example]:
        """One example, a turn for each response."""
        turns, _ = turns_of(self.format(document), self.prompt, self.system)
        if not turns:
            raise Problem("there is no response (role 'assistant')")
        return [turns]

    def oddities(self, document: Document) -> Iterable[tuple[str, str]]:
        """Messages behind the last response, which nothing is learnt from."""
        messages = [role for role, _ in _merged(self.format(document))]
        behind = next(number for number, role in enumerate(reversed(messages)) if role == ASSISTANT)
        if behind:
            yield "messages behind the last response", f"{behind} left out"


def check_template(template: str, field: str, setting: str) -> None:
    """Refuses a template without its one field.

    Args:
        template: of a question or a system message.
        field: `user` or `system`.
        setting: where the template comes from, for the error.

    Raises:
        ValueError: it has other fields, or is no template.
    """
    if (found := templates.fields(template, setting)) != {field}:
        raise ValueError(
            f"expected a template with the field {{{field}}} and no other, found {sorted(found)} in {template!r}: "
            f"change {setting}"
        )


def turns_of(messages: Sequence[Message], prompt: str, system: str) -> tuple[list[Turn], str]:
    """A turn for each response, and what is written behind the last one: a question that has none yet.

    Args:
        messages: of a conversation.
        prompt: how a question is written, with `{user}` for its text.
        system: how a system message is written, with `{system}` for its text.

    Raises:
        Problem: the conversation is not of the form that `Dialogues` describes.
    """
    turns: list[Turn] = []
    inputs, asked = "", False
    for role, text in _merged(messages):
        if role == SYSTEM:
            inputs += system.format(system=text)
        elif role == USER:
            inputs, asked = inputs + prompt.format(user=text), True
        elif not asked:
            raise Problem("a response (role 'assistant') has no question (role 'user') before it")
        else:
            turns.append(Turn(inputs, text))
            inputs, asked = "", False
    return turns, inputs


def _merged(messages: Sequence[Message]) -> Iterator[Message]:
    """The messages, those of one role in a row as one."""
    merged: list[Message] = []
    for number, (role, text) in enumerate(messages):
        if role not in (SYSTEM, USER, ASSISTANT):
            raise Problem(
                f"expected a role of 'system', 'user', 'assistant', found {role!r} (message {number})"
            )
        if not text.strip():
            if role == SYSTEM:
                continue
            raise Problem(f"the text of role {role!r} is empty (message {number}, counted from 0)")
        if merged and merged[-1].role == role:
            text = f"{merged.pop().text}\n{text}"
        merged.append(Message(role, text))
    yield from merged


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check_findable(function: Callable[..., Any]) -> None:
    module = sys.modules.get(getattr(function, "__module__", ""))
    if getattr(module, getattr(function, "__qualname__", ""), None) is not function:
        raise ValueError(
            f"expected a function at the top of a module, like formats.alpaca, which other processes can import, found "
            f"{function!r}: change the gin binding `Dialogues.format`"
        )
