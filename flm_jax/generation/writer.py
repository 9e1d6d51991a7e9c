"""A checkpoint as a writer: whole texts in batches, or one text as it is written."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from flm_jax import partitioning
from flm_jax.config import ModelConfig
from flm_jax.generation.decoding import advance, begin
from flm_jax.generation.sampling import Sampling
from flm_jax.generation.text_stream import TextStream
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.network import Decoder
from flm_jax.tasks.tokenizers.reserved import EOS_ID, PAD_ID

if TYPE_CHECKING:
    from flm_jax.tasks.vocabulary import Vocabulary

# Tokens that are written between two looks at what they say.
_CHUNK = 16
_SHORTEST = 16

_begin = jax.jit(begin, static_argnames=("decoder", "cache_length", "remembers"))
_advance = jax.jit(
    advance, static_argnames=("decoder", "num_tokens", "sampling", "eos_id"), donate_argnames="state"
)


@jax.jit
def _keys(seed: int, places: jax.Array) -> jax.Array:
    """Of the draws of each prompt `[B]`, by its place among all."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), places)


class _Row(NamedTuple):
    """A prompt."""

    place: int  # among those given
    tokens: Sequence[int]  # the leading 0 counted


class _Order(NamedTuple):
    """How texts are to be written."""

    max_new_tokens: int
    stop: Sequence[str]
    sampling: Sampling
    seed: int
    config: ModelConfig


