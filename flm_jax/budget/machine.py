"""The devices that a planned run is paid for: how many, how fast, and what an hour of one costs."""

import dataclasses
from typing import Any

from flm_jax.budget.rates import Rates
from flm_jax.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices of one kind.

    Attributes:
        chip: Of which kind.
        num_devices: All that the run holds.
        rates: Of a device-hour; with the chip's power, where that is published.
    """

    chip: Chip
    num_devices: int
    rates: Rates

    @staticmethod
    def of(hardware: str, num_devices: int, rates: Rates) -> "Machine":
        """By the chip's name; its data sheet's power unless `rates.watts` says otherwise.

        Raises:
            ValueError: naming the flag.
        """
        chips = {chip.name: chip for chip in CHIPS}
        if hardware not in chips:
            raise ValueError(f"--hardware must be one of {', '.join(sorted(chips))}; found {hardware!r}")
        if num_devices < 1:
            raise ValueError(f"--num_devices must be at least 1, found {num_devices}")
        chip = chips[hardware]
        watts = chip.watts if rates.watts is None else rates.watts
        return Machine(chip, num_devices, dataclasses.replace(rates, watts=watts))

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
        if self.rates.price is None:
            raise ValueError(
                "a --budget in dollars needs --price, dollars for a device-hour; or give --unit=device_hours"
            )
        return budget / self.rates.price * 3600 / self.num_devices

    def assumptions(self) -> list[str]:
        """What is taken for granted, a line each."""
        chip = self.chip
        lines = [
            f"{self.num_devices:,} {chip.name}, {chip.flops_per_second / 1e12:,.0f} TFLOP/s dense bfloat16 each "
            "(flm_jax/chips.py)",
            "all devices are paid for from the first step to the last, and nothing else is: no time is lost to "
            "restarts, evaluation, checkpoints or growing",
        ]
        lines.append(self.rates.money())
        if self.rates.watts is None:
            lines.append(
                f"no power of a {chip.name} is published: give --watts to have energy and carbon counted"
            )
        else:
            lines.append(
                f"energy is {self.rates.watts:g} W a device (--watts), at full draw; {self.rates.carbon()}"
            )
        return lines

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        own = {
            "chip": self.chip.name,
            "flops_per_second": self.chip.flops_per_second,
            "num_devices": self.num_devices,
        }
        return own | dataclasses.asdict(self.rates)
