"""Compiles a run for devices that are not here: each stage's step and each growth, laid out as gin or a search says."""

import itertools

from flm_jax.grow.schedule import Route
from flm_jax.pods import step_time
from flm_jax.pods.program import DoesNotFitError, compile_growth, compile_step
from flm_jax.pods.report import GrowthReport, Report, StageReport
from flm_jax.pods.request import Request
from flm_jax.pods.search import Candidate, Found, NoLayoutError, laid_out, layout_of, nearest, search
from flm_jax.pods.topology import Topology
from flm_jax.tasks.packing import sequence_length
from flm_jax.training.leg import Leg, check_mesh

# Layouts that a search compiles before it gives up: those that it expects to fit, the fastest first.
_ATTEMPTS = 4


def compile_run(request: Request, only: int | None = None) -> Report:
    """Compiles all stages and growths.

    Args:
        request: The run; where it searches, each stage gets the best layout that the compiler confirms.
        only: One stage alone, counted from 1.

    Raises:
        ValueError: a layout of gin's does not divide what it splits, with the nearest one that works; or `only` is no
            stage.
        NoLayoutError: a search finds none that fits.
    """
    route = Route.of(request.trainer.stages, sequence_length(request.trainer.task_feature_lengths))
    count = len(route.stages)
    if only is not None and only > count:
        raise ValueError(f"--stage={only}: expected one of the run's stages, 1 to {count}")
    wanted = range(count) if only is None else [only - 1]
    notes: list[str] = []
    stages: list[StageReport] = []
    for index in wanted:
        if request.searches:
            request, reports, found = _searched(request, index)
            notes.append(found.describe())
        else:
            _check_divides(request, route, index)
            reports = _steps(_leg(request, index), request.topology)
            if not all(one.fits for one in reports):
                notes.append(_what_fits(request, route, index))
        stages += reports
    growths = []
    if only is None:
        growths = [
            report_growth(old, new, request.topology)
            for old, new in itertools.pairwise(request.legs())
            if old.route.plans[old.index].operators
        ]
    return Report(stages, growths, notes)


def _steps(leg: Leg, topology: Topology) -> list[StageReport]:
    """The step of a stage, and that under the mask of the growth that led to it, if it has one."""
    masked = leg.index > 0 and leg.route.plans[leg.index - 1].masked
    return [report_step(leg, topology, with_mask) for with_mask in ((False, True) if masked else (False,))]


def report_step(leg: Leg, topology: Topology, masked: bool = False) -> StageReport:
    """Compiles one step: with the mask of the growth that led to it, or without."""
    try:
        program = compile_step(leg, masked)
    except DoesNotFitError as error:
        return StageReport(leg, topology, None, error, None, masked)
    # Parameters, gradients and state are read, parameters and state written.
    memory = program.memory
    moved = 3 * memory.params + 2 * memory.optimizer
    time = step_time.predict(program.flops, moved, program.exchanged, leg.mesh, topology)
    return StageReport(leg, topology, program, None, time, masked)


def report_growth(old: Leg, new: Leg, topology: Topology) -> GrowthReport:
    """Compiles one growth."""
    try:
        return GrowthReport(new, topology, compile_growth(old, new))
    except DoesNotFitError as error:
        return GrowthReport(new, topology, None, error)


def _searched(request: Request, index: int) -> tuple[Request, list[StageReport], Found]:
    """The request with the stage's best layout, which the compiler has confirmed."""
    length = sequence_length(request.trainer.task_feature_lengths)
    found = search(Route.of(request.trainer.stages, length), index, request.topology, request.devices)
    tried = found.fitting[:_ATTEMPTS]
    for candidate in tried:
        attempt, reports = _attempt(request, index, candidate)
        if all(one.fits for one in reports):
            return attempt, reports, found
    raise NoLayoutError(
        f"no layout of stage {index + 1} fits {request.topology.name}: of {len(found.fitting):,} that were expected to "
        f"the {len(tried)} fastest were compiled, and none does. Take more devices, or fewer sequences a step "
        f"(--global_batch, BATCH_SIZE).\n{found.describe()}"
    )


def _attempt(request: Request, index: int, candidate: Candidate) -> tuple[Request, list[StageReport]]:
    stages = list(request.trainer.stages)
    stages[index] = laid_out(stages[index], candidate.layout)
    attempt = request.with_stages(stages)
    return attempt, _steps(_leg(attempt, index), request.topology)


def _leg(request: Request, index: int) -> Leg:
    """One stage; the others may have no layout yet that fits these devices."""
    route = Route.of(request.trainer.stages, sequence_length(request.trainer.task_feature_lengths))
    return request.trainer.legs(route, request.devices)[index]


def _check_divides(request: Request, route: Route, index: int) -> None:
    try:
        check_mesh(route, index, request.devices)
    except ValueError as error:
        raise ValueError(f"stage {index + 1}: {error}. {_what_fits(request, route, index)}") from error


def _what_fits(request: Request, route: Route, index: int) -> str:
    """The layout next to the stage's own that the compiler confirms."""
    found = search(route, index, request.topology, request.devices)
    tried = nearest(found, layout_of(route.stages[index]))[:_ATTEMPTS]
    for candidate in tried:
        if all(one.fits for one in _attempt(request, index, candidate)[1]):
            return f"The nearest layout that was found to fit is {candidate.line(request.topology)}; compiled, and fits"
    return (
        f"Of {len(found.fitting):,} layouts that were expected to fit {request.topology.name} the {len(tried)} nearest "
        f"to that of stage {index + 1} were compiled, and none fits"
    )
