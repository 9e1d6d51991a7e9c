"""A chat, written as the conversations are that instruction tuning trains on."""

from flm_jax.tasks.dialogues import check_template, turns_of
from flm_jax.tasks.examples import tokenize
from flm_jax.tasks.formats import ASSISTANT, SYSTEM, USER, Message
from flm_jax.tasks.vocabulary import Vocabulary


class Conversation:
    """Keeps what was said; the tokens before an answer are those before the same answer in `tasks.dialogues.Dialogues`.

    Args:
        vocabulary: Of the model.
        prompt: How a question is written, as in `Dialogues.prompt`, with `{user}` for its text.
        system: How a system message is written, as in `Dialogues.system`, with `{system}` for its text.
        system_message: What the conversation begins with; empty for nothing.

    Raises:
        ValueError: a template lacks its field.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: str = "{user}\n",
        system: str = "{system}\n",
        system_message: str = "",
    ) -> None:
        check_template(prompt, "user", "--chat_prompt")
        check_template(system, "system", "--chat_system")
        self._vocabulary, self._prompt, self._system = vocabulary, prompt, system
        self._start = [Message(SYSTEM, system_message)] if system_message else []
        self.reset()

    def reset(self) -> None:
        """Forgets all but the system message."""
        self._messages = list(self._start)

    def ask(self, question: str) -> list[int]:
        """The tokens behind which the answer to a question comes, without the leading 0: all that was said, and it.

        Raises:
            ValueError: the question is blank, which training has none of.
        """
        messages = [*self._messages, Message(USER, question)]
        turns, asked = turns_of(messages, self._prompt, self._system)
        self._messages = messages
        return [*tokenize(turns, self._vocabulary).ids.tolist(), *self._vocabulary.encode(asked)]

    def answer(self, text: str) -> None:
        """Adds the answer to the last question; one that is blank takes the question back: training has none of it."""
        if text.strip():
            self._messages.append(Message(ASSISTANT, text))
        else:
            self._messages.pop()
