"""A small model of characters that learns a generated task from its training split, as a `TextModel`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flm_jax import LanguageModel, ModelConfig
from flm_jax.evaluation.iq import ItemSet
from flm_jax.evaluation.text_model import Score
from flm_jax.generation import generate

EOS, FIRST = 1, 3  # 0 begins a document, 2 is a character that is not known
BATCH = 32


class Characters:
    """The characters of some texts as tokens."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._letters = sorted(set("".join(texts)))
        self._ids = {letter: number for number, letter in enumerate(self._letters, FIRST)}
        self.size = FIRST + len(self._letters)

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(letter, 2) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._letters[token - FIRST] if token >= FIRST else "" for token in ids)


class Learner:
    """Parameters, and what the suite asks of a model."""

    def __init__(self, texts: Sequence[str], length: int, seed: int = 0) -> None:
        self.characters = Characters(texts)
        self.length = length
        self.model = LanguageModel(
            ModelConfig(
                vocab_size=self.characters.size,
                d_model=64,
                num_layers=2,
                num_heads=4,
                head_dim=16,
                d_ff=256,
                max_length=length,
                dtype="float32",
                parametrization="standard",
            )
        )
        self.params = self.model.module.init(jax.random.key(seed), jnp.ones((1, length), jnp.int32))["params"]
        self._nll = jax.jit(self._row_nll)

    def learn(self, items: ItemSet, steps: int, peak: float) -> list[float]:
        """Steps of Adam on the answers of batches of the items, each with its eos; the losses, nats per token."""
        rows = [self._row(item.prompt, item.answer, ends=True) for item in items.items]
        optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps), b2=0.98)
        state = optimizer.init(self.params)

        @jax.jit
        def step(params, state, batch):
            (loss, _), grads = jax.value_and_grad(self.model.loss_fn, has_aux=True)(params, batch)
            updates, state = optimizer.update(grads, state)
            return optax.apply_updates(params, updates), state, loss

        losses = []
        for number in range(steps):
            at = [(number * BATCH + each) % len(rows) for each in range(BATCH)]
            self.params, state, loss = step(self.params, state, _batch([rows[each] for each in at]))
            losses.append(loss)
        return [float(loss) for loss in losses]

    def log_likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Score]:
        rows = [self._row(context, continuation, ends=False) for context, continuation in pairs]
        found: list[float] = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            padded = part + part[:1] * (BATCH - len(part))
            found += np.asarray(self._nll(self.params, _batch(padded)))[: len(part)].tolist()
        return [Score(-nll, False) for nll in found]

    def complete(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> list[str]:
        written = []
        ids = [[0, *self.characters.encode(prompt)] for prompt in prompts]
        tokens = np.zeros((len(ids), max(map(len, ids))), np.int32)
        for row, each in zip(tokens, ids, strict=True):
            row[: len(each)] = each
        for start in range(0, len(ids), 100):
            generated = generate(
                self.model.module,
                self.params,
                jnp.asarray(tokens[start : start + 100]),
                jnp.asarray([len(each) for each in ids[start : start + 100]]),
                max_new_tokens,
                jax.random.key(0),
                eos_id=EOS,
            )
            written += [self.characters.decode(row) for row in generated.tokens.tolist()]
        return [min((text.split(each)[0] for each in stop), key=len) for text in written]

    def _row(self, context: str, continuation: str, ends: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs, targets and weights `[length]`."""
        before, after = self.characters.encode(context), self.characters.encode(continuation)
        targets = [*before, *after, *([EOS] if ends else [])]
        assert len(targets) <= self.length, f"{len(targets)} characters do not fit in {self.length}"
        row = np.zeros((3, self.length), np.int32)
        row[0, 1 : len(targets)] = targets[:-1]
        row[1, : len(targets)] = targets
        row[2, len(before) : len(targets)] = 1
        return row[0], row[1], row[2]

    def _row_nll(self, params, batch):
        """Nats, summed over the tokens with weight, `[batch]`."""
        logits = self.model.logits(params, batch)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["decoder_target_tokens"])
        return jnp.sum(nll * batch["decoder_loss_weights"], axis=-1)


def _batch(rows: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, jax.Array]:
    names = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    return {
        name: jnp.asarray(np.stack(each)) for name, each in zip(names, zip(*rows, strict=True), strict=True)
    }
