"""From scores to text: sampling, decoding with a key-value cache, a writer of whole and of streamed texts."""

from flm_jax.generation.decoding import Generated, empty_cache, generate
from flm_jax.generation.sampling import Sampling, candidates, choose, penalised
from flm_jax.generation.writer import Writer

__all__ = [
    "Generated",
    "Sampling",
    "Writer",
    "candidates",
    "choose",
    "empty_cache",
    "generate",
    "penalised",
]
