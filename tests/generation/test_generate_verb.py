"""`flm generate` as it is called, on a small checkpoint."""

import io
import json
from pathlib import Path

import pytest

from flm_jax import cli
from flm_jax.generation import Sampling, Writer
from flm_jax.generation.conversation import Conversation
from flm_jax.training.checkpoints import load_params
from tests.generation.conftest import MAX_LENGTH, Saved

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEFAULT = Sampling(0.8, top_p=0.95)


@pytest.fixture(scope="module")
def writer(saved: Saved) -> Writer:
    metadata, params, _ = load_params(saved.model_dir)
    return Writer(metadata.config, params, saved.vocabulary)


def generate(saved: Saved, *flags: str) -> int:
    return cli.main(["generate", *saved.flags, *flags])


def test_one_prompt_and_several(saved: Saved, writer: Writer, capsys: pytest.CaptureFixture) -> None:
    assert generate(saved, "--prompt=ka lo") == 0
    assert capsys.readouterr().out == f"ka lo|{writer.complete(['ka lo'], 6, sampling=DEFAULT)[0]}\n"
    assert generate(saved, "--prompt=ka lo", "--prompt=天", "--seed=5", "--batch_size=1") == 0
    texts = writer.complete(["ka lo", "天"], 6, sampling=DEFAULT, seed=5)
    assert capsys.readouterr().out == f"ka lo|{texts[0]}\n天|{texts[1]}\n"


def test_every_flag_arrives(saved: Saved, writer: Writer, capsys: pytest.CaptureFixture) -> None:
    flags = ["--temperature=0.9", "--top_k=50", "--top_p=0.8", "--min_p=0.01", "--repetition_penalty=1.3"]
    sampling = Sampling(0.9, 50, 0.8, 0.01, 1.3)
    (text,) = writer.complete(["mi"], 12, sampling=sampling, seed=2)
    stop = text[len(text) // 2]
    assert generate(saved, "--prompt=mi", *flags, "--seed=2", "--max_new_tokens=12", f"--stop={stop}") == 0
    assert capsys.readouterr().out == f"mi|{text[: text.index(stop)]}\n"


def test_standard_input_and_text_files_are_one_prompt(
    saved: Saved,
    writer: Writer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt = "ka lo\n天地\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(prompt + "\n"))
    assert generate(saved, "--temperature=0") == 0
    (tmp_path / "prompt.txt").write_text(prompt + "\n", "utf-8")
    assert generate(saved, "--temperature=0", f"--prompt_file={tmp_path / 'prompt.txt'}") == 0
    assert capsys.readouterr().out == f"{writer.complete([prompt], 6)[0]}\n" * 2


def test_json_lines_in_and_out(
    saved: Saved, writer: Writer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    prompts = ["ka", "a\nlonger one, of 天地", "lo\u2028mi"]  # a line separator is no line feed
    file, out = tmp_path / "prompts.jsonl", tmp_path / "sub" / "out.jsonl"
    lines = (json.dumps({"id": 1, "prompt": prompt}, ensure_ascii=False) for prompt in prompts)
    file.write_text("\n".join(lines) + "\n\n", "utf-8")
    assert generate(saved, f"--prompt_file={file}", f"--out={out}", "--temperature=0") == 0
    assert capsys.readouterr().out == f"3 completions: {out}\n"
    expected = [
        {"prompt": prompt, "completion": text}
        for prompt, text in zip(prompts, writer.complete(prompts, 6), strict=True)
    ]
    assert [json.loads(line) for line in out.read_text("utf-8").split("\n")[:-1]] == expected
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert generate(saved, f"--prompt_file={file}", "--temperature=0") == 0
    assert [json.loads(line) for line in capsys.readouterr().out.split("\n")[:-1]] == expected


def test_chat(
    saved: Saved, writer: Writer, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("ka lo\n\n天\n/reset\nka lo\n"))
    flags = [r"--chat_prompt=Q: {user}\nA: ", r"--chat_system={system}\n\n", "--system_message=mi"]
    assert generate(saved, "--chat", "--temperature=0", *flags) == 0
    chat = Conversation(saved.vocabulary, "Q: {user}\nA: ", "{system}\n\n", "mi")
    answers = []
    for question in ("ka lo", "天"):
        (text,) = writer.complete([chat.ask(question)], 6)
        chat.answer(text)
        answers.append(text)
    printed = capsys.readouterr()
    assert printed.out == f"{answers[0]}\n{answers[1]}\n{answers[0]}\n"
    assert printed.err == ""


def test_beyond_the_context_it_goes_on_and_says_so_once(
    saved: Saved, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = f"--max_new_tokens={4 * MAX_LENGTH}"
    assert generate(saved, "--prompt=ka", "--prompt=lo", new) == 0
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.endswith("go beyond the 64 tokens that the model was trained on (ModelConfig.max_length)")
    assert f"and {4 * MAX_LENGTH} new ones" in line and printed.out.startswith("ka|")
    monkeypatch.setattr("sys.stdin", io.StringIO("ka\nlo\nmi\n"))
    assert generate(saved, "--chat", "--max_new_tokens=60") == 0
    assert capsys.readouterr().err.count("go beyond the 64 tokens") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--prompt=a", "--top_p=2"],
            "expected Sampling.top_p (--top_p) to be a number above 0 and at most 1",
        ),
        (["--prompt=a", "--stop="], "expected a list of stop strings (--stop)"),
        (["--prompt=a", "--max_new_tokens=90000"], "lower --max_new_tokens"),
        (["--prompt=a", "--seed=99999999999"], "expected a seed (--seed) of 32 bits"),
        (["--prompt=a", "--step=4"], "checkpoint_4, found none"),
        (["--prompt_file=nowhere.txt"], "no file at nowhere.txt: change --prompt_file"),
        (["--chat", "--out=x.jsonl"], "leave out --out"),
        (["--chat", "--chat_prompt=Q"], "change --chat_prompt"),
        (
            ["--prompt=a", "--system_message=b", "--chat_prompt={user}"],
            "--chat_prompt, --system_message would change",
        ),
        (["--prompt=a\udcff"], "expected text in UTF-8 from --prompt, found '\\udcff'"),
    ],
)
def test_mistakes(saved: Saved, flags: list[str], expected: str, capsys: pytest.CaptureFixture) -> None:
    assert generate(saved, *flags) == cli.EXIT_USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()[-1:]
    assert line.startswith("flm generate: error: ") and expected in line


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"prompt": 3}', '["a"]', "{", '"prompt"'])
def test_a_line_that_is_no_prompt(
    saved: Saved, line: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "a"}}\n{line}\n')
    assert generate(saved, f"--prompt_file={file}", f"--out={tmp_path / 'out.jsonl'}") == cli.EXIT_USAGE
    printed = capsys.readouterr().err
    assert 'expected an object {"prompt": "..."} a line' in printed and f"{file}:2" in printed
    assert not (tmp_path / "out.jsonl").exists()
    file.write_text("\n")
    assert generate(saved, f"--prompt_file={file}") == cli.EXIT_USAGE
    assert "expected a prompt a line, found none" in capsys.readouterr().err


