"""Several small trials as one program: `jax.vmap` over what they do not share, which keeps a device busy.

Trials of one shape differ in their initial parameters, learning rates and batches, which are arrays; whatever else
differs is another program.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from flm_jax.model import Batch
from flm_jax.tasks.reader import Reader
from flm_jax.training.held_out import HeldOutEvaluator, HeldOutLoss
from flm_jax.training.leg import Leg
from flm_jax.training.state import TrainState
from flm_jax.training.step import skipping_non_finite, train_step
from flm_jax.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Trained:
    """What came out of one trial.

    Attributes:
        num_params: Of the model.
        tokens: Of all its batches, padding included.
        losses: Of each step's batch, nats per token.
        held_out: Of each task with a validation split, at the end.
        skipped: Steps whose gradients were not finite.
    """

    num_params: int
    tokens: int
    losses: np.ndarray
    held_out: dict[str, HeldOutLoss]
    skipped: int


class TooLargeError(ValueError):
    """A program of several trials needs more memory than the device has."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A trial, ready to be trained.

    Attributes:
        trainer: Its run, of one stage.
        leg: The stage.
        rates: `[steps]`, learning rate of each update.
    """

    trainer: Trainer
    leg: Leg
    rates: np.ndarray

    @staticmethod
    def of(trainer: Trainer) -> "Prepared":
        """While gin still has this trial's bindings, which its schedule may look up when it is made."""
        device = [jax.devices()[0]]
        leg = trainer.legs(trainer.check(device), device)[0]
        return Prepared(trainer, leg, np.asarray(jax.vmap(leg.learning_rate)(jnp.arange(leg.end))))


