"""What README.md and docs/ say is run, or looked up, as it is written there."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from flm_jax import cli, gin_setup
from flm_jax.pods import request
from flm_jax.training import described_run
from tests.prepared_data import write_texts

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]

# The README's numbers are for a real corpus; the test puts these in their place.
SMALLER = {
    "--vocab_size=8192": "--vocab_size=512",
    "--gin.TRAIN_STEPS=1000": "--gin.TRAIN_STEPS=4",
    "--gin.BATCH_SIZE=8": "--gin.BATCH_SIZE=2",
    "--gin.WARMUP_STEPS=100": "--gin.WARMUP_STEPS=1",
    "--gin.EVAL_PERIOD=200": "--gin.EVAL_PERIOD=2",
    "--max_new_tokens=64": "--max_new_tokens=8",
}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def section(page: Path, title: str) -> str:
    """The text below a heading of the second level."""
    found = re.search(rf"(?ms)^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page.read_text("utf-8"))
    assert found, f"{page.name} has no section {title!r}"
    return found.group(1)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages."""
    return re.findall(rf"(?ms)^```(?:{'|'.join(languages)})\n(.*?)^```$", text)


def commands(text: str) -> list[list[str]]:
    """The words of every `flm` command in the shell blocks of a page, after `flm`."""
    lines = "\n".join(blocks(text, "bash", "sh")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[words.index("flm") + 1 :] for words in split if "flm" in words]


def environment(**more: str) -> dict[str, str]:
    """One CPU device, as a user has it: the tests' virtual devices are not handed on."""
    kept = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    return {**kept, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}


def run(script: str, directory: Path, env: dict[str, str]) -> str:
    """What a bash script printed; its first failing command fails the test."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_train_on_your_own_jsonl(tmp_path: Path) -> None:
    script = "\n".join(blocks(section(README, "Train on your own JSONL"), "bash"))
    for documented, smaller in SMALLER.items():
        assert script.count(documented) == 1, f"the README should say {documented} once"
        script = script.replace(documented, smaller)
    write_texts(tmp_path / "texts")["en"].rename(tmp_path / "corpus.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "corpus.jsonl").rename(tmp_path / "data" / "corpus.jsonl")
    shim = tmp_path / "bin" / "flm"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m flm_jax "$@"\n')
    shim.chmod(0o755)
    env = environment(PATH=f"{shim.parent}{os.pathsep}{os.environ['PATH']}")

    printed = run(script, tmp_path, env)
    for expected in ("tokenizer: 512 pieces", "prepared in data/prepared/corpus", "step      4/4", "The|"):
        assert expected in printed, printed
    assert (tmp_path / "runs" / "first" / "checkpoint_4" / "state").is_dir()

    # "Give the same command: it goes on from the newest checkpoint".
    train = next(line for line in script.replace("\\\n", " ").splitlines() if line.startswith("flm train "))
    assert "resumes at step 4 in runs/first" in run(train, tmp_path, env)


PYTHON = [
    (page, number) for page in PAGES for number, _ in enumerate(blocks(page.read_text("utf-8"), "python"))
]


@pytest.mark.parametrize(("page", "number"), PYTHON, ids=[f"{page.name}-{number}" for page, number in PYTHON])
def test_python_snippet(page: Path, number: int) -> None:
    """The snippet prints what the comments behind its `print`s say."""
    snippet = blocks(page.read_text("utf-8"), "python")[number]
    expected = re.findall(r"(?m)^print\(.*\)  # (.+)$", snippet)
    assert expected or "print(" not in snippet
    done = subprocess.run(
        [sys.executable, "-c", snippet], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == expected


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = page.parent / path if path else page
        assert found.is_file(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(found), (
                f"{page.name} links to {target}, {found.name} has {anchors(found)}"
            )


def anchors(page: Path) -> list[str]:
    """The headings of a page as GitHub names them."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text("utf-8"))
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@each_page
def test_paths_exist(page: Path) -> None:
    paths = re.findall(r"(?<![\w/.])(?:gin_configs|docs|flm_jax|tests)/[\w./-]*", page.read_text("utf-8"))
    missing = {path for path in paths if not (ROOT / path.rstrip(".")).exists()}
    assert not missing, f"{page.name} names {missing}"


@each_page
def test_commands_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs, flags, gin files and every gin binding, without running them.

    A gin snippet that begins with a comment `# NAME.gin: ...` is that file.
    """
    for snippet in blocks(page.read_text("utf-8"), "gin"):
        if name := re.match(r"# (\w+\.gin)\b", snippet):
            (tmp_path / name.group(1)).write_text(snippet)
    monkeypatch.chdir(tmp_path)
    for words in commands(page.read_text("utf-8")):
        options, rest = cli._parser().parse_known_args(words)
        bindings = [flag.removeprefix("--gin.") for flag in rest]
        assert all(flag.startswith("--gin.") for flag in rest), (page.name, rest)
        if not getattr(options, "gin_file", None):
            continue
        try:
            if options.verb == "compile":  # which needs less than a run
                options.gin_bindings = bindings
                request.trainer_of(options)
            elif options.verb == "mup" or (
                options.verb == "budget" and options.action == "ledger"
            ):  # likewise
                described_run.trainer_of(options.gin_file, bindings, steps_required=options.verb == "budget")
            elif (
                options.verb == "scaling"
            ):  # which has a directory for each trial, and values for what it varies
                varied = [re.sub(r",.*|\.\..*", "", text) for text in options.vary]
                gin_setup.parse(options.gin_file, [*bindings, *varied, "MODEL_DIR=x"])
            else:
                gin_setup.parse(options.gin_file, bindings)
        finally:
            gin.clear_config()


@each_page
def test_gin_snippets_parse(page: Path, tmp_path: Path) -> None:
    for number, snippet in enumerate(blocks(page.read_text("utf-8"), "gin")):
        file = tmp_path / f"{number}.gin"
        file.write_text(snippet)
        try:
            gin_setup.parse([str(file)], [])
        finally:
            gin.clear_config()


@each_page
def test_verbs_exist(page: Path) -> None:
    for words in re.findall(r"`flm ([a-z][a-z ]*[a-z])", page.read_text("utf-8")):
        parser = cli._parser()
        for word in words.split():
            verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            assert verbs and word in verbs[0].choices, f"{page.name} says `flm {words}`"
            parser = verbs[0].choices[word]


def test_settings_are_those_of_the_file() -> None:
    """Each macro that `pretrain.gin` sets stands in the table with its value, and no other does."""
    file = (ROOT / "gin_configs/runs/pretrain.gin").read_text("utf-8")
    macros = dict(re.findall(r"(?m)^([A-Z_]+) = ([^#\n]+?) *(?:#.*)?$", file))
    table = section(ROOT / "docs" / "training.md", "Settings")
    rows = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| `?([^|`]+?)`? \|", table))
    assert rows == {name: value.replace("%gin.REQUIRED", "required") for name, value in macros.items()}


def test_the_demo_shown_is_the_demo() -> None:
    """The table of stages in the README is that of the files which `flm demo` gives to `flm train`."""
    from flm_jax.grow.schedule import Route
    from flm_jax.training import trainer

    gin_setup.parse(["gin_configs/runs/demo.gin"], ["MODEL_DIR=x"])
    route = Route.of(gin.get_configurable(trainer.Trainer)().stages, length=256)
    for line in route.describe().splitlines()[: len(route.stages) + 2]:
        assert line in section(README, "Two commands")
