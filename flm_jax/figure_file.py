"""Figures as PNG files that are there whole, or not at all."""

from pathlib import Path
from typing import Any


def pyplot() -> Any:
    """matplotlib's, drawing into memory; imported when something is drawn, for it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: str | Path) -> None:
    """Writes a figure and gives up its memory; makes the folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.tmp")
    figure.savefig(partial, dpi=130, format="png")
    pyplot().close(figure)
    partial.replace(path)
