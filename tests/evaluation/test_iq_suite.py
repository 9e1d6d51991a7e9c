"""The IQ suite as reports take it."""

from pathlib import Path

import pytest

from flm_jax.evaluation.iq import Oracle
from flm_jax.evaluation.iq_suite import IqSuite


def test_what_is_measured_and_what_stands_beside_it() -> None:
    suite = IqSuite(tasks=["counting", "single_fact"], languages=["zh"], num_items=4, shots=1)
    suite.check()
    found = {measure.name: measure for measure in suite(Oracle())}
    assert list(found) == [
        f"iq/{task}_zh/{metric}" for task in ("counting", "single_fact") for metric in ("exact", "choice")
    ]
    for measure in found.values():
        assert (measure.value, measure.high, measure.count, measure.setting) == (1.0, 1.0, 4, "1-shot")
        assert measure.low == pytest.approx(4 / (4 + 1.959964**2))  # Wilson's, of four of four
        assert measure.baselines["oracle"] == 1
    choice = found["iq/counting_zh/choice"].baselines
    assert choice["chance"] == 0.25 and "baseline" not in choice
    assert "baseline" in found["iq/single_fact_zh/choice"].baselines
    # Of what is asked alone.
    assert suite.published == {
        "GPT-3": {"iq/counting_zh/exact": 0.8243, "iq/single_fact_zh/exact": pytest.approx(0.7833)},
        "GLM-130B": {"iq/counting_zh/exact": 0.6081, "iq/single_fact_zh/exact": pytest.approx(0.5633)},
        "FLM-101B": {"iq/counting_zh/exact": pytest.approx(0.6959), "iq/single_fact_zh/exact": 0.59},
    }


def test_mistakes_show_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected tasks among counting, .*; found countin"):
        IqSuite(tasks=["countin"]).check()
    with pytest.raises(FileNotFoundError, match="expected boolq's published files"):
        IqSuite(tasks=["boolq"], symbolic_dir=str(tmp_path)).check()
