"""Weights together with their tokenizer, in by its ids and out by ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from flm_jax import cli
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoints import load_params
from tests.huggingface import numpy_llama
from tests.huggingface.folders import LLAMA_FIELDS, folder, llama_weights
from tests.huggingface.test_importing import assert_close, ours

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("flm_jax.tasks.tokenizers.reordering")


def test_a_model_comes_in_and_goes_out_with_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>", "<s>"], initial_alphabet=alphabet
    )
    theirs.train_from_iterator(["hello world, this is some text"] * 9, trainer)
    size = theirs.get_vocab_size()
    weights, rng = llama_weights(), np.random.default_rng(0)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = rng.normal(0, 0.3, (size + 6, 24)).astype(np.float32)
    ids = {"bos_token_id": 2, "eos_token_id": 1, "unk_token_id": 0, "vocab_size": size + 6}
    source = folder(tmp_path / "in", {**LLAMA_FIELDS, **ids}, weights)
    theirs.save(str(source / "tokenizer.json"))

    run, out = tmp_path / "run", tmp_path / "out"
    command = ["import", f"--source={source}", f"--out={run}", f"--tokenizer={source / 'tokenizer.json'}"]
    assert cli.main(command) == 0
    assert cli.main(["export", f"--model_dir={run}", f"--out={out}", "--no_check",
                     f"--tokenizer={run / 'tokenizer.json'}"]) == 0  # fmt: skip
    text = "hello text"
    tokens = [0, *Vocabulary(run / "tokenizer.json").encode(text)]
    expected = numpy_llama.logits(weights, LLAMA_FIELDS, np.array([2, *theirs.encode(text).ids]))
    metadata, params, _ = load_params(run)
    found = ours(metadata.config, params, np.array([tokens]))[0]
    assert metadata.config.vocab_size == size + 6
    assert_close(np.sort(found), np.sort(expected))  # a permutation
    best = theirs.id_to_token(int(expected[-1, :size].argmax()))
    left = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    assert left.encode(text).ids == tokens
    if best not in ("<unk>", "</s>", "<s>"):
        assert left.id_to_token(int(found[-1, :size].argmax())) == best
    assert json.loads((out / "generation_config.json").read_text("utf-8"))["eos_token_id"] == 1
    assert cli.main(["import", f"--source={out}", f"--out={tmp_path / 'back'}"]) == 0
    load_params(tmp_path / "back")[0].check_tokenizer(Vocabulary(out / "flm_tokenizer.json").sha256, "out")
