"""The command line: a mistake is one clear line and exit code 2; what works is run for real elsewhere."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flm_jax import cli
from tests.prepared_data import make_tokenizer, write_texts
from tests.training import runs

TINY = "--gin_file=gin_configs/models/flm_tiny.gin"
PRETRAIN = "--gin_file=gin_configs/runs/pretrain.gin"
DATA = "--gin_file=gin_configs/data/bilingual.gin"
STEPS = "--gin.TRAIN_STEPS=3"


def failure(capsys: Any, *arguments: str) -> str:
    """The one line that a wrong command prints."""
    assert cli.main(arguments) == cli.EXIT_USAGE
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1, printed
    return printed[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--gin.TRAIN_STEP=3"],
            "the gin macro TRAIN_STEP is set, but nothing uses it; did you mean TRAIN_STEPS?",
        ),
        (["--gin.ModelConfig.d_modle=3"], "did you mean d_model?"),
        (["--gin_file=nowhere.gin"], "--gin_file=nowhere.gin: no such file"),
        (["--gin.ModelConfig.head_dim=7"], "ModelConfig.head_dim must be even"),
        (["--gin.PREPARED_DIR=/nonexistent"], "found none in /nonexistent"),
        (["--gin.MeshShape.tensor=3"], "does not cover the 8 devices"),
    ],
)
def test_mistakes_in_training(capsys: Any, tmp_path: Path, flags: list[str], expected: str) -> None:
    line = failure(capsys, "train", TINY, DATA, PRETRAIN, f"--gin.MODEL_DIR={tmp_path}", STEPS,
                   "--gin.WARMUP_STEPS=1", *flags)  # fmt: skip
    assert line.startswith("flm train: error: ")
    assert expected in line


def test_flags_that_are_none(capsys: Any) -> None:
    for arguments in (
        ["train", "--ginfile=x"],
        ["train", "TRAIN_STEPS=3"],
        ["generate", "--gin.X=1"],
        ["tokenizer", "wrap", "--out=x"],
        ["nothing"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2
    assert (
        "unrecognized arguments: TRAIN_STEPS=3; gin bindings are --gin.NAME=value" in capsys.readouterr().err
    )


def test_missing_things(capsys: Any, tmp_path: Path) -> None:
    assert "flm tokenizer train" in failure(
        capsys, "generate", f"--model_dir={tmp_path}", f"--tokenizer={tmp_path / 'no.model'}", "--prompt=a"
    )
    line = failure(capsys, "data", "prepare", DATA, f"--gin.VOCABULARY={tmp_path / 'no.model'}")
    assert line.startswith("flm data prepare: error: ") and "no.model" in line
    line = failure(capsys, "tokenizer", "train", f"--input={tmp_path / 'no.jsonl'}", "--vocab_size=500",
                   f"--out={tmp_path / 'x.model'}")  # fmt: skip
    assert line.startswith("flm tokenizer train: error: ") and "no.jsonl" in line


def test_tokenizers_are_trained_taken_over_and_compared(capsys: Any, tmp_path: Path) -> None:
    files = write_texts(tmp_path)
    inputs = [f"--input=en={files['en']}", f"--input=zh={tmp_path}/zh*.jsonl"]
    trained, wrapped = tmp_path / "trained.model", tmp_path / "wrapped.model"
    arguments = ["tokenizer", "train", *inputs, "--vocab_size=400", f"--out={trained}", "--max_bytes=60000"]
    assert cli.main([*arguments, f"--json={tmp_path / 'train.json'}"]) == 0
    printed = capsys.readouterr().out
    assert "tokenizer: 400 pieces" in printed and "tokens per label: 😈 1, 😡 1" in printed
    (report,) = json.loads((tmp_path / "train.json").read_text())["tokenizers"]
    assert {found["language"]: (found["text"], found["unit"]) for found in report["languages"]} == {
        "en": ("held-out", "word"),
        "zh": ("held-out", "character"),
    }

    assert cli.main(["tokenizer", "wrap", "--tiktoken=cl100k_base", f"--out={wrapped}"]) == 0
    printed = capsys.readouterr().out
    assert "tiktoken, 100,259 pieces" in printed and "tokens per label: 😈 2, 😡 2" in printed

    both = [f"--tokenizer={trained}", f"--tokenizer={wrapped}"]
    assert cli.main(["tokenizer", "report", *both, *inputs, f"--json={tmp_path / 'both.json'}"]) == 0
    assert "en        input" in capsys.readouterr().out
    reports = json.loads((tmp_path / "both.json").read_text())["tokenizers"]
    assert [found["kind"] for found in reports] == ["sentencepiece", "tiktoken"]
    sizes = [[found["bytes"] for found in report["languages"]] for report in reports]
    assert sizes[0] == sizes[1]


def test_mistakes_with_tokenizers(capsys: Any, tmp_path: Path) -> None:
    out = f"--out={tmp_path / 'x.model'}"
    assert "found 'cl100': change --tiktoken" in failure(capsys, "tokenizer", "wrap", "--tiktoken=cl100", out)
    line = failure(capsys, "tokenizer", "wrap", f"--huggingface={tmp_path}", out)
    assert line.startswith("flm tokenizer wrap: error: ") and "tokenizer.json: change --huggingface" in line
    (tmp_path / "empty.txt").touch()
    wrong = ["tokenizer", "train", f"--input=en={tmp_path / 'empty.txt'}", "--vocab_size=300", out]
    assert cli.main(wrong) == cli.EXIT_USAGE
    printed = capsys.readouterr().err
    assert "expected text of each language to train a tokenizer on, found none of en" in printed
    assert "empty.txt: the file is empty" in printed
    assert not (tmp_path / "x.model").exists()


def test_corrupt_lines_are_counted_and_shown_with_their_place(tmp_path: Path) -> None:
    """`flm data prepare` in a process of its own, as it is called."""
    files = write_texts(tmp_path)
    make_tokenizer(tmp_path, files)
    lines = files["en"].read_text().splitlines()
    lines[4], lines[9] = '{"text": "half', '{"words": "no text"}'
    files["en"].write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        [
            sys.executable, "-m", "flm_jax", "data", "prepare", "--gin_file=gin_configs/data/corpus.gin",
            f"--gin.FILES={files['en']}", f"--gin.VOCABULARY={tmp_path / 'tokenizer.model'}",
            f"--gin.PREPARED_DIR={tmp_path / 'prepared'}", '--gin.TASK_FEATURE_LENGTHS={"targets": 64}',
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{files['en']}:5" in done.stdout + done.stderr
    assert f"{files['en']}:10" in done.stdout + done.stderr
    manifest = json.loads((tmp_path / "prepared" / "corpus" / "manifest.json").read_text())
    assert manifest["problems"]["count"] == 2
    documents = sum(split["documents"] for split in manifest["splits"].values())
    assert documents == len(lines) - 2


def test_both_entry_points() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flm_jax", "--help"], capture_output=True, text=True, check=True
    )
    for verb in ("train", "data", "tokenizer", "generate", "demo"):
        assert verb in done.stdout


def test_a_reader_that_has_had_enough_is_no_mistake() -> None:
    """As `flm budget paper | head -1`."""
    flm = subprocess.Popen(
        [sys.executable, "-m", "flm_jax", "budget", "paper"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=runs.environment(),
    )
    assert flm.stdout is not None and flm.stderr is not None
    flm.stdout.close()
    assert flm.wait(timeout=120) == cli.EXIT_UNREAD
    assert flm.stderr.read() == b""
