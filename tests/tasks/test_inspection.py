import itertools
import json
import tracemalloc
from pathlib import Path

import pytest

from flm_jax import cli
from flm_jax.tasks.corpora import Corpus, Instructions
from flm_jax.tasks.duplicates import Exact
from flm_jax.tasks.inspection import inspect
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary
from tests.prepared_data import write_jsonl


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = write_jsonl(
        tmp_path / "text" / "x.jsonl", [{"text": "Ka lo."}, {"text": "天地人"}, {"text": "x"}] * 4
    )
    path.write_bytes(path.read_bytes() + b"broken\n")
    return path


def test_it_counts_what_prepare_would(text: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    task = Corpus("corpus", JsonLines(str(text)))
    (found,) = inspect([task], str(vocabulary.path), num_documents=None)
    manifest = prepare([task], vocabulary, 32, tmp_path / "out")["corpus"]
    expected = manifest.splits["train"]
    for name in (
        "documents",
        "examples",
        "tokens",
        "loss_tokens",
        "bytes",
        "characters",
        "tokens_per_document",
    ):
        assert getattr(found.counts, name) == getattr(expected, name), name
    assert {**found.counts.scripts} == {**expected.scripts} and found.counts.scripts["han"] == 12
    assert found.problems.to_json() == manifest.problems
    assert found.is_all and found.records == 13
    report = found.report()
    assert f"{text}:13: not JSON" in report and "letters: latin 62.5%, han 37.5%" in report
    assert "learnt: Ka lo." in report


def test_a_part_and_no_tokenizer(text: Path, tmp_path: Path) -> None:
    task = Instructions(
        "few", JsonLines(str(text), {"targets": "text", "inputs": "text"}), template="Q {inputs}"
    )
    (found,) = inspect([task], str(tmp_path / "none.model"), num_documents=4, num_samples=1)
    assert not found.is_all and (found.records, found.counts.documents, found.counts.tokens) == (4, 4, 0)
    assert found.samples == [[{"given": "Q Ka lo.", "learnt": "Ka lo."}]]
    with pytest.raises(ValueError, match=r"--task of \['few'\], found \['many'\]"):
        inspect([task], names=["many"])


def test_from_the_command_line(
    text: Path, tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [
        "--gin_file=gin_configs/data/corpus.gin",
        f"--gin.FILES={text}",
        f"--gin.VOCABULARY={vocabulary.path}",
    ]
    assert cli.main(["data", "inspect", *data, f"--json={tmp_path}/found.json"]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())
    assert found["counts"]["documents"] == 12 and found["problems"]["count"] == 1
    # The same counts from what was prepared of it.
    data += [f"--gin.PREPARED_DIR={tmp_path}/out", "--gin.VALIDATION_EVERY=0"]
    assert cli.main(["data", "prepare", *data, "--gin.TASK_FEATURE_LENGTHS=32"]) == 0
    capsys.readouterr()
    assert cli.main(["data", "inspect", f"--prepared_dir={tmp_path}/out"]) == 0
    told = capsys.readouterr().out
    assert "12 documents, 40 characters" in told and "x.jsonl:13: not JSON" in told
    assert cli.main(["data", "inspect", f"--prepared_dir={tmp_path}/nothing"]) == 2
    assert cli.main(["data", "inspect"]) == 2
    assert "give --gin_file with the data, or --prepared_dir" in capsys.readouterr().err


def test_no_more_than_a_few_documents_are_held(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        "".join(json.dumps({"text": f"{number} " + "x" * 20_000}) + "\n" for number in range(2000))
    )
    task = Corpus("x", JsonLines(str(path)), cleaning=[Exact()])
    tracemalloc.start()
    (found,) = inspect([task], num_documents=None, num_samples=4)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.records == found.counts.documents == 2000
    assert peak < 10e6  # of 40 MB
    numbers = [int(sample[0]["learnt"].split()[0]) for sample in found.samples]
    assert numbers[0] == 0 and all(300 < b - a < 700 for a, b in itertools.pairwise(numbers))


def test_repeats_are_found_as_they_pass(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "x.jsonl", [{"text": text} for text in ("one a", "two b", "one a", "two b")]
    )
    task = Corpus("x", JsonLines(str(path)), cleaning=[Exact()])
    (found,) = inspect([task], num_documents=None, num_samples=9)
    assert found.counts.documents == len(found.samples) == 2
    (tally,) = found.problems.removed.values()
    assert tally.places == [f"{path}:3: repeats {path}:1", f"{path}:4: repeats {path}:2"]
