"""FLOPs of a traced program: its matmuls, each as often as it is carried out, over all devices together.

A compiler's own count takes the body of a loop once and knows nothing of kernels; here a scan's body counts as often as
it runs. Elementwise work is left out: it is bound by memory.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from flm_jax.layers.flash import block_size

# Matmuls of a block of scores in each kernel of attention, by a part of its name, and where its queries have their
# length: forward q k and p v; to queries those of p, dp, dq; to keys and values of p, dv, dp, dk.
_KERNELS = (
    ("splash_mha_fwd", "splash", 2, -2),
    ("splash_mha_dq", "splash", 3, -2),
    ("splash_mha_dkv", "splash", 4, -2),
    ("mha_preprocess_backward", "triton", 0, -3),
    ("mha_backward", "triton", 7, -3),
    ("mha_forward", "triton", 2, -3),
)


def count(jaxpr: core.ClosedJaxpr) -> float:
    """FLOPs of a program, two for a multiply-add; what nothing needs is left out, as every compiler leaves it out.

    Raises:
        ValueError: matmuls in a loop whose number of rounds is not known, or in a kernel that is not.
    """
    needed, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: Any) -> float:
    return sum(_equation(each) for each in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        sizes = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(sizes[axis] for axis in contracted)
    if name == "pallas_call":
        return _kernel(equation)
    inner = [_count(each) for value in params.values() for each in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("expected loops of a known number of rounds, found a while loop with matmuls")
    times = 1
    if name == "scan":
        times = params["length"]
    elif name == "shard_map":
        mesh, manual = params["mesh"], params["newly_manual_axes"]
        times = math.prod(mesh.shape[axis] for axis in manual)
    return times * sum(inner)


def _jaxprs(value: Any) -> list[Any]:
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [each for entry in value for each in _jaxprs(entry)]
    return []


def _kernel(equation: Any) -> float:
    """Of causal flash attention: blocks above the diagonal are skipped, those on it computed whole."""
    name = str(equation.params.get("name") or equation.params.get("name_and_src_info"))
    known = next((entry[1:] for entry in _KERNELS if entry[0] in name), None)
    if known is None:
        raise ValueError(f"expected one of attention's kernels, found {name}")
    backend, matmuls, axis = known
    shape = max(
        (v.aval.shape for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)), key=math.prod
    )
    length = shape[axis]
    return matmuls * 2.0 * math.prod(shape) * (length + block_size(backend, length)) / 2
