"""Rule: counting on from the first three numbers of a range to its end."""

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.questions import GAP, Generated, Question, form, options

_TEXT = {"en": "Count from {first} up to {last}: {given},", "zh": "从{first}数到{last}：{given}、"}
_COMMA = {"en": ", ", "zh": "、"}
_SHIFTS = (-1, 1, 2, 10)  # stands still, leaves out one, two, ten


def question(draws: Draws, language: str, rule: None = None) -> Question:
    """A range of 9 to 26 numbers that begins with a number of two to five digits."""
    digits = draws.between(2, 5)
    first = draws.between(10 ** (digits - 1), 10**digits - 1)
    last = first + draws.between(8, 25)
    comma = _COMMA[language]
    given = comma.join(map(str, range(first, first + 3)))
    place = draws.between(first + 3, last)  # from where on the options differ

    def listed(shift: int) -> str:
        numbers = (number + (shift if number >= place else 0) for number in range(first + 3, last + 1))
        return GAP[language] + comma.join(map(str, numbers))

    wrong = [listed(shift) for shift in draws.sample(_SHIFTS, 3)]
    text = _TEXT[language].format(first=first, last=last, given=given)
    answer = listed(0)
    return Question(
        text, answer, options(draws, answer, wrong, lambda: listed(draws.pick(_SHIFTS))), form(answer)
    )


COUNTING = Generated("counting", "Rule", 148, 0, question, separator="\n", stop=("\n", ".", "。"))
