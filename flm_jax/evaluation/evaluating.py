"""`flm eval`: what is asked for, of each checkpoint in turn, and the report on all."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from flm_jax.evaluation.checkpoint_model import CheckpointModel
from flm_jax.evaluation.held_out_text import check_tasks, held_out, measures, open_tasks
from flm_jax.evaluation.measured import Measured
from flm_jax.evaluation.opened import Opened, open_checkpoint
from flm_jax.evaluation.report import Evaluated, Report
from flm_jax.evaluation.spent import spent
from flm_jax.evaluation.suites import Suite
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import load_metadata


@dataclasses.dataclass(frozen=True)
class Request:
    """What to find out.

    Attributes:
        checkpoints: (MODEL_DIR, step) of each; a step of None is the newest.
        prepared_dir: Whose held-out text to compute the loss of; None for none.
        suites: Asked of each.
        tokenizer: The file; None for that of the prepared tasks.
        mesh: Over which the model is split.
        batch_size: Sequences, or questions, at a time.
        num_sequences: Of each prepared task; None for all.
    """

    checkpoints: Sequence[tuple[str, int | None]]
    prepared_dir: str | None = None
    suites: Sequence[Suite] = ()
    tokenizer: str | None = None
    mesh: MeshShape = MeshShape(data=1)
    batch_size: int = 32
    num_sequences: int | None = None


def evaluate(request: Request, say: Callable[[str], None] = print) -> Report:
    """Carries it out, a checkpoint at a time.

    Args:
        request: What to find out.
        say: Told what it is at.

    Raises:
        FileNotFoundError: a checkpoint, the tokenizer or the prepared tasks are not there.
        ValueError: the tokenizer or the tasks are not the checkpoint's; a suite cannot be asked.
    """
    tasks = [] if request.prepared_dir is None else open_tasks(request.prepared_dir)
    if not tasks and not request.suites:
        raise ValueError(
            "nothing says what to evaluate: give --prepared_dir (held-out text), --suite=iq or --tasks (benchmarks)"
        )
    vocabulary = _vocabulary(request.tokenizer, tasks) if request.suites else None
    steps = _checked(request, tasks, vocabulary)
    checkpoints = tuple(
        _one(request, model_dir, step, tasks, vocabulary, say)
        for (model_dir, _), step in zip(request.checkpoints, steps, strict=True)
    )
    published: dict[str, dict[str, float]] = {}
    for suite in request.suites:
        for model, figures in suite.published.items():
            published.setdefault(model, {}).update(figures)
    caveats = tuple(itertools.chain.from_iterable(suite.caveats for suite in request.suites))
    return Report(checkpoints, published, caveats)


def _vocabulary(tokenizer: str | None, tasks: Sequence[PreparedTask]) -> Vocabulary:
    if tokenizer is not None:
        return Vocabulary(Path(tokenizer))
    if not tasks:
        raise ValueError(
            "a suite asks in text: give the model's --tokenizer, or --prepared_dir, which has a copy of it"
        )
    return tasks[0].vocabulary


def _checked(request: Request, tasks: Sequence[PreparedTask], vocabulary: Vocabulary | None) -> list[int]:
    """The steps of the checkpoints; what is wrong with one is said before hours are spent on another."""
    for suite in request.suites:
        suite.check()
    steps = []
    for model_dir, step in request.checkpoints:
        metadata, found = load_metadata(Path(model_dir), step)
        check_tasks(metadata, tasks)
        if vocabulary is not None:
            metadata.check_tokenizer(vocabulary.sha256, str(vocabulary.path))
        steps.append(found)
    return steps


def _one(
    request: Request,
    model_dir: str,
    step: int,
    tasks: list[PreparedTask],
    vocabulary: Vocabulary | None,
    say: Callable[[str], None],
) -> Evaluated:
    opened = open_checkpoint(model_dir, step, request.mesh)
    say(f"{model_dir}/checkpoint_{opened.step}: {opened.config.num_params:,} parameters")
    found: list[Measured] = []
    if tasks:
        found += measures(held_out(opened, tasks, request.batch_size, request.num_sequences))
    notes: tuple[str, ...] = ()
    if vocabulary is not None:
        model = _model(opened, vocabulary, request.batch_size)
        for suite in request.suites:
            for measure in suite(model):
                found.append(measure)
                say(f"  {measure.name}: {measure.text}")
        notes = tuple(model.notes)
    cost = spent(model_dir, opened.step, opened.metadata)
    return Evaluated(model_dir, opened.step, opened.config.num_params, cost, tuple(found), notes)


def _model(opened: Opened, vocabulary: Vocabulary, batch_size: int) -> CheckpointModel:
    return CheckpointModel(
        opened.config, opened.params, vocabulary, opened.growth, opened.mesh, batch_size=batch_size
    )
