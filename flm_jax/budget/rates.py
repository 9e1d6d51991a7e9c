"""What a device-hour costs: money, the device's energy, and what its electricity emits.

The method is Patterson et al. 2021 (arXiv 2104.10350): energy is device-hours times power; carbon is energy times PUE
(power usage effectiveness, all of a data centre's energy over that of its machines) times the grid's intensity. The
power of a device is `flm_jax.chips.Chip.watts`.
"""

import dataclasses

# Patterson et al., table 4, of the machines that trained GPT-3.
PUE = 1.10
# Tonnes of CO2 equivalent a megawatt-hour: the United States' average, same table.
GRID = 0.429


def kwh(device_hours: float, watts: float) -> float:
    """Energy of the devices; hosts, network and cooling come in by the PUE alone, as in the paper's table."""
    return device_hours * watts / 1000


def tco2e(energy: float, pue: float = PUE, grid: float = GRID) -> float:
    """Tonnes of CO2 equivalent for so many kWh of the devices."""
    return energy / 1000 * pue * grid


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of a device-hour.

    Attributes:
        price: Dollars; None where money is not counted.
        watts: Of one device; None where it is that of the data sheet, or nobody publishes one.
        pue: All of the data centre's energy over the devices'.
        grid: Tonnes of CO2 equivalent a MWh.

    Raises:
        ValueError: naming the flag.
    """

    price: float | None = None
    watts: float | None = None
    pue: float = PUE
    grid: float = GRID

    def __post_init__(self) -> None:
        for name, value in (("price", self.price), ("watts", self.watts), ("grid", self.grid)):
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, found {value}")
        if not self.pue >= 1:
            raise ValueError(f"--pue must be at least 1, found {self.pue}")

    def money(self) -> str:
        """What is taken for granted of money."""
        if self.price is None:
            return "no --price: money is not counted"
        return f"${self.price:g} for a device-hour (--price)"

    def carbon(self) -> str:
        """Of carbon, where energy is known."""
        return f"carbon is energy x PUE {self.pue:g} (--pue) x {self.grid:g} tCO2e/MWh (--grid)"
