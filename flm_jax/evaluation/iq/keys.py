"""Anti-interference: one of up to three keys hidden in a long text that has nothing to do with them."""

import string

from flm_jax.evaluation.iq import words
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.questions import GAP, Generated, Question, form, options

NUM_DIGITS = 5
_INTRO = {
    "en": "Below is a long text of no importance. Somewhere in it are pass keys: find them and keep them in mind.",
    "zh": "下面是一段很长的无关文字，其中藏着几个密码。请找到它们，并且记住。",
}
_KEY = {
    "en": "Pass key {number} is {key}. Keep it in mind: {key} is pass key {number}.",
    "zh": "密码{number}是{key}。请记住：{key}就是密码{number}。",
}
_QUESTION = {
    "en": "What is pass key {number}? Pass key {number} is",
    "zh": "密码{number}是什么？密码{number}是",
}
_SPACE = {"en": " ", "zh": ""}


def question(draws: Draws, language: str, rule: None = None) -> Question:
    """One to three keys at random places among 40 to 60 sentences, about 2,500 characters of English."""
    keys: list[str] = []
    for _ in range(draws.between(1, 3)):
        while (key := draws.text(string.digits, NUM_DIGITS)) in keys:
            pass
        keys.append(key)
    text = [draws.pick(words.FILLER[language]) for _ in range(draws.between(40, 60))]
    for number, key in enumerate(keys, 1):
        text.insert(draws.between(0, len(text)), _KEY[language].format(number=number, key=key))
    asked = draws.between(1, len(keys))
    gap = GAP[language]
    others = [gap + key for key in keys if key != keys[asked - 1]]
    right = gap + keys[asked - 1]
    body = _SPACE[language].join(text)
    return Question(
        f"{_INTRO[language]}\n{body}\n{_QUESTION[language].format(number=asked)}",
        right,
        options(draws, right, others, lambda: gap + draws.text(string.digits, NUM_DIGITS)),
        form(right),
    )


KEYS = Generated(
    "multiple_key_retrieval", "Anti-interference", 300, 0, question, stop=("\n", ".", ",", "。", "，")
)
