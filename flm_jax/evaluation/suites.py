"""Suites of questions as `flm eval` asks them, and `flm train` every so many steps."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from jax.sharding import Mesh

from flm_jax.config import ModelConfig
from flm_jax.evaluation.checkpoint_model import CheckpointModel
from flm_jax.evaluation.measured import Measured
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.tasks.vocabulary import Vocabulary


class Suite(Protocol):
    """Questions, and what others have answered."""

    @property
    def published(self) -> Mapping[str, Mapping[str, float]]:
        """Model to its figures, by `Measured.name`."""
        ...

    @property
    def caveats(self) -> Sequence[str]:
        """What of the published figures is not comparable."""
        ...

    def check(self) -> None:
        """Raises a ValueError or an OSError where it cannot be asked, as far as that shows without a model."""
        ...

    def __call__(self, model: CheckpointModel) -> Iterator[Measured]:
        """Asks the model, a task at a time."""
        ...


@dataclasses.dataclass(frozen=True)
class SuiteRun:
    """Suites that are asked during training: bind `Trainer.suite` to it, and `Trainer.suite_period`.

    Attributes:
        suites: Of them.
        batch_size: Questions at a time; a multiple of the devices that split the batch.
    """

    suites: Sequence[Suite]
    batch_size: int = 32

    def check(self) -> None:
        """Raises what is wrong with a suite, before a step is taken."""
        for suite in self.suites:
            suite.check()

    def __call__(
        self,
        config: ModelConfig,
        params: Any,
        vocabulary: Vocabulary,
        growth: GrowthMask | None,
        mesh: Mesh,
    ) -> Iterator[Measured]:
        """Asks the model as it stands, a task at a time; last, how many requests were cut, if any were."""
        model = CheckpointModel(config, params, vocabulary, growth, mesh, batch_size=self.batch_size)
        for suite in self.suites:
            yield from suite(model)
        if model.num_cut:
            yield Measured("requests", "all", "cut", float(model.num_cut))
