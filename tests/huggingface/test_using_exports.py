"""Exports as users of transformers take them, with the tokenizer beside; skipped where torch is not installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flm_jax.huggingface.exporting import Export
from tests.huggingface import checkpoints
from tests.huggingface.checkpoints import random_params
from tests.models import LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")
torch = pytest.importorskip("torch", reason="torch is no dependency: pip install 'flm_jax[huggingface]'")
transformers = pytest.importorskip("transformers", reason="pip install 'flm_jax[huggingface]'")

BLOCKS: dict[str, dict[str, Any]] = {"FLM": {}, "Llama": {**LLAMA, **checkpoints.LLAMA_CONSTANTS}}


@pytest.fixture(scope="module", params=BLOCKS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A model of random weights and the tokenizer, from one folder."""
    folder = tmp_path_factory.mktemp(f"using_{request.param}")
    vocabulary = checkpoints.tokenizer(folder / "tokenizer.model")
    config = small_config(**{**BLOCKS[request.param], "vocab_size": 400})
    data = {**checkpoints.DATA, "tokenizer": vocabulary.sha256}
    run = checkpoints.write(folder / "run", config, random_params(config), data=data)
    Export(run, tokenizer=vocabulary.path).write(folder / f"out_{folder.name}")
    take = {"pretrained_model_name_or_path": folder / f"out_{folder.name}", "trust_remote_code": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(**take).eval()
    return model, transformers.AutoTokenizer.from_pretrained(**take)


def continued(model: Any, batch: Any, **more: Any) -> list[list[int]]:
    ids = batch["input_ids"]
    settings = {"max_new_tokens": 12, "do_sample": False, "repetition_penalty": 3.0, **more}
    return model.generate(ids, attention_mask=batch["attention_mask"], **settings)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "more", [{}, {"cache_implementation": "static"}], ids=["growing cache", "static cache"]
)
def test_a_padded_row_goes_on_as_it_does_alone(loaded: tuple[Any, Any], more: dict[str, Any]) -> None:
    model, tokenizer = loaded
    texts = ["a", "sa dapil retan repil su mi", "longer text"]
    together = continued(model, tokenizer(texts, padding=True, return_tensors="pt"), **more)
    alone = [continued(model, tokenizer(text, return_tensors="pt"))[0] for text in texts]
    assert len({tuple(row) for row in alone}) == 3
    padding = tokenizer.pad_token_id
    for row, wanted in zip(together, alone, strict=True):
        assert row == wanted + [padding] * (len(row) - len(wanted))


def test_without_a_mask_padding_is_hidden_and_the_beginning_is_seen(loaded: tuple[Any, Any]) -> None:
    """generate() takes all ids of padding for padding: none of them may be one of a text."""
    model, tokenizer = loaded
    batch = tokenizer(["a", "longer text"], padding=True, return_tensors="pt")
    assert (batch["input_ids"] == 0).sum() == 2 and (batch["attention_mask"] == 0).any()
    guessed = model.generate(batch["input_ids"], max_new_tokens=12, do_sample=False, repetition_penalty=3.0)
    assert guessed[:, batch["input_ids"].shape[1] :].tolist() == continued(model, batch)
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert ids == (0, 1, 2)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == ids


def test_tuning_learns_where_a_text_ends(loaded: tuple[Any, Any]) -> None:
    """The usual collator leaves padding out of the loss: were it the end's, the end would never be learnt."""
    _, tokenizer = loaded
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    rows = [{"input_ids": [*tokenizer(text)["input_ids"], 1]} for text in ("a", "longer text")]
    labels = collate(rows)["labels"]
    assert (labels == 1).sum() == 2 and (labels == 2).sum() == 0 and (labels == -100).any()


def test_the_loss_of_an_update_of_several_batches(loaded: tuple[Any, Any]) -> None:
    """Trainer tells how many labels all of them have, and adds the losses up."""
    model, tokenizer = loaded
    ids = tokenizer("sa dapil retan repil su mi", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        out = model(ids, labels=ids)
        part = model(ids, labels=ids, num_items_in_batch=1000).loss
    logits = out.logits[0, :-1].double().numpy()
    chosen = np.take_along_axis(logits, ids[0, 1:, None].numpy(), -1)[:, 0]
    each = np.logaddexp.reduce(logits, -1) - chosen
    assert float(out.loss) == pytest.approx(each.mean(), rel=1e-5)
    assert float(part) == pytest.approx(each.sum() / 1000, rel=1e-5)


def test_an_unknown_tokenizer_leaves_no_ids(tmp_path: Path) -> None:
    """`LlamaConfig` would take 1 for the beginning and 2 for the end."""
    config = small_config(**BLOCKS["Llama"])
    data: dict[str, Any] = {"length": None, "tokenizer": None, "tasks": {}}
    run = checkpoints.write(tmp_path / "run", config, random_params(config), data=data)
    Export(run).write(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for found in (model.config, model.generation_config):
        assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, None, None)
