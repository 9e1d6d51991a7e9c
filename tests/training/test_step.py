import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax import LanguageModel, optimizer, partitioning
from flm_jax.config import ModelConfig
from flm_jax.model import TASK_NUMBERS, TokenSums
from flm_jax.partitioning import MeshShape
from flm_jax.training.state import abstract_state, create_state
from flm_jax.training.step import gradients, skipping_non_finite, train_step
from tests.models import random_batch, random_params, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def losses_of(
    config: ModelConfig, mesh: MeshShape, num_devices: int, steps: int, batch_of: Callable = random_batch
) -> list[float]:
    """The losses of a run from a fresh state on random batches, on some of the virtual devices."""
    model = LanguageModel(config)
    tx = skipping_non_finite(optimizer.adamw(config, 3e-3))
    built = mesh.build(jax.devices()[:num_devices])
    with jax.set_mesh(built), partitioning.axis_rules():
        state = create_state(model, tx, built, seed=0)
        step = jax.jit(train_step(model, tx), donate_argnums=0)
        losses = []
        for index in range(steps):
            batch = jax.device_put(batch_of(config, 8, 32, seed=index), partitioning.batch_sharding(built))
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return losses


def test_two_meshes_same_losses() -> None:
    one = losses_of(small_config(), MeshShape(1, 1, 1), 1, steps=10)
    eight = losses_of(small_config(), MeshShape(2, 2, 2), 8, steps=10)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert one[-1] < one[0]


def markov_batch(config: ModelConfig, batch: int, length: int, seed: int) -> dict[str, np.ndarray]:
    """Text of a fixed rule, so that there is something to learn: four times in five 5 t + 1 follows t."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((batch, length + 1), np.int32)
    for position in range(1, length + 1):
        ruled = (5 * tokens[:, position - 1] + 1) % config.vocab_size
        anything = rng.integers(0, config.vocab_size, batch)
        tokens[:, position] = np.where(rng.random(batch) < 0.8, ruled, anything)
    return {
        "decoder_input_tokens": tokens[:, :-1],
        "decoder_target_tokens": tokens[:, 1:],
        "decoder_loss_weights": np.ones((batch, length), np.int32),
        "decoder_segment_ids": np.ones((batch, length), np.int32),
        "decoder_positions": np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)),
    }


@pytest.mark.slow
def test_bfloat16_follows_float32() -> None:
    """200 steps: never further apart than 0.02 nats, on losses that fall by more than two nats."""
    # µP multiplies learning rates and logits of a model this narrow by ten: too chaotic to follow anything.
    usual = small_config(parametrization="standard", output_mult=1.0, input_mult=1.0)
    wide = losses_of(usual, MeshShape(1, 1, 1), 1, 200, markov_batch)
    narrow = losses_of(dataclasses.replace(usual, dtype="bfloat16"), MeshShape(1, 1, 1), 1, 200, markov_batch)

    assert wide[0] - wide[-1] > 2
    assert 0 < np.abs(np.subtract(wide, narrow)).max() < 0.02


def test_state_is_split_as_the_rules_say() -> None:
    config = small_config()
    mesh = MeshShape(2, 2, 2).build()
    tx = skipping_non_finite(optimizer.adamw(config, 1e-3))
    with jax.set_mesh(mesh):
        state = create_state(LanguageModel(config), tx, mesh, seed=0)
    planned = abstract_state(config, tx, mesh)
    jax.tree.map(lambda made, plan: _same(made, plan), state, planned)
    kernel = state.params["layers"]["mlp"]["wi_kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 24 // 2, 40 // 2)
    moment = optax.tree_utils.tree_get(state.opt_state, "mu")["layers"]["mlp"]["wi_kernel"]
    assert moment.addressable_shards[0].data.shape == (2, 24 // 2 // 2, 40 // 2), "over the data axis besides"


def _same(made: jax.Array, plan: jax.ShapeDtypeStruct) -> None:
    assert (made.shape, made.dtype) == (plan.shape, plan.dtype)
    assert made.sharding.is_equivalent_to(plan.sharding, made.ndim)


def test_initial_state_is_the_same_on_every_mesh() -> None:
    config = small_config()
    tx = skipping_non_finite(optimizer.adamw(config, 1e-3))

    def params(mesh: MeshShape, devices: int) -> list[np.ndarray]:
        built = mesh.build(jax.devices()[:devices])
        with jax.set_mesh(built):
            return [
                np.asarray(x)
                for x in jax.tree.leaves(create_state(LanguageModel(config), tx, built, 3).params)
            ]

    for one, eight in zip(params(MeshShape(1, 1, 1), 1), params(MeshShape(2, 2, 2), 8), strict=True):
        np.testing.assert_array_equal(one, eight)


def test_microbatches_give_the_gradient_of_the_whole() -> None:
    """In float64, with tokens with loss spread unevenly over the parts."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64")
        model, params = LanguageModel(config), random_params(config)
        batch = random_batch(config, 8, 16)
        batch["decoder_loss_weights"][:3] = 0
        whole, sums = gradients(model, params, batch)
        for parts in (2, 4, 8):
            divided, divided_sums = jax.jit(gradients, static_argnums=(0, 3))(model, params, batch, parts)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), whole, divided
            )
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), sums, divided_sums)


