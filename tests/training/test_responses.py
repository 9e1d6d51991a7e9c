"""Conversations: the loss is on responses, and falls on held-out ones."""

from pathlib import Path

import pytest

from flm_jax.tasks.dialogues import Dialogues
from flm_jax.tasks.formats import openai_chat
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.prepared import PreparedTask
from flm_jax.tasks.sources import JsonLines
from flm_jax.training.run_log import read_metrics
from tests.prepared_data import write_jsonl
from tests.training.runs import trainer

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_held_out_response_loss_falls(tmp_path: Path, prepared_dir: Path) -> None:
    vocabulary = PreparedTask(prepared_dir / "en").vocabulary
    answers = ["天地人", "山水火"]
    records = [
        {
            "messages": [
                {"role": "user", "content": f"ka {number}"},
                {"role": "assistant", "content": answers[number % 2]},
                {"role": "user", "content": f"lo {number}"},
                {"role": "assistant", "content": answers[(number + 1) % 2]},
            ]
        }
        for number in range(300)
    ]
    path = write_jsonl(tmp_path / "x.jsonl", records)  # type: ignore[arg-type]
    source = JsonLines(str(path), fields=None, validation_every=10)
    manifest = prepare([Dialogues("chat", source, openai_chat)], vocabulary, 64, tmp_path / "prepared")[
        "chat"
    ]
    responses = sum(len(vocabulary.encode(answer)) + 1 for answer in answers)
    assert manifest.splits["validation"].loss_tokens == 30 * responses
    trainer(tmp_path / "run", tmp_path / "prepared", mixture="chat", train_steps=30, eval_period=30).run()
    losses = [
        record["eval/chat/loss"] for record in read_metrics(tmp_path / "run") if "eval/chat/loss" in record
    ]
    assert len(losses) == 2 and losses[1] < losses[0] - 1
