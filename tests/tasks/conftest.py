import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flm_jax.tasks.manifest import TOKENIZER, Manifest, SplitManifest
from flm_jax.tasks.packing import chunk, pack
from flm_jax.tasks.shards import write_records
from flm_jax.tasks.vocabulary import Vocabulary, train_tokenizer
from tests import prepared_data

Documents = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    draw = random.Random(1)
    texts = [
        make(draw, draw.randint(3, 60))
        for _ in range(200)
        for make in (prepared_data.english, prepared_data.chinese)
    ]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 512)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tests.prepared_data.make_prepared`, once for all tests; nobody writes into it."""
    return prepared_data.make_prepared(tmp_path_factory.mktemp("bilingual"))


@pytest.fixture(scope="session")
def write_task(vocabulary: Vocabulary) -> Callable[..., Path]:
    """Writes a prepared task from token ids, without TensorFlow."""

    def write(
        directory: Path, documents: Documents, length: int, split: str = "train", per_file: int = 100
    ) -> Path:
        directory.mkdir(parents=True)
        sequences = list(pack((part for doc in documents for part in chunk(*doc, length)), length))
        files = [
            write_records(
                directory / f"{split}-{number:05d}.array_record", iter(sequences[start : start + per_file])
            )
            for number, start in enumerate(range(0, len(sequences), per_file))
        ]
        tokens = sum(len(inputs) + len(targets) for inputs, targets in documents)
        counts = SplitManifest(
            documents=len(documents),
            tokens=tokens,
            loss_tokens=sum(len(targets) for _, targets in documents),
            sequences=len(sequences),
            padding=1 - tokens / (len(sequences) * length),
            files=files,
        )
        shutil.copyfile(vocabulary.path, directory / TOKENIZER)
        hashes = {"sha256": vocabulary.sha256, "size": vocabulary.size}
        Manifest(directory.name, length, hashes, {}, {split: counts}, {"count": 0, "places": []}).write(
            directory
        )
        return directory

    return write


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory, write_task: Callable[..., Path]) -> Path:
    """Three tasks of 128-token sequences whose padding differs much; documents have 10 to 5,000 tokens."""
    folder, draw = tmp_path_factory.mktemp("uneven"), np.random.default_rng(0)

    def documents(lengths: np.ndarray) -> Documents:
        return [([], list(draw.integers(3, 500, size)) + [1]) for size in lengths]

    write_task(folder / "en", documents(draw.integers(10, 5000, 40)), 128)
    write_task(folder / "zh", documents(draw.integers(65, 90, 300)), 128)  # never two in a sequence
    write_task(folder / "instruct", documents(draw.integers(10, 40, 200)), 128)
    return folder
