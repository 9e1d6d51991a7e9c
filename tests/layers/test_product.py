import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import LanguageModel
from flm_jax.layers import product as products
from tests.models import LLAMA, random_batch, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("equation", ["ij,jk->ik", "ij,kj->ik", "ji,jk->ik", "bij,bkj->bik"])
@pytest.mark.parametrize(("platform", "has_bfloat16"), [("cpu", False), ("cpu", True), ("tpu", False)])
def test_where_bfloat16_is_multiplied_as_float32(
    equation: str, platform: str, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs, unless they are made for it and rows are multiplied by a matrix."""
    monkeypatch.setattr(products, "platform", lambda: platform)
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: has_bfloat16)
    x = jax.ShapeDtypeStruct((4,) * len(equation.split(",")[0]), jnp.bfloat16)
    text = jax.jit(lambda x: products.product(equation, x, x)).lower(x).as_text()
    (dot,) = [line for line in text.splitlines() if "dot_general" in line]
    rows_times_matrix = equation in ("ij,jk->ik", "ij,kj->ik")
    narrow = platform == "tpu" or (has_bfloat16 and rows_times_matrix)
    assert dot.count("bf16>") == (2 if narrow else 0)
    assert dot.strip().split("-> ")[1].startswith(f"tensor<{'4x' * x.ndim}f32>")


@pytest.mark.parametrize("block", [{}, LLAMA], ids=["flm", "llama"])
def test_a_cpu_with_bfloat16_gives_the_same(block: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of bfloat16 are exact in float32: only the order of the sums is another."""
    config = small_config(dtype="bfloat16", vocab_size=96, **block)
    params, batch = random_params(config), random_batch(config, 4, 32)

    def found() -> tuple[jax.Array, list[jax.Array]]:
        model = LanguageModel(config, loss_chunk=24)
        loss, gradients = jax.jit(
            jax.value_and_grad(lambda params, batch: model.token_sums(params, batch).total)
        )(params, batch)
        return loss, jax.tree.leaves(gradients)

    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: False)
    expected, by_float32 = found()
    monkeypatch.setattr(products, "cpu_multiplies_bfloat16", lambda: True)
    loss, by_bfloat16 = found()
    np.testing.assert_allclose(loss, expected, rtol=2e-3)
    for one, other in zip(by_bfloat16, by_float32, strict=True):
        assert np.linalg.norm(one - other) < 2e-2 * np.linalg.norm(other)
