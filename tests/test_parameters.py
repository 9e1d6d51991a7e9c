import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax import Decoder, parameters
from flm_jax.parameters import Role
from tests.models import COVERING_BLOCKS, LLAMA, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.parametrize("block", COVERING_BLOCKS, ids=str)
def test_the_table_has_the_shape_of_the_parameters(block: dict) -> None:
    config = small_config(**block)
    variables = jax.eval_shape(Decoder(config).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    shapes = jax.tree.map(
        lambda row: row.shape(config), parameters.table(config), is_leaf=parameters.is_parameter
    )
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, variables["params"])


@pytest.mark.parametrize("block", [{}, LLAMA], ids=["flm", "llama"])
def test_params_axes_are_the_tables(block: dict) -> None:
    config = small_config(**block)
    variables = Decoder(config).init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))
    found = jax.tree.map(
        lambda leaf: leaf.names, variables["params_axes"], is_leaf=lambda leaf: hasattr(leaf, "names")
    )
    rows = jax.tree_util.tree_flatten_with_path(parameters.table(config), is_leaf=parameters.is_parameter)[0]
    for path, row in rows:
        *parents, last = [key.key for key in path]
        node = found
        for parent in parents:
            node = node[parent]
        assert node.pop(f"{last}_axes") == row.axes
    assert not jax.tree.leaves(found)


def test_initial_values_follow_mup() -> None:
    config = small_config(d_model=512, num_heads=16, head_dim=64, d_ff=512, num_layers=3, vocab_size=512)
    params = Decoder(config).init(jax.random.key(1), jnp.ones((1, 4), jnp.int32))["params"]
    sigma = config.init_std
    expected = {
        "query_kernel": sigma / math.sqrt(512 / 256),
        "out_kernel": sigma / math.sqrt(2 * 3 * (16 * 64) / 256),
        "wi_kernel": sigma / math.sqrt(512 / 256),
        "wo_kernel": sigma / math.sqrt(2 * 3 * 512 / 1024),
    }
    block = {**params["layers"]["attention"], **params["layers"]["mlp"]}
    for name, std in expected.items():
        assert float(jnp.std(block[name])) == pytest.approx(std, rel=0.01), name
    assert float(jnp.std(params["token_embedding"]["embedding"])) == pytest.approx(sigma, rel=0.01)
    assert not any(np.any(block[name]) for name in block if name.endswith("bias"))
    assert np.all(params["final_norm"]["scale"] == 1)
    # Layers are drawn one by one, not copied.
    assert not np.array_equal(block["wi_kernel"][0], block["wi_kernel"][1])


def test_initial_values_of_a_successor_follow_mup() -> None:
    config = small_config(**{**LLAMA, "d_model": 512, "num_heads": 16, "head_dim": 64, "d_ff": 512, "num_layers": 3,
                             "vocab_size": 512})  # fmt: skip
    params = Decoder(config).init(jax.random.key(1), jnp.ones((1, 4), jnp.int32))["params"]
    block = {**params["layers"]["attention"], **params["layers"]["mlp"]}
    assert sorted(block) == ["gate_kernel", "key_kernel", "out_kernel", "query_kernel", "value_kernel", "wi_kernel",
                             "wo_kernel"]  # fmt: skip
    sigma = config.init_std
    expected = {
        "query_kernel": sigma / math.sqrt(512 / 256),
        "key_kernel": sigma / math.sqrt(512 / 256),
        "gate_kernel": sigma / math.sqrt(512 / 256),
        "out_kernel": sigma / math.sqrt(2 * 3 * (16 * 64) / 256),  # all query heads, not the key-value heads
        "wo_kernel": sigma / math.sqrt(2 * 3 * 512 / (256 * 8 / 3)),
    }
    for name, std in expected.items():
        assert float(jnp.std(block[name])) == pytest.approx(std, rel=0.01), name
    readout, embedding = params["readout"]["kernel"], params["token_embedding"]["embedding"]
    assert float(jnp.std(readout)) == pytest.approx(sigma, rel=0.01)
    assert not np.array_equal(readout, embedding)
    assert all(list(norm) == ["scale"] and np.all(norm["scale"] == 1)
               for norm in (params["final_norm"], params["layers"]["mlp_norm"]))  # fmt: skip


def test_standard_parametrisation_scales_writers_by_depth_only() -> None:
    config = small_config(parametrization="standard", d_model=512)
    stds = {row.role: row.init_std(config) for row in parameters.attention(config).values()}
    assert stds[Role.READ] == config.init_std
    assert stds[Role.WRITE] == config.init_std / math.sqrt(2 * config.num_layers)


def test_learning_rate_times_decay_is_the_same_at_every_width() -> None:
    for block, width in itertools.product(({}, LLAMA), (256, 512, 4096)):
        config = small_config(**{**block, "d_model": width, "d_ff": 4 * width, "num_heads": width // 8})
        for row in [*parameters.attention(config).values(), *parameters.mlp(config).values()]:
            product = row.learning_rate_mult(config) * row.weight_decay_mult(config)
            assert product == pytest.approx(0.0 if row.role is Role.BIAS else 1.0)
        for role in (parameters.norm(config)["scale"], parameters.final_norm(config)["scale"]):
            assert (role.learning_rate_mult(config), role.weight_decay_mult(config)) == (1, 0)
        # Width reaches the readout through `logit_scale`, so its table is left alone, tied or not.
        for table in (parameters.embedding()["embedding"], parameters.readout()["kernel"]):
            assert (table.learning_rate_mult(config), table.weight_decay_mult(config)) == (1, 1)
            assert table.init_std(config) == config.init_std
