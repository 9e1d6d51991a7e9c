"""Rule: rewriting a sentence with its capitals made small, or with one word replaced."""

import string
from collections.abc import Callable

from flm_jax.evaluation.iq import words
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.questions import GAP, Generated, Question, form, options

# English words stand apart, Chinese ones do not.
_SPACE = {"en": " ", "zh": ""}
_CLASSES = {
    "en": (("the",), words.ADJECTIVES["en"], words.NOUNS["en"], words.VERBS["en"], ("the",), words.ADJECTIVES["en"],
           words.NOUNS["en"], words.ADVERBS["en"]),
    "zh": (words.ADJECTIVES["zh"], words.NOUNS["zh"], words.ADVERBS["zh"], words.VERBS["zh"], words.ADJECTIVES["zh"],
           words.NOUNS["zh"]),
}  # fmt: skip
_NOUN_PLACES = {"en": (2, 6), "zh": (1, 5)}

_LOWERCASE = {"en": "Text: {text}\nAnswer:", "zh": "文字：{text}\n答案："}
_REPLACE = {
    "en": "Sentence: {text}\nWord to replace: **{old}**\nTarget word: **{new}**\nAnswer:",
    "zh": "句子：{text}\n要替换的词：**{old}**\n目标词：**{new}**\n答案：",
}


def lowercase(draws: Draws, language: str, rule: None = None) -> Question:
    """A sentence whose letters are small or capital at random; the options differ in one word."""
    sentence = [draws.pick(each) for each in _CLASSES[language]]
    another: Callable[[], str]
    if language == "zh":  # which has no case: three words of Latin letters stand in the sentence
        places = sorted(draws.sample(range(len(sentence)), 3), reverse=True)
        for place in places:
            sentence.insert(place, draws.text(string.ascii_lowercase, draws.between(3, 6)))
        place = places[-1]
        length = len(sentence[place])

        def another() -> str:
            return draws.text(string.ascii_lowercase, length)
    else:
        place = draws.pick((1, 2, 3, 5, 6))
        alike = [word for word in _CLASSES["en"][place] if word != sentence[place]]

        def another() -> str:
            return draws.pick(alike)

    text = _cased(draws, _SPACE[language].join(sentence))

    def answer(word: str) -> str:
        return GAP[language] + _SPACE[language].join((*sentence[:place], word, *sentence[place + 1 :]))

    right = answer(sentence[place])
    return Question(
        _LOWERCASE[language].format(text=text),
        right,
        options(draws, right, (), lambda: answer(another())),
        form(right),
    )


def word(draws: Draws, language: str, rule: None = None) -> Question:
    """A sentence with a word of four capitals in place of one noun or both; the options differ in what replaces it."""
    sentence = [draws.pick(each) for each in _CLASSES[language]]
    places = draws.sample(_NOUN_PLACES[language], draws.between(1, 2))
    old, new = draws.text(string.ascii_uppercase, 4), draws.text(string.ascii_uppercase, 4)
    while new == old:
        new = draws.text(string.ascii_uppercase, 4)

    def written(by: str) -> str:
        return _SPACE[language].join(by if place in places else each for place, each in enumerate(sentence))

    def answer(by: str) -> str:
        return GAP[language] + written(by)

    return Question(
        _REPLACE[language].format(text=written(old), old=old, new=new),
        answer(new),
        options(draws, answer(new), [answer(old)], lambda: answer(draws.text(string.ascii_uppercase, 4))),
        form(answer(new)),
    )


def _cased(draws: Draws, text: str) -> str:
    """With each letter small or capital at random, at least one of them a capital."""
    cased = "".join(draws.pick((letter, letter.upper())) for letter in text)
    return cased if cased != text else text.upper()


LOWERCASE = Generated(
    "replace_lowercase",
    "Rule",
    300,
    4,
    lowercase,
    instruction={
        "en": "Write each text again with all capital letters changed to small letters.",
        "zh": "请把每段文字中的大写字母全部改成小写字母。",
    },
)
WORD = Generated(
    "replace_word",
    "Rule",
    300,
    4,
    word,
    instruction={
        "en": "Write each sentence again with the given word replaced by the target word.",
        "zh": "请改写每个句子，把其中指定的词换成目标词。",
    },
)
