import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flm_jax import Decoder, ModelConfig, partitioning
from flm_jax.generation import Sampling, Writer
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.partitioning import MeshShape
from tests.generation.text_cutting import cut
from tests.generation.vocabularies import CONFIG, EOS, PARAMS, PROMPTS, VOCABULARY, WRITER
from tests.models import LLAMA, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

DRAWN = Sampling(temperature=1.5, top_p=0.9)
NEW = 20


def drawable(config: ModelConfig) -> np.ndarray:
    allowed = np.zeros(config.vocab_size, bool)
    allowed[: VOCABULARY.size] = VOCABULARY.piece_bytes > 0
    allowed[EOS] = True
    return allowed


def uncached(
    config: ModelConfig,
    params: dict,
    prompt: str,
    new: int,
    penalty: float = 1.0,
    growth: GrowthMask | None = None,
) -> list[int]:
    """Greedy decoding by a full pass for each token, in numpy but for the model."""
    tokens = [0, *VOCABULARY.encode(prompt)]
    apply = jax.jit(Decoder(config).apply)
    end = len(tokens) + new
    written: list[int] = []
    for _ in range(new):
        padded = np.zeros((1, end), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = np.array(apply({"params": params}, padded, growth=growth)[0, len(tokens) - 1])
        seen = sorted(set(tokens))
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        tokens.append(int(np.argmax(np.where(drawable(config), logits, -np.inf))))
        written.append(tokens[-1])
        if tokens[-1] == EOS:
            break
    return written


def text_of(tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    return cut(b"".join(VOCABULARY.pieces[token] for token in tokens).decode(errors="ignore"), stop)


@pytest.mark.parametrize("block", [{}, LLAMA], ids=["flm", "llama"])
def test_greedy_writing_is_uncached_decoding_in_float64(block: dict) -> None:
    config = small_config(
        **{"vocab_size": 32, "tied_readout": False, **block, "dtype": "float64", "param_dtype": "float64"}
    )
    with jax.enable_x64(True):
        params = random_params(config)
        found = Writer(config, params, VOCABULARY).complete(PROMPTS, NEW)  # type: ignore[arg-type]
        written = [uncached(config, params, prompt, NEW) for prompt in PROMPTS]
    assert found == [text_of(tokens) for tokens in written]
    assert len(set(found)) > 3


def test_under_a_growth_mask() -> None:
    mask = GrowthMask(heads=np.array([1, 1, 0.5, 0], np.float32), layers=np.array([1, 0.25], np.float32))
    found = Writer(CONFIG, PARAMS, VOCABULARY, mask).complete(PROMPTS, NEW)  # type: ignore[arg-type]
    assert found == [text_of(uncached(CONFIG, PARAMS, prompt, NEW, growth=mask)) for prompt in PROMPTS]
    assert found != WRITER.complete(PROMPTS, NEW)


def test_the_repetition_penalty_counts_prompt_and_text() -> None:
    found = WRITER.complete(PROMPTS, NEW, sampling=Sampling(repetition_penalty=1.7))
    assert found == [text_of(uncached(CONFIG, PARAMS, prompt, NEW, penalty=1.7)) for prompt in PROMPTS]
    assert found != WRITER.complete(PROMPTS, NEW)


@settings(max_examples=40)
@given(
    st.sampled_from(PROMPTS),
    st.lists(st.text("ab\n中天😈é ", min_size=1, max_size=3), max_size=3),
    st.integers(0, 3),
    st.sampled_from([Sampling(), DRAWN]),
)
def test_what_is_streamed_is_what_is_completed(
    prompt: str, stop: list[str], seed: int, sampling: Sampling
) -> None:
    (whole,) = WRITER.complete([prompt], NEW, stop, sampling, seed)
    parts = list(WRITER.stream(prompt, NEW, stop, sampling, seed))
    assert "".join(parts) == whole
    assert all(parts)
    (free,) = WRITER.complete([prompt], NEW, (), sampling, seed)
    assert whole == cut(free, stop)


def test_streaming_does_not_wait_for_the_end() -> None:
    parts = WRITER.stream("some words", 10_000, sampling=DRAWN, seed=2)
    assert next(parts)


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN, Sampling(0.7, top_k=5, repetition_penalty=1.2)])
def test_what_else_is_in_the_batch_changes_nothing(sampling: Sampling) -> None:
    expected = WRITER.complete(PROMPTS, NEW, ("\n\n",), sampling, seed=3, batch_size=8)
    for batch_size in (1, 2, 3):
        assert WRITER.complete(PROMPTS, NEW, ("\n\n",), sampling, 3, batch_size) == expected
    if sampling.temperature == 0:
        assert WRITER.complete(PROMPTS[::-1], NEW, ("\n\n",))[::-1] == expected
    else:
        changed = ["other", *PROMPTS[1:]]
        assert WRITER.complete(changed, NEW, ("\n\n",), sampling, 3)[1:] == expected[1:]
        assert WRITER.complete(PROMPTS, NEW, ("\n\n",), sampling, 4) != expected