def test_what_is_not_utf_8(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As a terminal in the C locale hands it on, in a file, and as half of a surrogate pair in JSON."""
    (tmp_path / "a.txt").write_bytes(b"ka \xff")
    (tmp_path / "a.jsonl").write_text('{"prompt": "ka \\ud800"}\n')
    for flags in (
        [],
        ["--chat"],
        [f"--prompt_file={tmp_path / 'a.txt'}"],
        [f"--prompt_file={tmp_path / 'a.jsonl'}"],
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("ka \udcff\n"))
        assert generate(saved, *flags) == cli.EXIT_USAGE
        assert "error: expected text in UTF-8 from" in capsys.readouterr().err


def test_another_tokenizer_is_refused(saved: Saved, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other.model"
    other.write_bytes(saved.vocabulary.path.read_bytes() + b"\x0a\x00")
    assert generate(saved, f"--tokenizer={other}", "--prompt=a") == cli.EXIT_USAGE
    assert "error: expected" in capsys.readouterr().err


def test_prompts_come_from_one_place(saved: Saved, capsys: pytest.CaptureFixture) -> None:
    for flags in (["--prompt=a", "--chat"], ["--prompt=a", "--prompt_file=b"], ["--chat", "--prompt_file=b"]):
        with pytest.raises(SystemExit) as stopped:
            generate(saved, *flags)
        assert stopped.value.code == 2
        assert "not allowed with argument" in capsys.readouterr().err
