import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder
from flm_jax.config import REMAT_POLICIES
from flm_jax.layers.embedding import Embedding
from tests import reference
from tests.models import COVERING_BLOCKS, random_params, random_tokens, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("block", COVERING_BLOCKS, ids=str)
def test_float64_is_float64_throughout(block: dict) -> None:
    """Parity with numpy in float64; a single value rounded to float32 on the way would show at 1e-8."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", norm_epsilon=1e-3, **block)
        params = random_params(config)
        tokens = random_tokens(config, 2, 9)
        found = jax.jit(Decoder(config).apply)({"params": params}, tokens)
        assert found.dtype == jnp.float64
        plain = jax.tree.map(np.asarray, params)
        for row, logits in zip(tokens, np.asarray(found), strict=True):
            expected = reference.logits(plain, row, config)
            np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_float64_that_would_be_float32_is_refused() -> None:
    config = small_config(dtype="float64")
    with pytest.raises(ValueError, match="set JAX_ENABLE_X64=1"):
        Decoder(config).apply({"params": random_params(small_config())}, random_tokens(config, 1, 4))


def test_float32_close_to_float64() -> None:
    config = small_config()
    params, tokens = random_params(config), random_tokens(config, 1, 12)
    found = Decoder(config).apply({"params": params}, tokens)
    expected = reference.logits(jax.tree.map(lambda x: np.asarray(x, np.float64), params), tokens[0], config)
    assert np.abs(found[0] - expected).max() < 2e-6 * np.abs(expected).max()


def test_bfloat16_compute_over_float32_parameters() -> None:
    config = small_config(dtype="bfloat16")
    params, tokens = random_params(config), random_tokens(config, 1, 12)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    narrow = Decoder(config).apply({"params": params}, tokens)
    wide = Decoder(small_config()).apply({"params": params}, tokens)
    assert narrow.dtype == jnp.float32
    error = np.abs(narrow - wide).max() / np.abs(wide).max()
    assert 1e-4 < error < 0.05  # it is bfloat16, and it is close


def test_bfloat16_embedding_gradient_does_not_stall() -> None:
    """A token that occurs 2,000 times: a bfloat16 sum of as many rows stops growing at about 256 of them."""
    config = small_config(dtype="bfloat16", max_length=2048, input_mult=1.0)
    embedding = Embedding(config)
    tokens = jnp.full((1, 2000), 7)
    params = embedding.init(jax.random.key(0), tokens)["params"]
    grads = jax.grad(lambda p: jnp.sum(embedding.apply({"params": p}, tokens).astype(jnp.float32) * 0.01))(
        params
    )
    np.testing.assert_allclose(grads["embedding"][7], 20.0, rtol=0.01)


def test_bfloat16_logit_scale_is_not_rounded() -> None:
    """0.05 in bfloat16 is 0.05005; scaling by it would shift all logits the same way."""
    config = small_config(dtype="bfloat16", output_mult=0.05 * 24 / 256)
    assert config.logit_scale == pytest.approx(0.05)
    embedding = Embedding(config)
    params = {"embedding": jnp.ones((config.vocab_size, 24))}
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(1, 2, (1, 400, 24)), jnp.bfloat16)
    logits = embedding.apply({"params": params}, x, method=Embedding.logits)
    expected = 0.05 * np.asarray(x, np.float64).sum(-1, keepdims=True)
    assert abs(np.mean(logits / expected) - 1) < 2e-4


def test_packed_document_equals_the_document_alone() -> None:
    config = small_config()
    params = random_params(config)
    first, second = random_tokens(config, 1, 7, seed=1), random_tokens(config, 1, 11, seed=2)
    packed = np.concatenate([first, second, np.zeros((1, 2), np.int32)], axis=1)
    segments = np.array([[1] * 7 + [2] * 11 + [0] * 2])
    positions = np.array([[*range(7), *range(11), 0, 0]])
    decoder = Decoder(config)
    together = decoder.apply(
        {"params": params}, packed, decoder_segment_ids=segments, decoder_positions=positions
    )
    for document, found in ((first, together[:, :7]), (second, together[:, 7:18])):
        alone = decoder.apply({"params": params}, document)
        np.testing.assert_allclose(found, alone, atol=1e-5 * float(jnp.abs(alone).max()))
    # The negative control: without segment ids the second document sees the first.
    mixed = decoder.apply({"params": params}, packed, decoder_positions=positions)
    assert np.abs(mixed[:, 7:18] - together[:, 7:18]).max() > 1e-2
    assert np.all(np.isfinite(together))


def test_a_later_token_changes_nothing_before_it() -> None:
    config = small_config()
    params, tokens = random_params(config), random_tokens(config, 1, 10)
    changed = tokens.copy()
    changed[0, 6] = (tokens[0, 6] + 1) % config.vocab_size
    before, after = (Decoder(config).apply({"params": params}, t) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.any(before[:, 6:] != after[:, 6:])


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_remat_changes_no_gradient(remat: str) -> None:
    params, tokens = random_params(small_config()), random_tokens(small_config(), 2, 8)

    def loss(params: dict, name: str) -> jax.Array:
        return jnp.sum(jnp.sin(Decoder(small_config(remat=name)).apply({"params": params}, tokens)))

    plain, recomputed = (jax.jit(jax.grad(loss), static_argnums=1)(params, name) for name in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), plain, recomputed)


def test_remat_policies_save_what_they_say() -> None:
    """Fewer matmuls are kept, more are computed again: none = dots < dots_no_batch < full."""
    params, tokens = random_params(small_config()), random_tokens(small_config(), 2, 8)

    def dots(remat: str) -> int:
        decoder = Decoder(small_config(remat=remat))
        loss = jax.grad(lambda p: jnp.sum(decoder.apply({"params": p}, tokens) ** 2))
        return jax.jit(loss).lower(params).as_text().count("stablehlo.dot_general")

    counts = [dots(remat) for remat in ("none", "dots", "dots_no_batch", "full")]
    assert counts[0] == counts[1] < counts[2] < counts[3]


def test_program_does_not_grow_with_depth() -> None:
    def size(layers: int) -> int:
        config = small_config(num_layers=layers)
        shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
        lowered = jax.jit(Decoder(config).apply).lower(
            {"params": shapes["params"]}, jnp.ones((1, 4), jnp.int32)
        )
        return len(lowered.as_text().splitlines())

    assert size(2) == size(12)


def test_bidirectional_prefix_is_refused() -> None:
    config = small_config()
    tokens = random_tokens(config, 1, 4)
    with pytest.raises(ValueError, match="reads prefixes causally"):
        Decoder(config).apply(
            {"params": random_params(config)}, tokens, decoder_causal_attention=np.ones((1, 4))
        )
    with pytest.raises(ValueError, match="needs prefill_lengths"):
        Decoder(config).apply({"params": random_params(config)}, tokens, prefill=True)


@pytest.mark.parametrize("block", COVERING_BLOCKS, ids=str)
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_gradients_are_slopes_of_the_function(block: dict, remat: str) -> None:
    """Several layers have backward passes of their own: central differences in float64, of every parameter."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", norm_epsilon=1e-3, remat=remat, **block)
        params, tokens = random_params(config), random_tokens(config, 2, 6)
        segments = jnp.asarray([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0]])

        @jax.jit
        def function(params: dict) -> jax.Array:
            logits = Decoder(config).apply({"params": params}, tokens, decoder_segment_ids=segments)
            return jnp.sum(jnp.sin(logits))

        gradient = jax.jit(jax.grad(function))(params)
        leaves, treedef = jax.tree.flatten(params)
        rng = np.random.default_rng(0)
        for index, (path, slope) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
            direction = rng.standard_normal(slope.shape)
            ahead, behind = (
                function(
                    treedef.unflatten(
                        [*leaves[:index], leaves[index] + step * direction, *leaves[index + 1 :]]
                    )
                )
                for step in (1e-6, -1e-6)
            )
            expected = (ahead - behind) / 2e-6
            scale = float(jnp.linalg.norm(slope)) * np.linalg.norm(direction) / np.sqrt(slope.size)
            np.testing.assert_allclose(
                jnp.sum(slope * direction),
                expected,
                atol=1e-6 * scale,
                rtol=0,
                err_msg=jax.tree_util.keystr(path),
            )
