r"""Teacher signals: classification data as statements that are true or false, told by the token behind them.

FLM's unified form of FreeLM's second objective (arXiv 2309.03852, section 2.2): each statement ends in one of two
labels, the loss is on the label alone, and the samples stand among the language data of every batch.

    怎么说呢，不值。⏎这条评论是正面的。😡        the loss is on 😡
    怎么说呢，不值。⏎这条评论是负面的。😈        the loss is on 😈

The paper does not say which of the two means true. Here 😈 (U+1F608) is true and 😡 (U+1F621) is false, unless
`true_label` and `false_label` say otherwise.
"""

import abc
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flm_jax.tasks import templates
from flm_jax.tasks.corpora import Task
from flm_jax.tasks.examples import Example, Turn, tokenize
from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import Document
from flm_jax.tasks.vocabulary import Vocabulary

SUPERVISE = ("last", "all")
ANSWERS = ("index", "name", "text")

ALL = -1  # of the false statements


@dataclass(frozen=True, kw_only=True)
class Teacher(Task):
    """Documents as statements, each an example of its own, without eos.

    A document gives its true statement and `num_false` of its false ones. Which, and in which order all stand, follows
    from a hash of the statements, not from the record's place; one document's statements are in one split.

    With one supervised token, the accuracy that training and evaluation report for the task is the share of statements
    whose label is right (over the whole vocabulary, not over the two labels); with as many true as false ones
    (`num_false=1`), always saying the same scores 0.5.

    Attributes:
        num_false: false statements of a document, or as many as there are; -1 for all. With 1 the labels are balanced.
        true_label: stands behind a true statement.
        false_label: stands behind a false one.
        supervise: `"last"`: the loss is on the last token of the label. `"all"`: on every one. Where a label is one
            token (`flm tokenizer train` sees to that) they are the same. In cl100k each emoji is two tokens, of which
            the first is the same for both: a loss there teaches that a label follows, and its hits, which say nothing
            about the statement, would count half of the accuracy.
        weight: of a supervised token in the loss, 1 to 255: as many tokens of language as it counts for. Read from
            prepared files; what is streamed through seqio has weight 1.

    Raises:
        ValueError: the source does not give whole records (`fields = None`), labels that are the same, or a setting
            that is none of the above.
    """

    needed: ClassVar[frozenset[str] | None] = None
    has_inputs: ClassVar[bool] = True
    is_whole: ClassVar[bool] = True

    num_false: int = 1
    true_label: str = "😈"
    false_label: str = "😡"
    supervise: str = "last"
    weight: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if not self.true_label or not self.false_label or self.true_label == self.false_label:
            raise ValueError(
                f"expected two labels that differ, found {self.true_label!r} and {self.false_label!r}: change the gin "
                f"bindings `{name}.true_label` and `{name}.false_label`"
            )
        if self.supervise not in SUPERVISE:
            raise ValueError(
                f"expected {SUPERVISE[0]!r} or {SUPERVISE[1]!r}, found {self.supervise!r}: change the gin binding "
                f"`{name}.supervise`"
            )
        if not isinstance(self.weight, int) or not 1 <= self.weight <= 255:
            raise ValueError(
                f"expected a weight of 1 to 255, found {self.weight!r}: change the gin binding `{name}.weight`"
            )
        whole = isinstance(self.num_false, int) and not isinstance(self.num_false, bool)
        if not whole or (self.num_false < 1 and self.num_false != ALL):
            raise ValueError(
                f"expected at least 1 false statement, or {ALL} for all, found {self.num_false!r}: change the gin "
                f"binding `{name}.num_false`"
            )

    def check(self, vocabulary: Vocabulary) -> None:
        """Refuses a tokenizer by whose tokens the labels cannot be told apart where the loss is.

        Raises:
            ValueError: naming the bindings.
        """
        true, false = (tokenize(self._example("", truth), vocabulary) for truth in (True, False))
        if true.ids[true.loss_weights > 0].tolist() == false.ids[false.loss_weights > 0].tolist():
            name = type(self).__name__
            raise ValueError(
                f"expected the labels of task {self.name!r} to differ in the tokens with loss, found "
                f"{self.true_label!r} as {true.ids.tolist()} and {self.false_label!r} as {false.ids.tolist()}: change "
                f"the gin bindings `{name}.true_label` and `{name}.false_label`, or `{name}.supervise`, which is "
                f"{self.supervise!r}"
            )

    @abc.abstractmethod
    def judged(self, document: Document) -> tuple[str | None, list[str]]:
        """The true statement of a document, None where it has none, and all of its false ones.

        Raises:
            Problem: it is not of the form that the task needs.
        """

    def examples(self, document: Document) -> Sequence[Example]:
        """One example for each statement that is taken."""
        true, false = self.judged(document)
        if true is not None and true in false:
            raise Problem(f"the same statement would be true and false: {true[-80:]!r}")
        identity = json.dumps(
            [true, sorted(set(false))]
        ).encode()  # of what is learnt: records also have numbers
        taken = _shuffled(set(false), identity + b"/taken")[
            : None if self.num_false == ALL else self.num_false
        ]
        # Another order than that in which the false ones were taken, or they would stand in front.
        ordered = _shuffled({*taken, *([] if true is None else [true])}, identity + b"/order")
        return [self._example(statement, statement == true) for statement in ordered]

    def _example(self, statement: str, truth: bool) -> Example:
        label = self.true_label if truth else self.false_label
        return [Turn(statement, label, ends=False, only_last=self.supervise == "last", weight=self.weight)]


