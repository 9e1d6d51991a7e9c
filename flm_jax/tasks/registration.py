"""Putting tasks and mixtures into seqio's registries, where t5x finds them. Importing this imports TensorFlow."""

from typing import Any

import seqio

# What this process has registered, and of what: gin evaluates a binding at every use.
_ours: dict[str, tuple[Any, Any]] = {}


def add_task(name: str, binding: str, made_of: Any = None, **properties: Any) -> seqio.Task:
    """Registers a task, or gives the one that is registered.

    Args:
        name: In the registry.
        binding: Gin binding of the name, for the error.
        made_of: What the task follows from. A name stands for one of these: a second one would take the place of the
            first before anything is read from it. None for a task that may be defined anew.
        properties: As in `seqio.TaskRegistry.add`.

    Raises:
        ValueError: the name stands for something else.
    """
    if _make_room(name, binding, made_of):
        return seqio.TaskRegistry.get(name)
    task = seqio.TaskRegistry.add(name, **properties)
    _ours[name] = (task, made_of)
    return task


def add_mixture(name: str, binding: str, made_of: Any, rates: dict[str, float]) -> seqio.Mixture:
    """Registers a mixture of tasks with these rates of examples; otherwise as `add_task`."""
    if _make_room(name, binding, made_of):
        return seqio.MixtureRegistry.get(name)
    mixture = seqio.MixtureRegistry.add(name, list(rates.items()))
    _ours[name] = (mixture, made_of)
    return mixture


def _make_room(name: str, binding: str, made_of: Any) -> bool:
    """Whether the very same is there already."""
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        if name not in registry.names():
            continue
        known, of = _ours.get(name, (None, None))
        if registry.get(name) is not known:
            raise ValueError(
                f"seqio already has {name!r}, which flm_jax did not define: change the gin binding `{binding}`"
            )
        if made_of is not None and of == made_of:
            return True
        if made_of is not None or of is not None:
            raise ValueError(
                f"{name!r} would stand for two things, of {of} and of {made_of}: change the gin binding `{binding}` of "
                "one of them"
            )
        registry.remove(name)
    return False
