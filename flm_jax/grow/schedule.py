"""A run's stages: what each trains, for how long, at which learning rate, and how it grows out of the one before."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from flm_jax.config import ModelConfig
from flm_jax.grow.errors import GrowthError
from flm_jax.grow.lineage import Lineage
from flm_jax.grow.multipliers import POLICIES as MULTIPLIER_POLICIES
from flm_jax.grow.optimizer_state import POLICIES as STATE_POLICIES
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.model import LanguageModel
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.history import History
from flm_jax.tasks.mixture import Mixture

RATE_POLICIES = ("keep", "rewind", "rewarmup")
# The whole numbers among a stage's settings, and the least that each may be.
_LEAST = {
    "steps": 1,
    "tokens": 1,
    "batch_size": 1,
    "num_microbatches": 1,
    "warmup_steps": 0,
    "ramp_steps": 0,
    "rewind_to": 0,
    "rewarm_steps": 1,
}
_OPTIONAL = ("steps", "tokens", "rewind_to")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run; a run without growth has one.

    Attributes:
        model: What is trained. Its sizes are those wanted; the constants that growth changes follow from the plan.
        batch_size: Sequences a step, over all devices.
        learning_rate: The peak, at the µP base width. Matrices have it times the multiplier of the *first* stage's
            width unless `multipliers` says otherwise (`GrowthPlan.multipliers`), embeddings, norms and biases as it is.
        steps: Batches of this stage, at most; or
        tokens: as many as make up these tokens, padding included. One of the two.
        slope: The stage ends early once the loss falls no faster than this: nats per token for an e-fold of the run's
            tokens, a negative number, such as -0.3. None for never.
        slope_window: The latest share of the run's tokens over which the slope is fitted, which smooths the loss; it
            begins behind ramp and warmup.
        warmup_steps: Of the first stage, and of one that warms up again.
        num_microbatches: Parts of a batch whose gradients are added up, to save memory; or, with pipeline stages, that
            follow each other through them.
        mesh: How the devices are arranged.
        method: How the model grows out of the stage before: one of `operators.METHODS`, or axis to operator; `none`:
            it stays as it is, and the stage has data or a learning rate of its own.
        ramp_steps: Over which the mask opens, where the method has one.
        policy: Of the learning rate. `keep`: the schedule goes on (under WSD the stable phase: WSD continuation).
            `rewind`: its clock goes back to `rewind_to`. `rewarmup`: it begins anew with `warmup_steps`. All end at the
            end of the run.
        rewind_to: Step of the schedule; None is the end of the first stage's warmup.
        optimizer_state: What becomes of moments at the growth: `carry`, `age`, `asymmetric` or `reset`
            (`GrowthPlan.opt_state`).
        rewarm_steps: Under `asymmetric` the learning rate of what is new warms up over these updates.
        multipliers: `carry`: learning-rate multipliers of matrices stay those of the first width. `rederive`: they
            become µP's of the new one.
        trains: `all`, or `new`: what was there before the growth is frozen in this stage.
        mixture: What is read in this stage, in any form of `tasks.mixture`; None is the run's.
    """

    model: LanguageModel
    batch_size: int
    learning_rate: float
    steps: int | None = None
    tokens: int | None = None
    slope: float | None = None
    slope_window: float = 0.2
    warmup_steps: int = 0
    num_microbatches: int = 1
    mesh: MeshShape = MeshShape()
    method: str | Mapping[str, str] = "msg"
    ramp_steps: int = 100
    policy: str = "keep"
    rewind_to: int | None = None
    optimizer_state: str = "carry"
    rewarm_steps: int = 250
    multipliers: str = "carry"
    trains: str = "all"
    mixture: Any = None

    def check(self, name: str) -> None:
        """Refuses settings that cannot be; `name` is the stage's in the message.

        Raises:
            ValueError: naming the setting.
        """
        for field, kind in (("model", LanguageModel), ("mesh", MeshShape)):
            if not isinstance(getattr(self, field), kind):
                raise ValueError(
                    f"Stage.{field} of {name} must be a {kind.__name__}, found {getattr(self, field)!r}"
                )
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"Stage.{field} of {name} must be a whole number of at least {least}, found {value!r}"
                )
        if self.mixture is not None:
            try:
                Mixture.of(self.mixture)
            except ValueError as error:
                raise ValueError(f"Stage.mixture of {name}: {error}") from error
        if (self.steps is None) == (self.tokens is None):
            raise ValueError(
                f"expected either Stage.steps (TRAIN_STEPS) or Stage.tokens for {name}, "
                f"found steps={self.steps} and tokens={self.tokens}"
            )
        if not _is_number(self.learning_rate) or not self.learning_rate > 0:
            raise ValueError(
                f"Stage.learning_rate of {name} must be a positive number, found {self.learning_rate!r}"
            )
        if not _is_number(self.slope_window) or not 0 < self.slope_window < 1:
            raise ValueError(
                f"Stage.slope_window of {name} must be a share of the tokens between 0 and 1, found "
                f"{self.slope_window!r}"
            )
        if self.slope is not None and (not _is_number(self.slope) or not self.slope < 0):
            raise ValueError(
                f"Stage.slope of {name} must be negative, nats per e-fold of tokens at which a falling loss is flat "
                f"enough, found {self.slope!r}"
            )
        for field, allowed in (
            ("policy", RATE_POLICIES),
            ("optimizer_state", STATE_POLICIES),
            ("multipliers", MULTIPLIER_POLICIES),
            ("trains", ("all", "new")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"Stage.{field} of {name} must be one of {', '.join(allowed)}, found {getattr(self, field)!r}"
                )

    def num_steps(self, length: int) -> int:
        """Batches of this stage, at most, with sequences of `length` tokens."""
        if self.steps is not None:
            return self.steps
        assert self.tokens is not None, "checked before"
        return math.ceil(self.tokens / (self.batch_size * length))


@dataclasses.dataclass(frozen=True)
class Route:
    """The stages of a run with what follows from them.

    Attributes:
        stages: As given.
        plans: `plans[i]` leads from stage i to stage i + 1.
        length: Tokens of a sequence.
    """

    stages: tuple[Stage, ...]
    plans: tuple[GrowthPlan, ...]
    length: int

    @staticmethod
    def of(stages: Sequence[Stage], length: int) -> "Route":
        """Checks the stages and plans every growth.

        Raises:
            GrowthError: a plan is bad; its own kind says how.
            ValueError: a setting is.
        """
        if (
            not isinstance(stages, Sequence)
            or not all(isinstance(stage, Stage) for stage in stages)
            or not stages
        ):
            raise ValueError(f"Trainer.stages must be a list of at least one Stage, found {stages!r}")
        for index, stage in enumerate(stages):
            stage.check(f"stage {index + 1}")
        config, plans = stages[0].model.config, []
        for index, stage in enumerate(stages[1:], start=2):
            try:
                plans.append(decide(config, stage.model.config, stage.method))
            except GrowthError as error:
                raise type(error)(f"stage {index}: {error}") from error
            config = plans[-1].target
            if plans[-1].masked and not 0 < stage.ramp_steps <= stage.num_steps(length):
                raise GrowthError(
                    f"stage {index}: the mask must open within the stage: bind its Stage.ramp_steps to between 1 and "
                    f"the stage's {stage.num_steps(length)} steps; found {stage.ramp_steps}"
                )
        return Route(tuple(stages), tuple(plans), length)

    def config(self, index: int) -> ModelConfig:
        """The model that runs in a stage."""
        return self.plans[index - 1].target if index else self.stages[0].model.config

    def grown(self, lineage: Lineage, step: int, updates: int, sequences: int) -> Lineage:
        """The lineage once the stage that `lineage` has led to has grown into the next, at `step`.

        Args:
            lineage: Before.
            step: Of the growth.
            updates: Made before it.
            sequences: Read before it.
        """
        index = len(lineage.records)
        after = self.stages[index + 1]
        return lineage.grown(
            self.plans[index],
            step,
            updates,
            sequences,
            after.ramp_steps,
            after.multipliers,
        )

    def end(self, index: int, start: int, history: History | None = None) -> int:
        """The step at which a stage that began at `start` ends at the latest.

        With the data's `history` a stage of so many `tokens` ends with them also where its batch size has changed.
        """
        stage = self.stages[index]
        if history is None or stage.tokens is None:
            return start + stage.num_steps(self.length)
        return history.steps(history.sequences(start) + math.ceil(stage.tokens / self.length))

    def end_of_run(self, index: int, start: int, history: History | None = None) -> int:
        """The step at which the run ends at the latest, if stage `index` began at `start`."""
        later = sum(stage.num_steps(self.length) for stage in self.stages[index + 1 :])
        return self.end(index, start, history) + later

    def learning_rate(
        self,
        index: int,
        start: int,
        updates: int,
        make: Callable[..., optax.Schedule],
        history: History | None = None,
    ) -> optax.Schedule:
        """The rate of a stage, a function of the updates that the whole run has made before.

        Args:
            index: Of the stage.
            start: The step at which it began.
            updates: Made before it began.
            make: `make(peak=, total_steps=, warmup_steps=)` gives a schedule.
            history: Of the data, for a stage of so many tokens whose batch size has changed.
        """
        stage, warmup = self.stages[index], self.stages[0].warmup_steps
        left = self.end_of_run(index, start, history) - start
        if index == 0 or stage.policy == "keep":
            return make(peak=stage.learning_rate, total_steps=start + left, warmup_steps=warmup)
        if stage.policy == "rewind":
            clock = warmup if stage.rewind_to is None else stage.rewind_to
        else:
            clock, warmup = 0, stage.warmup_steps
        schedule = make(peak=stage.learning_rate, total_steps=clock + left, warmup_steps=warmup)
        return lambda count: schedule(clock + count - updates)

    def describe(self) -> str:
        """The whole plan as a table, with parameters, tokens and FLOPs, and what each growth keeps."""
        tokens = [s.num_steps(self.length) * s.batch_size * self.length for s in self.stages]
        flops = [
            count * self.config(index).flops_per_token(self.length) for index, count in enumerate(tokens)
        ]
        first = self.config(0).num_params
        rows = [
            ("stage", "parameters", "ratio", "layers x d_model x heads x d_ff", "steps", "batch", "tokens", "share",
             "FLOPs", "share", "peak rate", "growth")
        ]  # fmt: skip
        for index, stage in enumerate(self.stages):
            config = self.config(index)
            steps = f"{stage.num_steps(self.length):,}"
            rows.append(
                (
                    str(index + 1),
                    f"{config.num_params:,}",
                    f"{config.num_params / first:.2f}",
                    f"{config.num_layers} x {config.d_model:,} x {config.num_heads} x {config.d_ff:,}",
                    steps if stage.slope is None else f"<= {steps}",
                    f"{stage.batch_size:,}",
                    f"{tokens[index]:,}",
                    f"{tokens[index] / sum(tokens):.0%}",
                    f"{flops[index]:.3g}",
                    f"{flops[index] / sum(flops):.0%}",
                    f"{stage.learning_rate:g}" + (f", {stage.policy}" if index else ""),
                    self._growth(index),
                )
            )
        rows.append(("all", "", "", "", "", "", f"{sum(tokens):,}", "", f"{sum(flops):.3g}", "", "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines += [f"stage {i + 1} -> {i + 2}: {growth.explain()}" for i, growth in enumerate(self.plans)]
        return "\n".join(lines)

    def _growth(self, index: int) -> str:
        if not index:
            return ""
        stage = self.stages[index]
        named = stage.method if isinstance(stage.method, str) else "as given"
        return f"{named}, ramp {stage.ramp_steps:,}" if self.plans[index - 1].masked else named


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
