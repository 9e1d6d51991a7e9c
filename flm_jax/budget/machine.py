"""The devices that a run is paid for: how many, how fast, at what price, power and carbon."""

import dataclasses
from typing import Any

from flm_jax.budget import power
from flm_jax.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    Attributes:
        chip: Of which kind.
        num_devices: All that the run holds.
        price: Dollars for one device-hour; None where it does not matter.
        watts: Of one device; None where nobody publishes it.
        pue: All of the data centre's energy over the devices'.
        grid: Tonnes of CO2 equivalent a MWh.
    """

    chip: Chip
    num_devices: int
    price: float | None = None
    watts: float | None = None
    pue: float = power.PUE
    grid: float = power.GRID

    @staticmethod
    def of(
        hardware: str,
        num_devices: int,
        price: float | None = None,
        watts: float | None = None,
        pue: float = power.PUE,
        grid: float = power.GRID,
    ) -> "Machine":
        """By the chip's name; its data sheet's power unless `watts` says otherwise.

        Raises:
            ValueError: naming the flag.
        """
        chips = {chip.name: chip for chip in CHIPS}
        if hardware not in chips:
            raise ValueError(f"--hardware must be one of {', '.join(sorted(chips))}; found {hardware!r}")
        for name, value in (("price", price), ("watts", watts), ("grid", grid)):
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, found {value}")
        if num_devices < 1 or not pue >= 1:
            raise ValueError(
                f"--num_devices and --pue must be at least 1, found {num_devices} devices and a PUE of {pue}"
            )
        watts = power.WATTS.get(hardware) if watts is None else watts
        return Machine(chips[hardware], num_devices, price, watts, pue, grid)

    @property
    def peak(self) -> float:
        """Dense bfloat16 FLOP/s of all devices."""
        return self.chip.flops_per_second * self.num_devices

    def seconds(self, budget: float, unit: str) -> float:
        """How long a budget keeps all devices.

        Args:
            budget: In this unit.
            unit: `dollars`, `device_hours` or `days`.

        Raises:
            ValueError: money without a price, or no budget.
        """
        if not budget > 0:
            raise ValueError(f"--budget must be positive, found {budget}")
        if unit == "days":
            return budget * 86_400
        if unit == "device_hours":
            return budget * 3600 / self.num_devices
        if self.price is None:
            raise ValueError(
                "a --budget in dollars needs --price, dollars for a device-hour; or give --unit=device_hours"
            )
        return budget / self.price * 3600 / self.num_devices

    def assumptions(self) -> list[str]:
        """What is taken for granted, a line each."""
        chip = self.chip
        lines = [
            f"{self.num_devices:,} {chip.name}, {chip.flops_per_second / 1e12:,.0f} TFLOP/s dense bfloat16 each "
            "(flm_jax/chips.py)",
            "all devices are paid for from the first step to the last, and nothing else is: no time is lost to "
            "restarts, evaluation, checkpoints or growing",
        ]
        lines.append(
            "no --price: money is not counted"
            if self.price is None
            else f"${self.price:g} for a device-hour (--price)"
        )
        if self.watts is None:
            lines.append(
                f"no power of a {chip.name} is published: give --watts to have energy and carbon counted"
            )
        else:
            lines.append(
                f"energy is {self.watts:g} W a device (--watts), at full draw; carbon is energy x PUE "
                f"{self.pue:g} (--pue) x {self.grid:g} tCO2e/MWh (--grid)"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"chip": self.chip.name, "flops_per_second": self.chip.flops_per_second}
