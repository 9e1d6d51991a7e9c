"""Our model under t5x's own code: initialisation, training, evaluation, inference, and its `DecoderOnlyModel`."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from flax.core import unfreeze
from jax.sharding import PartitionSpec

from flm_jax import LanguageModel, ModelConfig, parameters, presets
from flm_jax.optimizer import adamw
from flm_jax.training import step as training_step
from tests.models import LLAMA as LLAMA_BLOCK
from tests.models import random_batch, small_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

ADDITIONAL_RULES = [("looked_up", "model"), ("queries", None)]
FLM = small_config()
LLAMA = small_config(**LLAMA_BLOCK)
ROWS, LENGTH = 8, 16


class Vocabulary:
    """As much of one as `DecoderOnlyModel` asks for."""

    eos_id = 1


@pytest.fixture(scope="module")
def partitioner(t5x: Any) -> Any:
    """4 x 2 devices, parameters split over both axes."""
    from t5x import partitioning

    rules = partitioning.standard_logical_axis_rules(
        parameter_partitioning_dims=2, additional_rules=ADDITIONAL_RULES
    )
    return partitioning.PjitPartitioner(model_parallel_submesh=(1, 2), logical_axis_rules=rules)


def optimizer_of(config: ModelConfig) -> optax.GradientTransformation:
    """With an eps that keeps rounding in a gradient of nearly nothing from deciding the direction of an update."""
    return adamw(config, 1e-3, eps=1e-3)


def made(config: ModelConfig, optimizer: optax.GradientTransformation | None = None) -> LanguageModel:
    from flm_jax.t5x.wrapped_optimizer import optimizer_def

    return LanguageModel(
        config, Vocabulary(), optimizer_def=optimizer_def(optimizer or optimizer_of(config)), z_loss=1e-4
    )


def initializer(model: LanguageModel, partitioner: Any) -> Any:
    from t5x import utils

    names = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    return utils.TrainStateInitializer(
        optimizer_def=model.optimizer_def,
        init_fn=model.get_initial_variables,
        input_shapes=dict.fromkeys(names, (ROWS, LENGTH)),
        input_types=dict.fromkeys(names, np.int32),
        partitioner=partitioner,
    )


def trainer(model: LanguageModel, partitioner: Any, num_microbatches: int | None = None) -> Any:
    """t5x's, with a fresh state."""
    from t5x import trainer as t5x_trainer

    start = initializer(model, partitioner)
    return t5x_trainer.Trainer(
        model=model,
        train_state=start.from_scratch(jax.random.PRNGKey(0)),
        partitioner=partitioner,
        eval_names=["task"],
        summary_dir=None,
        train_state_axes=start.train_state_axes,
        rng=np.ones(2, np.uint32),
        learning_rate_fn=lambda step: 1e-3,
        num_microbatches=num_microbatches,
    )


def batch_of(config: ModelConfig, packed: bool) -> dict[str, np.ndarray]:
    batch = random_batch(config, ROWS, LENGTH)
    if packed:
        return batch
    return {
        name: rows for name, rows in batch.items() if name not in ("decoder_segment_ids", "decoder_positions")
    }


@pytest.mark.parametrize("config", [FLM, LLAMA], ids=["flm", "llama"])
def test_every_array_of_the_state_is_partitioned(partitioner: Any, config: ModelConfig) -> None:
    """By its axes' names; a moment as its parameter; counters, ages and what has no rule on every device."""
    start = initializer(made(config), partitioner)
    axes = start.train_state_axes.state_dict()
    assert jax.tree.structure(start.global_train_state_shape.state_dict()) == jax.tree.structure(
        axes, is_leaf=lambda leaf: leaf is None or isinstance(leaf, PartitionSpec)
    )
    target = traverse_util.flatten_dict(axes["target"])
    mesh_axes = {"vocab": "model", "embed": "data", "heads": "model", "mlp": "model"}
    for path, spec in target.items():
        row: Any = parameters.table(config)
        for name in path:
            row = row[name]
        assert tuple(spec) == tuple(mesh_axes.get(axis) for axis in row.axes), path
    state = axes["state"]["param_states"]["inner_state"]["1"]
    assert traverse_util.flatten_dict(state["mu"]) == traverse_util.flatten_dict(state["nu"]) == target
    assert set(state["births"].values()) == {None}


