"""How a run's data goes on: by its stages and its checkpoint, what changes where, and whether there is enough."""

import math
from typing import Any

from flm_jax.grow.schedule import Route
from flm_jax.tasks.history import Epochs, History, Segment, epochs_to_json
from flm_jax.tasks.mixture_plan import MixturePlan

_COUNTED_BATCHES = 1_000


def in_stage(
    history: History | None, route: Route, index: int, step: int, mixture: Any, max_epochs: Epochs
) -> History:
    """With the settings of a stage from `step` on.

    Args:
        history: Before; None for a run that begins.
        route: All stages.
        index: Of the stage.
        step: At which the stage begins, or goes on.
        mixture: Of stages that have none of their own.
        max_epochs: That a task may be read for.
    """
    stage = route.stages[index]
    mixture = mixture if stage.mixture is None else stage.mixture
    if history is None:
        return History.begin(mixture, stage.batch_size, max_epochs)
    return history.changed(step, stage.batch_size, mixture, max_epochs)


def with_later_stages(
    history: History, route: Route, index: int, end: int, mixture: Any, max_epochs: Epochs
) -> History:
    """With the stages behind `index`, which ends at `end`; each at its longest. Args as `in_stage`."""
    for later in range(index + 1, len(route.stages)):
        history = in_stage(history, route, later, end, mixture, max_epochs)
        end += route.stages[later].num_steps(route.length)
    return history


def changes(before: Segment, history: History, step: int, length: int) -> str | None:
    """What a run that goes on has changed, as a line for its log.

    Args:
        before: What held at `step`, by the checkpoint.
        history: Of the run that goes on.
        step: Of the checkpoint.
        length: Tokens of a sequence.
    """
    found, now = [], history.at(step)
    if before.batch_size != now.batch_size:
        found.append(f"batch size {before.batch_size} -> {now.batch_size}")
    if before.mixture != now.mixture:
        starts = now in history.clock_starts(length) and now.mixture.has_clock
        clock = " (its clock starts at 0 here)" if starts else ""
        found.append(f"mixture {before.mixture.to_json()} -> {now.mixture.to_json()}{clock}")
    if before.max_epochs != now.max_epochs:
        found.append(f"max_epochs {epochs_to_json(before.max_epochs)} -> {epochs_to_json(now.max_epochs)}")
    return f"from step {now.step} on: {', '.join(found)}" if found else None


def check_lasts(plan: MixturePlan, history: History, length: int, end: int) -> None:
    """Refuses a run whose tasks have all been read for their epochs before its end.

    Args:
        plan: Of the history.
        history: All stages included.
        length: Tokens of a sequence.
        end: Step at which the run ends.

    Raises:
        ValueError: with the tokens that there are and those needed.
    """
    needed = history.sequences(end)
    if plan.end is not None and plan.end < needed:
        raise ValueError(
            f"the run needs {needed * length:,} tokens, padding included, but all tasks of the mixture will have been "
            f"read for their epochs after {plan.end * length:,}, at step {history.steps(plan.end):,} of {end:,}: bind "
            "Trainer.max_epochs higher, train for fewer steps, or prepare more data"
        )


def caps_ahead(plan: MixturePlan, history: History, step: int, end: int) -> list[str]:
    """A line for each task that will have been read for its epochs between `step`, or there, and the run's `end`."""
    lines = []
    for task, epochs, sequence in plan.reached:
        if not history.sequences(step) <= sequence < history.sequences(end):
            continue
        read, at = plan.epochs(sequence)[task], history.steps(sequence)
        said = (
            f"{task} reaches its {epochs:g} epochs at step {at:,}"
            if read <= epochs
            else f"{task} is read no more from step {at:,} on, by then for {read:.3g} epochs, beyond its {epochs:g}"
        )
        lines.append(f"{said}; from there on its share goes to the others")
    return lines


def not_in_every_batch(plan: MixturePlan, history: History, step: int, end: int) -> list[str]:
    """A line for each part of the run, between `step` and its `end`, that has tasks which some batches lack.

    It is by the rates at the beginning of the part, counted over 1,000 batches.
    """
    lines = []
    for segment in history.segments:
        if segment.step >= end or (segment.step < step and segment != history.at(step)):
            continue
        begins = max(segment.step, step)
        found = plan.presence(history.sequences(begins), segment.batch_size, _COUNTED_BATCHES)
        if missing := {task: of for task, of in found.items() if of.batches < _COUNTED_BATCHES}:
            counts = ", ".join(f"{task} ({of.batches:,})" for task, of in missing.items())
            turn = " of their group's turn" if segment.mixture.alternates else ""
            least = math.ceil(1 / min(of.share for of in missing.values()))
            lines.append(
                f"these tasks are not in every batch of {segment.batch_size:,} sequences as of step {begins:,}, but in "
                f"so many of {_COUNTED_BATCHES:,}{turn}: {counts}; all would be in batches of about {least:,}"
            )
    return lines


def figures(plan: MixturePlan, sequences: int) -> dict[str, float]:
    """For the log, after so many sequences: `data/<task>/epochs`, and of several tasks tokens and their share.

    Tokens are without padding: exact at whole epochs of a task, a mean in between.
    """
    values = {f"data/{task}/epochs": epochs for task, epochs in plan.epochs(sequences).items()}
    tokens = plan.tokens(sequences)
    if len(tokens) > 1:
        values |= {f"data/{task}/tokens": float(round(count)) for task, count in tokens.items()}
        values |= {
            f"data/{task}/share": count / max(sum(tokens.values()), 1) for task, count in tokens.items()
        }
    return values
