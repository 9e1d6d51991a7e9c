"""The language model: loss, scores and generation around a `Decoder`, with the methods that t5x calls.

t5x's model contract is met without importing t5x: bound to its macro `MODEL`, a `LanguageModel` trains,
evaluates and infers there, and the same object trains under our own trainer.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics

from flm_jax.config import ModelConfig
from flm_jax.generation import Sampling, generate
from flm_jax.layers.chunked_loss import Settings, chunked_loss
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.network import Decoder, readout_table

Batch = Mapping[str, jax.Array]

# The features of a packed batch, each int32 `[batch, length]`, by seqio's names.
PACKED_FEATURES = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",  # 1 where the target counts
    "decoder_segment_ids",  # from 1 in each row, 0 for padding
    "decoder_positions",  # from 0 in each segment
)


# Beside them where figures of each task are wanted: the task of each row, int32 `[batch]`.
TASK_NUMBERS = "task_numbers"


class PartSums(NamedTuple):
    """`TokenSums` in parts: of each row, `[batch]`, or of each task, `[tasks]`."""

    nll: jax.Array
    correct: jax.Array
    weight: jax.Array


class TokenSums(NamedTuple):
    """Sums over the tokens of a batch that carry loss; sums, so that batches and microbatches add up exactly.

    From `LanguageModel.token_sums`, `total` alone has a gradient.
    """

    total: jax.Array  # nll + z_loss
    nll: jax.Array  # negative log-likelihood, nats
    z_loss: jax.Array  # squared log of the softmax's normaliser, times the coefficient
    correct: jax.Array  # tokens whose target has the highest logit
    weight: jax.Array  # tokens
    parts: PartSums | None = None  # of each row, where the batch says which task each is of


class LanguageModel:
    """A decoder with its loss.

    Batches have the features of seqio's `DecoderFeatureConverter` (`PACKED_FEATURES`; unpacked, the last two are
    missing).

    Args:
        config: The model's sizes.
        vocabulary: Of the data, seqio's; `t5x.infer` compares it with the task's. Our trainer needs none.
        optimizer_def: Under t5x its `OptimizerDef`; our trainer takes the optimizer by itself.
        z_loss: Coefficient of the squared log normaliser (PaLM, section 5).
        loss_normalizing_factor: What the summed loss is divided by; None is the number of tokens with loss, of the
            whole batch under our trainer. t5x adds up the gradients of microbatches: there a factor is needed as
            soon as `num_microbatches` is not 1.
        loss_chunk: Tokens of a device whose logits exist at a time, in training and evaluation under our trainer.
        sampling: How `predict_batch` draws.

    Raises:
        ValueError: the vocabulary has more pieces than the model has rows, or there are no tokens in a chunk.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Any = None,
        optimizer_def: Any = None,
        z_loss: float = 1e-4,
        loss_normalizing_factor: float | None = None,
        loss_chunk: int = 2048,
        sampling: Sampling = Sampling(),
    ) -> None:
        pieces = getattr(vocabulary, "vocab_size", 0)  # seqio's name
        if pieces > config.vocab_size:
            raise ValueError(
                f"ModelConfig.vocab_size = {config.vocab_size} has no rows for all {pieces} pieces of the tokenizer; "
                f"bind ModelConfig.vocab_size to {pieces} or more, or LanguageModel.vocabulary to another"
            )
        if not isinstance(loss_chunk, int) or isinstance(loss_chunk, bool) or loss_chunk < 1:
            raise ValueError(
                f"LanguageModel.loss_chunk must be a whole number of at least 1, found {loss_chunk!r}"
            )
        self.config = config
        self.module = Decoder(config)
        self.input_vocabulary = vocabulary
        self.output_vocabulary = vocabulary
        self.optimizer_def = optimizer_def
        self.sampling = sampling
        self._z_loss = z_loss
        self._loss_normalizing_factor = loss_normalizing_factor
        self._loss_chunk = loss_chunk

    @property
    def FEATURE_CONVERTER_CLS(self) -> Any:
        """From seqio's examples to batches, packed ones as they are; imports seqio, and so TensorFlow."""
        from flm_jax.tasks.feature_converter import FeatureConverter

        return FeatureConverter

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, tuple[int, ...]],
        input_types: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fresh `{"params": …, "params_axes": …}`; `input_shapes["decoder_input_tokens"]` is `[batch, length]`."""
        del input_types
        return self.module.init(rng, jnp.ones(input_shapes["decoder_input_tokens"], jnp.int32))

    def with_config(self, config: ModelConfig) -> "LanguageModel":
        """The same loss and sampling around a decoder of other sizes."""
        other = copy.copy(self)
        other.config, other.module = config, Decoder(config)
        return other

    def logits(self, params: Any, batch: Batch, growth: GrowthMask | None = None) -> jax.Array:
        """Next-token logits `[batch, length, vocab]` of a batch, documents kept apart."""
        return self._decode(params, batch, growth)

    def hidden(
        self, params: Any, batch: Batch, growth: GrowthMask | None = None, num_microbatches: int = 1
    ) -> jax.Array:
        """What the readout reads, `[batch, length, d_model]`."""
        return self._decode(params, batch, growth, num_microbatches, return_hidden=True)

    def _decode(
        self,
        params: Any,
        batch: Batch,
        growth: GrowthMask | None,
        num_microbatches: int = 1,
        return_hidden: bool = False,
    ) -> jax.Array:
        return self.module.apply(
            {"params": params},
            batch["decoder_input_tokens"],
            decoder_segment_ids=batch.get("decoder_segment_ids"),
            decoder_positions=batch.get("decoder_positions"),
            growth=growth,
            num_microbatches=num_microbatches,
            return_hidden=return_hidden,
        )

    def token_sums(
        self, params: Any, batch: Batch, growth: GrowthMask | None = None, num_microbatches: int = 1
    ) -> TokenSums:
        """Loss and accuracy, summed over the tokens of `batch` whose `decoder_loss_weights` are not 0.

        Args:
            params: Of the model.
            batch: Packed or not; with `TASK_NUMBERS` the sums of each row are wanted too.
            growth: Hides what a growth has added while its mask ramps.
            num_microbatches: Into which pipeline stages divide the batch.
        """
        hidden = self.hidden(params, batch, growth, num_microbatches)
        return self.token_sums_of(hidden, params, batch)

    def token_sums_of(self, hidden: jax.Array, params: Any, batch: Batch) -> TokenSums:
        """`token_sums` from what `hidden` has made of the batch, `[batch, length, d_model]`."""
        settings = Settings(self.config.logit_scale, self._z_loss, self._loss_chunk, TASK_NUMBERS in batch)
        weights = batch["decoder_loss_weights"]
        sums, each = chunked_loss(
            settings, hidden, readout_table(params, self.config), batch["decoder_target_tokens"], weights
        )
        parts = None
        if each is not None:
            weights = weights.astype(sums.weight.dtype)
            nll, correct = (jnp.sum(values * weights, axis=-1) for values in each)
            parts = PartSums(nll, correct, jnp.sum(weights, axis=-1))
        return TokenSums(**sums._asdict(), parts=parts)

    def sums_of(self, logits: jax.Array, batch: Batch) -> TokenSums:
        """`token_sums` from the logits `[batch, length, vocab]`, all of which have gradients."""
        weights = batch["decoder_loss_weights"].astype(logits.dtype)
        target_logit, log_normalizer = _target_logit(logits, batch["decoder_target_tokens"])
        # The softmax has taken the maximum already; an argmax beside it would cost a tenth of a small model's step.
        hits = target_logit == jnp.max(logits, axis=-1)
        nll = jnp.sum((log_normalizer - target_logit) * weights)
        z_loss = self._z_loss * jnp.sum(jnp.square(log_normalizer) * weights)
        return TokenSums(nll + z_loss, nll, z_loss, jnp.sum(hits * weights), jnp.sum(weights))

    def normalizer(self, weight: jax.Array) -> jax.Array:
        """What the summed loss of `weight` tokens is divided by."""
        if self._loss_normalizing_factor is None:
            return jnp.maximum(weight, 1)
        return jnp.asarray(self._loss_normalizing_factor, weight.dtype)

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Loss to differentiate (nats per token and z-loss) and metrics, as t5x's trainer wants them."""
        del dropout_rng
        # In one piece: t5x's partitioner would gather every chunk of a batch that is split over devices.
        sums = self.sums_of(self.logits(params, batch), batch)
        tokens = jnp.asarray(batch["decoder_target_tokens"].size, sums.weight.dtype)
        metrics = {
            "loss": clu_metrics.Average(total=sums.nll, count=sums.weight),
            "z_loss": clu_metrics.Average(total=sums.z_loss, count=sums.weight),
            "accuracy": clu_metrics.Average(total=sums.correct, count=sums.weight),
            "non_padding_fraction/loss_weights": clu_metrics.Average(total=sums.weight, count=tokens),
        }
        return sums.total / self.normalizer(sums.weight), metrics

    def eval_fn(self, params: Any, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """`loss_fn`; the model has no dropout to switch off."""
        return self.loss_fn(params, batch)

    def score_batch(self, params: Any, batch: Batch, return_intermediates: bool = False) -> Any:
        """Log-likelihood of each row's targets, `[batch]` nats.

        Raises:
            ValueError: intermediates are asked for; the decoder sows none.
        """
        if return_intermediates:
            raise ValueError(
                "LanguageModel.score_batch has no intermediates: pass return_intermediates=False"
            )
        logits = self.logits(params, batch)
        target_logit, log_normalizer = _target_logit(logits, batch["decoder_target_tokens"])
        return jnp.sum(
            (target_logit - log_normalizer) * batch["decoder_loss_weights"].astype(logits.dtype), axis=-1
        )

    def predict_batch_with_aux(
        self, params: Any, batch: Batch, rng: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Continues each row's prompt: the positions where `decoder_causal_attention` is 1, else the leading 0 alone.

        Returns:
            New tokens `[batch, length]`, 0 behind the end, and `{"scores": [batch]}`, their log-probability.
        """
        inputs = batch["decoder_input_tokens"]
        prefix = batch.get("decoder_causal_attention")
        lengths = jnp.ones(inputs.shape[0], jnp.int32) if prefix is None else jnp.sum(prefix, axis=1)
        generated = generate(
            self.module,
            params,
            inputs,
            jnp.maximum(lengths, 1),
            max_new_tokens=inputs.shape[1],
            rng=jax.random.key(0) if rng is None else rng,
            sampling=self.sampling,
        )
        return generated.tokens, {"scores": generated.scores}

    def predict_batch(self, params: Any, batch: Batch, rng: jax.Array | None = None) -> jax.Array:
        """The tokens of `predict_batch_with_aux`."""
        return self.predict_batch_with_aux(params, batch, rng=rng)[0]


def _target_logit(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logit of `targets` and log of the softmax's normaliser, each `[batch, length]`; their difference is log p."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen, jax.nn.logsumexp(logits, axis=-1)
