from pathlib import Path

import gin
import pytest

from flm_jax import gin_setup
from flm_jax.gin_setup import GinError

TINY = "gin_configs/models/flm_tiny.gin"
PRETRAIN = "gin_configs/runs/pretrain.gin"
DATA = "gin_configs/data/bilingual.gin"


def built(*bindings: str, files: tuple[str, ...] = (TINY,)) -> object:
    gin_setup.parse(files, bindings)
    return gin.get_configurable("ModelConfig")()


def test_bindings_win_over_files() -> None:
    assert built("ModelConfig.d_model=64", "config.ModelConfig.d_ff = 80").to_json()["d_model"] == 64


def test_words_need_no_quotes_within_quotes() -> None:
    for value in ("/tmp/a-run", "'/tmp/a-run'", '"/tmp/a-run"'):
        gin_setup.parse([TINY, DATA, PRETRAIN], [f"MODEL_DIR={value}", "TRAIN_STEPS=10"])
        assert gin.query_parameter("%MODEL_DIR") == "/tmp/a-run"
    gin_setup.parse(
        [TINY, DATA, PRETRAIN], ["MODEL_DIR=../x", "TRAIN_STEPS=10", 'MIXTURE_OR_TASK_NAME={"en": 1}']
    )
    assert gin.query_parameter("%MODEL_DIR") == "../x"
    assert gin.query_parameter("%MIXTURE_OR_TASK_NAME") == {"en": 1}


def test_a_parameter_bound_over_a_files_macro() -> None:
    gin_setup.parse([TINY, DATA, PRETRAIN], ["MODEL_DIR=x", "TRAIN_STEPS=10", "Trainer.eval_period=7"])
    assert gin.query_parameter("Trainer.eval_period") == 7


def test_found_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert built().to_json()["d_model"] == 256
    (tmp_path / "gin_configs" / "models").mkdir(parents=True)  # the user's own: a namespace package to Python
    (tmp_path / "own.gin").write_text(f"include '{TINY}'\n")
    assert built(files=("own.gin",)).to_json()["d_model"] == 256


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["ModelConfig.d_modle=3"], "doesn't have a parameter named 'd_modle'.*did you mean d_model?"),
        (["ModelConfg.d_model=3"], "No configurable matching 'ModelConfg'.*did you mean ModelConfig?"),
        (["TRAIN_STEP=10"], "macro TRAIN_STEP is set, but nothing uses it; did you mean TRAIN_STEPS?"),
        (["ModelConfig.d_model=%WIDTH"], "macro WIDTH is used, but not set: give --gin.WIDTH=value"),
        (
            ["enn/sources.JsonLines.files=x"],
            "scope 'enn' is bound, but nothing refers to it; in use are en, instruct, zh",
        ),
        (["TRAIN_STEPS"], "expected --gin.NAME=value, found --gin.TRAIN_STEPS"),
        ([], "TRAIN_STEPS has no default|MODEL_DIR has no default"),
    ],
)
def test_what_gin_lets_pass_is_refused(bindings: list[str], message: str) -> None:
    with pytest.raises(GinError, match=message):
        gin_setup.parse([TINY, DATA, PRETRAIN], bindings)


def test_a_macro_that_has_no_meaning_is_refused() -> None:
    """A growing run has no TRAIN_STEPS; giving one would have no effect, and says so."""
    files = [TINY, DATA, PRETRAIN, "gin_configs/growth/demo.gin"]
    gin_setup.parse(files, ["MODEL_DIR=x"])
    with pytest.raises(
        GinError, match=r"TRAIN_STEPS is set, but nothing uses it: .* schedule.Stage.steps or .tokens"
    ):
        gin_setup.parse(files, ["MODEL_DIR=x", "TRAIN_STEPS=10"])


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(GinError, match=r"--gin_file=nothing.gin: no such file in the working directory"):
        gin_setup.parse(["nothing.gin"], [])
    broken = tmp_path / "broken.gin"
    broken.write_text("ModelConfig.d_model = = 3\n")
    with pytest.raises(GinError, match=r"broken.gin"):
        gin_setup.parse([str(broken)], [])


# Those for t5x, which `flm` does not take, are read by tests/t5x/.
SHIPPED = [path for path in sorted(Path("gin_configs").rglob("*.gin")) if path.parent.name != "t5x"]


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_file_parses(path: Path) -> None:
    companions = {
        "runs": [TINY, DATA],
        "data": [],
        "models": [],
        "growth": [TINY, DATA, PRETRAIN],
        "pods": [TINY, DATA, PRETRAIN, "gin_configs/growth/flm_101b.gin"],
    }[path.parent.name]
    if path.name == "inspect.gin":  # `flm data inspect` puts it behind the data's
        companions = [DATA]
    if path.name == "eflm.gin":
        companions += [PRETRAIN]
    bindings = ["MODEL_DIR=x", "TRAIN_STEPS=10"] if path.name == "pretrain.gin" else []
    bindings = ["MODEL_DIR=x"] if path.name == "demo.gin" and path.parent.name == "runs" else bindings
    bindings = ["MODEL_DIR=x"] if path.parent.name in ("growth", "pods") else bindings
    bindings = ["MODEL_DIR=x", "TRAIN_STEPS=10", "EFLM_STEPS=5"] if path.name == "eflm.gin" else bindings
    gin_setup.parse([*companions, str(path)], bindings)


def test_defaults_hold_where_nothing_else_does() -> None:
    defaults = {"MODEL_DIR": "'of the default'", "TRAIN_STEPS": "7", "BATCH_SIZE": "9", "NO_SUCH_MACRO": "1"}
    gin_setup.parse([TINY, DATA, PRETRAIN], ["TRAIN_STEPS=10"], defaults=defaults)
    assert gin.query_parameter("%MODEL_DIR") == "of the default"
    assert gin.query_parameter("%TRAIN_STEPS") == 10
    assert gin.query_parameter("%BATCH_SIZE") == 128


def test_whether_a_parameter_is_bound() -> None:
    assert gin_setup.bound([TINY, DATA, PRETRAIN], [], "Trainer.stages")
    assert gin_setup.bound([TINY, "gin_configs/growth/stages.gin"], [], "Stage.method")
    assert not gin_setup.bound([TINY], [], "Trainer.stages")
    assert not gin_setup.bound(["no_such.gin"], [], "Trainer.stages")