class Writer:
    """Continues prompts, each a text or token ids without the leading 0; an empty prompt begins a document.

    A text ends at the end-of-sequence token, before the first stop string (`TextStream` says which is first), or after
    `max_new_tokens`. Only tokens that stand for text are ever written: no padding, and none of the table's rows beyond
    the vocabulary. A prompt and its text may be longer than the config's `max_length`, as far as xPos' range goes.

    What is written behind a prompt does not depend on what else is in the batch (but for rounding, which other shapes
    of arrays change): drawn tokens depend on the seed and the prompt's place among the prompts.

    Args:
        config: The model's sizes.
        params: Its parameters.
        vocabulary: That it was trained with.
        growth: The mask of a model that was saved while it ramped.
        mesh: Over which the parameters are split; None: they are on one device.

    Raises:
        ValueError: the vocabulary has more pieces than the model has rows.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        vocabulary: "Vocabulary",
        growth: GrowthMask | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        if vocabulary.size > config.vocab_size:
            raise ValueError(
                f"expected a tokenizer of at most ModelConfig.vocab_size = {config.vocab_size} pieces, found "
                f"{vocabulary.size}"
            )
        self._config, self._params, self._growth, self._mesh = config, params, growth, mesh
        self._vocabulary = vocabulary
        drawable = np.zeros(config.vocab_size, bool)
        drawable[: vocabulary.size] = vocabulary.piece_bytes > 0
        drawable[EOS_ID] = True
        self._drawable = drawable

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """What the model reads: token 0, then the prompt's."""
        return [PAD_ID, *(self._vocabulary.encode(prompt) if isinstance(prompt, str) else prompt)]

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),
        seed: int = 0,
        batch_size: int = 8,
    ) -> list[str]:
        """What the model writes behind each prompt; see `completions`."""
        found = dict(self.completions(prompts, max_new_tokens, stop, sampling, seed, batch_size))
        return [found[index] for index in range(len(prompts))]

    def completions(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),
        seed: int = 0,
        batch_size: int = 8,
    ) -> Iterator[tuple[int, str]]:
        """Each prompt's place among the prompts and what the model writes behind it, a batch at a time.

        Prompts of about one length are a batch, the longest come first. Lengths are rounded up, so that the number of
        programs to compile grows as the logarithm of the longest.

        Args:
            prompts: Texts or token ids.
            max_new_tokens: Of each.
            stop: Strings to stop before.
            sampling: How to draw.
            seed: Of the draws.
            batch_size: Prompts at a time.

        Raises:
            ValueError: a stop string is empty, a number is below 1, the seed has more than 32 bits, or a text could be
                longer than xPos allows.
        """
        if batch_size < 1:
            raise ValueError(f"expected a batch_size of at least 1, found {batch_size}")
        rows = [_Row(place, self.encode(prompt)) for place, prompt in enumerate(prompts)]
        order = self._order(rows, max_new_tokens, stop, sampling, seed)
        for batch in _batches(rows, batch_size):
            parts = list(self._write(batch, order, batch_size, _CHUNK))
            yield from zip((row.place for row in batch), map("".join, zip(*parts, strict=True)), strict=True)

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling = Sampling(),
        seed: int = 0,
    ) -> Iterator[str]:
        """The parts of `complete([prompt], ...)[0]`, each as soon as it is certain: whole characters, none empty."""
        rows = [_Row(0, self.encode(prompt))]
        order = self._order(rows, max_new_tokens, stop, sampling, seed)
        return (text for (text,) in self._write(rows, order, batch_size=1, chunk=1) if text)

    def _order(
        self, rows: Sequence[_Row], max_new_tokens: int, stop: Sequence[str], sampling: Sampling, seed: int
    ) -> _Order:
        if max_new_tokens < 1:
            raise ValueError(f"expected max_new_tokens of at least 1, found {max_new_tokens}")
        if not -(2**31) <= seed < 2**31:
            raise ValueError(f"expected a seed (--seed) of 32 bits, at most {2**31 - 1:,}, found {seed:,}")
        TextStream(stop)  # which refuses what is no stop string, before anything is written
        longest = max((len(row.tokens) for row in rows), default=0) + max_new_tokens
        return _Order(max_new_tokens, stop, sampling, seed, self._config.for_length(longest))

    def _write(
        self, batch: Sequence[_Row], order: _Order, batch_size: int, chunk: int
    ) -> Iterator[list[str]]:
        """What has come to the text of each row, `chunk` tokens at a time; the parts of a row make up its text."""
        texts = [TextStream(order.stop) for _ in batch]
        prompts, lengths = _padded(batch, self._num_rows(len(batch), batch_size))
        ended = np.arange(len(lengths)) >= len(batch)
        places = np.zeros(len(lengths), np.int32)
        places[: len(batch)] = [row.place for row in batch]
        decoder = Decoder(order.config)
        with self._placement():
            keys = _keys(order.seed, places)
            state = _begin(
                decoder, self._params, prompts, lengths, ended, self._growth,
                cache_length=_rounded_up(prompts.shape[1] + order.max_new_tokens),
                remembers=order.sampling.repetition_penalty != 1,
            )  # fmt: skip
        for written in range(0, order.max_new_tokens, chunk):
            limit = min(chunk, order.max_new_tokens - written)
            with self._placement():
                state, new = _advance(
                    decoder, self._params, state._replace(ended=ended.copy()), keys, np.int32(limit),
                    self._drawable, self._growth, num_tokens=_CHUNK, sampling=order.sampling,
                )  # fmt: skip
            tokens = np.asarray(new.tokens)[: len(batch), :limit].tolist()
            yield [self._read(ended, row, tokens[row], text) for row, text in enumerate(texts)]
            if ended.all():
                break
        yield [text.end() for text in texts]

    def _read(self, ended: np.ndarray, row: int, tokens: Sequence[int], text: TextStream) -> str:
        """What new tokens add to a row's text; marks the row where that ends."""
        parts = []
        for token in tokens:
            if ended[row]:
                break
            parts.append(text.add(self._vocabulary.pieces[token]))
            ended[row] = token == EOS_ID or text.stopped
        return "".join(parts)

    def _num_rows(self, needed: int, batch_size: int) -> int:
        """Rows of a batch: a power of two or `batch_size`, and what the mesh can split."""
        rows = min(batch_size, 1 << (needed - 1).bit_length())
        if self._mesh is None:
            return rows
        parts = partitioning.num_parts(self._mesh, partitioning.mesh_spec("batch")[0])
        return -(-rows // parts) * parts

    @contextlib.contextmanager
    def _placement(self) -> Iterator[None]:
        """Context in which programs are split over the mesh, where there is one."""
        if self._mesh is None:
            yield
            return
        with jax.set_mesh(self._mesh), partitioning.axis_rules():
            yield


def _batches(rows: Sequence[_Row], batch_size: int) -> Iterator[list[_Row]]:
    """Rows of about one length, whole batches as far as they go: a batch more is a program more, and takes longer."""
    ordered = sorted(rows, key=lambda row: len(row.tokens), reverse=True)
    for start in range(0, len(ordered), batch_size):
        yield ordered[start : start + batch_size]


def _padded(batch: Sequence[_Row], num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Decoder inputs `[num_rows, P]`, padded on the right, and their lengths; rows without a prompt hold token 0."""
    lengths = np.ones(num_rows, np.int32)
    lengths[: len(batch)] = [len(row.tokens) for row in batch]
    prompts = np.full((num_rows, _rounded_up(int(lengths.max()))), PAD_ID, np.int32)
    for filled, row in zip(prompts, batch, strict=False):
        filled[: len(row.tokens)] = row.tokens
    return prompts, lengths


def _rounded_up(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: 60 becomes 64, 65 becomes 96."""
    power = max(_SHORTEST, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > _SHORTEST else power
