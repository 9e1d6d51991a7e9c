"""Losses of trained models, from a CSV file."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True)
class Points:
    """Models and their losses, in the file's order.

    Attributes:
        millions: `[n]`, of parameters.
        losses: `[n]`, nats per token; NaN of a model that is only predicted.
        tokens_millions: `[n]`, that each was trained on; None where all saw the same data for the same steps.
        widths: Of each model, to name it by; None where the file does not say.
    """

    millions: np.ndarray
    losses: np.ndarray
    tokens_millions: np.ndarray | None = None
    widths: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.millions)

    @property
    def at(self) -> tuple[np.ndarray, ...]:
        """What the law's `loss` takes: millions of parameters, or parameters and tokens."""
        if self.tokens_millions is None:
            return (self.millions,)
        return self.millions * 1e6, self.tokens_millions * 1e6

    def first(self, number: int) -> "Points":
        """The first so many of them."""
        tokens, widths = self.tokens_millions, self.widths
        return Points(
            self.millions[:number],
            self.losses[:number],
            None if tokens is None else tokens[:number],
            None if widths is None else widths[:number],
        )

    def and_also(self, models: Sequence[Sequence[float]]) -> "Points":
        """These and, behind them, models that nobody trained.

        Args:
            models: Of each its millions of parameters and, where these points have them, of tokens.

        Raises:
            ValueError: they have tokens and these points none, or the other way round.
        """
        columns = 1 if self.tokens_millions is None else 2
        if wrong := [model for model in models if len(model) != columns]:
            raise ValueError(
                f"expected --predict={'MILLIONS' if columns == 1 else 'MILLIONS,TOKENS_MILLIONS'}, by the CSV's "
                f"columns; found {','.join(f'{number:g}' for number in wrong[0])}"
            )
        more = np.array(models, float).reshape(-1, columns)
        tokens, widths = self.tokens_millions, self.widths
        return Points(
            np.concatenate([self.millions, more[:, 0]]),
            np.concatenate([self.losses, np.full(len(more), np.nan)]),
            None if tokens is None else np.concatenate([tokens, more[:, 1]]),
            None if widths is None else widths + ("",) * len(more),
        )


def read_csv(path: str | Path) -> Points:
    """Reads `params_millions,loss` or `params_millions,tokens_millions,loss`; `width` names a row; others are ignored.

    Raises:
        OSError: there is no such file.
        ValueError: a column is missing, or a cell is no positive number; the message has the row, the header being 1.
    """
    try:
        # Spreadsheets put a byte order mark in front.
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a CSV file in UTF-8, found something else: {error}") from error
    if not {"params_millions", "loss"} <= set(header):
        raise ValueError(
            f"{path}: expected the columns params_millions, loss and, for L(N, D), tokens_millions; found "
            f"{', '.join(header) or 'an empty file'}"
        )
    columns = {
        name: np.array([_number(path, line, name, row[name]) for line, row in rows])
        for name in ("params_millions", "loss", "tokens_millions")
        if name in header
    }
    return Points(
        millions=columns["params_millions"],
        losses=columns["loss"],
        tokens_millions=columns.get("tokens_millions"),
        widths=tuple((row["width"] or "").strip() for _, row in rows) if "width" in header else None,
    )


def _number(path: str | Path, line: int, column: str, cell: str | None) -> float:
    try:
        number = float(cell or "")
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise ValueError(f"{path}, row {line}: expected a positive number as {column}, found {cell or ''!r}")
    return number
