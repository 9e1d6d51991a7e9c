"""Several processes that train together: how they find each other, and what they must agree on."""

import hashlib
import os
import secrets
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from flm_jax.training.metadata import changed_lines

# As `jax.distributed.initialize` wants them; JAX itself reads the first.
_VARIABLES = {
    "coordinator": "JAX_COORDINATOR_ADDRESS",
    "num_processes": "JAX_NUM_PROCESSES",
    "process_id": "JAX_PROCESS_ID",
}
_NO_CLUSTER = "coordinator_address should be defined"  # JAX's message where it finds no cluster
_TOO_LATE = "must be called before"  # and where it has been used already
_NUM_TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
# For the others, when one ends with an error: JAX would wait for five minutes.
_SHUTDOWN_SECONDS = 60


class ProcessesDifferError(ValueError):
    """The processes of a run were not started alike, or do not see the same files."""


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Makes this process one of several, before JAX is first used; alone it stays where nothing says otherwise.

    What is given wins over the environment (`JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`), and that
    over what JAX finds by itself: Slurm's variables, Open MPI's, a Cloud TPU's metadata, Kubernetes'. Under Slurm and
    Open MPI JAX gives each process one GPU; one that is told by flags or environment where the others are takes all
    that it sees. A Slurm job of one task stays alone, and so does a process that has used JAX already, unless
    Slurm or Open MPI says that there are others.

    Args:
        coordinator: `host:port` of process 0, which every process can reach.
        num_processes: In all.
        process_id: Of this one, from 0.

    Raises:
        ValueError: some are given and some are missing, or they do not fit each other.
    """
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    found = {name: _setting(name, value) for name, value in given.items()}
    missing = [name for name, value in found.items() if value is None]
    if jax.distributed.is_initialized():
        return
    if len(missing) == len(found):
        if os.environ.get("SLURM_NTASKS") == "1":
            return
        try:
            jax.distributed.initialize(shutdown_timeout_seconds=_SHUTDOWN_SECONDS)
        except RuntimeError as error:
            # Said before JAX looks for a cluster, in which this would be one of many that train alone.
            if _TOO_LATE not in str(error) or any(os.environ.get(name, "1") != "1" for name in _NUM_TASKS):
                raise
        except ValueError as error:
            if _NO_CLUSTER not in str(error):
                raise ValueError(
                    f"JAX found a cluster, and could not join its processes: {error}; give --coordinator, "
                    "--num_processes and --process_id"
                ) from error
        return
    if missing:
        raise ValueError(
            "several processes need all of --coordinator=HOST:PORT, --num_processes and --process_id (or "
            f"{', '.join(_VARIABLES.values())}); missing are {', '.join(missing)}"
        )
    count, index = int(found["num_processes"] or 0), int(found["process_id"] or 0)
    if not 0 <= index < count:
        raise ValueError(
            f"expected --process_id between 0 and --num_processes - 1 = {count - 1}, found {index}"
        )
    jax.distributed.initialize(
        str(found["coordinator"]),
        count,
        index,
        cluster_detection_method="deactivate",  # or Slurm's would choose among the local devices
        shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
    )


def _setting(name: str, value: str | int | None) -> str | int | None:
    if value is not None:
        return value
    text = os.environ.get(_VARIABLES[name]) or None
    if text is None or name == "coordinator":
        return text
    if not text.isdigit():
        raise ValueError(f"expected a number in {_VARIABLES[name]}, found {text!r}")
    return int(text)


def check_equal(what: str, value: str, otherwise: str) -> None:
    """Refuses to go on where the processes have different texts; a process alone agrees with itself.

    Args:
        what: They differ in, for the message.
        value: This process', with a line for each thing that may differ.
        otherwise: What to do about it.

    Raises:
        ProcessesDifferError: in every process, naming those that differ from the first; in these, with the lines.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint32)
    all_ = np.asarray(multihost_utils.process_allgather(digest))
    differ = [index for index, other in enumerate(all_) if not np.array_equal(other, all_[0])]
    if differ:
        changed = changed_lines(_text_of_first(value), value)
        raise ProcessesDifferError(
            f"expected all {jax.process_count()} processes to have the same {what}, but "
            f"{', '.join(f'process {index}' for index in differ)} differs from process 0; {otherwise}. This is process "
            f"{jax.process_index()}" + "".join(f"\n  {line}" for line in changed)
        )


def _text_of_first(text: str) -> str:
    """Process 0's."""
    own = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(own))))
    same_length = np.resize(own, length)  # as a broadcast wants it; only process 0's counts
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(same_length)).astype(np.uint8)).decode()


def check_shared(directory: Path) -> None:
    """Refuses a directory that is another one for another process.

    Raises:
        ProcessesDifferError: in every process, naming those that do not see what the first has written.
    """
    if jax.process_count() == 1:
        return
    token = multihost_utils.broadcast_one_to_all(np.asarray(secrets.randbits(31), np.int32))
    mark = directory / f".seen_by_all_{int(token)}"
    if is_first():
        mark.touch()
    multihost_utils.sync_global_devices("the mark is written")
    deadline = time.monotonic() + 30  # a network's file system may be behind
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    all_ = np.asarray(multihost_utils.process_allgather(np.asarray(mark.exists())))
    if is_first():
        mark.unlink()
    if not all_.all():
        blind = ", ".join(f"process {index}" for index, sees in enumerate(all_) if not sees)
        raise ProcessesDifferError(
            f"expected one directory for all {len(all_)} processes, but {blind} cannot see what process 0 wrote to "
            f"{directory}; bind MODEL_DIR to a directory on a file system that they share"
        )


def of_first(value: bool) -> bool:
    """What process 0 says, for all of them: so that none goes another way."""
    if jax.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def is_first() -> bool:
    """Whether this process writes for all of them."""
    return jax.process_index() == 0
