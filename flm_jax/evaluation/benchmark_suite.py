"""Benchmarks of lm-eval as `flm eval` and `flm train` ask them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from scipy.stats import binomtest

from flm_jax.evaluation import harness
from flm_jax.evaluation.checkpoint_model import CheckpointModel
from flm_jax.evaluation.measured import BENCHMARKS, Measured

_SHARES = ("acc", "exact_match", "em", "f1")  # metrics from 0 to 1, by the beginning of lm-eval's names
_NORMAL_95 = 1.96  # standard errors


@dataclasses.dataclass(frozen=True)
class BenchmarkSuite:
    """Tasks, groups and tags of lm-eval; gin binds it. Arguments as of `harness.evaluate_tasks`.

    Attributes:
        tasks: Names.
        num_fewshot: Examples before each question; each task's own number if None.
        limit: Questions of each task; all if None.
        data_dir: Read the tasks' rows from files here, without a network.
        include_path: A folder with tasks of your own.
    """

    tasks: Sequence[str]
    num_fewshot: int | None = None
    limit: int | None = None
    data_dir: str | None = None
    include_path: str | None = None

    @property
    def published(self) -> Mapping[str, Mapping[str, float]]:
        """None: the paper's are of other models' sizes, and in its tables (docs/evaluation.md)."""
        return {}

    @property
    def caveats(self) -> tuple[str, ...]:
        """Of nothing published."""
        return ()

    def check(self) -> None:
        """Raises a ValueError where lm-eval is not installed or a task is unknown."""
        harness.check_tasks(self.tasks, self.include_path)

    def __call__(self, model: CheckpointModel) -> Iterator[Measured]:
        """Asks the model: groups first, then the tasks.

        Raises:
            ValueError: lm-eval is not installed, a task is unknown, or its data is missing or not what the task reads.
        """
        found = harness.evaluate_tasks(
            model, self.tasks, self.num_fewshot, self.limit, self.include_path, self.data_dir
        )
        for name, result in {**found.groups, **found.tasks}.items():
            for metric, measured in result.metrics.items():
                share = metric.partition(",")[0].startswith(_SHARES)
                low, high = _interval(measured, result.n, share)
                yield Measured(
                    BENCHMARKS,
                    name,
                    metric,
                    measured.value,
                    low,
                    high,
                    result.n,
                    share,
                    setting=_setting(result),
                )


def _setting(result: harness.Result) -> str:
    shots = "shots differ" if result.shots is None else f"{result.shots}-shot"
    return shots if result.version is None else f"{shots}, version {result.version}"


def _interval(measured: harness.Measured, n: int, share: bool) -> tuple[float | None, float | None]:
    """Of a normal mean; of a share Wilson's where all answers are right or none is, which has no standard error."""
    value, stderr = measured
    if stderr is None:
        return None, None
    if share and value in (0, 1):
        found = binomtest(round(value * n), n).proportion_ci(method="wilson")
        return float(found.low), float(found.high)
    low, high = value - _NORMAL_95 * stderr, value + _NORMAL_95 * stderr
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)