class Together:
    """Trials that differ in initial standard deviation, learning rate and seed alone, on one device.

    Args:
        trials: One or more.
        directory: Of their common checkpoint, from which a run that was killed goes on.

    Raises:
        ValueError: they differ in something else.
    """

    def __init__(self, trials: Sequence[Prepared], directory: Path) -> None:
        self._legs = [trial.leg for trial in trials]
        self._first, self._trainer = trials[0].leg, trials[0].trainer
        self._num_steps = self._first.end
        kinds = {
            (dataclasses.replace(leg.config, init_std=1.0), leg.end, leg.stage.batch_size, leg.stage.num_microbatches)
            for leg in self._legs
        }  # fmt: skip
        if len(kinds) > 1:
            raise ValueError(
                f"expected trials of one model and one number of steps, found {len(kinds)} kinds"
            )
        self._rates = jnp.asarray(np.stack([trial.rates for trial in trials]))
        self._seeds = [trial.trainer.seed for trial in trials]
        self._readers = {
            seed: Reader(
                self._trainer.prepared_dir, self._first.history, self._first.route.length, seed, split="train"
            )
            for seed in set(self._seeds)
        }
        self._directory = directory.absolute()

    def train(self, advance: Callable[[float], None] = lambda loss: None) -> list[Trained]:
        """Trains all to the end; gives `advance` the mean loss behind every step.

        Raises:
            TooLargeError: they do not fit on the device together.
        """
        with self._first.context(), contextlib.closing(self._checkpoints()) as checkpoints:
            step = self._compiled()
            done = checkpoints.latest_step() or 0
            state, losses = self._begin(), np.zeros((len(self._legs), self._num_steps))
            if done:
                found = checkpoints.restore(
                    done, args=ocp.args.StandardRestore({"state": state, "losses": losses})
                )
                state, losses = found["state"], np.array(found["losses"])
            for number in range(self._num_steps):
                if number < done:
                    advance(losses[:, number].mean())
                    continue
                state, metrics = step(state, self._rates, self._batch(number))
                losses[:, number] = jax.device_get(metrics["loss"])
                advance(losses[:, number].mean())
                if (number + 1) % self._trainer.checkpoint_period == 0 or number + 1 == self._num_steps:
                    kept = {"state": state, "losses": losses}
                    checkpoints.save(number + 1, args=ocp.args.StandardSave(kept))
                    checkpoints.wait_until_finished()  # the next step takes the state's place
            return self._outcomes(state, losses)

    def _checkpoints(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
        return ocp.CheckpointManager(self._directory, options=options)

    def _begin(self) -> TrainState:
        """The initial states of all, `[trials, ...]`: what each would begin with alone."""
        states: list[Any] = [None] * len(self._legs)
        for std in {leg.config.init_std for leg in self._legs}:
            those = [index for index, leg in enumerate(self._legs) if leg.config.init_std == std]
            leg = self._legs[those[0]]
            keys = jnp.stack([jax.random.key(self._seeds[index]) for index in those])
            made = jax.jit(jax.vmap(lambda key, leg=leg: _create(leg, key)))(keys)
            for place, index in enumerate(those):
                states[index] = jax.tree.map(lambda leaf, place=place: leaf[place], made)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    @property
    def num_steps(self) -> int:
        """Of each."""
        return self._num_steps

    def _compiled(self) -> Callable[..., Any]:
        leg, make = self._first, self._trainer.optimizer

        def one(state: TrainState, rates: jax.Array, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
            optimizer = skipping_non_finite(make(leg.config, lambda count: rates[count]))
            return train_step(leg.model, optimizer, leg.stage.num_microbatches)(state, batch)

        same = len(set(self._seeds)) == 1
        step = jax.jit(jax.vmap(one, in_axes=(0, 0, None if same else 0)), donate_argnums=0)
        compiled = step.lower(jax.eval_shape(self._begin), self._rates, self._batch(0)).compile()
        _check_fits(compiled.memory_analysis(), len(self._legs))
        return compiled

    def _batch(self, number: int) -> Batch:
        size = self._first.stage.batch_size
        of_seed = {seed: reader.batch(number * size, size) for seed, reader in self._readers.items()}
        if len(of_seed) == 1:
            return of_seed[self._seeds[0]]
        return jax.tree.map(lambda *rows: np.stack(rows), *(of_seed[seed] for seed in self._seeds))

    def _outcomes(self, state: TrainState, losses: np.ndarray) -> list[Trained]:
        reader, leg = self._readers[self._seeds[0]], self._first
        evaluate = HeldOutEvaluator(
            leg.model,
            leg.mesh,
            list(reader.tasks.values()),
            leg.stage.batch_size,
            self._trainer.eval_sequences,
        )
        found = []
        for index, curve in enumerate(losses):
            params, skipped = jax.tree.map(
                lambda leaf, at=index: leaf[at], (state.params, state.opt_state.total_notfinite)
            )
            tokens = self._num_steps * leg.stage.batch_size * leg.route.length
            found.append(Trained(leg.config.num_params, tokens, curve, evaluate(params) or {}, int(skipped)))
        return found

    @property
    def shares(self) -> dict[str, float]:
        """Of each task in the tokens."""
        return self._readers[self._seeds[0]].shares


def _check_fits(memory: Any, count: int) -> None:
    """On devices that say how much they have: GPUs and TPUs."""
    room = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    needed = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    if room is not None and needed > room:
        raise TooLargeError(
            f"{count} trials together need {needed / 2**30:.1f} GiB, the device has {room / 2**30:.1f}: lower "
            "--at_once, BATCH_SIZE or --widths"
        )


def _create(leg: Leg, key: jax.Array) -> TrainState:
    params = leg.model.get_initial_variables(key, {"decoder_input_tokens": (1, 1)})["params"]
    return TrainState(jnp.int32(0), params, leg.optimizer.init(params))


def groups(names: Sequence[tuple[Any, ...]], most: int) -> list[list[int]]:
    """Places of those that are equal, at most `most` together: of a, b, a, a and 2: [0, 2], [3], [1]."""
    of_name: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        of_name.setdefault(name, []).append(index)
    return [those[at : at + most] for those in of_name.values() for at in range(0, len(those), most)]