@pytest.mark.parametrize("preset", ["flm_16b", "flm_51b", "flm_101b"])
def test_the_large_presets_are_partitioned(partitioner: Any, preset: str) -> None:
    """Shapes alone: names complete, and every dimension divided by its mesh axis."""
    model = made(getattr(presets, preset)())
    start = initializer(model, partitioner)
    shapes = traverse_util.flatten_dict(start.global_train_state_shape.state_dict()["target"])
    for path, spec in traverse_util.flatten_dict(start.train_state_axes.state_dict()["target"]).items():
        for size, axis in zip(shapes[path].shape, spec, strict=True):
            assert not axis or size % partitioner.mesh.shape[axis] == 0
    assert sum(shape.size for shape in shapes.values()) == model.config.num_params


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("config", [FLM, LLAMA], ids=["flm", "llama"])
def test_a_step_of_t5xs_trainer_is_ours(partitioner: Any, config: ModelConfig, packed: bool) -> None:
    """Loss, and the parameters after two updates, on 8 devices and on one."""
    model, optimizer = made(config), optimizer_of(config)
    under_t5x = trainer(model, partitioner)
    params = jax.device_get(unfreeze(under_t5x.train_state.params))
    skipping = training_step.skipping_non_finite(optimizer)
    opt_state = skipping.init(params)
    batch = batch_of(config, packed)
    under_t5x.compile_train({name: np.asarray(rows) for name, rows in batch.items()})
    gradients = jax.jit(functools.partial(training_step.gradients, model))
    for _ in range(2):
        metrics = under_t5x.train(iter([batch]), 1).result()
        grads, sums = gradients(params, batch)
        updates, opt_state = skipping.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        assert float(metrics["loss"].value) == pytest.approx(float(sums.nll / sums.weight), rel=1e-5)
    found = jax.device_get(unfreeze(under_t5x.train_state.params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), found, params)
    evaluated = under_t5x.eval({"task": iter([batch])})["task"]
    sums = jax.jit(model.token_sums)(params, batch)
    assert float(evaluated["loss"].value) == pytest.approx(float(sums.nll / sums.weight), rel=1e-4)


def test_microbatches_want_a_normalizing_factor(partitioner: Any) -> None:
    """t5x adds up their gradients: means would be too large as many times, a sum over a factor is the same."""
    from t5x import trainer as t5x_trainer

    batch = batch_of(FLM, packed=True)
    factor = float(batch["decoder_loss_weights"].sum())

    def norm(factor: float | None, num_microbatches: int | None) -> float:
        model = LanguageModel(FLM, Vocabulary(), made(FLM).optimizer_def, loss_normalizing_factor=factor)
        state = initializer(model, partitioner).from_scratch(jax.random.PRNGKey(0))
        with partitioner.mesh:
            grads, *_ = t5x_trainer.accumulate_grads_microbatched(
                model, state, batch, jax.random.PRNGKey(0), num_microbatches
            )
        return float(optax.global_norm(grads))

    whole = norm(None, None)
    assert norm(factor, None) == pytest.approx(whole, rel=1e-5)
    assert norm(factor, 4) == pytest.approx(whole, rel=1e-5)
    assert norm(None, 4) == pytest.approx(4 * whole, rel=0.3)


