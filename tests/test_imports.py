"""What is imported when: `import flm_jax` costs what jax costs, and TensorFlow comes only with seqio."""

import subprocess
import sys
from pathlib import Path

import pytest

import flm_jax
from flm_jax import cli
from tests.prepared_data import make_tokenizer, write_texts
from tests.training import runs
from tests.training.conftest import prepared_dir as prepared_dir

HEAVY = ("tensorflow", "seqio", "orbax", "matplotlib", "sentencepiece")


def modules_after(code: str) -> set[str]:
    """Top-level modules that a process has imported after `code`; one that trains does so on one device."""
    program = f"{code}\nimport sys; print('MODULES', *sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=runs.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    last = [line for line in done.stdout.splitlines() if line.startswith("MODULES")][-1]
    return {name.split(".")[0] for name in last.split()[1:]}


def test_importing_the_package_is_light() -> None:
    found = modules_after("import flm_jax; flm_jax.ModelConfig; flm_jax.presets.flm_101b()")
    assert not found & {*HEAVY, "flax", "optax", "clu"}


def test_the_model_needs_no_tensorflow() -> None:
    found = modules_after("import flm_jax; flm_jax.LanguageModel(flm_jax.presets.flm_tiny())")
    assert not found & {"tensorflow", "seqio", "t5x"}


@pytest.mark.slow
def test_training_from_prepared_files_and_generating_need_no_tensorflow(
    tmp_path: Path, prepared_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    gin_file = tmp_path / "run.gin"
    gin_file.write_text(runs.GIN)
    flags = [
        f"--gin_file={gin_file}",
        f"--gin.MODEL_DIR={tmp_path / 'run'}",
        f"--gin.PREPARED_DIR={prepared_dir}",
    ]
    flags += ["--gin.TRAIN_STEPS=6", "--gin.EVAL_PERIOD=3"]
    generate = [f"--model_dir={tmp_path / 'run'}", f"--tokenizer={prepared_dir / 'en' / 'tokenizer.model'}"]
    found = modules_after(
        "from flm_jax import cli\n"
        f"assert cli.main(['train', *{flags!r}]) == 0\n"
        f"assert cli.main(['generate', *{generate!r}, '--prompt=ka lo', '--max_new_tokens=4']) == 0"
    )
    other = make_tokenizer(tmp_path, write_texts(tmp_path / "texts", documents=200))
    assert cli.main(["generate", generate[0], f"--tokenizer={other.path}", "--prompt=a"]) == cli.EXIT_USAGE
    assert "expected the tokenizer with SHA-256" in capsys.readouterr().err
    assert not found & {"tensorflow", "seqio", "tensorflow_text", "tensorflow_datasets", "torch"}
    assert "orbax" in found  # it did train


def test_growing_needs_no_tensorflow_and_no_checkpoints() -> None:
    found = modules_after(
        "import flm_jax.grow, flm_jax.presets as p; flm_jax.grow.plan(p.flm_16b(), p.flm_101b()).explain()"
    )
    assert not found & {*HEAVY, "t5x"}


def test_public_names() -> None:
    for name in flm_jax.__all__:
        assert getattr(flm_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Encoder'; it has Decoder"):
        _ = flm_jax.Encoder
