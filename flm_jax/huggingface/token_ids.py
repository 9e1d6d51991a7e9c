"""Foreign token ids: which begin and end a document, and the rows of their tables in the order of our ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class SpecialIds(NamedTuple):
    """Of a foreign model; `begin` may be `end`, and `unknown` may be none."""

    begin: int
    end: int
    unknown: int | None


def special_ids(directory: Path) -> SpecialIds:
    """From a model's `config.json` and, where that has them not, `generation_config.json`.

    Of several ids that end a text the first is taken. A model that has only an end (Qwen, say) begins with it.

    Raises:
        ValueError: neither has the id of an end.
    """
    files = [directory / name for name in ("config.json", "generation_config.json")]
    fields: list[Mapping[str, Any]] = [
        json.loads(file.read_text("utf-8")) for file in files if file.is_file()
    ]

    def first(name: str) -> int | None:
        found = next((each[name] for each in fields if each.get(name) is not None), None)
        return found[0] if isinstance(found, list) else found

    end = first("eos_token_id")
    if end is None:
        raise ValueError(
            f"expected eos_token_id in config.json or generation_config.json of {directory}, found none: say there "
            "which token ends a document"
        )
    begin = first("bos_token_id")
    return SpecialIds(end if begin is None else begin, end, first("unk_token_id"))


def row_order(source_ids: np.ndarray, rows: int) -> np.ndarray:
    """For each row of our tables the row of the foreign one: those of our tokens, then what no token of ours takes.

    The rows that are left over keep their part in the softmax, so that probabilities stay as they were. Source ids
    (2, 1, 1) of 5 rows give (2, 1, 1, 0, 3): as many rows as there were, or as there are ids. The row that a repeated
    id takes the place of is the last of those left over, which tables are padded with.

    Args:
        source_ids: int [our vocabulary], the foreign id of each of our tokens.
        rows: Of the foreign table.

    Raises:
        ValueError: an id is outside of the table.
    """
    source_ids = np.asarray(source_ids, np.int64)
    if source_ids.size and not 0 <= source_ids.min() <= source_ids.max() < rows:
        raise ValueError(
            f"expected a tokenizer whose ids are rows of the embedding, 0 to {rows - 1} (vocab_size in config.json), "
            f"found ids {source_ids.min()} to {source_ids.max()}: give the model's own with --tokenizer"
        )
    unused = np.setdiff1d(np.arange(rows), source_ids)
    return np.concatenate([source_ids, unused[: max(rows - source_ids.size, 0)]])