def test_only_what_stands_for_text_is_written() -> None:
    """Rows of the table without a piece, padding and pieces without bytes are far likelier here."""
    favoured = np.where(drawable(CONFIG), 1.0, 40.0)[:, None]
    params = {**PARAMS, "readout": {"kernel": PARAMS["readout"]["kernel"] * favoured}}
    writer = Writer(CONFIG, params, VOCABULARY)  # type: ignore[arg-type]
    wanted = jax.jit(Decoder(CONFIG).apply)({"params": params}, np.arange(32)[None])
    assert not np.all(drawable(CONFIG)[np.argmax(wanted[0], axis=-1)])
    expected = [text_of(uncached(CONFIG, params, prompt, NEW)) for prompt in PROMPTS]
    assert writer.complete(PROMPTS, NEW) == expected
    writer.complete(PROMPTS, NEW, sampling=DRAWN)  # a row without a piece would be an IndexError


def test_tokens_are_prompts_too() -> None:
    assert WRITER.complete([VOCABULARY.encode("some words")], NEW) == WRITER.complete(["some words"], NEW)


def test_beyond_the_context_that_the_model_was_trained_on() -> None:
    """Four times max_length, prompt and text: the tokens are those of uncached decoding."""
    config = dataclasses.replace(CONFIG, max_length=16)
    prompt = PROMPTS[4][:30]
    found = Writer(config, PARAMS, VOCABULARY).complete([prompt], 33)  # type: ignore[arg-type]
    assert found == [text_of(uncached(config, PARAMS, prompt, 33))]
    assert found == WRITER.complete([prompt], 33)  # a context of 64: nothing is sized by max_length


def test_a_length_that_xpos_cannot_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 32,640 tokens within float32's range, found .* of 40,003"):
        WRITER.complete(["ab"], 40_000)
    with pytest.raises(ValueError, match="lower --max_new_tokens"):
        WRITER.stream("ab", 40_000)


def test_split_over_a_mesh() -> None:
    mesh = MeshShape(data=2, tensor=2).build(jax.devices()[:4])
    params = jax.device_put(PARAMS, partitioning.param_shardings(CONFIG, mesh))
    writer = Writer(CONFIG, params, VOCABULARY, mesh=mesh)  # type: ignore[arg-type]
    assert writer.complete(PROMPTS[:3], 8, batch_size=3) == WRITER.complete(PROMPTS[:3], 8)


def test_mistakes() -> None:
    with pytest.raises(
        ValueError, match=r"expected a tokenizer of at most ModelConfig.vocab_size = 16 pieces"
    ):
        Writer(small_config(vocab_size=16), PARAMS, VOCABULARY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a list of stop strings"):
        WRITER.complete(["a"], 1, stop="END")
    with pytest.raises(ValueError, match="max_new_tokens of at least 1, found 0"):
        WRITER.complete(["a"], 0)
    with pytest.raises(ValueError, match="batch_size of at least 1, found 0"):
        WRITER.complete(["a"], 1, batch_size=0)
    assert WRITER.complete([], 4) == []


def test_recentred_xpos_gives_the_same_scores() -> None:
    tokens = np.random.default_rng(0).integers(3, 32, (2, 200)).astype(np.int32)
    config = dataclasses.replace(CONFIG, dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        params = random_params(config)
        logits = [
            Decoder(each).apply({"params": params}, jnp.asarray(tokens))
            for each in (config, config.for_length(200), dataclasses.replace(config, max_length=1024))
        ]
    assert config.for_length(200).max_length == 256 and config.for_length(64) is config
    for each in logits[1:]:
        np.testing.assert_allclose(each, logits[0], rtol=1e-10, atol=1e-12)
