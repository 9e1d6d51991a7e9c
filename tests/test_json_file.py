"""Files that are there whole, in JSON that every reader takes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from flm_jax.json_file import write_json, write_text


def test_what_json_does_not_know_is_null(tmp_path: Path) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    path = tmp_path / "new" / "numbers.json"
    write_json(path, {"a": [1.5, math.inf, (-math.inf, {"b": math.nan})], "µ": True, "c": None, "d": 10**30})
    found = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert found == {"a": [1.5, None, [None, {"b": None}]], "µ": True, "c": None, "d": 10**30}


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(TypeError):
        write_json(path, object())
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")] == ["file"]
    assert path.read_text() == "new"
