"""The same step on one device and on eight: each kind of parallelism alone and with each other."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import topologies

from flm_jax import LanguageModel, optimizer, partitioning
from flm_jax.config import ModelConfig
from flm_jax.grow.schedule import Route, Stage
from flm_jax.layers import dense
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.model import PACKED_FEATURES
from flm_jax.partitioning import MeshShape
from flm_jax.training.leg import check_mesh
from flm_jax.training.state import abstract_state, create_state
from flm_jax.training.step import gradients, skipping_non_finite, train_step
from tests.models import random_batch, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation", "in_blocks")


@pytest.fixture(scope="module")
def in_blocks() -> Iterator[None]:
    """Attention in the blocks that only longer sequences have otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "causal_blocks", lambda length: 1 if length % 4 else 4)
        yield


# Everything divides by 8.
CONFIG = small_config(d_model=32, num_layers=8, num_heads=8, head_dim=4, d_ff=48)
KINDS = ("data", "fsdp", "tensor", "sequence", "stage")
ONE = MeshShape(1, 1, 1)


def of(**sizes: int) -> MeshShape:
    return MeshShape(**{"data": 1, **sizes})


ALONE = [of(**{kind: 8}) for kind in KINDS]
PAIRS = [of(**{one: 2, other: 4}) for one, other in itertools.combinations(KINDS, 2)]


def train(
    shape: MeshShape, num_microbatches: int, steps: int = 10, rows: int = 16
) -> tuple[list[float], Any]:
    """The losses of some steps from a fresh state, and the gradients of the first batch."""
    model = LanguageModel(CONFIG, loss_chunk=24)
    tx = skipping_non_finite(optimizer.adamw(CONFIG, 3e-3))
    sizes = [abs(getattr(shape, kind)) for kind in KINDS]
    mesh = shape.build(jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(mesh), partitioning.axis_rules():
        state = create_state(model, tx, mesh, seed=0)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(CONFIG, tx, mesh))
        moments = optax.tree_utils.tree_get(shardings.opt_state, "mu")
        step = jax.jit(
            train_step(model, tx, num_microbatches, gradient_shardings=moments),
            out_shardings=(shardings, None),
        )
        placed = functools.partial(jax.device_put, device=partitioning.batch_sharding(mesh))
        batches = [placed(random_batch(CONFIG, rows, 32, seed=index)) for index in range(steps)]
        first, _ = jax.jit(functools.partial(gradients, model, num_microbatches=num_microbatches))(
            state.params, batches[0]
        )
        losses = []
        for batch in batches:
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        assert step._cache_size() == 1, "one compilation"
    return losses, jax.tree.map(np.asarray, first)


@functools.cache
def alone() -> tuple[list[float], Any]:
    """One device, the batch in one piece."""
    return train(ONE, 1)


def assert_same_as_alone(shape: MeshShape, num_microbatches: int) -> None:
    assert_same(alone(), train(shape, num_microbatches))


def assert_same(expected: tuple[list[float], Any], found: tuple[list[float], Any]) -> None:
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert found[0][-1] < found[0][0]
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected[1]), jax.tree.leaves(found[1]), strict=True
    ):
        distance = np.linalg.norm(one - other) / np.linalg.norm(one)
        assert distance < 1e-5, (jax.tree_util.keystr(path), distance)


