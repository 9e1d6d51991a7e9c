"""Log-likelihoods of continuations, on token ids."""

import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from flm_jax import partitioning
from flm_jax.config import ModelConfig
from flm_jax.evaluation.prefix_sharing import Batch, Shape, batches
from flm_jax.evaluation.scored_rows import Found, Questions, Request, Row
from flm_jax.evaluation.text_model import Score
from flm_jax.generation import empty_cache
from flm_jax.layers import readout
from flm_jax.layers.growth_mask import GrowthMask
from flm_jax.network import Decoder, readout_table

# Positions of a device whose logits exist at a time: at 100,000 pieces 400 MB.
_LOGITS_AT_A_TIME = 1024
# How much more a batch may cost in a shape that there is a program for already. The IQ suite takes 58 programs in place
# of 131 then, and 11 % more token positions; compiling one takes seconds, and minutes for a large model.
_SLACK = 1.5
# Batches that wait on the devices while their successors are made.
_AHEAD = 2


class Scorer:
    """Scores continuations behind contexts; the results do not depend on what is asked together.

    Rows of about the same length are computed together, equal rows once, and what rows begin with in common once a
    batch (`prefix_sharing`).

    Args:
        config: The model.
        params: Its parameters.
        growth: The mask of a model that was saved while it ramped.
        mesh: Over whose devices the rows are split, and the parameters as in training; None is the default device.
        batch_size: Rows at a time, over all devices.
        max_length: Tokens of a row; None is the model's. xPos can go beyond that.
        share_prefixes: Whether to compute common beginnings once; False is for comparison.

    Attributes:
        max_length: Tokens of a row.
        num_cut: Requests so far that were longer and have lost tokens on the left.

    Raises:
        ValueError: `batch_size` or `max_length` is below 1.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        growth: GrowthMask | None = None,
        mesh: Mesh | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        share_prefixes: bool = True,
    ) -> None:
        self.max_length = config.max_length if max_length is None else max_length
        if batch_size < 1 or self.max_length < 1:
            raise ValueError(
                f"expected a batch_size and a max_length of at least 1, found {batch_size} and {self.max_length}"
            )
        self.num_cut = 0
        self._mesh, self._share, self._growth = mesh, share_prefixes, growth
        # A kernel that is asked for by name would refuse most lengths.
        attention = "dense" if config.attention == "dense" else "auto"
        self._decoder = Decoder(dataclasses.replace(config, attention=attention))
        self._shards = self._multiple = 1
        if mesh is not None:
            params = jax.device_put(params, partitioning.param_shardings(config, mesh))
            self._shards = partitioning.num_parts(mesh, partitioning.BATCH_AXES)
            self._multiple = mesh.shape["sequence"] * mesh.shape["tensor"]
        self._params = params
        self._program = _program(self._decoder, mesh)
        self._batch_size = -(-batch_size // self._shards) * self._shards

    def scores(self, requests: Sequence[Request]) -> list[Score]:
        """The score of each (context ids, continuation ids), in the order given.

        A context begins with token 0 where a document begins; an empty context is that token. With several processes
        each asks the same and is told everything.

        Raises:
            ValueError: a continuation alone is longer than `max_length`.
        """
        questions = Questions(requests, self.max_length)
        self.num_cut += questions.num_cut
        found: list[Found | None] = [None] * len(questions.rows)
        for numbers, answers in self._computed(questions.rows):
            for number, answer in zip(numbers, answers, strict=True):
                found[number] = answer
        return questions.scores([answer for answer in found if answer is not None])

    def _computed(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Found]]]:
        """Row numbers with what was found, a batch at a time; the devices are some batches ahead."""
        waiting: collections.deque[tuple[Batch, jax.Array, jax.Array]] = collections.deque()
        with tqdm(total=len(rows), unit="row", desc="scoring", disable=None, leave=False) as progress:

            def take() -> tuple[list[int], list[Found]]:
                batch, *results = waiting.popleft()
                answers = _read(batch, rows, *jax.device_get(results))
                numbers = [number for part in batch.parts for number in part]
                progress.update(len(numbers))
                return numbers, answers

            for each in batches(rows, self._batch_size, self._shards, self._multiple, self._share):
                batch = self._program.fitted(each)
                waiting.append((batch, *self._run(batch, rows)))
                if len(waiting) > _AHEAD:
                    yield take()
            while waiting:
                yield take()

    def _run(self, batch: Batch, rows: Sequence[Row]) -> tuple[jax.Array, jax.Array]:
        """Starts a batch on the devices."""
        chunk = max(_LOGITS_AT_A_TIME * self._shards // len(batch.levels[-1].tokens), 1)
        wanted = _wanted(batch, rows, chunk)
        levels = [
            _Level(*(self._place(array) for array in (level.tokens, level.lengths, level.parents)))
            for level in batch.levels
        ]
        with contextlib.ExitStack() as context:
            if self._mesh is not None:
                context.enter_context(jax.set_mesh(self._mesh))
                context.enter_context(partitioning.axis_rules())
            return self._program.run(
                self._params,
                self._growth,
                levels,
                _Wanted(*(self._place(array) for array in wanted)),
                cache_length=batch.cache_length,
                shards=self._shards,
                chunk=chunk,
            )

    def _place(self, array: np.ndarray) -> jax.Array:
        """On the devices, its rows split over those that share the batch."""
        if self._mesh is None:
            return jnp.asarray(array)
        sharding = NamedSharding(self._mesh, partitioning.mesh_spec("batch"))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


class _Program:
    """`_log_probabilities` of a model, compiled for as few shapes as is worth while; all devices know the results."""

    def __init__(self, decoder: Decoder, mesh: Mesh | None) -> None:
        self._shapes: list[Shape] = []
        self.run = jax.jit(
            functools.partial(_log_probabilities, decoder),
            static_argnames=("cache_length", "shards", "chunk"),
            out_shardings=None if mesh is None else NamedSharding(mesh, PartitionSpec()),
        )

    def fitted(self, batch: Batch) -> Batch:
        """The batch in a shape that there is a program for, if that does not cost much more than its own."""
        wanted = batch.shape
        near = [shape for shape in self._shapes if shape.holds(wanted)]
        best = min(near, key=lambda shape: shape.cost, default=wanted)
        if best.cost > _SLACK * wanted.cost:
            best = wanted
        if best not in self._shapes:
            self._shapes.append(best)
        return batch.in_shape(best)


# One for each model, not for each scorer: an evaluation every so many steps compiles once.
_program = functools.lru_cache(maxsize=8)(_Program)


class _Level(NamedTuple):
    """`prefix_sharing.Level` on the devices."""

    tokens: jax.Array
    lengths: jax.Array
    parents: jax.Array


class _Wanted(NamedTuple):
    """Which predictions of the last level are asked for."""

    positions: Any  # [N, Q], in the level's tokens
    targets: Any  # [N, Q, K]


def _wanted(batch: Batch, rows: Sequence[Row], chunk: int) -> _Wanted:
    """Padded with position 0 and token 0; Q is a multiple of `chunk` where there are more."""
    each, most = batch.wanted
    each = each if each <= chunk else -(-each // chunk) * chunk
    size = len(batch.levels[-1].tokens) // len(batch.parts)
    positions = np.zeros((len(batch.parts), size, each), np.int32)
    targets = np.zeros((*positions.shape, most), np.int32)
    for part, members in enumerate(batch.parts):
        for row, (number, start) in enumerate(zip(members, batch.starts[part], strict=True)):
            for place, (position, tokens) in enumerate(sorted(rows[number].targets.items())):
                positions[part, row, place] = position - start
                targets[part, row, place, : len(tokens)] = list(tokens)
    return _Wanted(positions.reshape(-1, each), targets.reshape(-1, *targets.shape[2:]))


def _read(
    batch: Batch, rows: Sequence[Row], log_probabilities: np.ndarray, greedy: np.ndarray
) -> list[Found]:
    """What concerns each row of a batch, of `[N, Q, K]`."""
    size = len(log_probabilities) // len(batch.parts)
    places = [part * size + row for part, members in enumerate(batch.parts) for row in range(len(members))]
    numbers = [number for part in batch.parts for number in part]
    return [
        Found(*(array[place, : len(rows[number].targets)] for array in (log_probabilities, greedy)))
        for place, number in zip(places, numbers, strict=True)
    ]


def _log_probabilities(
    decoder: Decoder,
    params: Any,
    growth: GrowthMask | None,
    levels: list[_Level],
    wanted: _Wanted,
    *,
    cache_length: int,
    shards: int,
    chunk: int,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every wanted target, and whether it is the likeliest token: `[N, Q, K]` each."""
    apply = functools.partial(decoder.apply, growth=growth, return_hidden=True)
    if cache_length:
        cache = empty_cache(decoder, len(levels[0].tokens), cache_length)
        for depth, level in enumerate(levels):
            if depth:
                cache = _handed_down(cache, level.parents, shards)
            hidden, state = apply(
                {"params": params, "cache": cache},
                level.tokens,
                prefill=True,
                prefill_lengths=level.lengths,
                mutable=["cache"],
            )
            cache = state["cache"]
    else:
        hidden = apply({"params": params}, levels[0].tokens)
    asked = jnp.take_along_axis(hidden, wanted.positions[..., None], axis=1)  # [N, Q, D]
    table = readout_table(params, decoder.config)

    def read_out(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, targets = part
        logits = readout.logits(hidden, table, decoder.config)
        logits -= jnp.max(logits, axis=-1, keepdims=True)  # or a log-probability near 0 would lose its digits
        chosen = jnp.take_along_axis(logits, targets, axis=-1)
        normalizer = jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
        return chosen - normalizer, chosen == 0  # the maximum; an argmax beside it would be slow

    positions = wanted.positions.shape[1]
    if positions <= chunk:
        return read_out((asked, wanted.targets))
    in_chunks = jax.tree.map(
        lambda x: x.reshape(len(x), -1, chunk, x.shape[-1]).swapaxes(0, 1), (asked, wanted.targets)
    )
    found = jax.lax.map(read_out, in_chunks)
    log_probabilities, greedy = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(wanted.targets.shape), found)
    return log_probabilities, greedy


def _handed_down(cache: dict[str, Any], parents: jax.Array, shards: int) -> dict[str, Any]:
    """The cache for rows that go on from other rows: from `parents` `[N]`, numbers within a shard's rows."""

    def take(leaf: jax.Array) -> jax.Array:
        axis = (
            0 if leaf.ndim == 1 else 1
        )  # the index has a number a row; keys and values are stacked by layer
        parts = leaf.reshape(*leaf.shape[:axis], shards, -1, *leaf.shape[axis + 1 :])
        chosen = jax.vmap(lambda part, rows: jnp.take(part, rows, axis), (axis, 0), axis)(
            parts, parents.reshape(shards, -1)
        )
        return chosen.reshape(*leaf.shape[:axis], -1, *leaf.shape[axis + 1 :])

    return jax.tree.map(take, cache)