@dataclass(frozen=True, kw_only=True)
class Classification(Teacher):
    r"""Text with a class, or a pair of texts (inference, paraphrase) with their relation.

    Attributes:
        statements: value of the label -> statement, a template filled with the record's fields:
            `{"positive": "{text}\n这条评论是正面的。", "negative": "{text}\n这条评论是负面的。"}`,
            `{0: "{sentence1}\n{sentence2}\n...", 1: ...}`. Labels are compared as they are: 0 is not "0". None for
            a label of which nothing is stated: with `{"positive": "{text}\n...", "negative": None}` each text has one
            statement, true or false as its class is, which a small model learns far sooner than to compare the
            statement with the text; the labels are then as balanced as the classes.
        label: key of the label in a record (`"target[label]"` for one within another).

    Raises:
        ValueError: as `Teacher`; fewer than two labels, none with a statement, two statements that are the same, or
            one without a field.
    """

    statements: Mapping[Any, str | None]
    label: str = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        binding = "Classification.statements"
        by_label = self.statements
        values = by_label.values() if isinstance(by_label, Mapping) else []
        stated = [statement for statement in values if statement is not None]
        if len(values) < 2 or not stated:
            raise ValueError(
                f"expected {{label: statement}} for at least two labels, found {by_label!r}: change the gin binding "
                f"`{binding}`"
            )
        for template in stated:
            if not templates.fields(template, f"the gin binding `{binding}`"):
                raise ValueError(
                    f"expected a statement about the record, like '{{text}} ...', found no field in {template!r}: "
                    f"change the gin binding `{binding}`"
                )
        if len(set(stated)) < len(stated):
            raise ValueError(
                f"expected statements that differ, found {dict(by_label)}: change the gin binding `{binding}`"
            )

    def judged(self, document: Document) -> tuple[str | None, list[str]]:
        """The label's statement, and those of the other labels."""
        label = templates.look_up(document, self.label)
        known = [other for other in self.statements if _same(other, label)]
        if not known:
            raise Problem(
                f"expected one of the labels {list(self.statements)} in field {self.label!r}, found {label!r}"
            )
        filled = {
            other: templates.fill(template, document)
            for other, template in self.statements.items()
            if template is not None
        }
        return filled.pop(known[0], None), list(filled.values())


@dataclass(frozen=True, kw_only=True)
class MultipleChoice(Teacher):
    r"""Questions with choices: a statement for each choice, true for the answer.

    Attributes:
        statement: a template filled with the record's fields and `{choice}`, the text of a choice.
        choices: key of the list of texts (`"choices[text]"` for one within another, as in ARC).
        answer: key of the answer.
        answer_is: `"index"`: the answer is a number, 0 the first choice. `"name"`: it is A, B, ... or 1, 2, ..., as
            text. `"text"`: it is the choice itself.

    Raises:
        ValueError: as `Teacher`; a statement without `{choice}`, or another `answer_is`.
    """

    statement: str = "{question}\n{choice}\n"
    choices: str = "choices"
    answer: str = "answer"
    answer_is: str = "index"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "choice" not in templates.fields(self.statement, "the gin binding `MultipleChoice.statement`"):
            raise ValueError(
                f"expected the field {{choice}} in the statement, found {self.statement!r}: change the gin binding "
                "`MultipleChoice.statement`"
            )
        if self.answer_is not in ANSWERS:
            raise ValueError(
                f"expected one of {list(ANSWERS)}, found {self.answer_is!r}: change the gin binding "
                "`MultipleChoice.answer_is`"
            )

    def judged(self, document: Document) -> tuple[str, list[str]]:
        """The statement with the answer, and those with the other choices."""
        choices = templates.look_up(document, self.choices)
        if not isinstance(choices, list | tuple) or len(choices) < 2:
            raise Problem(
                f"expected a list of at least two choices in field {self.choices!r}, found {choices!r}"
            )
        right = self._index(templates.look_up(document, self.answer), choices)
        filled = [templates.fill(self.statement, {**document, "choice": choice}) for choice in choices]
        return filled.pop(right), filled

    def _index(self, answer: Any, choices: Sequence[Any]) -> int:
        """The place of the answer among the choices."""
        if self.answer_is == "index":
            wanted: Sequence[Any] = range(len(choices))
        elif self.answer_is == "text":
            wanted = choices
        else:
            first = "1" if isinstance(answer, str) and answer.isdigit() else "A"
            wanted = [chr(ord(first) + number) for number in range(len(choices))]
        for number, value in enumerate(wanted):
            if _same(value, answer):
                return number
        raise Problem(
            f"expected one of {list(wanted)} in field {self.answer!r} (MultipleChoice.answer_is is "
            f"{self.answer_is!r}), found {answer!r}"
        )


def _same(one: Any, other: Any) -> bool:
    """Equal and of one type: Python takes True for 1."""
    return type(one) is type(other) and one == other


def _shuffled(statements: Collection[str], seed: bytes) -> list[str]:
    """In an order that looks random and follows from the statements and the seed."""

    def rank(statement: str) -> bytes:
        return hashlib.blake2b(
            seed + b"/" + statement.encode("utf-8", "surrogatepass"), digest_size=16
        ).digest()

    return sorted(statements, key=rank)