@pytest.mark.parametrize("shape", ALONE, ids=KINDS)
def test_each_kind_alone(shape: MeshShape) -> None:
    assert_same_as_alone(shape, 4 if shape.stage > 1 else 1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", PAIRS, ids=lambda s: "-".join(k for k in KINDS if getattr(s, k) > 1))
def test_each_pair(shape: MeshShape) -> None:
    assert_same_as_alone(shape, 2 if shape.data < 4 and shape.fsdp < 4 else 1)


def test_three_kinds_and_accumulation() -> None:
    assert_same_as_alone(of(fsdp=2, tensor=2, stage=2), 2)


def test_a_data_axis_that_does_not_divide() -> None:
    """Of six devices two or three divide most axes: the moments lie twice or three times, and nothing else changes."""
    assert_same(train(ONE, 1, rows=12), train(of(data=6), 1, rows=12))


def local_bytes(tree: Any) -> int:
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("shape", "params_share", "state_share"),
    [
        (of(data=8), 1, 8),
        (of(fsdp=8), 8, 8),
        (of(data=4, fsdp=2), 2, 8),
        (of(data=2, tensor=2, stage=2), 4, 8),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else None,
)
def test_bytes_of_a_device_shrink(shape: MeshShape, params_share: int, state_share: int) -> None:
    """Parameters over fsdp, tensor and stage; the optimizer's moments over data besides."""
    tx = skipping_non_finite(optimizer.adamw(CONFIG, 1e-3))
    mesh = shape.build()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        state = create_state(LanguageModel(CONFIG), tx, mesh, seed=0)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    # Norms and biases may be whole on some axes: a few percent of this small model.
    assert whole / params_share <= local_bytes(state.params) < 1.15 * whole / params_share
    for name in ("mu", "nu"):
        moments = optax.tree_utils.tree_get(state.opt_state, name)
        assert whole / state_share <= local_bytes(moments) < 1.15 * whole / state_share


def lowered(shape: MeshShape, config: ModelConfig = CONFIG, num_microbatches: int = 1) -> Any:
    model, mesh = LanguageModel(config), shape.build()
    tx = skipping_non_finite(optimizer.adamw(config, 1e-3))
    with jax.set_mesh(mesh), partitioning.axis_rules():
        state = abstract_state(config, tx, mesh)
        wanted = jax.tree.map(lambda leaf: leaf.sharding, optax.tree_utils.tree_get(state.opt_state, "mu"))
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioning.batch_sharding(mesh)),
            random_batch(config, 16, 32),
        )
        return jax.jit(train_step(model, tx, num_microbatches, gradient_shardings=wanted)).lower(
            state, shapes
        )


def test_gradients_are_split_as_the_optimizer_state_is() -> None:
    """The constraint is in the program: each device of the data axis gets the sums of its part only."""
    text = lowered(of(data=2, fsdp=2, tensor=2)).as_text()
    spec = r'\[\{"stage"\}, \{"fsdp", "data"\}, \{"tensor"\}\]'
    assert re.search(rf"sdy.sharding_constraint %\S+ <@mesh, {spec}> : tensor<8x32x48xf32>", text)


def test_under_tensor_parallelism_nothing_is_laid_out_anew() -> None:
    """The residual stream is gathered before a sublayer and scattered behind it, and no kernel is gathered."""
    text = lowered(of(data=4, tensor=2)).compile().as_text()
    anew = re.findall(r"all-to-all\(.*op_name=\"(\S*)\"", text)
    assert anew and all("token_embedding" in name for name in anew), (
        "rows of the table, from columns to lengths"
    )
    gathered = set(re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text))
    assert not gathered & {"8,4,32", "32,8,4", "32,32", "32,48", "48,32"}, gathered


@pytest.mark.parametrize(
    "shape", [of(data=2, stage=2, tensor=2), of(data=4, stage=2)], ids=["data-stage-tensor", "data-stage"]
)
def test_no_device_has_the_whole_token_table(shape: MeshShape, capfd: pytest.CaptureFixture) -> None:
    """Its rows are looked up, and their gradient added up, in a part of the columns."""
    config = dataclasses.replace(CONFIG, vocab_size=4096)
    text = lowered(shape, config, 2).compile().as_text()
    assert "f32[4096,32]" not in text and re.search(r"f32\[4096,(8|16)\]", text)
    assert "full rematerialization" not in capfd.readouterr().err


def test_a_token_table_that_does_not_divide_is_refused() -> None:
    config = dataclasses.replace(CONFIG, d_model=36)
    stage = Stage(
        LanguageModel(config), steps=1, batch_size=8, learning_rate=1e-3, mesh=of(stage=2, tensor=4)
    )
    with pytest.raises(
        ValueError, match=r"columns of the token table of 36 entries .* 'stage' x 'tensor' of 2 x 4"
    ):
        check_mesh(Route.of([stage], 32), 0)


