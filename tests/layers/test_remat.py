import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder
from tests.models import random_params, random_tokens, small_config


@pytest.mark.parametrize("remat", ["dots", "dots_no_batch", "full"])
def test_no_stack_of_bfloat16_is_written_to_on_cpus(remat: str) -> None:
    """XLA would write all of it with each layer."""
    config = small_config(dtype="bfloat16", remat=remat, num_layers=4)
    params, tokens = random_params(config), random_tokens(config, 2, 8)

    def loss(params):
        return jnp.sum(Decoder(config).apply({"params": params}, tokens).astype(np.float32))

    text = jax.jit(jax.grad(loss)).lower(params).as_text()
    written = re.findall(r"dynamic_update_slice.*-> tensor<(\S+)>", text)
    assert any(shape.startswith("4x2x8x") and shape.endswith("f32") for shape in written), written
    assert not [shape for shape in written if "bf16" in shape]
