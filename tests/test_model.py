"""t5x's model contract (its `models.BaseModel` and what its trainer calls), without t5x."""

import inspect
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

from flm_jax import LanguageModel, parameters
from tests.models import random_batch, random_params, random_tokens, small_config

CONFIG = small_config()
MODEL = LanguageModel(CONFIG)


def unpacked(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: batch[name] for name in batch if name not in ("decoder_segment_ids", "decoder_positions")}


def test_signatures_are_those_that_t5x_calls() -> None:
    """By position and by keyword as t5x's trainer, evaluator and inference do."""
    params, batch, rng = object(), object(), object()
    calls = {
        "loss_fn": [((params, batch, rng), {})],
        "eval_fn": [((params, batch), {})],
        "predict_batch": [((params, batch), {}), ((params, batch), {"rng": rng})],
        "predict_batch_with_aux": [((params, batch), {}), ((params, batch), {"rng": rng})],
        "score_batch": [((params, batch), {}), ((params, batch), {"return_intermediates": False})],
        "get_initial_variables": [((rng, {}, {}), {}), ((rng, {}), {"input_types": None})],
    }
    for name, forms in calls.items():
        for args, kwargs in forms:
            inspect.signature(getattr(MODEL, name)).bind(*args, **kwargs)
    assert MODEL.get_initial_variables.__self__ is MODEL  # t5x reads it off the bound method
    for attribute in ("optimizer_def", "input_vocabulary", "output_vocabulary", "module"):
        assert hasattr(MODEL, attribute)


def test_initial_variables_inside_eval_shape() -> None:
    variables = jax.eval_shape(
        lambda rng: MODEL.get_initial_variables(
            rng, {"decoder_input_tokens": (4, 16)}, {"decoder_input_tokens": jnp.int32}
        ),
        jax.random.key(0),
    )
    assert set(variables) == {"params", "params_axes"}
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables["params"]))


def test_every_parameter_has_its_axes_beside_it() -> None:
    variables = MODEL.get_initial_variables(jax.random.key(0), {"decoder_input_tokens": (1, 4)})

    def check(params: dict, axes: dict) -> None:
        assert {
            f"{name}_axes" if not isinstance(child, dict) else name for name, child in params.items()
        } == set(axes)
        for name, child in params.items():
            if isinstance(child, dict):
                check(child, axes[name])
            else:
                assert len(axes[f"{name}_axes"].names) == child.ndim

    check(variables["params"], variables["params_axes"])
    names = {
        name
        for row in jax.tree.leaves(parameters.table(CONFIG), is_leaf=parameters.is_parameter)
        for name in row.axes
    }
    assert names == {"vocab", "embed", "heads", "kv", "mlp", "layers"}  # all in t5x's standard rules


@pytest.mark.parametrize("packed", [True, False])
def test_loss_and_gradients(packed: bool) -> None:
    params, batch = random_params(CONFIG), random_batch(CONFIG, 4, 16)
    batch = batch if packed else unpacked(batch)
    (loss, metrics), grads = jax.value_and_grad(MODEL.loss_fn, has_aux=True)(params, batch, jax.random.key(0))
    assert loss.shape == () and loss.dtype == jnp.float32
    assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, params)
    assert all(float(jnp.abs(leaf).max()) > 0 for name, leaf in _named(grads) if "key_bias" not in name)
    assert all(isinstance(metric, clu_metrics.Metric) for metric in metrics.values())
    merged = jax.tree.map(
        lambda metric: metric.merge(metric), metrics, is_leaf=lambda m: isinstance(m, clu_metrics.Metric)
    )
    assert float(merged["loss"].compute()) == pytest.approx(float(metrics["loss"].compute()))
    evaluated, _ = MODEL.eval_fn(params, batch)
    assert float(evaluated) == pytest.approx(float(loss))


