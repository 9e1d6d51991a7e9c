"""Compiles a run for devices that are not here: each stage's step and each growth, laid out as gin or a search says."""

import itertools
from collections.abc import Callable

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
_MENDS = "more devices, or fewer sequences a step (--global_batch, BATCH_SIZE)"


def compile_run(
    request: Request, only: int | None = None, say: Callable[[str], None] = lambda line: None
) -> Report:
    """Compiles all stages and growths.

    Args:
        request: The run; where it searches, each stage gets the best layout that the compiler confirms.
        only: One stage alone, counted from 1.
        say: Takes a line on what is begun: each takes a minute or more.

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
        say(f"stage {index + 1} of {count}: {'searching a layout' if request.searches else 'compiling'}")
        if request.searches:
            request, reports, found = _searched(request, index)
            notes.append(found.describe())
        else:
            _check_divides(request, route, index, say)
            reports = _steps(_leg(request, index), request.topology)
            if not all(one.fits for one in reports):
                say(f"stage {index + 1} does not fit: looking for a layout that does")
                notes.append(_what_fits(request, route, index))
        stages += reports
    growths = []
    for old, new in itertools.pairwise(request.legs() if only is None else []):
        if old.route.plans[old.index].operators:
            say(f"compiling the growth into stage {new.index + 1}")
            growths.append(report_growth(old, new, request.topology))
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
    if not found.candidates:
        why = "every layout was refused before its memory was looked at; change what it could not divide"
    elif not tried:
        why = f"of {len(found.candidates):,} that divide everything none is expected to; take {_MENDS}"
    else:
        why = f"the {len(tried)} fastest of {len(found.fitting):,} that are expected to were compiled; take {_MENDS}"
    raise NoLayoutError(
        f"no layout of stage {index + 1} fits {request.topology.name}: {why}\n{found.describe()}"
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


def _check_divides(request: Request, route: Route, index: int, say: Callable[[str], None]) -> None:
    try:
        check_mesh(route, index, request.devices)
    except ValueError as error:
        say(f"stage {index + 1}: {error}; looking for a layout that works")
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