@pytest.mark.parametrize(("mesh", "parts"), [(MeshShape(1, 1, 1), 1), (MeshShape(2, 2, 2), 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_figures_of_tasks_are_those_of_their_rows_and_change_nothing(
    mesh: MeshShape, parts: int, dtype: str
) -> None:
    config = small_config(dtype=dtype)
    model, params = LanguageModel(config), random_params(config)
    batch = random_batch(config, 8, 16)
    numbers = np.array([0, 2, 0, 2, 2, 0, 0, 0], np.int32)  # none of task 1
    built = mesh.build(jax.devices()[: mesh.data * mesh.fsdp * mesh.tensor])
    made = jax.jit(gradients, static_argnums=(0, 3, 5))
    with jax.set_mesh(built), partitioning.axis_rules():
        plain, plain_sums = made(model, params, batch, parts)
        found, sums = made(model, params, {**batch, TASK_NUMBERS: numbers}, parts, None, 3)
        jax.tree.map(np.testing.assert_array_equal, plain, found)
        jax.tree.map(np.testing.assert_array_equal, plain_sums, sums._replace(parts=None))
        for task in range(3):
            alone = {
                **batch,
                "decoder_loss_weights": batch["decoder_loss_weights"] * (numbers == task)[:, None],
            }
            expected = made(model, params, alone, parts)[1]
            assert sums.parts.weight[task] == expected.weight
            np.testing.assert_allclose(sums.parts.nll[task], expected.nll, rtol=1e-5)
            assert sums.parts.correct[task] == expected.correct


def test_a_batch_without_loss_gives_zero_gradients() -> None:
    config = small_config()
    batch = random_batch(config, 2, 8)
    batch["decoder_loss_weights"][:] = 0
    grads, _ = gradients(LanguageModel(config), random_params(config), batch)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_non_finite_gradients_skip_the_step_and_are_counted() -> None:
    config = small_config()
    model = LanguageModel(config)
    tx = skipping_non_finite(optimizer.adamw(config, 1e-2))
    mesh = MeshShape(1, 1, 1).build(jax.devices()[:1])
    step = jax.jit(train_step(model, tx))
    state = create_state(model, tx, mesh, seed=0)
    batch = random_batch(config, 2, 8)
    state, metrics = step(state, batch)
    assert metrics["skipped"] == 0
    # One parameter that is not a number makes every gradient so.
    broken = state._replace(
        params={**state.params, "final_norm": {**state.params["final_norm"], "scale": jnp.full(24, jnp.nan)}}
    )
    after, metrics = step(broken, batch)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 1)
    for before, now in zip(jax.tree.leaves(broken.params), jax.tree.leaves(after.params), strict=True):
        np.testing.assert_array_equal(before, now)
    moments = [optax.tree_utils.tree_get(s.opt_state, "nu") for s in (broken, after)]
    jax.tree.map(np.testing.assert_array_equal, *moments)
    assert int(after.step) == int(state.step) + 1
    # A good step resets the count in a row, not the total.
    healed, metrics = step(after._replace(params=state.params), batch)
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (1, 0)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(healed.params), jax.tree.leaves(state.params), strict=True)
    )


def test_gradients_whose_norm_overflows_are_not_finite() -> None:
    """Each of 3e19, their squares beyond float32: clipping would make them zeros, a step that looks good."""

    class Steep(LanguageModel):
        def token_sums(self, *arguments: Any) -> TokenSums:
            sums, params = super().token_sums(*arguments), arguments[0]
            return sums._replace(
                total=sums.total + 3e19 * sums.weight * jnp.sum(params["final_norm"]["scale"])
            )

    config = small_config()
    model, mesh = Steep(config), MeshShape(1, 1, 1).build(jax.devices()[:1])
    tx = skipping_non_finite(optimizer.adamw(config, 1e-2))
    state = create_state(model, tx, mesh, seed=0)
    after, metrics = jax.jit(train_step(model, tx))(state, random_batch(config, 2, 8))
    assert int(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)


def test_the_models_normalizer_is_the_trainers() -> None:
    config = small_config()
    params, batch = random_params(config), random_batch(config, 4, 16)
    plain, sums = gradients(LanguageModel(config), params, batch)
    fixed, _ = gradients(LanguageModel(config, loss_normalizing_factor=10.0), params, batch)
    ratio = float(sums.weight) / 10
    np.testing.assert_allclose(fixed["final_norm"]["scale"], ratio * plain["final_norm"]["scale"], rtol=1e-4)


def test_a_float64_step_has_no_float32_in_it() -> None:
    """Forward, backward, clipping, AdamW and the schedule: every number of the traced step is float64."""
    with jax.enable_x64(True):
        config = small_config(dtype="float64", param_dtype="float64", remat="dots")
        model = LanguageModel(config)
        schedule = optimizer.warmup_cosine(3e-3, total_steps=100, warmup_steps=10)
        tx = skipping_non_finite(optimizer.adamw(config, schedule))
        state = create_state(model, tx, MeshShape(1, 1, 1).build(jax.devices()[:1]), seed=0)
        traced = str(
            jax.make_jaxpr(train_step(model, tx, num_microbatches=2))(state, random_batch(config, 4, 16))
        )
        assert "f64[" in traced
        narrow = sorted(set(re.findall(r"\b(?:f32|bf16|f16)\[[^\n]*", traced)))
        assert not narrow, narrow
