"""Putting tasks and mixtures into seqio's registries, where t5x finds them. Importing this imports TensorFlow."""

from typing import Any

import seqio

# What this process has registered: that may be registered again, since gin evaluates a binding at every use.
_ours: dict[str, Any] = {}


def add_task(name: str, binding: str, **properties: Any) -> seqio.Task:
    """Registers a task, once more if this process already did.

    Args:
        name: In the registry.
        binding: Gin binding of the name, for the error.
        properties: As in `seqio.TaskRegistry.add`.

    Raises:
        ValueError: seqio has a task or mixture of this name that is not ours.
    """
    _make_room(name, binding)
    _ours[name] = seqio.TaskRegistry.add(name, **properties)
    return _ours[name]


def add_mixture(name: str, binding: str, rates: dict[str, float]) -> seqio.Mixture:
    """Registers a mixture of tasks with these rates of examples; otherwise as `add_task`."""
    _make_room(name, binding)
    _ours[name] = seqio.MixtureRegistry.add(name, list(rates.items()))
    return _ours[name]


def _make_room(name: str, binding: str) -> None:
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        if name in registry.names():
            if registry.get(name) is not _ours.get(name):
                raise ValueError(
                    f"seqio already has {name!r}, which flm_jax did not define: change the gin binding `{binding}`"
                )
            registry.remove(name)
