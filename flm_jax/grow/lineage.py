"""The growths that led to a model: what a checkpoint keeps of them, and what follows from it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.config import ModelConfig
from flm_jax.grow.planning import GrowthPlan, decide
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.optimizer import Multipliers, width_multipliers


@dataclasses.dataclass(frozen=True)
class GrowthRecord:
    """One growth of a run.

    Attributes:
        step: Batches taken before it.
        updates: Updates made before it: skipped steps are not among them.
        sequences: Sequences read before it, the data's position.
        ramp_steps: Steps over which the mask opens; 0 where there is none.
        source: The model before.
        target: The model after, with the constants that its plan has set.
        operators: Axis to operator.
        multipliers: Policy of the optimizer's multipliers, `carry` or `rederive`.
    """

    step: int
    updates: int
    sequences: int
    ramp_steps: int
    source: ModelConfig
    target: ModelConfig
    operators: dict[str, str]
    multipliers: str = "carry"

    @property
    def plan(self) -> GrowthPlan:
        """The plan that was carried out."""
        return decide(self.source, self.target, self.operators)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "source": self.source.to_json(), "target": self.target.to_json()}

    @staticmethod
    def from_json(values: dict[str, Any]) -> "GrowthRecord":
        """The inverse of `to_json`."""
        configs = {name: ModelConfig(**values[name]) for name in ("source", "target")}
        return GrowthRecord(**{**values, **configs})


@dataclasses.dataclass(frozen=True)
class Lineage:
    """All growths of a run so far, oldest first."""

    records: tuple[GrowthRecord, ...] = ()

    @staticmethod
    def from_json(values: Sequence[dict[str, Any]]) -> "Lineage":
        """From a checkpoint's `growth_record`."""
        return Lineage(tuple(GrowthRecord.from_json(record) for record in values))

    def to_json(self) -> tuple[dict[str, Any], ...]:
        """For a checkpoint's `growth_record`."""
        return tuple(record.to_json() for record in self.records)

    def grown(
        self, plan: GrowthPlan, step: int, updates: int, sequences: int, ramp_steps: int, multipliers: str
    ) -> "Lineage":
        """With one growth more: by `plan` at `step`, after `updates` on so many sequences."""
        record = GrowthRecord(
            step=step,
            updates=updates,
            sequences=sequences,
            ramp_steps=ramp_steps if plan.masked else 0,
            source=plan.source,
            target=plan.target,
            operators=dict(plan.operators),
            multipliers=multipliers,
        )
        return Lineage((*self.records, record))

    @property
    def step(self) -> int:
        """At which the present model began."""
        return self.records[-1].step if self.records else 0

    @property
    def updates(self) -> int:
        """Made before the present model began."""
        return self.records[-1].updates if self.records else 0

    @property
    def ramp_end(self) -> int:
        """The first step that is taken without a mask."""
        return self.step + (self.records[-1].ramp_steps if self.records else 0)

    def flops(self, sequences: int, length: int, config: ModelConfig) -> float:
        """Model FLOPs spent by all models so far on `sequences` of `length` tokens, the latest by `config`."""
        spent, before = 0.0, 0
        for record in self.records:
            spent += (record.sequences - before) * length * record.source.flops_per_token(length)
            before = record.sequences
        return spent + (sequences - before) * length * config.flops_per_token(length)

    def multipliers(self, config: ModelConfig) -> Multipliers:
        """Of the optimizer for the present model `config`: those of the first, carried through every growth."""
        mults = width_multipliers(self.records[0].source if self.records else config)
        for record in self.records:
            mults = record.plan.multipliers(mults, record.multipliers)
        return mults

    def mask(self, step: int | jax.Array) -> GrowthMask | None:
        """The mask of the step after `step` steps: k/R for the update after k of a ramp of R; None without a ramp.

        A `step` known to lie behind the ramp needs no mask: ask `ramp_end`.
        """
        if not self.records or not self.records[-1].ramp_steps:
            return None
        last = self.records[-1]
        value = (jnp.asarray(step) - last.step) / last.ramp_steps
        return last.plan.mask(jnp.clip(value, 0, 1))

    def mask_at(self, step: int) -> GrowthMask | None:
        """The mask under which a model of `step` steps computes; None once the ramp is over."""
        return self.mask(step) if step < self.ramp_end else None
