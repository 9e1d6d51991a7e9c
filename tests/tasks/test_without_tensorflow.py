"""Preparing, training from prepared files, and reading the data's gin files, must not import TensorFlow."""

import subprocess
import sys
from pathlib import Path

import gin
import pytest

from flm_jax.tasks import prepare
from flm_jax.tasks.vocabulary import Vocabulary
from tests import prepared_data

ROOT = Path(__file__).parents[2]
CHECK = "\nfound = [name for name in sys.modules if name.split('.')[0].startswith(('tensorflow', 'seqio'))]\n"


def _run(code: str, *arguments: str) -> None:
    code = f"import sys\n{code}{CHECK}assert not found, found[:5]\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_preparing(tmp_path: Path, vocabulary: Vocabulary) -> None:
    files = prepared_data.write_texts(tmp_path, documents=20)
    _run(
        "from flm_jax.tasks import vocabulary, sources, corpora, prepare\n"
        "task = corpora.Corpus('en', sources.JsonLines(sys.argv[1]))\n"
        "prepare.prepare([task], vocabulary.Vocabulary(sys.argv[2]), 64, sys.argv[3])\n",
        str(files["en"]),
        str(vocabulary.path),
        str(tmp_path / "out"),
    )


def test_the_reader(prepared: Path) -> None:
    _run(
        "from flm_jax.tasks import vocabulary, sources, corpora, prepare, reader\n"
        "read = reader.Reader(sys.argv[1], {'en': 2, 'zh': 1}, 64, seed=0)\n"
        "read.batch(0, 4)\n"
        "next(read.prefetch(0, 4))\n"
        "next(reader.evaluation_batches(read.tasks['en'], 'validation', 4))\n"
        "assert read.vocabulary.decode(read.vocabulary.encode('ka lo')) == 'ka lo'\n",
        str(prepared),
    )


def test_training_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("ka lo mi tan " * 100)
    _run(
        "from flm_jax.tasks.vocabulary import train_tokenizer_from_files\n"
        "train_tokenizer_from_files([sys.argv[1]], sys.argv[2], 270)\n",
        str(tmp_path / "x.txt"),
        str(tmp_path / "t.model"),
    )


def test_the_other_kinds_of_tokenizer(tmp_path: Path) -> None:
    _run(
        "from flm_jax.tasks.vocabulary import Vocabulary, wrap_tiktoken\n"
        "from tokenizers import Tokenizer, models, pre_tokenizers\n"
        "vocabulary = wrap_tiktoken('cl100k_base', sys.argv[1])\n"
        "assert vocabulary.decode(vocabulary.encode('ka lo')) == 'ka lo'\n"
        "bytes = {c: n for n, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}\n"
        "model = Tokenizer(models.BPE(vocab=bytes, merges=[]))\n"
        "model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)\n"
        "model.save(sys.argv[2])\n"
        "assert len(Vocabulary(sys.argv[2]).encode('ka lo')) == 5\n",
        str(tmp_path / "t.model"),
        str(tmp_path / "tokenizer.json"),
    )


@pytest.mark.parametrize("name", ["bilingual", "corpus", "instructions", "teacher"])
def test_the_gin_files_are_read(name: str) -> None:
    _run(
        "import gin\n"
        f"gin.parse_config_files_and_bindings(['gin_configs/data/{name}.gin'], ['PREPARED_DIR = \"x\"'])\n"
        "from flm_jax.tasks import prepare\n"
        "gin.get_configurable(prepare.prepare)\n"
    )


@pytest.fixture
def clean_gin():
    gin.clear_config()
    yield
    gin.clear_config()


def test_the_gin_files_prepare_what_they_say(tmp_path: Path, clean_gin: None) -> None:
    files = prepared_data.write_texts(tmp_path / "texts", documents=20)
    prepared_data.make_tokenizer(tmp_path, files)
    bindings = [
        f"EN_FILES = '{files['en']}'",
        f"ZH_FILES = ['{files['zh']}']",
        f"INSTRUCT_FILES = {{'train': '{files['instruct']}', 'validation': '{files['instruct']}'}}",
        f"VOCABULARY = '{tmp_path / 'tokenizer.model'}'",
        f"PREPARED_DIR = '{tmp_path / 'out'}'",
        "TASK_FEATURE_LENGTHS = {'targets': 48}",
        "VALIDATION_EVERY = 5",
    ]
    gin.parse_config_files_and_bindings([str(ROOT / "gin_configs/data/bilingual.gin")], bindings)
    manifests = gin.get_configurable(prepare.prepare)()
    assert list(manifests) == ["en", "zh", "instruct"]
    for name, manifest in manifests.items():
        train = manifest.splits["train"]
        assert manifest.length == 48
        assert train.documents == (20 if name == "instruct" else 16)
        assert (train.loss_tokens < train.tokens) == (name == "instruct")
    # A second run with the files unchanged keeps them, also through gin's copies of the classes.
    assert gin.get_configurable(prepare.prepare)() == manifests


def test_a_file_that_is_not_there_is_named(tmp_path: Path, clean_gin: None, vocabulary: Vocabulary) -> None:
    bindings = [
        f"VOCABULARY = '{vocabulary.path}'",
        "FILES = 'nowhere/*.jsonl'",
        f"PREPARED_DIR = '{tmp_path}'",
    ]
    gin.parse_config_files_and_bindings([str(ROOT / "gin_configs/data/corpus.gin")], bindings)
    with pytest.raises(FileNotFoundError, match=r"nowhere/\*\.jsonl.*JsonLines\.files"):
        gin.get_configurable(prepare.prepare)()
