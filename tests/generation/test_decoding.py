import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder
from flm_jax.generation import empty_cache, generate
from tests.models import LLAMA, random_params, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = small_config()
DECODER = Decoder(CONFIG)


@pytest.mark.parametrize("block", [{}, LLAMA, {"num_kv_heads": 1}], ids=["multi-head", "grouped", "one"])
def test_cached_decoding_gives_the_logits_of_the_full_pass(block: dict) -> None:
    config = small_config(**block)
    decoder = Decoder(config)
    params, tokens = random_params(config), random_tokens(config, 2, 14)
    full = decoder.apply({"params": params}, tokens)
    variables = {"params": params, "cache": empty_cache(decoder, 2, 14)}
    cached = variables["cache"]["layers"]["attention"]["cached_key"]
    assert cached.shape == (2, 2, 14, block.get("num_kv_heads", 4), 8)
    for position in range(14):
        logits, state = decoder.apply(
            variables, tokens[:, position : position + 1], decode=True, mutable=["cache"]
        )
        variables["cache"] = state["cache"]
        np.testing.assert_allclose(logits[:, 0], full[:, position], atol=1e-4)
        assert np.abs(logits[:, 0] - full[:, position]).max() < 1e-5 * np.abs(full).max()


def test_prompts_of_different_lengths_go_on_at_their_own_ends() -> None:
    """Right padding in the prefill leaves nothing behind that a later token can see."""
    params, tokens = random_params(CONFIG), random_tokens(CONFIG, 3, 12)
    full = DECODER.apply({"params": params}, tokens)
    lengths = np.array([3, 7, 5])
    prompts = np.where(np.arange(7) < lengths[:, None], tokens[:, :7], 9)
    logits, state = DECODER.apply(
        {"params": params, "cache": empty_cache(DECODER, 3, 12)},
        prompts,
        prefill=True,
        prefill_lengths=lengths,
        mutable=["cache"],
    )
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :length], full[row, :length], atol=1e-4)
    for step in range(5):
        here = lengths + step
        logits, state = DECODER.apply(
            {"params": params, **state}, tokens[np.arange(3), here][:, None], decode=True, mutable=["cache"]
        )
        np.testing.assert_allclose(logits[:, 0], full[np.arange(3), here], atol=1e-4)


@pytest.mark.parametrize("block", [{}, LLAMA], ids=["flm", "llama"])
def test_greedy_takes_the_likeliest_token_each_time(block: dict) -> None:
    params, decoder = random_params(small_config(**block)), Decoder(small_config(**block))
    prompts, lengths = np.array([[0, 5, 6, 7], [0, 9, 0, 0]], np.int32), np.array([4, 2])
    found = jax.jit(lambda: generate(decoder, params, prompts, lengths, 6, jax.random.key(0), eos_id=-1))()
    for row, length in enumerate(lengths):
        new = found.tokens[row]
        whole = np.concatenate([prompts[row, :length], new])[None]
        logits = jax.jit(decoder.apply)({"params": params}, whole)[0, length - 1 : -1]
        assert new.tolist() == jnp.argmax(logits, axis=-1).tolist()
        score = jax.nn.log_softmax(logits)[np.arange(6), new].sum()
        assert float(found.scores[row]) == pytest.approx(float(score), rel=1e-4)


def test_nothing_follows_the_end_of_sequence() -> None:
    params = random_params(CONFIG)
    prompts, lengths = np.array([[0, 5, 6, 7]], np.int32), np.array([4])
    free = generate(DECODER, params, prompts, lengths, 6, jax.random.key(0), eos_id=-1)
    end = int(free.tokens[0, 2])
    stopped = generate(DECODER, params, prompts, lengths, 6, jax.random.key(0), eos_id=end)
    first = free.tokens[0].tolist().index(end)
    assert stopped.tokens[0].tolist() == [*free.tokens[0, : first + 1].tolist(), *[0] * (5 - first)]
    assert float(stopped.scores[0]) > float(free.scores[0])
