"""Rows of text as a table whose columns stand below each other."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """One line a row, two spaces between columns; all rows are as long as the first."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def number(value: float | None, form: str = ",.4g") -> str:
    """Of a cell; a dash where nothing is known."""
    return "-" if value is None else format(value, form)
