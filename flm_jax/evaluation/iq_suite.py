"""The IQ suite as `flm eval` and `flm train` ask it."""

import dataclasses
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

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """The paper's scores, beside exact answers in each language."""
        return {
            model: {
                f"{IQ}/{task}_{language}/{EXACT}": score / 100
                for task, scores in paper.TASKS.items()
                for language in self.languages
                if (score := getattr(scores, field)) is not None
            }
            for field, model in _MODELS.items()
        }

    @property
    def caveats(self) -> tuple[str, ...]:
        """What of them is not comparable."""
        return paper.NOTES

    def __call__(self, model: TextModel) -> Iterator[Measured]:
        """Asks the model, a task at a time.

        Raises:
            FileNotFoundError: a published set that was named is not there.
            ValueError: a name is unknown, or a set cannot be made so.
        """
        sets = iq.suite(self.languages, self.tasks, self.num_items, self.shots, self.symbolic_dir, self.seed)
        for items in sets:
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
                    baselines={CHANCE: rate.chance, **known},
                )
