"""The gin files for t5x name what there is, with or without t5x; `test_runs.py` runs them."""

import ast
import re
import shlex

import pytest

from flm_jax import presets
from tests.t5x.gin_files import (
    PRESETS,
    ROOT,
    T5X,
    T5X_REQUIRED,
    Contents,
    functions_of,
    importable,
    parameters_of,
)

BILINGUAL = "gin_configs/data/bilingual.gin"
# By t5x's own files, which are not read here.
DEFINED_BY_T5X = {"RANDOM_SEED", "TRAIN_STEPS", "MODEL_DIR", "BATCH_SIZE", "CHECKPOINT_PATH"}


def check_bindings(contents: Contents) -> None:
    """What is named is there, with these parameters."""
    for module, path in contents.references:
        if module.startswith("flm_jax.t5x"):
            assert path in functions_of(module), f"{module} has no {path}"
    for module, path, parameter in contents.bindings:
        if module.startswith("flm_jax.t5x"):
            assert parameter in functions_of(module)[path], f"{module}.{path} has no {parameter}"
    for module, path, target in importable(contents.references):
        assert callable(target), f"{module}.{path}"
    for module, path, parameter in contents.bindings:
        for *_, target in importable([(module, path)]):
            assert parameter in parameters_of(target), f"{module}.{path} has no {parameter}"


@pytest.mark.parametrize("name", T5X)
def test_everything_that_is_bound_is_there(name: str) -> None:
    contents = Contents().read(f"gin_configs/t5x/{name}.gin")
    assert contents.bindings or contents.of_t5x
    check_bindings(contents)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from flm_jax import optimizer\noptimizer.adamw.b3 = 1", "has no b3"),
        ("from flm_jax.t5x import run_record\nrun_record.metadata.sede = 1", "has no sede"),
        ("from flm_jax.t5x import run_record\nX = @run_record.meta()", "has no meta"),
        ("optimizer.adamw.b1 = 1", "imports no optimizer"),
    ],
)
def test_what_is_not_there_is_found(text: str, expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_bindings(Contents().parse(text, "text"))


PAGE = (ROOT / "docs/t5x.md").read_text("utf-8")
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"(?ms)^```sh\n(.*?)^```$", PAGE)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python -m t5x.")
]


@pytest.mark.parametrize("words", COMMANDS, ids=[words[2] for words in COMMANDS])
def test_the_commands_of_the_page(words: list[str]) -> None:
    """Files that exist, macros that they know, strings in quotes, and nothing that is required left out."""
    contents = Contents()
    flags = [word.partition("=") for word in words[3:]]
    for name, _, value in flags:
        if name == "--gin_file":
            contents.read(value)
    given = {name.removeprefix("--gin."): value for name, _, value in flags if name.startswith("--gin.")}
    required = T5X_REQUIRED["pretrain" if words[2] == "t5x.train" else words[2].removeprefix("t5x.")]
    assert set(given) <= set(contents.defined) | contents.used | required
    for name, value in given.items():
        assert not isinstance(ast.literal_eval(value), type(None)), name
    said = {name for name, value in contents.defined.items() if value != "%gin.REQUIRED"}
    assert not required - said - set(given)


def test_the_gin_of_the_page() -> None:
    (block,) = re.findall(r"(?ms)^```gin t5x\n(.*?)^```$", PAGE)
    contents = Contents().parse(block, "docs/t5x.md")
    assert len(contents.bindings) > 5
    check_bindings(contents)


def test_the_page_names_every_gin_file() -> None:
    assert {name for name in T5X if f"`{name}.gin`" in PAGE} == set(T5X)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_pretrains(preset: str) -> None:
    """In the order that the files ask for, nothing is left open but what the user has to say."""
    assert callable(getattr(presets, preset))
    contents = Contents().read("gin_configs/t5x/pretrain.gin")
    assert contents.of_t5x == ["t5x/configs/runs/pretrain.gin"]
    contents.read(f"gin_configs/models/{preset}.gin").read(BILINGUAL)
    assert not contents.used - set(contents.defined) - DEFINED_BY_T5X
    assert "%gin.REQUIRED" not in contents.defined.values()
    # t5x wants them, and our model and data say them.
    left = T5X_REQUIRED["pretrain"] - set(contents.defined)
    assert left == {"TRAIN_STEPS", "MODEL_DIR"}


@pytest.mark.parametrize("run", ["eval", "infer"])
def test_inference_takes_the_model_from_the_checkpoint(run: str) -> None:
    contents = Contents().read(f"gin_configs/t5x/{run}.gin").read(BILINGUAL)
    assert contents.of_t5x == [f"t5x/configs/runs/{run}.gin"]
    assert contents.defined["MODEL_CONFIG"] == "@continuation.model_config"
    left = T5X_REQUIRED[run] - set(contents.defined)
    assert left == {"CHECKPOINT_PATH", f"{run.upper()}_OUTPUT_DIR"}
    assert not contents.used - set(contents.defined) - DEFINED_BY_T5X


def test_the_tiny_run_needs_a_directory_only() -> None:
    contents = Contents().read("gin_configs/t5x/tiny_pretrain.gin")
    assert T5X_REQUIRED["pretrain"] - set(contents.defined) == {"MODEL_DIR"}
    assert contents.defined["TRAIN_STEPS"] == 20


def test_what_makes_a_run_repeatable_is_on() -> None:
    contents = Contents().read("gin_configs/t5x/pretrain.gin")
    text = (ROOT / "gin_configs/t5x/pretrain.gin").read_text()
    assert isinstance(contents.defined["RANDOM_SEED"], int)
    assert contents.defined["USE_CACHED_TASKS"] is False
    for line in (
        "train/utils.DatasetConfig.seed = %RANDOM_SEED",
        "utils.SaveCheckpointConfig.save_dataset = True",
        "utils.SaveCheckpointConfig.dtype = None",
    ):
        assert line in text
    # The schedule that acts is the one that is logged.
    assert {
        "optimizer.adamw.learning_rate = %SCHEDULE",
        "trainer.Trainer.learning_rate_fn = %SCHEDULE",
    } <= set(text.splitlines())


def test_axis_names_without_a_rule_of_t5x_are_added() -> None:
    """Every axis of a parameter or an activation is in t5x's standard rules or in ours."""
    standard = {"batch", "vocab", "embed", "mlp", "heads", "kv", "joined_kv", "length", "layers", "stack"}
    pretrain, inference = (
        re.search(r"additional_rules = (\[.*?\])$", (ROOT / path).read_text(), re.DOTALL | re.MULTILINE)
        for path in ("gin_configs/t5x/pretrain.gin", "gin_configs/t5x/inference.gin")
    )
    assert pretrain and inference and pretrain[1] == inference[1]
    added = {name for name, _ in ast.literal_eval(pretrain[1])}
    from flm_jax.partitioning import LOGICAL_AXIS_RULES

    assert {name for name, _ in LOGICAL_AXIS_RULES} == (standard & {n for n, _ in LOGICAL_AXIS_RULES}) | added
