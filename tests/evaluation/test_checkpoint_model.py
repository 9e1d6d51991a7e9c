"""Texts in, scores and texts out: tokens as one text has them, windows that meet every token once."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder, ModelConfig
from flm_jax.evaluation.checkpoint_model import CheckpointModel
from flm_jax.evaluation.measured import Measured
from flm_jax.evaluation.suites import SuiteRun
from flm_jax.evaluation.text_model import TextModel
from flm_jax.generation import Sampling
from flm_jax.partitioning import MeshShape
from flm_jax.tasks.vocabulary import Vocabulary
from flm_jax.training.checkpoint_growth import CheckpointGrowth, Settings
from tests.models import random_params, small_config
from tests.prepared_data import make_prepared, make_tokenizer, write_texts
from tests.training import runs

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = small_config(vocab_size=520)  # more rows than pieces


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    directory = tmp_path_factory.mktemp("tokenizer")
    return make_tokenizer(directory, write_texts(directory))


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_prepared(tmp_path_factory.mktemp("prepared"), length=64)


@pytest.fixture(scope="module")
def model(vocabulary: Vocabulary) -> CheckpointModel:
    return CheckpointModel(CONFIG, random_params(CONFIG), vocabulary, batch_size=4)


def logits(tokens: list[int], config: ModelConfig = CONFIG) -> np.ndarray:
    padded = np.zeros((1, 128), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(Decoder(config).apply({"params": random_params(config)}, padded)[0])[: len(tokens)]


def log_likelihood(context: list[int], continuation: list[int]) -> float:
    """By a plain pass over decoder inputs `context`, then `continuation`."""
    found = jax.nn.log_softmax(logits([*context, *continuation[:-1]])[len(context) - 1 :])
    return float(jnp.sum(found[np.arange(len(continuation)), np.array(continuation)]))


def test_a_pair_has_the_tokens_of_one_text(model: CheckpointModel, vocabulary: Vocabulary) -> None:
    asked: TextModel = model
    pairs = [
        ("Kalo mi", " tansu."),
        ("Kalo mi ", "tansu."),
        ("", "Kalo mi"),
        ("天地", "人山"),
        ("Kal", "omi"),
        (" ", "ka"),
    ]
    found = asked.log_likelihoods(pairs)
    assert found[0] == found[1]  # a space at the end of the context belongs to what follows
    for (context, continuation), score in zip(pairs, found, strict=True):
        whole = vocabulary.encode(context + continuation)
        cut = len(vocabulary.encode(context.rstrip()))
        expected = log_likelihood([0, *whole[:cut]], whole[cut:])
        assert score.log_likelihood == pytest.approx(expected, rel=1e-5)


class Merging:
    """A vocabulary with a piece that goes over the end of a context; what else `CheckpointModel` asks of one."""

    pieces = (b"", b"", b"", b"a", b"b", b"c", b"ab")
    size = len(pieces)
    piece_bytes = np.array([len(piece) for piece in pieces], np.int32)

    def encode(self, text: str) -> list[int]:
        return [self.pieces.index(part.encode()) for part in re.findall("ab|.", text)]


def test_a_continuation_that_joins_the_contexts_last_token_is_scored() -> None:
    """`ab` behind `a` has as many tokens as `a`: nothing would be left to score, and nothing is certain."""
    model = CheckpointModel(CONFIG, random_params(CONFIG), Merging())  # type: ignore[arg-type]
    joined, apart, nothing = model.log_likelihoods([("ca", "b"), ("ca", "c"), ("ca", "")])
    assert joined.log_likelihood == pytest.approx(log_likelihood([0, 5], [6]), rel=1e-5)
    assert apart.log_likelihood == pytest.approx(log_likelihood([0, 5, 3], [5]), rel=1e-5)
    assert nothing == (0.0, True)


def test_long_texts_in_windows(model: CheckpointModel, vocabulary: Vocabulary) -> None:
    """As lm-eval cuts them: 64 tokens at a time, the last window reaching back."""
    utils = pytest.importorskip("lm_eval.utils", reason="needs lm-eval")
    texts = ["Kalo mi tansu.", "Tan vor nepilda. " * 20, ""]
    lengths = [len(vocabulary.encode(text)) for text in texts]
    assert lengths[0] < 64 and lengths[1] > 2 * 64
    for text, found in zip(texts, model.rolling(texts), strict=True):
        windows = utils.get_rolling_token_windows(vocabulary.encode(text), 0, 64, 1)
        expected = sum(log_likelihood(*utils.make_disjoint_window(window)) for window in windows)
        assert found == pytest.approx(expected, rel=1e-5)


def test_greedy_texts_end_before_a_stop_string(model: CheckpointModel, vocabulary: Vocabulary) -> None:
    prompts = ["Kalo mi", "", "Tan vor nepilda. Kalo", "天地人", "Su"]
    (texts,) = [model.complete(prompts, 6, ())]
    for prompt, text in zip(prompts, texts, strict=True):
        written: list[int] = []
        while len(written) < 6 and 1 not in written:
            written.append(int(logits([0, *vocabulary.encode(prompt), *written])[-1].argmax()))
        whole = b"".join(vocabulary.pieces[token] for token in written)
        assert text == whole.decode("utf-8", errors="ignore")  # bytes that are no character are never printed
    place = max(range(5), key=lambda index: len(texts[index]))
    stop = texts[place][1:3]
    assert model.complete(prompts, 6, [stop])[place] == texts[place].partition(stop)[0]
    other = dataclasses.replace(CONFIG)
    alone = CheckpointModel(other, random_params(other), vocabulary, batch_size=1)
    assert alone.complete(prompts, 6, ()) == texts
    drawn = model.sample(prompts, 6, (), Sampling(temperature=1.0), seed=1)
    assert drawn == model.sample(prompts, 6, (), Sampling(temperature=1.0), seed=1) != texts


def test_what_does_not_fit_is_counted(vocabulary: Vocabulary) -> None:
    model = CheckpointModel(CONFIG, random_params(CONFIG), vocabulary)
    long = "Tan vor nepilda. " * 12
    model.log_likelihoods([(long, " ka"), ("ka", " lo")])
    assert model.num_cut == 1
    (text,) = model.complete([long], 4, ())
    assert model.num_cut == 2
    (same,) = model.complete([vocabulary.decode(vocabulary.encode(long)[-59:])], 4, ())  # 59 + 0 + 4 = 64
    assert text == same
    with pytest.raises(ValueError, match=r"ModelConfig.max_length = 64 tokens, found 64 new tokens"):
        model.complete(["ka"], 64, ())


def test_what_was_cut_is_said_in_training_too(vocabulary: Vocabulary) -> None:
    class Asks:
        published: ClassVar = {}
        caveats = ()

        def __init__(self, words: int) -> None:
            self._prompt = "ka lo " * words

        def check(self) -> None:
            pass

        def __call__(self, model: CheckpointModel) -> Iterator[Measured]:
            model.log_likelihoods([(self._prompt, "mi")])
            yield Measured("iq", "mine", "exact", 1.0)

    def names(words: int) -> list[str]:
        (mesh, params) = (MeshShape(data=1).build(jax.devices()[:1]), random_params(CONFIG))
        asked = SuiteRun([Asks(words)])(CONFIG, params, vocabulary, None, mesh)
        return [f"{measure.name} {measure.value:.0f}" for measure in asked]

    assert names(2) == ["iq/mine/exact 1"]
    assert names(200) == ["iq/mine/exact 1", "requests/all/cut 1"]


def test_a_checkpoint_is_read_with_its_tokenizer_and_mask(prepared_dir: Path, tmp_path: Path) -> None:
    """Just grown and hidden by the mask, it scores as the small model did."""
    runs.trainer(tmp_path / "run", prepared_dir, train_steps=2).run()
    target = dataclasses.replace(runs.CONFIG, d_model=32, d_ff=80)
    CheckpointGrowth(tmp_path / "run", target, Settings(method="msg")).write(tmp_path / "grown")
    tokenizer = next(prepared_dir.glob("*/tokenizer.model"))
    pairs = [("Kalo mi", " tansu."), ("", "天地人")]
    small, grown = (
        CheckpointModel.load(tmp_path / name, tokenizer).log_likelihoods(pairs) for name in ("run", "grown")
    )
    assert [score.log_likelihood for score in grown] == pytest.approx(
        [score.log_likelihood for score in small], rel=1e-5
    )
    mesh = MeshShape(data=1, fsdp=2, tensor=2).build(jax.devices()[:4])
    split = CheckpointModel.load(tmp_path / "grown", tokenizer, mesh=mesh)
    assert split.log_likelihoods(pairs)[0].log_likelihood == pytest.approx(grown[0].log_likelihood, rel=1e-5)
    alone = CheckpointModel.load(tmp_path / "grown", tokenizer)
    assert split.complete(["Kalo mi"], 4, ()) == alone.complete(["Kalo mi"], 4, ())
    with pytest.raises(FileNotFoundError, match="checkpoint_7"):
        CheckpointModel.load(tmp_path / "run", tokenizer, step=7)
    other = make_tokenizer(tmp_path, write_texts(tmp_path, documents=40))
    with pytest.raises(ValueError, match="which the model was trained with"):
        CheckpointModel.load(tmp_path / "run", other.path)


def test_a_tokenizer_that_is_too_large(vocabulary: Vocabulary) -> None:
    config = small_config(vocab_size=100)
    with pytest.raises(ValueError, match=r"ModelConfig.vocab_size = 100 pieces, found 512"):
        CheckpointModel(config, random_params(config), vocabulary)
