"""Stock tasks of lm-eval on files, with the network away; the figures are checked by hand-made models."""

import gzip
import json
import math
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval", reason="needs lm-eval (the extra eval)")

from flm_jax.evaluation import harness  # noqa: E402
from flm_jax.evaluation.benchmark_suite import BenchmarkSuite  # noqa: E402
from flm_jax.evaluation.checkpoint_model import CheckpointModel  # noqa: E402
from flm_jax.evaluation.harness import evaluate_tasks  # noqa: E402
from flm_jax.evaluation.text_model import Score  # noqa: E402
from flm_jax.generation import Sampling  # noqa: E402
from tests.models import random_params, small_config  # noqa: E402
from tests.prepared_data import make_tokenizer, write_texts  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation", "no_network")

SUBJECTS = ("mmlu_anatomy", "mmlu_virology")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError(f"the network was tried: {arguments}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


def write(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def arc(number: int) -> dict[str, Any]:
    options = {"text": [f"{number}", f"{number + 1}", "many"], "label": ["A", "B", "C"]}
    return {"id": f"q{number}", "question": f"What is {number} + 1?", "choices": options, "answerKey": "B"}


def mmlu(number: int) -> dict[str, Any]:
    choices = ["one", "two", "three", "four"]
    return {"question": f"How many? {number}", "subject": "any", "choices": choices, "answer": number % 4}


def hellaswag(number: int) -> dict[str, Any]:
    endings = [f"goes {place} [title] steps." for place in range(4)]
    texts = {"activity_label": "Walking", "ctx_a": f"Man {number} stands.", "ctx_b": "he", "ctx": ""}
    return {**texts, "ind": number, "endings": endings, "label": str(number % 4), "split": "val"}


def gsm(number: int) -> dict[str, str]:
    return {"question": f"{number} and {number}?", "answer": f"Twice {number}.\n#### {2 * number}"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts, packed and not."""
    directory = tmp_path_factory.mktemp("data")
    write(directory / "arc_easy.test.jsonl.gz", [arc(number) for number in range(6)])
    write(directory / "arc_easy/train.jsonl", [arc(number) for number in range(20, 26)])
    write(directory / "hellaswag.validation.jsonl", [hellaswag(number) for number in range(5)])
    write(directory / "gsm8k/test.jsonl.gz", [gsm(number) for number in range(1, 4)])
    write(directory / "gsm8k/train.jsonl.gz", [gsm(number) for number in range(30, 40)])
    write(
        directory / "wikitext.test.jsonl",
        [{"page": "天地人山水火木金土日月星风云雨雪花鸟鱼虫。" * 3} for _ in range(2)],
    )
    for subject in SUBJECTS:
        write(directory / f"{subject}.test.jsonl", [mmlu(number) for number in range(4)])
        write(directory / f"{subject}.dev.jsonl", [mmlu(number) for number in range(50, 55)])
    group = {"group": "two_subjects", "task": list(SUBJECTS), "metadata": {"version": 3}}
    group["aggregate_metric_list"] = [{"metric": "acc", "weight_by_size": True}]
    write(directory / "yaml" / "two_subjects.yaml", [group])  # JSON is YAML
    return directory


class Oracle:
    """Knows which texts are right; remembers what it was asked."""

    num_cut = 0

    def __init__(self, knows: Callable[[str, str], bool], writes: str = "") -> None:
        self._knows, self._writes = knows, writes
        self.asked: list[tuple[Any, ...]] = []

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        self.asked += pairs
        return [Score(-1.0 if self._knows(*pair) else -2.0 - len(pair[1]), False) for pair in pairs]

    def rolling(self, texts: Sequence[str]) -> list[float]:
        return [-1000.0 * len(text) for text in texts]

    def sample(
        self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str], sampling: Sampling, seed: int
    ) -> list[str]:
        self.asked += [(prompt, max_new_tokens, tuple(stop), sampling) for prompt in prompts]
        return [self._writes for _ in prompts]


def run(model: Any, tasks: list[str], data_dir: Path, **options: Any) -> harness.Benchmarks:
    return evaluate_tasks(model, tasks, data_dir=data_dir, bootstrap_iters=10, **options)


def test_an_oracle_is_right_and_its_prompts_are_the_stock_ones(data_dir: Path) -> None:
    knows = Oracle(lambda context, text: text == f" {int(context.split()[-4]) + 1}")
    found = run(knows, ["arc_easy"], data_dir, num_fewshot=2)
    assert found.tasks == {
        "arc_easy": harness.Result(
            {"acc": harness.Measured(1.0, 0.0), "acc_norm": harness.Measured(1.0, 0.0)}, 6, 2, "1.0"
        )
    }
    context, continuation = knows.asked[0]
    assert context.endswith("\n\nQuestion: What is 0 + 1?\nAnswer:") and continuation == " 0"
    examples = context.split("\n\n")[:2]  # from the training split, the same whenever asked
    assert all(20 <= int(example.split()[3]) < 26 for example in examples)
    again = Oracle(lambda context, text: False)
    assert run(again, ["arc_easy"], data_dir, num_fewshot=2, limit=3).tasks["arc_easy"].n == 3
    assert again.asked == knows.asked[:9]


def test_intervals_and_settings_of_what_is_reported(data_dir: Path) -> None:
    """All right: Wilson's n / (n + z^2) to 1, where a normal mean would be sure of itself; else within 0 and 1."""
    suite = BenchmarkSuite(["arc_easy"], num_fewshot=2, data_dir=str(data_dir))
    suite.check()
    knows = Oracle(lambda context, text: text == f" {int(context.split()[-4]) + 1}")
    acc, normalised = suite(knows)  # type: ignore[arg-type]
    assert (acc.name, acc.value, acc.count, acc.share) == ("benchmarks/arc_easy/acc", 1.0, 6, True)
    assert (acc.low, acc.high) == (pytest.approx(6 / (6 + 1.959964**2)), 1.0)
    assert acc.setting == normalised.setting == "2-shot, version 1.0"
    half = Oracle(
        lambda context, text: text == (" 1" if "What is 0" in context.split("\n\n")[-1] else " many")
    )
    acc, _ = suite(half)  # type: ignore[arg-type]
    error = (1 / 6 * 5 / 6 / 5) ** 0.5  # of a mean of one 1 and five 0
    assert acc.value == pytest.approx(1 / 6) and acc.low == 0
    assert acc.high == pytest.approx(1 / 6 + 1.96 * error)
    with pytest.raises(ValueError, match="arc_easy"):
        BenchmarkSuite(["arc_esy"]).check()


def test_functions_of_the_stock_task_survive(data_dir: Path) -> None:
    """HellaSwag's `process_docs` joins and cleans texts."""
    knows = Oracle(lambda context, text: f"goes {int(context.split()[2]) % 4}" in text)
    found = run(knows, ["hellaswag"], data_dir)
    assert found.tasks["hellaswag"].metrics["acc"].value == 1
    assert knows.asked[0] == ("Walking: Man 0 stands. He", " goes 0. steps.")


def test_a_group_counts_its_tasks(data_dir: Path) -> None:
    def right(context: str, text: str) -> bool:
        number = int(context.split("How many? ")[-1].split()[0])
        return "anatomy" in context and text == f" {'ABCD'[number % 4]}"

    knows = Oracle(right)
    found = run(knows, ["two_subjects"], data_dir, include_path=data_dir / "yaml", num_fewshot=5)
    assert found.tasks["mmlu_anatomy"].metrics["acc"].value == 1
    assert found.tasks["mmlu_virology"].metrics["acc"].value == 0.25  # always A
    group = found.groups["two_subjects"]
    assert (group.metrics["acc"].value, group.n, group.shots, group.version) == (0.625, 8, 5, "3")
    assert knows.asked[0][0].count("Answer:") == 6


def test_what_is_written_is_filtered(data_dir: Path) -> None:
    found = run(writes := Oracle(lambda *_: False, "So 4.\n#### 4"), ["gsm8k"], data_dir, num_fewshot=1)
    measured = found.tasks["gsm8k"].metrics
    assert {name: round(metric.value, 3) for name, metric in measured.items()} == {
        "exact_match,strict-match": 0.333,
        "exact_match,flexible-extract": 0.333,
    }
    prompt, tokens, stop, sampling = writes.asked[0]
    assert prompt.endswith("Question: 1 and 1?\nAnswer:") and prompt.count("####") == 1
    assert (tokens, stop, sampling) == (256, ("Question:", "</s>", "<|im_end|>"), Sampling())


def test_perplexity_without_a_space_is_infinite(data_dir: Path) -> None:
    metrics = run(Oracle(lambda *_: False), ["wikitext"], data_dir).tasks["wikitext"].metrics
    assert metrics["word_perplexity"].value == math.inf
    assert metrics["bits_per_byte"].value == pytest.approx(1000 / 3 / math.log(2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[CheckpointModel]:
    directory = tmp_path_factory.mktemp("tokenizer")
    vocabulary = make_tokenizer(directory, write_texts(directory))
    config = small_config(vocab_size=512, max_length=640)
    return [CheckpointModel(config, random_params(config), vocabulary, batch_size=size) for size in (16, 3)]


def test_results_do_not_depend_on_the_batch(models: list[CheckpointModel], data_dir: Path) -> None:
    tasks = ["arc_easy", "hellaswag", "wikitext", "two_subjects"]
    one, other = (run(model, tasks, data_dir, include_path=data_dir / "yaml") for model in models)
    bits = [found.tasks["wikitext"].metrics["bits_per_byte"].value for found in (one, other)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5) and bits[0] > 0
    for name in ("arc_easy", "hellaswag", *SUBJECTS):
        assert one.tasks[name] == other.tasks[name]
    assert one.groups == other.groups
    assert one.num_cut == other.num_cut == 0


def test_a_model_writes(models: list[CheckpointModel], data_dir: Path) -> None:
    found = [run(model, ["gsm8k"], data_dir, num_fewshot=0, limit=2) for model in models]
    assert found[0].tasks == found[1].tasks and found[0].tasks["gsm8k"].n == 2


def test_lm_eval_takes_the_adapter(models: list[CheckpointModel]) -> None:
    from lm_eval.api.instance import Instance

    adapter = harness.as_lm(models[0])
    requests = [Instance("loglikelihood", {}, ("Kalo", " mi"), place) for place in range(2)]
    (score, greedy), again = adapter.loglikelihood(requests)
    assert (score, greedy) == again == tuple(models[0].log_likelihoods([("Kalo", " mi")])[0])
    (rolled,) = adapter.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("Kalo mi",), 0)])
    assert rolled == models[0].rolling(["Kalo mi"])[0]


def test_generation_settings() -> None:
    drawn = Sampling(temperature=0.7, top_p=0.9)
    asked = {"until": "\n", "max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    assert harness._generation(asked) == (5, ["\n"], drawn)
    assert harness._generation({"temperature": 0.7, "do_sample": False}) == (256, [], Sampling())
    for wrong in ({"num_beams": 4}, {"repetition_penalty": 1.1}):
        with pytest.raises(ValueError, match=rf"generation_kwargs among until.*found .*{next(iter(wrong))}"):
            harness._generation(wrong)


def test_mistakes(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mistake(*tasks: str, where: Path = tmp_path, **options: Any) -> str:
        with pytest.raises(ValueError) as error:
            run(Oracle(lambda *_: False), list(tasks), where, **options)
        return str(error.value)

    assert "found 'arc_eazy'; there are arc_easy" in mistake("arc_eazy")
    assert "give --tasks" in mistake()
    assert "there is no directory" in mistake("arc_easy", where=tmp_path / "none")
    assert "change --include_path" in mistake("arc_easy", include_path=tmp_path / "none")
    write(tmp_path / "hellaswag.test.jsonl", [hellaswag(0)])
    said = mistake("hellaswag")
    assert f"expected {tmp_path}/hellaswag.validation.jsonl" in said and "there are hellaswag.test" in said
    assert "lower --num_fewshot" in mistake("arc_easy", where=data_dir, num_fewshot=100)
    said = mistake("arc_easy", where=data_dir / "yaml", num_fewshot=1)
    assert "arc_easy.test.jsonl" in said and "arc_easy.train.jsonl" in said
    write(tmp_path / "boolq.validation.jsonl", [{"question": "is it", "text": "It is.", "label": 1}])
    assert "'passage' is undefined; the fields there are label, question, text" in mistake("boolq")
    write(tmp_path / "openbookqa.test.jsonl", [{**arc(0), "stem": "Where"}])
    assert "no field 'question_stem' (doc_to_text)" in mistake("openbookqa")
    write(tmp_path / "arc_easy.test.jsonl", [arc(0), {**arc(1), "answerKey": "B", "hint": ""}])
    assert "line 2 without or with hint" in mistake("arc_easy")
    (tmp_path / "arc_easy.test.jsonl").write_text('{"question": \n')
    assert "expected a JSON object" in mistake("arc_easy")
    (tmp_path / "arc_easy.test.jsonl").write_text("")
    assert "found none" in mistake("arc_easy")
    assert "written in Python" in mistake("squadv2")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert "pip install 'flm_jax[eval]'" in mistake("arc_easy")