def test_grouped_queries_are_split_by_length() -> None:
    """Four heads over two: scores of a device's own quarter of 32 queries."""
    config = small_config(num_kv_heads=2, num_heads=4, num_layers=8)
    compiled = lowered(of(data=2, sequence=4), config).compile().as_text()
    assert re.search(r"f32\[\d+,\d+,8,32\]", compiled)
    assert not re.search(r"f32\[\d+,\d+,(32|64),32\]", compiled)


def test_a_mask_over_layers_in_pipeline_stages() -> None:
    """Every stage has the factors of its own layers."""
    batch, model = random_batch(CONFIG, 8, 32), LanguageModel(CONFIG)
    params = random_params(CONFIG)
    growth = GrowthMask(layers=jnp.linspace(0.1, 0.8, 8), mlp=jnp.linspace(0, 1, 48))
    expected, _ = jax.jit(functools.partial(gradients, model, growth=growth))(params, batch)
    mesh = of(stage=4, tensor=2).build()
    with jax.set_mesh(mesh), partitioning.axis_rules():
        placed = jax.device_put(params, partitioning.param_shardings(CONFIG, mesh))
        rows = jax.device_put(batch, partitioning.batch_sharding(mesh))
        found, _ = jax.jit(functools.partial(gradients, model, growth=growth, num_microbatches=2))(
            placed, rows
        )
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(one)


def test_microbatches_move_by_collective_permute() -> None:
    text = lowered(of(stage=8), num_microbatches=4).compile().as_text()
    assert re.search(r"collective-permute.*source_target_pairs=\{\{0,1\},\{1,2\}", text)
    # What is permuted is one microbatch: 4 rows of 32 tokens, 32 wide.
    assert re.search(r"f32\[1,4,32,32\]\S* collective-permute", text)


@pytest.mark.parametrize("shape", [of(data=8), of(stage=2, fsdp=2, tensor=2)], ids=["scan", "pipeline"])
def test_program_does_not_grow_with_depth(shape: MeshShape) -> None:
    """Scanned layers: the same program, lowered and compiled, but for the sizes of the stacked arrays."""
    few, many = (lowered(shape, small_config(num_layers=layers), 2) for layers in (32, 128))
    assert few.as_text().count("\n") == many.as_text().count("\n")
    sizes = [len(re.findall(r"^ +\S+ = ", step.compile().as_text(), re.MULTILINE)) for step in (few, many)]
    assert abs(sizes[1] - sizes[0]) < 0.02 * sizes[0], sizes


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [MeshShape(1, 2, 2), MeshShape(2, 1, 1, stage=2)], ids=["fsdp-tensor", "data-stage"]
)
def test_the_step_with_its_kernel_compiles_for_tpus(
    shape: MeshShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four chips that are not here; `auto` is the splash kernel there, on each device's rows and heads."""
    pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu (flm_jax's extra is jax[tpu])")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    config = small_config(d_model=256, num_heads=2, head_dim=128, d_ff=256, max_length=384, dtype="bfloat16")
    model, tx = LanguageModel(config), skipping_non_finite(optimizer.adamw(config, 1e-3))
    mesh = shape.build(list(devices))
    state = abstract_state(config, tx, mesh)
    with jax.set_mesh(mesh), partitioning.axis_rules():
        rows = jax.ShapeDtypeStruct((8, 384), jnp.int32, sharding=partitioning.batch_sharding(mesh))
        step = jax.jit(train_step(model, tx, 2)).lower(state, dict.fromkeys(PACKED_FEATURES, rows))
    text = step.compile().as_text()
    assert "splash" in text and "tpu_custom_call" in text
    assert not re.search(r"\[(\d+,)*384,384\]\S* (dot|convolution)", text), "no scores outside of the kernel"
