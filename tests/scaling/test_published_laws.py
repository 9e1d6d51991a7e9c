"""Laws by name, and from files."""

import json
from pathlib import Path

import pytest

from flm_jax.scaling import published_laws


def test_laws_from_files(tmp_path: Path) -> None:
    file = tmp_path / "law.json"
    good = {"E": 1.7, "A": 400.0, "alpha": 0.3, "B": 500, "beta": 0.3, "residuals": [1, 2]}
    file.write_text(json.dumps(good))
    assert published_laws.named(str(file)).loss(1e9, 1e10) == pytest.approx(
        1.7 + 400 / 1e9**0.3 + 500 / 1e10**0.3
    )
    for wrong, expected in (({"alpha": -1}, "a positive number under the key alpha"), ({"E": None}, "key E")):
        file.write_text(json.dumps(good | wrong))
        with pytest.raises(ValueError, match=expected):
            published_laws.named(str(file))
    file.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        published_laws.named(str(file))
    file.write_text("[]")
    with pytest.raises(ValueError, match="key E"):
        published_laws.named(str(file))


def test_a_fit_over_sizes_is_no_law_to_plan_with(tmp_path: Path) -> None:
    path = tmp_path / "fit.json"
    path.write_text('{"a": 2.5, "b": -0.4, "c": 2.9}')
    with pytest.raises(ValueError, match=r"is a fit of L\(C\), over sizes alone, .* tokens_millions"):
        published_laws.named(str(path))
