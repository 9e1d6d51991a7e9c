from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flm_jax.generation.conversation import Conversation
from flm_jax.tasks.dialogues import Dialogues
from flm_jax.tasks.examples import tokenize
from flm_jax.tasks.formats import Message
from flm_jax.tasks.sources import JsonLines
from tests.generation.conftest import Saved

PROMPT, SYSTEM = "问：{user}\n答：", "[{system}]\n\n"
SAID = st.text("ab 天地\n。", min_size=1, max_size=8).filter(str.strip)


def messages(record: Any) -> list[Message]:
    return [Message(*message) for message in record["messages"]]


TASK = Dialogues("chat", JsonLines("x.jsonl", fields=None), messages, prompt=PROMPT, system=SYSTEM)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(SAID, SAID), min_size=1, max_size=4), st.sampled_from(["", "be 地"]))
def test_a_chat_reads_what_training_reads(saved: Saved, said: list[tuple[str, str]], system: str) -> None:
    """Before each answer stand the tokens that training has before the same answer; behind it, the answer's and eos."""
    chat = Conversation(saved.vocabulary, PROMPT, SYSTEM, system)
    record = [("system", system)] if system else []
    for question, answer in said:
        asked = chat.ask(question)
        chat.answer(answer)
        record += [("user", question), ("assistant", answer)]
        (example,) = TASK.examples({"messages": record})
        trained = tokenize(example, saved.vocabulary)
        answered = [*saved.vocabulary.encode(answer), 1]
        assert trained.ids.tolist() == asked + answered
        assert np.all(trained.loss_weights[len(asked) :] == 1) and trained.loss_weights[len(asked) - 1] == 0


def test_what_was_not_answered_is_not_remembered(saved: Saved) -> None:
    chat = Conversation(saved.vocabulary, PROMPT, SYSTEM, "be 地")
    first = chat.ask("ka")
    chat.answer(" \n")
    assert chat.ask("ka") == first
    chat.answer("lo")
    assert chat.ask("ka") == [
        *first,
        *saved.vocabulary.encode("lo"),
        1,
        *saved.vocabulary.encode("问：ka\n答："),
    ]
    chat.reset()
    assert chat.ask("ka") == first


def test_mistakes(saved: Saved) -> None:
    with pytest.raises(
        ValueError, match=r"the field \{user\} and no other, found \[\] in 'Q:': change --chat_prompt"
    ):
        Conversation(saved.vocabulary, prompt="Q:")
    with pytest.raises(ValueError, match="change --chat_system"):
        Conversation(saved.vocabulary, system="{system")
    chat = Conversation(saved.vocabulary)
    with pytest.raises(ValueError, match="the text of role 'user' is empty"):
        chat.ask("  ")
    assert chat.ask("ka") == saved.vocabulary.encode("ka\n")
