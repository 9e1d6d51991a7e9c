"""The paper's tables: every printed figure, and the factor that it needs."""

import json
import math
from pathlib import Path

import pytest

from flm_jax import cli
from flm_jax.budget import formula, paper, published
from flm_jax.budget.published import MODELS, PRESETS, TOTAL, ZETTA
from flm_jax.presets import flm_16b, flm_51b, flm_101b


def narayanan(layers: int, width: int, vocab: int, length: int, tokens: float) -> float:
    """Equation 3 of arXiv 2104.04473 as it is printed there: 96 B s l h^2 (1 + s/6h + V/16lh) an iteration."""
    return 96 * tokens * layers * width**2 * (1 + length / (6 * width) + vocab / (16 * layers * width))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_flops_of_other_models(model: published.Model) -> None:
    full = narayanan(model.layers, model.width, model.vocab_size, model.length, model.tokens) / ZETTA
    expected = full * model.factor / 96
    if model.name.startswith("GLM"):  # printed with one more in the last digit
        assert abs(expected - float(model.printed)) < 0.013
    else:
        assert f"{expected:.2f}" == model.printed
    assert model.zetta() == pytest.approx(expected, rel=1e-12)
    if model.spread:
        assert f"{full * 12 / 96:.2f}" == model.spread


def test_glm_needs_another_factor_than_the_others() -> None:
    glm = next(model for model in MODELS if model.name.startswith("GLM"))
    assert abs(glm.zetta(84) - 421.60) > 50 and abs(glm.zetta(72) - 421.60) > 100


def test_flm_total_needs_no_recomputation() -> None:
    by_factor = {factor: published.consistent(factor) for factor in (72, 84, 96)}
    assert by_factor[72].pairs and not by_factor[84].pairs and not by_factor[96].pairs
    assert by_factor[84].lowest > 61 > 56 > by_factor[72].highest
    for shapes in by_factor[72].pairs:
        total = sum(
            narayanan(layers, width, 100_352, 2048, billions * 1e9) * 72 / 96 / ZETTA
            for (layers, width), billions in zip(shapes, (245.37, 39.64, 26.54), strict=True)
        )
        assert f"{total:.2f}" == TOTAL == "52.76"
        assert [round(published.params(*shape) / 1e9) for shape in shapes] == [16, 51, 102]


def test_the_last_stage_alone() -> None:
    assert f"{published.flm_zetta(PRESETS, 72)[2]:.2f}" == "16.69"


def test_shapes_are_the_presets() -> None:
    for (layers, width), config in zip(PRESETS, (flm_16b(), flm_51b(), flm_101b()), strict=True):
        assert (config.num_layers, config.d_model) == (layers, width)
        assert config.num_params == published.params(layers, width)


def test_asymmetry() -> None:
    """FLM's own figure under the factors of the others."""
    last = paper.asymmetry()[-1]
    assert last[1:] == ("52.76", "61.55", "70.35")


def test_savings() -> None:
    assert f"{published.area_saved():.1%}" == "72.6%"
    assert f"{published.days_from_scratch():.2f}" == "76.77"


def test_every_figure_but_those_known_to_differ() -> None:
    figures = [*paper.flops(), *paper.savings(), *paper.energy()]
    assert {figure.what for figure in figures if figure.mark == "differs"} == {
        "GLM-130B, 400B tokens", "GLM-130B, half of them", "days from scratch",
    }  # fmt: skip
    assert len(paper.energy()) == 12


def test_what_was_fitted_does_not_count() -> None:
    """FLM's shapes and share of English, and all intensities but GPT-3's, were chosen to give the printed figure."""
    figures = [*paper.flops(), *paper.energy()]
    fitted = [figure for figure in figures if figure.mark == "fitted"]
    assert [figure.printed for figure in fitted[:3]] == ["52.76", "28.22", "24.54"]
    assert [figure.what for figure in fitted[3:]] == [
        f"{name}, tCO2e" for name in ("Gopher", "PaLM", "GLM-130B", "Llama-2 70B", "FLM-101B")
    ]
    assert not any(figure.agrees for figure in fitted)
    assert all(figure.printed == figure.reproduced for figure in fitted)


def test_intensities_are_the_quotients() -> None:
    """Printed carbon over printed energy, up to how both were cut off."""
    for column in published.EMISSIONS:
        low = float(column.printed_carbon) / (float(column.printed_energy) + 1) * 1
        high = (float(column.printed_carbon) + 1) / float(column.printed_energy)
        assert low <= column.intensity <= high
    assert math.isclose(published.EMISSIONS[0].intensity, 1.10 * 0.429)


def test_a_factor_that_is_none() -> None:
    with pytest.raises(ValueError, match="--factor must be positive"):
        formula.flops_per_token(1, 1, 1, 1, 0)


def test_the_command(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert cli.main(["budget", "paper", f"--json={tmp_path / 'paper.json'}"]) == 0
    printed = capsys.readouterr().out
    for expected in (
        "376.41   376.41  =",
        "4.31M tokens in table 1",
        "nearly 26",
        "210.37",
        "99,256",
        "76.77",
    ):
        assert expected in printed
    numbers = json.loads((tmp_path / "paper.json").read_text())
    assert numbers["flm_by_factor"]["96"]["printed_total"] == pytest.approx(52.76 * 96 / 72)
    assert sum(figure["agrees"] for figure in numbers["zetta_flops"]) == 10
