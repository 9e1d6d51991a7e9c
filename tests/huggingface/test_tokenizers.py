"""Weights together with their tokenizer, in by its ids and out by ours; all of it without torch."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from flm_jax import cli
from flm_jax.huggingface.token_ids import row_order
from flm_jax.tasks.tokenizers.reordering import reorder
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import load_params
from tests.huggingface import checkpoints, numpy_llama
from tests.huggingface.folders import LLAMA_FIELDS, folder, llama_weights
from tests.huggingface.test_importing import assert_close, ours
from tests.models import small_config

tokenizers = pytest.importorskip("tokenizers")
pytestmark = pytest.mark.usefixtures("quick_compilation")

TEXTS = ["hello text", "this is some other world,", "é 语 <s></s> <unk>", ""]
PADDING_ROWS = 6
SPECIAL = ["<unk>", "</s>", "<s>"]


def byte_level() -> Any:
    """BPE as GPT-2's, its special tokens in front in another order than ours."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["hello world, this is some text"] * 9, trainer)
    made.encode_special_tokens = True  # their names in a text are text
    return made


def test_a_llama_comes_in_is_grown_and_goes_out_with_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At every station a text's logits are those of the folder that came in, each at the id of its token there."""
    theirs = byte_level()
    size = theirs.get_vocab_size()
    weights, rng = llama_weights(), np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = rng.normal(0, 0.3, (size + PADDING_ROWS, 24)).astype(np.float32)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unk_token_id": 0, "vocab_size": size + PADDING_ROWS}
    source = folder(tmp_path / "in", {**LLAMA_FIELDS, **ids}, weights)
    theirs.save(str(source / "tokenizer.json"))
    expected = [
        numpy_llama.logits(weights, LLAMA_FIELDS, np.array([2, *theirs.encode(text).ids])) for text in TEXTS
    ]
    rows = row_order(
        reorder((source / "tokenizer.json").read_bytes(), 2, 1, 0).source_ids, size + PADDING_ROWS
    )
    assert sorted(rows) == list(range(size + PADDING_ROWS)) and rows[:3].tolist() == [2, 1, 0]

    run, larger, out = tmp_path / "run", tmp_path / "larger", tmp_path / "out"
    command = ["import", f"--source={source}", f"--out={run}", f"--tokenizer={source / 'tokenizer.json'}"]
    assert cli.main(command) == 0
    vocabulary = Vocabulary(run / "tokenizer.json")
    metadata, params, _ = load_params(run)
    for text, logits in zip(TEXTS, expected, strict=True):
        tokens = [0, *vocabulary.encode(text)]
        assert rows[tokens].tolist() == [2, *theirs.encode(text).ids]
        assert_close(ours(metadata.config, params, np.array([tokens]))[0], logits[:, rows])

    wider = {"d_model": 48, "d_ff": 80, "num_layers": 3, "num_heads": 12, "num_kv_heads": 4}
    flags = [f"--gin.config.ModelConfig.{name}={value}" for name, value in wider.items()]
    grow = ["grow", f"--checkpoint={run}", f"--out={larger}", "--method=composable", *flags]
    assert cli.main(grow) == 0
    assert "verified in float" in capsys.readouterr().out
    export = ["export", f"--model_dir={larger}", f"--out={out}", f"--tokenizer={run / 'tokenizer.json'}"]
    assert cli.main([*export, "--no_check"]) == 0
    fields = json.loads((out / "config.json").read_text("utf-8"))
    assert fields["architectures"] == ["LlamaForCausalLM"] and fields["hidden_size"] == 48
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (0, 1)
    left, tensors = (
        tokenizers.Tokenizer.from_file(str(out / "tokenizer.json")),
        load_file(out / "model.safetensors"),
    )
    left.encode_special_tokens = True  # as tokenizer_config.json has transformers do
    for text, logits in zip(TEXTS, expected, strict=True):
        found = left.encode(text).ids
        assert rows[found].tolist() == [2, *theirs.encode(text).ids]
        assert_close(numpy_llama.logits(tensors, fields, np.array(found)), logits[:, rows])
    for token in range(3, size):
        assert left.id_to_token(token) == theirs.id_to_token(int(rows[token]))


def test_a_run_of_ours_goes_out_and_comes_back_with_its_tokenizer(tmp_path: Path) -> None:
    """Bit for bit, and known by the checksum of the file that lies beside the weights."""
    vocabulary = checkpoints.tokenizer(tmp_path / "tokenizer.model")
    config = small_config(vocab_size=400)
    params = checkpoints.random_params(config)
    data = {**checkpoints.DATA, "tokenizer": vocabulary.sha256}
    run = checkpoints.write(tmp_path / "run", config, params, data=data)
    out, back = tmp_path / "out", tmp_path / "back"
    export = ["export", f"--model_dir={run}", f"--out={out}", "--no_check"]
    assert cli.main([*export, f"--tokenizer={vocabulary.path}"]) == 0
    assert cli.main(["import", f"--source={out}", f"--out={back}"]) == 0
    metadata, found, step = load_params(back)
    assert (metadata, step) == (load_params(run)[0], 7)
    jax.tree.map(np.testing.assert_array_equal, found, params)
    beside = Vocabulary(out / "flm_tokenizer.model")
    metadata.check_tokenizer(beside.sha256, "out")
    left = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    for text in TEXTS:
        assert left.encode(text).ids == [0, *vocabulary.encode(text)] == [0, *beside.encode(text)]
    assert (
        cli.main([*export[:2], f"--out={tmp_path / 'x'}", f"--tokenizer={out / 'tokenizer.json'}"]) == 2
    )  # another file
    assert not (tmp_path / "x").exists()
