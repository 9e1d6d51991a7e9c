"""Pattern mining: what is done to a string of letters is to be found out from the shots; nothing else tells it."""

from dataclasses import dataclass

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import Space
from flm_jax.evaluation.iq.questions import GAP, Generated, Question, options

LETTERS = "abcdefghijABCDEFGHIJ"
_TEXT = {"en": "Input: {given}\nOutput:", "zh": "输入：{given}\n输出："}


@dataclass(frozen=True)
class Ends:
    """Put before and behind every input of an item."""

    head: str
    tail: str


def _ends(draws: Draws) -> Ends:
    return Ends(draws.text(LETTERS, draws.between(2, 4)), draws.text(LETTERS, draws.between(2, 4)))


def head_tail(draws: Draws, language: str, rule: Ends) -> Question:
    """The options are the right and a wrong head with the right and a wrong tail."""
    given = _given(draws)

    def wrong(part: str) -> str:
        """Another string of the same length."""
        while (other := draws.text(LETTERS, len(part))) == part:
            pass
        return other

    heads, tails = (rule.head, wrong(rule.head)), (rule.tail, wrong(rule.tail))
    return _question(
        draws, language, given, rule.head + given + rule.tail, [h + given + t for h in heads for t in tails]
    )


def full_repeating(draws: Draws, language: str, rule: None) -> Question:
    """The input twice; in the wrong options the second time in another order."""
    given = _given(draws)
    orders = [given[::-1], *("".join(draws.shuffled(given)) for _ in range(20))]
    return _question(draws, language, given, given * 2, [given + order for order in orders])


def head_slicing(draws: Draws, language: str, rule: int) -> Question:
    """The first letters, one to three, as many in all of an item; wrong options are as many others of the input."""
    given = _given(draws)
    starts = draws.shuffled(range(1, len(given) - rule + 1))
    return _question(
        draws, language, given, given[:rule], [given[start : start + rule] for start in starts], given
    )


def _given(draws: Draws) -> str:
    """Four to six different letters: no input overlaps with itself."""
    return "".join(draws.sample(LETTERS, draws.between(4, 6)))


def _question(
    draws: Draws, language: str, given: str, output: str, wrong: list[str], letters: str = LETTERS
) -> Question:
    gap = GAP[language]
    return Question(
        _TEXT[language].format(given=given),
        gap + output,
        options(
            draws,
            gap + output,
            [gap + each for each in wrong],
            lambda: gap + draws.text(letters, len(output)),
        ),
        Space((*gap, *(LETTERS,) * len(output))),
    )


HEAD_TAIL = Generated("head_tail", "Pattern", 100, 5, head_tail, rule=_ends, min_shots=2, separator="\n")
FULL_REPEATING = Generated("full_repeating", "Pattern", 100, 5, full_repeating, min_shots=2, separator="\n")
HEAD_SLICING = Generated(
    "head_slicing",
    "Pattern",
    100,
    5,
    head_slicing,
    rule=lambda draws: draws.between(1, 3),
    min_shots=2,
    separator="\n",
)
