"""The gin files of instruction data and teacher signals prepare what they say, from files written here."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gin
import numpy as np
import pytest

from flm_jax import gin_setup
from flm_jax.tasks import prepare
from flm_jax.tasks.manifest import Manifest
from flm_jax.tasks.reader import Reader
from flm_jax.tasks.vocabulary import EOS_ID, Vocabulary
from tests.prepared_data import write_jsonl, write_texts

TEACHER = ("sentiment_en", "sentiment_zh", "nli", "choices")


@pytest.fixture(autouse=True)
def clean_gin() -> Iterator[None]:
    yield
    gin.clear_config()


def chat(keys: tuple[str, str, str], roles: tuple[str, str], rounds: int) -> dict[str, Any]:
    outer, who, what = keys
    said = [{who: role, what: f"{role} {number}"} for number in range(rounds) for role in roles]
    return {outer: said}


RECORDS: dict[str, list[dict[str, Any]]] = {
    "ALPACA": [{"instruction": "ka", "input": "lo", "output": f"mi {n}"} for n in range(8)],
    "COIG": [
        *({"textbox_question": "天地", "textbox_answer": f"人 {n}"} for n in range(4)),
        *({"trans_instruction": "山水", "trans_input": "", "trans_output": "火"} for _ in range(4)),
    ],
    "CHAT_EN": [chat(("messages", "role", "content"), ("user", "assistant"), n % 3 + 1) for n in range(8)],
    "CHAT_ZH": [chat(("conversations", "from", "value"), ("human", "gpt"), n % 3 + 1) for n in range(8)],
    "SENTIMENT_EN": [{"text": f"ka {n}", "label": ("positive", "negative")[n % 2]} for n in range(8)],
    "SENTIMENT_ZH": [{"text": f"天地 {n}", "label": ("positive", "negative")[n % 2]} for n in range(8)],
    "NLI": [
        {
            "sentence1": f"天 {n}",
            "sentence2": "地",
            "label": ("entailment", "neutral", "contradiction")[n % 3],
        }
        for n in range(8)
    ],
    "CHOICES": [{"question": f"ka {n}?", "choices": ["lo", "mi", "tan"], "answer": n % 3} for n in range(8)],
}


@pytest.fixture
def bindings(tmp_path: Path, vocabulary: Vocabulary) -> list[str]:
    """For all of the files, which each lack some of these macros."""
    files = {name: write_jsonl(tmp_path / f"{name}.jsonl", records) for name, records in RECORDS.items()}
    texts = write_texts(tmp_path / "texts", documents=8)
    files |= {name.upper(): path for name, path in texts.items()}
    return [
        *(f"{name}_FILES = '{path}'" for name, path in files.items()),
        f"VOCABULARY = '{vocabulary.path}'",
        f"PREPARED_DIR = '{tmp_path / 'out'}'",
        "TASK_FEATURE_LENGTHS = {'targets': 128}",
        "VALIDATION_EVERY = 4",
    ]


def run(files: list[str], bindings: list[str], **settings: Any) -> dict[str, Manifest]:
    """`flm data prepare`, with those of the bindings that the files have a macro for."""
    gin_setup.parse(files, [])
    known = {line.split("=")[0].strip() for line in gin.config_str().splitlines() if "=" in line}
    gin_setup.parse(files, [binding for binding in bindings if binding.split(" ")[0] in known])
    return gin.get_configurable(prepare.prepare)(**settings)


def test_instructions(bindings: list[str], tmp_path: Path, vocabulary: Vocabulary) -> None:
    manifests = run(["gin_configs/data/instructions.gin"], bindings)
    assert list(manifests) == ["alpaca", "coig", "chat_en", "chat_zh"]
    for manifest in manifests.values():
        assert manifest.problems["count"] == 0
        assert (manifest.splits["train"].documents, manifest.splits["validation"].documents) == (6, 2)
    batch = Reader(tmp_path / "out", "alpaca", 128, seed=0).batch(0, 8)
    tokens, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
    assert "Question: ka\nlo\nAnswer: mi" in vocabulary.decode(tokens[0])
    responses = np.split(tokens[weights == 1], np.flatnonzero(tokens[weights == 1] == EOS_ID) + 1)[:-1]
    assert {vocabulary.decode(response)[:3] for response in responses} == {"mi "}
    assert manifests["chat_en"].definition["task"]["format"] == "flm_jax.tasks.formats.openai_chat"


def test_teacher(bindings: list[str], tmp_path: Path, vocabulary: Vocabulary) -> None:
    more = ["TRUE_LABEL = '😡'", "FALSE_LABEL = '😈'", "NUM_FALSE = -1"]
    manifests = run(["gin_configs/data/teacher.gin"], bindings + more)
    assert tuple(manifests) == TEACHER
    for name, manifest in manifests.items():
        counts = manifest.splits["train"]
        statements = 3 if name in ("nli", "choices") else 2
        assert manifest.problems["count"] == 0
        assert counts.examples == counts.loss_tokens == 6 * statements
    batch = Reader(tmp_path / "out", "sentiment_en", 128, seed=0).batch(0, 2)
    text = vocabulary.decode(batch["decoder_target_tokens"][0])
    assert "ka 0\nThis review is positive.😡" in text or "ka 1\nThis review is positive.😈" in text


def test_all_of_them_in_a_file_of_ones_own(bindings: list[str], tmp_path: Path) -> None:
    own = tmp_path / "own.gin"
    names = ("bilingual", "instructions", "teacher")
    own.write_text(
        "".join(f"include 'gin_configs/data/{name}.gin'\n" for name in names)
        + "from flm_jax.tasks import corpora\n"
        + "TASKS = [@en/corpora.Corpus(), @zh/corpora.Corpus(), @instruct/corpora.Instructions(),\n"
        + "  @alpaca/dialogues.Dialogues(), @coig/dialogues.Dialogues(), @chat_en/dialogues.Dialogues(),\n"
        + "  @chat_zh/dialogues.Dialogues(), @sentiment_en/teacher.Classification(),\n"
        + "  @sentiment_zh/teacher.Classification(), @nli/teacher.Classification(),\n"
        + "  @choices/teacher.MultipleChoice()]\n"
    )
    manifests = run([str(own)], bindings)
    assert len(manifests) == 11
    mixture = {"en": 1.0, "zh": 1.0, "chat_zh": 1.0, "nli": 1.0}
    batch = Reader(tmp_path / "out", mixture, 128, seed=0).batch(0, 8)
    assert batch["decoder_loss_weights"].any(axis=1).all()


@pytest.mark.parametrize("name", ["instructions", "teacher"])
def test_what_gin_has_made_can_be_sent_to_another_process(name: str) -> None:
    gin_setup.parse([f"gin_configs/data/{name}.gin"], [])
    tasks = [reference.scoped_configurable_fn() for reference in gin.query_parameter("%TASKS")]
    assert len(tasks) == 4
    assert pickle.loads(pickle.dumps(tasks)) == tasks


def test_a_tokenizer_that_spells_the_labels_alike_is_refused(bindings: list[str]) -> None:
    with pytest.raises(ValueError, match=r"'sentiment_en' to differ.*Classification\.true_label"):
        run(["gin_configs/data/teacher.gin"], [*bindings, "TRUE_LABEL = 'ka\x07'", "FALSE_LABEL = 'lo\x07'"])
