"""The IQ suite as `flm eval` and `flm train` ask it."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

from flm_jax.evaluation import iq
from flm_jax.evaluation.iq import paper
from flm_jax.evaluation.measured import CHANCE, IQ, Measured
from flm_jax.evaluation.text_model import TextModel

EXACT, CHOICE = "exact", "choice"
_MODELS = {"gpt3": "GPT-3", "glm_130b": "GLM-130B", "flm_101b": "FLM-101B"}


@dataclasses.dataclass(frozen=True)
class IqSuite:
    """Generated tasks, and symbolic mapping where its files are given; gin binds it.

    Attributes:
        tasks: Names; None for all of them.
        languages: Of `en` and `zh`.
        num_items: Questions of each task; the paper's number if None.
        shots: Examples before each question; the paper's number if None.
        symbolic_dir: Holds the published sets' folders (docs/iq.md); None leaves symbolic mapping out.
        seed: Of the questions.
    """

    tasks: Sequence[str] | None = None
    languages: Sequence[str] = ("en", "zh")
    num_items: int | None = None
    shots: int | None = None
    symbolic_dir: str | None = None
    seed: int = 0

    @functools.cached_property
    def _sets(self) -> list[iq.ItemSet]:
        """Made once, whatever the number of checkpoints."""
        return iq.suite(self.languages, self.tasks, self.num_items, self.shots, self.symbolic_dir, self.seed)

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """The paper's scores of what is asked, beside exact answers in each language."""
        return {
            model: {
                f"{IQ}/{items.task}_{items.language}/{EXACT}": score / 100
                for items in self._sets
                if (score := getattr(paper.TASKS[items.task], field)) is not None
            }
            for field, model in _MODELS.items()
        }

    @property
    def caveats(self) -> tuple[str, ...]:
        """What of them is not comparable."""
        return paper.NOTES

    def check(self) -> None:
        """Makes the sets.

        Raises:
            FileNotFoundError: a published set that was named is not there.
            ValueError: a name is unknown, or a set cannot be made so.
        """
        len(self._sets)

    def __call__(self, model: TextModel) -> Iterator[Measured]:
        """Asks the model, a task at a time.

        Raises:
            FileNotFoundError: a published set that was named is not there.
            ValueError: a name is unknown, or a set cannot be made so.
        """
        for items in self._sets:
            result = iq.measure(model, items)
            beside = {"baseline": result.baseline, "oracle": result.oracle}
            known = {name: value for name, value in beside.items() if value is not None}
            for metric, rate in ((EXACT, result.exact), (CHOICE, result.choice)):
                yield Measured(
                    IQ,
                    f"{result.task}_{result.language}",
                    metric,
                    rate.accuracy,
                    *rate.interval,
                    count=rate.total,
                    share=True,
                    setting=f"{result.shots}-shot",
                    baselines={CHANCE: rate.chance, **known},
                )
