import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import parameters
from flm_jax.layers.norm import Norm
from tests import reference
from tests.models import small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 24))
WEIGHT = {"scale": RNG.standard_normal(24)}


def normed(x: np.ndarray, keep: np.ndarray | None = None, **changes: object) -> np.ndarray:
    with jax.enable_x64(True):
        config = small_config(
            dtype="float64", param_dtype="float64", norm="rmsnorm", d_model=x.shape[-1], **changes
        )
        out = Norm(config, parameters.norm(config)).apply(
            {"params": {"scale": WEIGHT["scale"][: x.shape[-1]]}}, x, keep
        )
        assert out.dtype == jnp.float64
        return np.asarray(out)


def test_rmsnorm_divides_by_its_denominator() -> None:
    config = small_config(norm="rmsnorm", norm_denominator=16.0)
    expected = np.stack([reference.norm(row, WEIGHT, config) for row in X])
    np.testing.assert_allclose(normed(X, norm_denominator=16.0), expected, rtol=1e-14)
    assert np.abs(normed(X) - expected).max() > 0.1


def test_zeros_behind_the_old_width_change_nothing_under_the_old_denominator() -> None:
    """Constant-denominator padding: what a growth without a mask relies on."""
    padded = np.concatenate([X[..., :16], np.zeros((2, 3, 8))], axis=-1)
    found = normed(padded, norm_denominator=16.0)
    np.testing.assert_allclose(found[..., :16], normed(X[..., :16]), rtol=1e-14)
    assert not np.any(found[..., 16:])


@pytest.mark.parametrize("denominator", [None, 20.0])
def test_rmsnorm_under_a_mask(denominator: float | None) -> None:
    keep = np.where(np.arange(24) < 16, 1.0, 0.25)
    share = (16 + 8 * 0.25) / 24
    square = (X**2 * keep).sum(-1, keepdims=True) / ((denominator or 24) * share)
    expected = X / np.sqrt(square + small_config().norm_epsilon) * WEIGHT["scale"] * keep
    np.testing.assert_allclose(normed(X, keep, norm_denominator=denominator), expected, rtol=1e-13)


def test_a_closed_mask_is_the_narrow_norm() -> None:
    keep = np.where(np.arange(24) < 16, 1.0, 0.0)
    np.testing.assert_allclose(normed(X, keep)[..., :16], normed(X[..., :16]), rtol=1e-14)
    assert not np.any(normed(X, keep)[..., 16:])


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_bfloat16_is_rounded_once(norm: str) -> None:
    """Of float32 intermediate values bfloat16 keeps 8 bits, an error of at most 1/256."""
    config = small_config(dtype="bfloat16", norm=norm, d_model=512, use_bias=False)
    scale = np.float32(RNG.uniform(0.5, 2, 512))
    x = jnp.asarray(RNG.standard_normal((1, 4, 512)), jnp.bfloat16)
    out = Norm(config, parameters.norm(config)).apply({"params": {"scale": scale}}, x)
    assert out.dtype == jnp.bfloat16
    expected = reference.norm(np.asarray(x[0], np.float64), {"scale": scale}, config)
    np.testing.assert_allclose(np.asarray(out[0], np.float64), expected, rtol=1.01 / 256)
