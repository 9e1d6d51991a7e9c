"""Solves the generated tasks by reading their prompts, which shows that each question has one answer.

It knows the words of the prompts and nothing of the items: not their answers, options, rules or seeds.
"""

import re
from collections.abc import Sequence

from flm_jax.evaluation.iq import words
from flm_jax.evaluation.text_model import Score

_COUNT = re.compile(r"(?:Count from |从)(\d+)(?: up to |数到)(\d+)(?:: |：)([\d, 、]+)[,、]$")
_LOWERCASE = re.compile(r"(?:Text: |文字：)(.+)\n(?:Answer:|答案：)$")
_REPLACE = re.compile(
    r"(?:Sentence: |句子：)(.+)\n"
    r"(?:Word to replace: |要替换的词：)\*\*(.+)\*\*\n"
    r"(?:Target word: |目标词：)\*\*(.+)\*\*\n"
)
_PAIR = re.compile(r"(?:Input: |输入：)(.+)\n(?:Output:|输出：) ?(.*)(?:\n|$)")
_KEY = re.compile(r"(?:Pass key |密码)(\d)(?: is |是)(\d+)")
_ASKED_KEY = re.compile(r"(?:What is pass key |密码)(\d)(?:\?|是什么？).+$")
_STORY = re.compile(r"(?:Story: |故事：)(.+)\n(?:Question: Where is |问题：)(?:the )?(.+?)(?:\?|在哪里？)\n")


class Oracle:
    """A `TextModel` that is right."""

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        """0 for the answer, -1 for everything else."""
        right = [continuation.strip() == self._solved(context) for context, continuation in pairs]
        return [Score(float(each) - 1, each) for each in right]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        """The answers; their lengths are not looked at."""
        return [self._solved(prompt) for prompt in prompts]

    def _solved(self, prompt: str) -> str:
        answer = solve(prompt)
        if answer is None:
            raise ValueError(f"expected the prompt of a generated task, found {prompt[-80:]!r}")
        return answer


def solve(prompt: str) -> str | None:
    """The answer, without space around it; None to a prompt that is of no generated task.

    Raises:
        ValueError: there is none, or more than one.
    """
    last = prompt.rpartition("\n\n")[2]
    if found := _REPLACE.match(last):
        text, old, new = found.groups()
        return text.replace(old, new)
    if found := _LOWERCASE.match(last):
        return found[1].lower()
    if found := _STORY.match(last):
        return _where(*found.groups())
    if found := _ASKED_KEY.search(last):
        return _only([key for number, key in _KEY.findall(last) if number == found[1]], prompt)
    if found := _COUNT.search(prompt.rpartition("\n")[2]):
        comma = "、" if "、" in found[3] else ", "
        return comma.join(
            str(number) for number in range(int(found[3].split(comma)[-1]) + 1, int(found[2]) + 1)
        )
    if pairs := _PAIR.findall(prompt):
        *shots, (given, _) = pairs
        return _only(_outputs(shots, given), prompt)
    return None


def _only(answers: list[str], prompt: str) -> str:
    if len(set(answers)) != 1:
        raise ValueError(f"expected one answer, found {sorted(set(answers))} at the end of {prompt[-200:]!r}")
    return answers[0]


def _outputs(shots: list[tuple[str, str]], given: str) -> list[str]:
    """What each rule that explains all shots makes of the input."""
    found = []
    if all(output == shown * 2 for shown, output in shots):
        found.append(given * 2)
    lengths = {len(output) for _, output in shots}
    if len(lengths) == 1 and all(shown.startswith(output) for shown, output in shots):
        found.append(given[: lengths.pop()])
    ends = set.intersection(*(_ends(*shot) for shot in shots))
    return found + [head + given + tail for head, tail in ends]


def _ends(shown: str, output: str) -> set[tuple[str, str]]:
    """The heads and tails that make the output of what is shown."""
    starts = range(1, len(output) - len(shown))
    return {(output[:at], output[at + len(shown) :]) for at in starts if output.startswith(shown, at)}


def _where(story: str, asked: str) -> str:
    """The place of a person or a thing after a story."""
    (language,) = (each for each, people in words.PEOPLE.items() if any(person in story for person in people))
    at: dict[str, str] = {}  # person or thing that lies -> place
    holder: dict[str, str] = {}
    for sentence in re.split(r"[.。] ?", story):
        if not sentence:
            continue
        (who,) = (person for person in words.PEOPLE[language] if sentence.startswith(person))
        found = [
            (kind, sentence.rpartition(verb)[2].strip().removeprefix("the "))
            for kind, verbs in (("move", words.MOVES), ("take", words.TAKES), ("drop", words.DROPS))
            for verb in verbs[language]
            if verb in sentence
        ]
        ((kind, what),) = found
        if kind == "move":
            at[who] = what
        elif kind == "take":
            holder[what] = who
        else:
            at[what] = at[holder.pop(what)]
    return at[holder.get(asked, asked)]
