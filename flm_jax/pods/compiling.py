"""Compiles a run for devices that are not here: each stage's step and each growth, laid out as gin or a search says."""

import itertools

from flm_jax.grow.schedule import Route
from flm_jax.pods import step_time
from flm_jax.pods.program import DoesNotFitError, compile_growth, compile_step
from flm_jax.pods.report import GrowthReport, Report, StageReport
from flm_jax.pods.request import Request
from flm_jax.pods.search import Found, NoLayoutError, laid_out, layout_of, nearest, search
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
    compiled: dict[int, StageReport] = {}
    if request.searches:
        for index in wanted:
            request, compiled[index], found = _searched(request, index)
            notes.append(found.describe())
    else:
        for index in wanted:
            _check_divides(request, route, index)
    legs = request.legs() if only is None else [_leg(request, index) for index in range(count)]
    stages = []
    for index in wanted:
        plain = compiled.get(index) or report_step(legs[index], request.topology)
        stages.append(plain)
        if not plain.fits:
            notes.append(_what_fits(request, route, index))
        if index and legs[index].route.plans[index - 1].masked:
            stages.append(report_step(legs[index], request.topology, masked=True))
    growths = [
        GrowthReport(new, request.topology, compile_growth(old, new))
        for old, new in itertools.pairwise(legs)
        if only is None and old.route.plans[old.index].operators
    ]
    return Report(stages, growths, notes)


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


def _searched(request: Request, index: int) -> tuple[Request, StageReport, Found]:
    """The request with the stage's best layout, which the compiler has confirmed."""
    length = sequence_length(request.trainer.task_feature_lengths)
    found = search(Route.of(request.trainer.stages, length), index, request.topology, request.devices)
    for candidate in found.fitting[:_ATTEMPTS]:
        stages = list(request.trainer.stages)
        stages[index] = laid_out(stages[index], candidate.layout)
        attempt = request.with_stages(stages)
        report = report_step(_leg(attempt, index), request.topology)
        if report.fits:
            return attempt, report, found
    raise NoLayoutError(
        f"no layout of stage {index + 1} was found to fit {request.topology.name}; take more devices, or fewer "
        f"sequences a step (--global_batch, BATCH_SIZE).\n{found.describe()}"
    )


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
    for candidate in nearest(found, layout_of(route.stages[index]))[:_ATTEMPTS]:
        stages = list(request.trainer.stages)
        stages[index] = laid_out(stages[index], candidate.layout)
        report = report_step(_leg(request.with_stages(stages), index), request.topology)
        if report.fits:
            return f"The nearest layout that was found to fit is {candidate.line(request.topology)}; compiled, and fits"
    return f"No layout of stage {index + 1} was found to fit {request.topology.name}"
