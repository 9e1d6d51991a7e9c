"""All operators by axis and name, and the methods of the literature that are made of them."""

from collections.abc import Mapping

from flm_jax.config import ModelConfig
from flm_jax.grow.errors import UnknownMethodError
from flm_jax.grow.families import depth, duplication, masked, padding
from flm_jax.grow.rule import Operator

# Axis -> the field of ModelConfig that sets its size, for the axes that can grow.
_FIELDS = {
    "vocab": "vocab_size",
    "embed": "d_model",
    "heads": "num_heads",
    "queries": "num_heads",
    "mlp": "d_ff",
    "layers": "num_layers",
}
AXES = tuple(_FIELDS)

_UNITS = {"mask": masked.UNITS, "zero": padding.UNITS, **duplication.family(embed=False)}
# Axis -> name -> operator. In the order in which fills are laid over each other: a mean over `embed` is taken of
# what the new heads and FFN units hold, and what a new layer holds is decided last.
OPERATORS: Mapping[str, Mapping[str, Operator]] = {
    "vocab": {"mean": padding.MEAN_ROWS, "draw": padding.DRAWN_ROWS},
    "heads": _UNITS,
    "queries": _UNITS,
    "mlp": _UNITS,
    "embed": {
        "mask": masked.EMBED,
        "average": padding.AVERAGE,
        "pad": padding.PAD,
        "scaled_pad": padding.SCALED_PAD,
        **duplication.family(embed=True),
    },
    "layers": {
        "mask": masked.LAYERS,
        "zero": padding.LAYERS,
        "zero_copy": padding.COPIED_LAYERS,
        "stack": depth.STACK,
        "interpolate": depth.INTERPOLATE,
        "middle": depth.MIDDLE,
    },
}


def _method(units: str, embed: str | None, layers: str | None) -> dict[str, str]:
    named = {
        "vocab": "mean",
        "heads": units,
        "queries": units,
        "mlp": units,
        "embed": embed,
        "layers": layers,
    }
    return {axis: name for axis, name in named.items() if name is not None}


# Method -> axis -> operator. What a method's paper does not grow it says nothing of here either.
METHODS: Mapping[str, Mapping[str, str]] = {
    "msg": _method("mask", "mask", "mask"),  # arXiv 2305.02869; FLM-101B's
    "lemon": _method("zero", "average", "zero_copy"),  # 2310.07999
    "pad": _method("zero", "pad", "zero_copy"),
    "composable": _method("zero", "scaled_pad", "zero"),  # 2308.06103
    "hypercloning": _method("duplicate_noise", "duplicate_noise", None),  # 2409.12903
    "net2net": _method("net2net", None, "zero_copy"),  # 1511.05641
    "sparkling": _method(
        "duplicate", "duplicate", None
    ),  # 2602.02472, with Stage.optimizer_state="asymmetric"
    "gstack": {"layers": "stack"},  # 2405.15319
    "interpolation": {"layers": "interpolate"},
    "midas": {"layers": "middle"},  # 2409.19044
    "llama_pro": {"layers": "zero_copy"},  # 2401.02415, with Stage.trains="new"
}


# No method: a stage that differs from the one before in its data or its learning rate alone.
NO_GROWTH = "none"


def field(axis: str, config: ModelConfig) -> str:
    """The field of ModelConfig that sets an axis's size: with grouped queries `heads` are the key-value heads."""
    return "num_kv_heads" if axis == "heads" and config.num_kv_heads else _FIELDS[axis]


def choose(method: str | Mapping[str, str], axes: tuple[str, ...]) -> dict[str, str]:
    """The operator's name for each axis that grows, in the order of `OPERATORS`.

    Args:
        method: A name in `METHODS`, `none`, or axis to operator; axes that do not grow may be named too.
        axes: Those that grow.

    Raises:
        UnknownMethodError: there is no such method or operator, or none is given for an axis that grows.
    """
    if isinstance(method, str):
        if method not in (*METHODS, NO_GROWTH):
            raise UnknownMethodError(
                f"unknown growth method {method!r}: expected one of {', '.join((*METHODS, NO_GROWTH))}, or a dict from "
                f"axis to operator such as {dict(METHODS['lemon'])} (Stage.method, or --method)"
            )
        named, whose = METHODS.get(method, {}), f"the method {method!r}"
    elif not isinstance(method, Mapping):
        raise UnknownMethodError(
            f"Stage.method must be one of {', '.join(METHODS)}, or a dict from axis to operator; found {method!r}"
        )
    else:
        named, whose = method, f"the method {dict(method)}"
    for axis, name in named.items():
        if axis not in OPERATORS or not isinstance(name, str) or name not in OPERATORS[axis]:
            known = {axis: list(operators) for axis, operators in OPERATORS.items()}
            raise UnknownMethodError(
                f"unknown operator {axis!r}: {name!r} in Stage.method; expected one of {known}; the axes are the sizes "
                f"{dict(_FIELDS)}"
            )
    missing = [axis for axis in axes if axis not in named]
    if missing:
        whole = {axis: named.get(axis, next(iter(OPERATORS[axis]))) for axis in axes}
        raise UnknownMethodError(
            f"{whose} says nothing of {', '.join(missing)}, which the target grows; give Stage.method an operator for "
            f"each axis that grows, such as {whole}"
        )
    return {axis: named[axis] for axis in OPERATORS if axis in axes}
