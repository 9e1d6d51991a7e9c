"""A suite that two processes ask together during training, against one process."""

import itertools
from pathlib import Path

import pytest

from flm_jax.training.run_log import read_metrics
from tests.training import runs
from tests.training.test_processes import Runs

SUITE = """
include 'gin_configs/runs/iq.gin'
from flm_jax.evaluation import iq_suite
SUITE_PERIOD = 9
SUITE_ITEMS = 3
iq_suite.IqSuite.tasks = ["full_repeating", "single_fact"]
iq_suite.IqSuite.languages = ["en"]
schedule.Stage.steps = 6
schedule.Stage.ramp_steps = 5
"""


@pytest.mark.slow
def test_two_processes_ask_as_one(prepared_dir: Path, tmp_path: Path) -> None:
    """Before the first step, while the mask ramps, and at the stages' ends."""
    make = Runs(tmp_path, prepared_dir, "stages")
    with make.gin_file.open("a") as file:
        file.write(SUITE)
    for started in (make.one(tmp_path / "one"), make.two(tmp_path / "two")):
        for process in started:
            runs.finish(process)
    of_one, of_two = (
        {
            (record["step"], name): value
            for record in read_metrics(tmp_path / run)
            for name, value in record.items()
            if name.startswith("suite/")
        }
        for run in ("one", "two")
    )
    asked = [
        f"iq/{task}_en/{way}" for task in ("full_repeating", "single_fact") for way in ("exact", "choice")
    ]
    # Stories are longer than the model's 64 tokens, and that is said each time.
    names = [f"suite/{name}" for name in (*asked, "requests/all/cut")]
    assert set(of_one) == set(itertools.product((0, 6, 9, 12), names))
    assert of_one == of_two