def test_loss_is_the_mean_over_tokens_with_loss_plus_z_loss() -> None:
    params, batch = random_params(CONFIG), random_batch(CONFIG, 3, 16)
    logits = np.asarray(MODEL.logits(params, batch), np.float64)
    weights = batch["decoder_loss_weights"]
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, batch["decoder_target_tokens"][..., None], -1)[..., 0]
    expected = ((nll + 1e-4 * log_z**2) * weights).sum() / weights.sum()
    assert float(MODEL.loss_fn(params, batch)[0]) == pytest.approx(expected, rel=1e-5)
    normalized = LanguageModel(CONFIG, loss_normalizing_factor=10.0)
    assert float(normalized.loss_fn(params, batch)[0]) == pytest.approx(
        expected * weights.sum() / 10, rel=1e-5
    )


def test_scores_are_sequence_log_likelihoods() -> None:
    params, batch = random_params(CONFIG), random_batch(CONFIG, 3, 16)
    scores = MODEL.score_batch(params, batch)
    sums = MODEL.token_sums(params, batch)
    assert scores.shape == (3,)
    assert float(scores.sum()) == pytest.approx(-float(sums.nll), rel=1e-5)
    with pytest.raises(ValueError, match="no intermediates"):
        MODEL.score_batch(params, batch, return_intermediates=True)


def test_predictions_continue_the_inputs() -> None:
    """A row (0, 5, 6 | 7, 8) with its inputs marked continues as the prompt (0, 5, 6) does."""
    params = random_params(CONFIG)
    inputs = random_tokens(CONFIG, 2, 8)
    prefix = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]], np.int32)
    tokens, aux = MODEL.predict_batch_with_aux(
        params, {"decoder_input_tokens": inputs, "decoder_causal_attention": prefix}, rng=jax.random.key(0)
    )
    assert tokens.shape == (2, 8) and aux["scores"].shape == (2,)
    logits = MODEL.module.apply({"params": params}, inputs[:1, :3])
    assert int(tokens[0, 0]) == int(jnp.argmax(logits[0, -1]))
    alone = MODEL.predict_batch(params, {"decoder_input_tokens": inputs[1:]})
    np.testing.assert_array_equal(tokens[1:], alone)


def test_the_module_takes_the_calls_of_t5xs_decoder_only_model() -> None:
    params, tokens = random_params(CONFIG), random_tokens(CONFIG, 2, 8)
    training = MODEL.module.apply(
        {"params": params}, tokens, tokens, decoder_segment_ids=None, decoder_positions=None,
        decoder_causal_attention=None, rngs={"dropout": jax.random.key(0)}, decode=False, enable_dropout=True,
        mutable=False,
    )  # fmt: skip
    cache = MODEL.module.init(
        jax.random.key(0), jnp.ones((2, 8), jnp.int32), jnp.ones((2, 8), jnp.int32), decode=True
    )
    _, state = MODEL.module.apply(
        {"params": params, "cache": cache["cache"]}, tokens, np.ones((2, 8), np.int32), mutable=["cache"],
        enable_dropout=False, prefill=True, prefill_lengths=np.array([3, 3]),
    )  # fmt: skip
    step, _ = MODEL.module.apply(
        {"params": params, **state}, tokens[:, 3:4], tokens[:, 3:4], enable_dropout=False, decode=True,
        max_decode_length=8, mutable=["cache"],
    )  # fmt: skip
    np.testing.assert_allclose(step[:, 0], training[:, 3], atol=1e-4)


def test_a_vocabulary_without_rows_is_refused() -> None:
    class Seqios:
        vocab_size = CONFIG.vocab_size + 1

    with pytest.raises(ValueError, match=rf"no rows for all {CONFIG.vocab_size + 1} pieces"):
        LanguageModel(CONFIG, Seqios())


@pytest.mark.slow
def test_feature_converter_is_seqios() -> None:
    """Called as t5x calls it; in a process of its own, because it imports TensorFlow."""
    code = (
        "from flm_jax import LanguageModel, presets; import seqio;"
        "c = LanguageModel(presets.flm_tiny()).FEATURE_CONVERTER_CLS(pack=True, use_custom_packing_ops=False);"
        "assert isinstance(c, seqio.FeatureConverter);"
        "print(sorted(c.get_model_feature_lengths({'inputs': 4, 'targets': 8})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "decoder_loss_weights" in done.stdout and "decoder_segment_ids" in done.stdout


def _named(tree: dict) -> list[tuple[str, jax.Array]]:
    return [
        (jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
