"""Benchmarks through lm-eval (EleutherAI's Language Model Evaluation Harness), the extra `eval`."""

import contextlib
import dataclasses
import difflib
import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flm_jax.evaluation import local_data
from flm_jax.evaluation.checkpoint_model import CheckpointModel
from flm_jax.generation import Sampling

_MAX_GEN_TOKS = 256  # lm-eval's default
_TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first wins
SEED = 1234  # of the worked examples; lm-eval's default


class Measured(NamedTuple):
    """A metric of a benchmark."""

    value: float
    stderr: float | None  # None where lm-eval estimates none


@dataclasses.dataclass(frozen=True)
class Result:
    """Of a task or a group of tasks.

    Attributes:
        metrics: By lm-eval's names; with `,FILTER` where a task filters what is written in several ways.
        n: Questions.
        shots: Worked examples before each; None for a group of tasks that differ.
        version: Of the task; results of different versions are not comparable. None where it names none.
    """

    metrics: dict[str, Measured]
    n: int
    shots: int | None
    version: str | None


@dataclasses.dataclass(frozen=True)
class Benchmarks:
    """What `evaluate_tasks` found.

    Attributes:
        tasks: By name, as lm-eval calls them.
        groups: Likewise, of groups that have a figure of their own.
        num_cut: Requests that were longer than the model's `max_length` and have lost tokens on the left.
    """

    tasks: dict[str, Result]
    groups: dict[str, Result]
    num_cut: int


def evaluate_tasks(
    model: CheckpointModel,
    tasks: Sequence[str],
    num_fewshot: int | None = None,
    limit: int | None = None,
    include_path: str | Path | None = None,
    data_dir: str | Path | None = None,
    bootstrap_iters: int = 1000,
) -> Benchmarks:
    """Runs tasks, groups and tags of lm-eval.

    Args:
        model: What is evaluated.
        tasks: Names of lm-eval's, or of YAMLs in `include_path`.
        num_fewshot: Worked examples before each question; None is each task's own number. A task that has fixed
            none keeps none. Which they are is decided by `SEED`.
        limit: Questions of each task; None for all.
        include_path: A folder with tasks in lm-eval's YAML.
        data_dir: A folder with the tasks' rows as files (`local_data`), so that nothing is fetched.
        bootstrap_iters: Of the standard errors that have no formula.

    Raises:
        ValueError: lm-eval is not installed, a task is unknown, or its data is missing or not what the task reads.
    """
    lm_eval = _lm_eval()
    manager = check_tasks(tasks, include_path)
    cut_before = model.num_cut
    with contextlib.ExitStack() as context:
        files = None
        if data_dir is not None:
            names = [leaf for name in tasks for leaf in local_data.leaves(manager.task_index, name)]
            scratch = Path(context.enter_context(tempfile.TemporaryDirectory(prefix="flm_eval_")))
            directory = Path(data_dir).expanduser()
            files = context.enter_context(
                local_data.local_data(
                    manager.task_index, list(dict.fromkeys(names)), directory, scratch, num_fewshot
                )
            )
        loaded = _loaded(manager, list(tasks), files)
        for task in loaded["tasks"].values():
            _forgive_overflow(task)
        try:
            found = lm_eval.simple_evaluate(
                model=as_lm(model),
                tasks=_outermost(manager, tasks, loaded),
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                bootstrap_iters=bootstrap_iters,
                log_samples=False,
                fewshot_random_seed=SEED,
            )
        except (AssertionError, ValueError) as error:
            # Of its two samplers: the first so many, and those that are drawn.
            if not any(words in str(error) for words in ("fewshot samples", "larger than population")):
                raise
            raise ValueError(
                f"expected at least {num_fewshot} rows to take worked examples from, found fewer (lm-eval: {error}): "
                "lower --num_fewshot"
            ) from error
    return Benchmarks(
        tasks={name: _result(found, name, [name]) for name in loaded["tasks"]},
        groups={
            name: _result(found, name, local_data.leaves(manager.task_index, name))
            for name in found.get("groups", {})
        },
        num_cut=model.num_cut - cut_before,
    )


def check_tasks(tasks: Sequence[str], include_path: str | Path | None = None) -> Any:
    """lm-eval's index of all tasks, which has these.

    Raises:
        ValueError: lm-eval is not installed, or a task is unknown.
    """
    manager = _task_manager(_lm_eval(), None if include_path is None else str(include_path))
    _check_names(manager.all_tasks, tasks)
    return manager


def as_lm(model: CheckpointModel) -> Any:
    """The model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=as_lm(model), tasks=...)`."""
    _lm_eval()
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Hands lm-eval's requests on, all of a kind at once."""

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            """Of each (context, continuation): nats, and whether it is the greedy one."""
            pairs = [request.args for request in requests]
            return [(score.log_likelihood, score.is_greedy) for score in model.log_likelihoods(pairs)]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            """Of each whole text, in nats."""
            return model.rolling([request.args[0] for request in requests])

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            """What is written behind each prompt, as its task's `generation_kwargs` say."""
            alike: dict[str, list[int]] = {}
            for place, request in enumerate(requests):
                alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
            texts: dict[int, str] = {}
            for settings, places in alike.items():
                prompts = [requests[place].args[0] for place in places]
                written = model.sample(prompts, *_generation(json.loads(settings)), seed=SEED)
                texts |= dict(zip(places, written, strict=True))
            return [texts[place] for place in range(len(requests))]

    return HarnessModel()


