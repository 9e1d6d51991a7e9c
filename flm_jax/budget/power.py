"""Energy and carbon: what a device draws, what a data centre adds, what its electricity emits.

The method is Patterson et al. 2021 (arXiv 2104.10350): energy is device-hours times power; carbon is energy times PUE
(power usage effectiveness, all of a data centre's energy over that of its machines) times the grid's intensity.
"""

# Thermal design power, watts of one device: NVIDIA's data sheets of the SXM boards. Google publishes none for the TPUs
# of `chips.CHIPS`.
WATTS = {"a100": 400.0, "a800": 400.0, "h100": 700.0, "h200": 700.0}
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