def test_inference_through_t5x(partitioner: Any) -> None:
    """`predict_batch`, `predict_batch_with_aux` and `score_batch`, as `t5x.eval` and `t5x.infer` call them."""
    import tensorflow as tf
    from t5x import utils

    model = made(FLM)
    start = initializer(model, partitioner)
    state = start.from_scratch(jax.random.PRNGKey(0))
    batch = batch_of(FLM, packed=False)
    batch["decoder_causal_attention"] = np.tile(np.arange(LENGTH) < 5, (ROWS, 1)).astype(np.int32)
    dataset = tf.data.Dataset.from_tensor_slices(batch).enumerate()
    found = {}
    for name in ("predict_batch", "predict_batch_with_aux", "score_batch"):
        infer = utils.get_infer_fn(getattr(model, name), ROWS, start.train_state_axes, partitioner)
        keywords = {} if name == "score_batch" else {"rng": jax.random.PRNGKey(0)}
        found[name] = infer(dataset, train_state=state, **keywords)
    params = jax.device_get(unfreeze(state.params))
    tokens = np.asarray(model.predict_batch(params, batch))
    assert [row for _, row in found["predict_batch"]] == tokens.tolist()
    answers, aux = found["predict_batch_with_aux"]
    assert [row for _, row in answers] == tokens.tolist() and len(aux["scores"]) == ROWS
    scores = np.array([score for _, score in found["score_batch"]])
    np.testing.assert_allclose(scores, model.score_batch(params, batch), rtol=1e-5)


def test_the_decoder_under_t5xs_decoder_only_model(partitioner: Any) -> None:
    """The module alone is a decoder of t5x's too: loss, scores, and greedy answers as ours."""
    from t5x import decoding, models

    ours = made(FLM)
    decode = functools.partial(decoding.temperature_sample, temperature=0.0, topk=1)
    theirs = models.DecoderOnlyModel(
        ours.module, Vocabulary(), ours.optimizer_def, decode_fn=decode, z_loss=1e-4
    )
    state = initializer(theirs, partitioner).from_scratch(jax.random.PRNGKey(0))
    params = jax.device_get(unfreeze(state.params))
    for packed in (True, False):
        batch = batch_of(FLM, packed)
        loss, _ = theirs.loss_fn(params, batch, jax.random.PRNGKey(0))
        assert float(loss) == pytest.approx(
            float(ours.loss_fn(params, batch)[0] * batch["decoder_loss_weights"].sum()), rel=1e-5
        )
        np.testing.assert_allclose(
            theirs.score_batch(params, batch), ours.score_batch(params, batch), rtol=1e-5
        )
    batch["decoder_causal_attention"] = np.tile(np.arange(LENGTH) < 5, (ROWS, 1)).astype(np.int32)
    found = np.asarray(
        theirs.predict_batch(params, {name: jnp.asarray(rows) for name, rows in batch.items()})
    )
    expected = np.asarray(ours.predict_batch(params, batch))
    # t5x's answers end where the sequence does.
    np.testing.assert_array_equal(found[:, : LENGTH - 5], expected[:, : LENGTH - 5])


def test_constraints_reach_the_compiled_step(partitioner: Any) -> None:
    """Activations are laid out under t5x's mesh; a constraint without effect would leave no trace."""
    model = made(FLM)
    start = initializer(model, partitioner)
    step = partitioner.partition(
        lambda state, batch: model.loss_fn(state.params, batch)[0],
        in_axis_resources=(start.train_state_axes, partitioner.data_partition_spec),
        out_axis_resources=None,
    )
    shapes = {
        name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in batch_of(FLM, True).items()
    }
    lowered = step.lower(start.global_train_state_shape, shapes).as_text()
    asked = re.findall(r"sharding_constraint .*?<@\w+, (\[.*?\])>", lowered)
    assert '[{}, {"model"}]' in asked  # the token table, while rows are looked up in it
    assert '[{"data"}, {}, {"model"}]' in asked  # what is looked up, and the logits
    assert '[{"data"}, {}, {}]' in asked  # the residual stream
