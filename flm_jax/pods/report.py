"""What `flm compile` says of a run: a table for people, and the same numbers as JSON."""

import dataclasses
from typing import Any

from flm_jax.chips import GIB
from flm_jax.json_file import write_json
from flm_jax.pods.program import DoesNotFitError, Growth, Program
from flm_jax.pods.step_time import StepTime, utilisation
from flm_jax.pods.topology import Topology
from flm_jax.training.leg import Leg


@dataclasses.dataclass(frozen=True)
class StageReport:
    """Of one stage of a run.

    Attributes:
        leg: The stage.
        topology: Where it is to run.
        program: Its step; None where the compiler refused it.
        refusal: Why.
        time: Predicted.
        masked: Whether the step is that with the mask of its growth.
    """

    leg: Leg
    topology: Topology
    program: Program | None
    refusal: DoesNotFitError | None
    time: StepTime | None
    masked: bool

    @property
    def peak(self) -> int | None:
        """Bytes of one device at the most; None where nobody knows."""
        if self.program is not None:
            return self.program.memory.peak
        return self.refusal.needed if self.refusal else None

    @property
    def fits(self) -> bool:
        """Whether a device has room for it."""
        return self.program is not None and self.program.memory.peak <= self.topology.chip.memory_bytes

    @property
    def model_flops(self) -> float:
        """Of a step, recomputation left out."""
        leg = self.leg
        return leg.config.flops_per_token(leg.route.length) * leg.stage.batch_size * leg.route.length

    def mfu(self) -> float | None:
        """Of the predicted time."""
        if self.time is None:
            return None
        return utilisation(self.model_flops, self.time.seconds, self.leg.mesh.size, self.topology.chip)

    def to_json(self) -> dict[str, Any]:
        """All numbers; bytes are those of one device."""
        leg, stage = self.leg, self.leg.stage
        found: dict[str, Any] = {
            "stage": leg.index + 1,
            "topology": self.topology.name,
            "num_params": leg.config.num_params,
            "global_batch": stage.batch_size,
            "length": leg.route.length,
            "mesh": {axis: size for axis, size in leg.mesh.shape.items() if size > 1},
            "remat": leg.config.remat,
            "num_microbatches": stage.num_microbatches,
            "growth_mask": self.masked,
            "device_bytes": self.topology.chip.memory_bytes,
            "peak_bytes_per_device": self.peak,
            "fits": self.fits,
            "model_flops_per_step": self.model_flops,
        }
        if self.refusal is not None:
            found["refusal"] = str(self.refusal)
        if self.program is None or self.time is None:
            return found
        memory = self.program.memory
        kinds: dict[str, dict[str, float]] = {}
        for one in self.program.exchanged:
            kind = kinds.setdefault(one.kind, {"bytes": 0.0, "times": 0})
            kind["bytes"] += one.bytes
            kind["times"] += one.times
        return found | {
            "memory": dataclasses.asdict(memory),
            "flops_per_step": self.program.flops,
            "predicted_step_seconds": self.time.seconds,
            "predicted_mfu": self.mfu(),
            "predicted_seconds": dataclasses.asdict(self.time),
            "collectives": kinds,
            "exchanges": [dataclasses.asdict(one) for one in self.program.exchanged],
            "compile_seconds": self.program.compile_seconds,
        }

    def table(self) -> str:
        """For people."""
        leg, stage = self.leg, self.leg.stage
        mesh = (
            " x ".join(f"{axis} {size}" for axis, size in leg.mesh.shape.items() if size > 1) or "one device"
        )
        lines = [
            f"stage {leg.index + 1}: {leg.config.num_params:,} parameters on {self.topology.name}, "
            f"{stage.batch_size:,} x {leg.route.length:,} tokens a step"
            + (", under the mask of its growth" if self.masked else ""),
            f"  layout      {mesh}; remat {leg.config.remat}; {stage.num_microbatches} microbatches",
        ]
        if self.program is None or self.time is None:
            needed = f"needs {_gib(self.peak)}, " if self.peak else ""
            lines.append(f"  does not fit: {needed}the compiler says: {self.refusal}")
            return "\n".join(lines)
        memory, time = self.program.memory, self.time
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines += [
            f"  memory      {_gib(memory.peak)} of {_gib(self.topology.chip.memory_bytes)} a device: {verdict} "
            f"(parameters {_gib(memory.params)}, optimizer {_gib(memory.optimizer)}, temporaries "
            f"{_gib(memory.temporaries)}, code {_gib(memory.code)})",
            f"  FLOPs       {self.program.flops:.3g} a step, {self.model_flops:.3g} of them the model's",
        ]
        lines += [
            f"  exchanges   {one.kind} over {' x '.join(one.axes)}: {one.bytes / 1e9:.2f} GB in {one.times:,}"
            for one in self.program.exchanged
            if one.bytes >= 0.01 * self.program.exchanged[0].bytes
        ]
        lines.append(
            f"  time        {time.seconds:.2f} s a step predicted (matmuls {time.matmuls:.2f}, exchanges beside them "
            f"{time.hidden:.2f}, exchanges that are waited for {time.exposed:.2f}, optimizer {time.memory:.2f}); "
            f"MFU {self.mfu():.1%}; {stage.batch_size * leg.route.length / time.seconds:,.0f} tokens/s"
        )
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class GrowthReport:
    """Of one growth of a run; `growth` is None where the compiler refused a program of it, and `refusal` says why."""

    new: Leg
    topology: Topology
    growth: Growth | None
    refusal: DoesNotFitError | None = None

    @property
    def fits(self) -> bool:
        """As it is carried out."""
        return self.growth is not None and self.growth.peak <= self.topology.chip.memory_bytes

    def to_json(self) -> dict[str, Any]:
        """All numbers; bytes are those of one device."""
        found: dict[str, Any] = {
            "into_stage": self.new.index + 1,
            "num_params": self.new.config.num_params,
            "topology": self.topology.name,
            "device_bytes": self.topology.chip.memory_bytes,
            "fits": self.fits,
        }
        if self.growth is None:
            return found | {"peak_bytes_per_device": None, "refusal": str(self.refusal)}
        sizes = {"peak_bytes_per_device": self.growth.peak, "both_states_bytes": self.growth.both}
        return found | sizes | dataclasses.asdict(self.growth)

    def table(self) -> str:
        """For people."""
        growth, index = self.growth, self.new.index
        if growth is None:
            return f"growth into stage {index + 1}: does not fit, the compiler says: {self.refusal}"
        verdict = "fits" if self.fits else "DOES NOT FIT"
        return (
            f"growth into stage {index + 1}: {_gib(growth.peak)} of {_gib(self.topology.chip.memory_bytes)} a device: "
            f"{verdict} (old state {_gib(growth.before)}, new {_gib(growth.after)}, temporaries "
            f"{_gib(growth.temporaries)}; with both states whole {_gib(growth.both)}; {growth.programs} programs)"
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """Of a run."""

    stages: list[StageReport]
    growths: list[GrowthReport]
    notes: list[str]

    @property
    def fits(self) -> bool:
        """All of it."""
        return all(one.fits for one in self.stages) and all(one.fits for one in self.growths)

    def to_json(self) -> dict[str, Any]:
        """Of each stage and growth; a run of one stage has its numbers at the top, too."""
        whole = {
            "fits": self.fits,
            "stages": [one.to_json() for one in self.stages],
            "growths": [one.to_json() for one in self.growths],
            "notes": self.notes,
        }
        return {**self.stages[0].to_json(), **whole} if len(self.stages) == 1 else whole

    def write_json(self, path: str) -> None:
        """Writes `to_json` to a file."""
        write_json(path, self.to_json())

    def table(self) -> str:
        """For people."""
        stages, growths = [one.table() for one in self.stages], [one.table() for one in self.growths]
        return "\n".join([*self.notes, *stages, *growths])


def _gib(size: int | None) -> str:
    return "?" if size is None else f"{size / GIB:.2f} GiB"
