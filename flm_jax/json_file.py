"""JSON files that are there whole, or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: str | Path, values: Any) -> None:
    """Writes plain JSON values; makes the folder where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
