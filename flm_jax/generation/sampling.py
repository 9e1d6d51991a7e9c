"""How the next token is taken: the likeliest, or drawn from what is left of the distribution."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. The fields act on the logits in this order: penalty, temperature, limits.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token, and the limits then change nothing.
        top_k: Draw among the k likeliest tokens only, and those as likely as the k-th; 0 for no limit.
        top_p: Draw among the likeliest tokens that together hold this probability (nucleus sampling, Holtzman et al.
            2020).
        min_p: Draw among tokens that are at least so likely as this share of the likeliest (Nguyen et al. 2024); 0 for
            no limit.
        repetition_penalty: What `penalised` makes the tokens of the prompt and of the text so far less likely by; 1
            for none.

    Raises:
        ValueError: a value is out of range; the message names the field, whose flag has the same name.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, accepted, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "a number of at least 0"),
            ("top_k", self.top_k >= 0 and self.top_k == int(self.top_k), "a whole number of at least 0"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
        ):
            if not accepted:
                raise ValueError(
                    f"expected Sampling.{name} (--{name}) to be {expected}, found {getattr(self, name)!r}"
                )


def penalised(logits: jax.Array, seen: jax.Array, penalty: float) -> jax.Array:
    """Logits `[B, V]` with those of `seen` `[B, V]` divided by the penalty if positive, multiplied by it if negative.

    The repetition penalty of CTRL (Keskar et al. 2019, arXiv 1909.05858, section 4.1). With a penalty of 2 the logits
    (3, -1, 5), of which the first two were seen, become (1.5, -2, 5).
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def candidates(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """Logits over the temperature, minus infinity outside top-k, top-p and min-p; `[B, V]`.

    Logits (0, 1, 2) with top_k=2 become (-inf, 1, 2). With top_p the smallest set of likeliest tokens is kept
    whose probability reaches top_p: probabilities (0.5, 0.3, 0.2) and top_p=0.6 keep the first two, min_p=0.5 as well.
    """
    logits = logits / sampling.temperature
    if sampling.top_k:
        kth = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = jnp.sort(logits, axis=-1, descending=True)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.min_p > 0:
        least = jnp.max(logits, axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def choose(logits: jax.Array, sampling: Sampling, keys: jax.Array) -> jax.Array:
    """The next token of each row of `logits` `[B, V]`, drawn with the row's own key of `keys` `[B]`: `[B]`."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, candidates(logits, sampling)).astype(jnp.int32)