def _generation(settings: Mapping[str, Any]) -> tuple[int, list[str], Sampling]:
    """A task's `generation_kwargs`: how many tokens at most, where to stop, and how to draw.

    Raises:
        ValueError: there are settings that the model has not.
    """
    left = dict(settings)
    until = left.pop("until", None) or []
    limits = [left.pop(name, None) for name in _TOKEN_LIMITS]
    temperature = float(left.pop("temperature", None) or 0.0)
    samples = left.pop("do_sample", None)
    if samples is False:
        temperature = 0.0
    elif samples and not temperature:
        temperature = 1.0
    sampling = Sampling(temperature, int(left.pop("top_k", None) or 0), float(left.pop("top_p", None) or 1.0))
    if left.pop("num_beams", 1) != 1 or left:
        raise ValueError(
            f"expected generation_kwargs among until, {', '.join(_TOKEN_LIMITS)}, do_sample, temperature, top_k, top_p "
            f"and num_beams = 1, found {json.dumps(settings)}: give the task other ones by a YAML in --include_path"
        )
    tokens = next((int(value) for value in limits if value is not None), _MAX_GEN_TOKS)
    return tokens, [until] if isinstance(until, str) else [end for end in until if end], sampling


def _lm_eval() -> Any:
    """The package, which not everybody has."""
    try:
        import lm_eval
    except ImportError as error:
        raise ValueError(
            f"benchmarks need the package lm-eval, which could not be imported ({error}): pip install 'flm_jax[eval]'"
        ) from error
    return lm_eval


@functools.lru_cache(maxsize=4)
def _task_manager(lm_eval: Any, include_path: str | None) -> Any:
    """The index of all tasks, which takes seconds to make."""
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(
            f"expected a folder with YAMLs of tasks, found none at {include_path}: change --include_path"
        )
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _check_names(known: Sequence[str], names: Sequence[str]) -> None:
    if not names:
        raise ValueError("expected the name of a task of lm-eval, found none: give --tasks")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=5)
            raise ValueError(
                f"expected a task of lm-eval, found {name!r}"
                + (f"; there are {', '.join(near)}" if near else "")
                + ": change --tasks, or name the folder of your own in --include_path"
            )


def _loaded(manager: Any, names: list[str], files: dict[str, list[Path]] | None) -> Any:
    """lm-eval's tasks and groups, with their data."""
    if files is None:
        return manager.load(names)
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = manager.load(names)
    except Exception:
        # Rows in another schema make whatever reads them fail, in any way: which task's do?
        for name, paths in files.items():
            try:
                manager.load([name])
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                raise local_data.wrong_schema(name, paths, reason) from error
        raise
    finally:
        datasets.enable_progress_bars()
    for name, paths in files.items():
        local_data.check_fields(loaded["tasks"][name], paths)
    return loaded


def _outermost(manager: Any, names: Sequence[str], loaded: Any) -> list[Any]:
    """What lm-eval has loaded for each name: its group, or its task or, of a tag, several."""
    found = []
    for name in names:
        if name in loaded["groups"]:
            found.append(loaded["groups"][name])
        else:
            found += [loaded["tasks"][leaf] for leaf in local_data.leaves(manager.task_index, name)]
    return found


def _forgive_overflow(task: Any) -> None:
    """Makes a perplexity beyond all numbers infinite: a word of Chinese, as lm-eval counts words, is a sentence."""

    def forgiving(aggregate: Callable[[Any], float]) -> Callable[[Any], float]:
        def aggregated(items: Any) -> float:
            try:
                return aggregate(items)
            except OverflowError:
                return math.inf

        return aggregated

    for metric, aggregate in task.aggregation().items():
        if metric.endswith("perplexity"):
            task.aggregation()[metric] = forgiving(aggregate)


def _result(found: Mapping[str, Any], name: str, leaves: list[str]) -> Result:
    """Of lm-eval's results, in which a metric `M` with filter `F` is `M,F` and its standard error `M_stderr,F`."""
    values = found["results"][name]
    shots = {found["n-shot"][leaf] for leaf in leaves}
    return Result(
        metrics=dict(_metrics(values)),
        n=int(values["sample_len"]),
        shots=shots.pop() if len(shots) == 1 else None,
        version=None if (version := found["versions"].get(name)) is None else str(version),
    )


def _metrics(values: Mapping[str, Any]) -> Iterator[tuple[str, Measured]]:
    for key, value in values.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        stderr = values.get(f"{metric}_stderr,{filtered}")
        error = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
        yield metric if filtered == "none" else key, Measured(float(value), error)
