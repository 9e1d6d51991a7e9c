"""Symbolic mapping: a classification set whose labels are replaced by strings that mean nothing."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import Item, ItemSet, Space
from flm_jax.evaluation.iq.questions import GAP
from flm_jax.evaluation.iq.rows import Row, read
from flm_jax.evaluation.iq.symbols import symbols
from flm_jax.tasks import templates
from flm_jax.tasks.problems import Problem

SHOTS_PER_LABEL = 2
_INTRO = {
    "en": "{instruction} The output must be {labels}.",
    "zh": "{instruction}输出只能是{labels}。",
}
_OR = {"en": " or ", "zh": "或"}
_ANSWER = {"en": "Answer:", "zh": "答案："}
_COMMA = {"en": ", ", "zh": "、"}


@dataclass(frozen=True)
class Classification:
    r"""A set to map: of your own, for example

        >>> Classification("mood", "en", "Say how the review sounds.", "Review: {text}", ("good", "bad"), num_items=200)

    Attributes:
        task: Its name.
        language: Of the words between the fields, `en` or `zh`.
        instruction: A sentence, kept as it is.
        template: Of a row's text, with its fields (`{text}`, `{target[span1_text]}`); a list is written with commas.
        labels: The file's, as strings (`true` of a JSON true).
        label_field: Holds the label.
        skip: Labels of rows to leave out.
        num_items: So many of the file's rows, drawn at random; all where there are fewer.
        group: Of tasks that are averaged.

    Raises:
        ValueError: a language is unknown, the template asks for nothing or is none, or there is only one label.
    """

    task: str
    language: str
    instruction: str
    template: str
    labels: tuple[str, ...]
    label_field: str = "label"
    skip: tuple[str, ...] = ()
    num_items: int = 300
    group: str = "custom"

    def __post_init__(self) -> None:
        if self.language not in GAP:
            raise ValueError(f"expected Classification.language to be en or zh; found {self.language!r}")
        if not templates.fields(self.template, "Classification.template"):
            raise ValueError(
                f"expected a field in Classification.template, as in '{{text}}'; found {self.template!r}"
            )
        if len(set(self.labels)) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"expected two different Classification.labels or more; found {self.labels}")

    def items(
        self,
        evaluation: str | Path,
        train: str | Path | None = None,
        seed: int = 0,
        num_items: int | None = None,
        shots_per_label: int = SHOTS_PER_LABEL,
    ) -> ItemSet:
        """The set as symbols.

        Args:
            evaluation: The file of the rows that are asked.
            train: The file that shots are drawn from; None for the rows of `evaluation` that are not asked.
            seed: Of the symbols, the rows and the shots.
            num_items: Other than the set's.
            shots_per_label: Of each label in each prompt, all of them in random order.

        Raises:
            ValueError: a file is wrong (with its line), or has too few rows of a label.
        """
        num_items = self.num_items if num_items is None else num_items
        if num_items < 1 or shots_per_label < 1:
            raise ValueError(
                f"expected at least one item and one shot of each label for {self.task}; found num_items = {num_items} "
                f"and shots_per_label = {shots_per_label}"
            )
        rows = read(Path(evaluation), self.label_field, self.labels, self.skip)
        order = Draws("iq", self.task, self.language, seed, "rows").shuffled(rows)
        asked, rest = order[:num_items], order[num_items:]
        if train is not None:
            rest = read(Path(train), self.label_field, self.labels, self.skip)
        pools = {
            label: list(dict.fromkeys(self._text(row) for row in rest if row.label == label))
            for label in self.labels
        }
        names = dict(zip(self.labels, symbols(Draws("iq", self.task, self.language, seed, "symbols"), len(self.labels)),
                         strict=True))  # fmt: skip
        draws = Draws("iq", self.task, self.language, seed, "shots")
        try:
            items = tuple(self._item(row, pools, names, draws, shots_per_label) for row in asked)
        except _TooFewError as error:
            source = (
                f"in {train}" if train is not None else f"left in {evaluation} beside the {len(asked)} asked"
            )
            raise ValueError(
                f"expected at least {shots_per_label} other rows of each label for the shots of {self.task}, found "
                f"{error} {source}: give a training file, fewer shots or fewer items"
            ) from error
        commonest = Counter(row.label for row in asked).most_common(1)[0][1]
        return ItemSet(
            self.task,
            self.language,
            self.group,
            shots_per_label * len(self.labels),
            seed,
            items,
            baseline=commonest / len(asked),
        )

    def _item(
        self,
        row: Row,
        pools: Mapping[str, Sequence[str]],
        names: Mapping[str, str],
        draws: Draws,
        shots_per_label: int,
    ) -> Item:
        text, gap = self._text(row), GAP[self.language]
        shots = [
            (shot, label)
            for label in self.labels
            for shot in _shots(draws, pools[label], text, shots_per_label)
        ]
        shown = [
            f"{shot}\n{_ANSWER[self.language]}{gap}{names[label]}" for shot, label in draws.shuffled(shots)
        ]
        intro = _INTRO[self.language].format(
            instruction=self.instruction, labels=_OR[self.language].join(draws.shuffled(list(names.values())))
        )
        prompt = "\n\n".join((intro, *shown, f"{text}\n{_ANSWER[self.language]}"))
        answers = tuple(gap + name for name in names.values())
        return Item(prompt, gap + names[row.label], tuple(draws.shuffled(answers)), Space((answers,)))

    def _text(self, row: Row) -> str:
        comma = _COMMA[self.language]
        fields = {
            name: comma.join(map(str, value)) if isinstance(value, list) else value
            for name, value in row.fields.items()
        }
        try:
            return templates.fill(self.template, fields)
        except Problem as error:
            raise ValueError(f"expected the fields of {self.template!r}: {error}: {row.place}") from error


class _TooFewError(Exception):
    """How many rows there are."""


def _shots(draws: Draws, pool: Sequence[str], without: str, count: int) -> list[str]:
    """Of different texts, none of them what is asked, though its row may stand in both files."""
    others = [text for text in pool if text != without]
    if len(others) < count:
        raise _TooFewError(f"{len(others)}")
    return draws.sample(others, count)
