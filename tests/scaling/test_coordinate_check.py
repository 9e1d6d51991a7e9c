"""The coordinate check: flat under µP, not under the standard parametrisation, nor where a multiplier is wrong."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel, ModelConfig, cli, optimizer
from flm_jax.config import ModelConfig as Config
from flm_jax.parameters import Parameter, Role
from flm_jax.scaling import coordinate_check as checks
from flm_jax.scaling.coordinate_check import TOLERANCE, coordinate_check
from flm_jax.scaling.widths import at_width

WIDTHS = (64, 128, 256, 512)


def model(**changes: Any) -> LanguageModel:
    config = ModelConfig(512, 128, 2, 4, 32, 512, max_length=64, dtype="float32", mup_base_width=128)
    return LanguageModel(dataclasses.replace(config, **changes))


@pytest.mark.slow
def test_flat_from_64_to_512_under_mup() -> None:
    found = coordinate_check(model(), optimizer.adamw, WIDTHS)
    assert TOLERANCE == 0.05
    assert found.flat, [(curve.name, curve.what, curve.step, curve.slope) for curve in found.curves]
    judged = {curve.name for curve in found.curves if curve.judged}
    assert judged == {"embedding", "attention", "FFN", "residual stream", "logits"}
    changes = [curve for curve in found.curves if curve.what == "change"]
    assert all(min(curve.values) > 1e-4 for curve in changes)  # it has moved
    assert all(losses[0] > losses[-1] + 0.1 for losses in found.losses)  # and learnt


def test_not_flat_under_the_standard_parametrisation() -> None:
    found = coordinate_check(model(parametrization="standard"), optimizer.adamw, (64, 256), num_steps=1)
    slopes = {curve.name: curve.slope for curve in found.curves if curve.what == "change"}
    assert not found.flat
    assert min(slopes[name] for name in ("attention", "FFN", "residual stream", "logits")) > 0.5
    assert abs(slopes["embedding"]) < TOLERANCE  # whose learning rate no width changes


def _the_same_at_every_width(row: Parameter, config: Config) -> float:
    return config.init_std if row.fan_in or row.role is Role.EMBEDDING else 0.0


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (Parameter, "unstacked", Parameter.unstacked),  # nothing wrong
        (Parameter, "learning_rate_mult", lambda row, config: 1.0),
        (Parameter, "init_std", _the_same_at_every_width),
        (Config, "logit_scale", property(lambda config: config.output_mult)),
    ],
)
def test_one_wrong_multiplier_is_seen(
    owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    found = coordinate_check(model(), optimizer.adamw, (64, 256), num_steps=1)
    assert found.flat == (name == "unstacked")


def test_what_seeds_share() -> None:
    """Three seeds that share 2 and differ by noise of 10: the noise falls out."""
    noise = np.random.default_rng(0).normal(0, 10, (3, 1_000_000))
    assert float(checks._shared(jnp.asarray(2 + noise))) == pytest.approx(2, rel=0.02)
    assert float(checks._size(jnp.asarray(2 + noise))) == pytest.approx(104**0.5, rel=0.02)


def test_activations_are_those_of_the_model() -> None:
    """The last block's residual stream, normed and read out, gives the logits."""
    small = model()
    params = small.get_initial_variables(jax.random.key(1), {"decoder_input_tokens": (1, 1)})["params"]
    batch = checks._text(512, 16)
    seen = checks._activations(small, params, batch)
    np.testing.assert_array_equal(seen["logits"], small.logits(params, batch)[..., : checks._KINDS + 1])
    assert batch["decoder_target_tokens"].max() <= checks._KINDS
    stream = seen["residual stream"]
    assert stream.shape == (2, 8, 16, 128)
    added = seen["embedding"] + jnp.sum(seen["attention"] + seen["FFN"], axis=0)
    np.testing.assert_allclose(stream[-1], added, atol=1e-5)


def test_widths() -> None:
    wide = at_width(model(num_kv_heads=2).config, 256)
    assert (wide.d_model, wide.num_heads, wide.num_kv_heads, wide.d_ff, wide.head_dim) == (
        256,
        8,
        4,
        1024,
        32,
    )
    with pytest.raises(
        ValueError, match=r"a width of 80 would have 2.5 of ModelConfig.num_heads, which is 4"
    ):
        at_width(model().config, 80)
    with pytest.raises(ValueError, match="two --widths"):
        coordinate_check(model(), optimizer.adamw, (64, 64))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = [
        "mup",
        "check",
        "--gin_file=gin_configs/models/flm_tiny.gin",
        "--gin.ModelConfig.vocab_size=64",
    ]
    command += [
        "--gin.ModelConfig.num_layers=1",
        "--gin.ModelConfig.parametrization='standard'",
        "--widths=64,128",
    ]
    command += ["--steps=1", "--seeds=2", f"--json={tmp_path}/a/x.json", f"--figure={tmp_path}/x.png"]
    assert cli.main(command) == 1
    printed = capsys.readouterr().out
    assert "standard parametrisation" in printed and "not flat: largest slope" in printed
    found = json.loads((tmp_path / "a" / "x.json").read_text())
    assert found["flat"] is False and found["widths"] == [64, 128]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["mup", "check"]) == 2
    assert "nothing says what to check" in capsys.readouterr().err
