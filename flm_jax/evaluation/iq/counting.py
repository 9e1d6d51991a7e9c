"""Rule: counting on from the first three numbers of a range to its end."""

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.questions import GAP, NUM_OPTIONS, Generated, Question, form

_TEXT = {"en": "Count from {first} up to {last}: {given},", "zh": "从{first}数到{last}：{given}、"}
_COMMA = {"en": ", ", "zh": "、"}


def question(draws: Draws, language: str, rule: None = None) -> Question:
    """A range of 9 to 26 numbers that begins with a number of two to five digits.

    From one place on, the same in all options, their numbers are shifted by four numbers in a row, one of them 0, which
    is as often the least of the four as the second, the third and the greatest.
    """
    digits = draws.between(2, 5)
    first = draws.between(10 ** (digits - 1), 10**digits - 1)
    last = first + draws.between(8, 25)
    comma = _COMMA[language]
    given = comma.join(map(str, range(first, first + 3)))
    place = draws.between(first + 3, last)

    def listed(shift: int) -> str:
        numbers = (number + (shift if number >= place else 0) for number in range(first + 3, last + 1))
        return GAP[language] + comma.join(map(str, numbers))

    least = draws.between(1 - NUM_OPTIONS, 0)
    options = draws.shuffled([listed(shift) for shift in range(least, least + NUM_OPTIONS)])
    text = _TEXT[language].format(first=first, last=last, given=given)
    return Question(text, listed(0), tuple(options), form(listed(0)))


COUNTING = Generated("counting", "Rule", 148, 0, question, separator="\n", stop=("\n", ".", "。"))
