"""Sizes and constants of one model, and what follows from them by counting."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp

ATTENTION_BACKENDS = ("auto", "dense", "splash", "triton")
REMAT_POLICIES = ("none", "full", "dots", "dots_no_batch", "stage")
PARAMETRIZATIONS = ("mup", "standard")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("gelu", "swiglu")

# The FFN of the µP base model, over its d_model: what the width multiplier of `mlp` compares with. SwiGLU's
# three matrices of 8/3 d are as large as GELU's two of 4 d, which is how both are usually built.
_BASE_FFN_RATIO = {"gelu": 4.0, "swiglu": 8 / 3}
# float32 ends at e^88; half of it leaves the product of a query and a key in range.
_LARGEST_EXPONENT = 40


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that determines the parameters and the function of a `Decoder`.

    The defaults are FLM-101B's block and constants (arXiv 2309.03852, section 2 and its released
    `config.json`). `num_heads * head_dim` need not equal `d_model`.

    Raises:
        ValueError: a size or a name is out of range; the message names the gin binding.
    """

    vocab_size: int  # rows of the embedding table, padding rows included
    d_model: int  # width of the residual stream
    num_layers: int
    num_heads: int
    head_dim: int  # even, since xPos rotates pairs
    d_ff: int  # hidden units of the feed-forward network
    max_length: int = 2048  # tokens; xPos is centred here, nothing is sized by it

    num_kv_heads: int | None = None  # of grouped-query attention; None is multi-head attention
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    activation: Literal["gelu", "swiglu"] = "gelu"
    use_bias: bool = True  # on matrices and LayerNorm; RMSNorm has none
    tied_readout: bool = True  # the readout is the token table; False gives it a matrix of its own

    dtype: str = "bfloat16"  # of activations and matmuls; norms, softmax, xPos use at least float32
    param_dtype: str = "float32"

    norm_epsilon: float = 1e-5
    norm_denominator: float | None = None  # of RMSNorm's sum of squares; None is d_model; growth sets it
    xpos_theta: float = 10_000.0
    xpos_scale_base: float | None = 512.0  # positions per e-fold of decay; None is plain RoPE
    xpos_gamma: float = 0.4

    parametrization: Literal["mup", "standard"] = "mup"
    mup_base_width: int = 256  # width at which µP and the standard parametrisation agree
    init_std: float = 0.016  # at the base width
    input_mult: float = 1.0  # on the embedding's output
    output_mult: float = 1.0  # on the final hidden state, before µP divides by d_model / base width

    attention: str = "auto"  # one of ATTENTION_BACKENDS: what computes it (`layers/attention.py`, `choose`)
    remat: str = "none"  # one of REMAT_POLICIES: what the backward pass computes again

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "head_dim", "d_ff", "max_length",
                     "mup_base_width"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"ModelConfig.{name} must be a positive integer, found {value!r}")
        if self.head_dim % 2:
            raise ValueError(
                f"ModelConfig.head_dim must be even, because xPos rotates pairs of coordinates; found "
                f"{self.head_dim}. Bind ModelConfig.head_dim to {self.head_dim - 1} or {self.head_dim + 1}."
            )
        self._check_architecture()
        for name in ("norm_epsilon", "xpos_theta", "init_std", "input_mult", "output_mult", "xpos_gamma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"ModelConfig.{name} must be positive, found {getattr(self, name)!r}")
        if self.xpos_scale_base is not None and not self.xpos_scale_base > 0:
            raise ValueError(
                f"ModelConfig.xpos_scale_base must be positive, or None for plain RoPE; "
                f"found {self.xpos_scale_base!r}"
            )
        self._check_xpos_range()
        _one_of("attention", self.attention, ATTENTION_BACKENDS)
        _one_of("remat", self.remat, REMAT_POLICIES)
        _one_of("parametrization", self.parametrization, PARAMETRIZATIONS)
        _one_of("dtype", self.dtype, ("bfloat16", "float32", "float64"))
        _one_of("param_dtype", self.param_dtype, ("bfloat16", "float32", "float64"))

    def _check_architecture(self) -> None:
        """What is chosen among blocks: attention's groups, norm, activation, biases, readout."""
        _one_of("norm", self.norm, NORMS)
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("use_bias", self.use_bias, (True, False))
        _one_of("tied_readout", self.tied_readout, (True, False))
        groups = self.num_kv_heads
        if groups is not None and (
            not isinstance(groups, int) or isinstance(groups, bool) or groups < 1 or self.num_heads % groups
        ):
            raise ValueError(
                f"ModelConfig.num_kv_heads must be a divisor of ModelConfig.num_heads = {self.num_heads}, or None for "
                f"multi-head attention; found {groups!r}"
            )
        if self.norm_denominator is None:
            return
        if self.norm != "rmsnorm":
            raise ValueError(
                f"ModelConfig.norm_denominator is RMSNorm's: with ModelConfig.norm = {self.norm!r} bind "
                f"ModelConfig.norm_denominator to None; found {self.norm_denominator!r}"
            )
        if not self.norm_denominator > 0:
            raise ValueError(
                f"ModelConfig.norm_denominator must be positive, or None for ModelConfig.d_model; found "
                f"{self.norm_denominator!r}"
            )

    def _check_xpos_range(self) -> None:
        """XPos scales by zeta^(n / B); at both ends of a long context that leaves float32's range."""
        largest = self._largest_exponent(self.max_length)
        if self.xpos_scale_base is not None and largest > _LARGEST_EXPONENT:
            raise ValueError(
                f"xPos would scale by e^{largest:.0f} at the ends of ModelConfig.max_length = {self.max_length}, "
                f"expected at most e^{_LARGEST_EXPONENT}. Bind ModelConfig.xpos_scale_base to "
                f"{math.ceil(self.xpos_scale_base * largest / _LARGEST_EXPONENT)} or more, or to None for plain RoPE."
            )

    def _largest_exponent(self, length: int) -> float:
        """Of xPos' scale, to the base e, at the ends of a sequence on whose middle it is centred."""
        if self.xpos_scale_base is None:
            return 0.0
        return math.log((1 + self.xpos_gamma) / self.xpos_gamma) * length / 2 / self.xpos_scale_base

    def for_length(self, length: int) -> "ModelConfig":
        """The same function of tokens for sequences of `length`: this config, or one whose xPos is centred later.

        Scores depend on distances only, so the centre changes nothing but the numbers' range. Beyond `max_length`
        it is half of the next multiple of `max_length`, so that few lengths give different configs (and programs).

        Raises:
            ValueError: there xPos leaves float32's range.
        """
        if length <= self.max_length or self.xpos_scale_base is None:
            return self
        longer = math.ceil(length / self.max_length) * self.max_length
        if (largest := self._largest_exponent(longer)) > _LARGEST_EXPONENT:
            most = math.floor(_LARGEST_EXPONENT / largest * longer / self.max_length) * self.max_length
            raise ValueError(
                f"xPos scales sequences of at most {most:,} tokens within float32's range, found a prompt and its "
                f"continuation of {length:,}: shorten the prompt, or lower --max_new_tokens"
            )
        return dataclasses.replace(self, max_length=longer)

    def size(self, axis: str) -> int:
        """Length of a named parameter axis: `vocab, embed, heads, queries, kv, mlp` or `layers`.

        `heads` are the key-value heads, `queries` the query heads of each: 32 heads with 8 key-value heads have
        `heads` 8 and `queries` 4. Multi-head attention has as many of both kinds, so `queries` is 1.
        """
        key_value_heads = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        return {
            "vocab": self.vocab_size,
            "embed": self.d_model,
            "heads": key_value_heads,
            "queries": self.num_heads // key_value_heads,
            "kv": self.head_dim,
            "mlp": self.d_ff,
            "layers": self.num_layers,
        }[axis]

    @property
    def grouped(self) -> bool:
        """Whether attention's query parameters have the axis `queries`."""
        return self.num_kv_heads is not None

    def width_mult(self, *axes: str) -> float:
        """How many times wider than the µP base model these axes are together; 1 in standard parametrisation.

        At base width 256 the base model has `embed` 256, `heads * queries * kv` 256 and `mlp` 1,024 (683 with
        SwiGLU), so for FLM-101B (d_model 10,240, 80 heads of 128, d_ff 40,960) each of `("embed",)`,
        `("heads", "kv")` and `("mlp",)` gives 40.
        """
        if self.parametrization == "standard":
            return 1.0
        base = self.mup_base_width * (_BASE_FFN_RATIO[self.activation] if axes == ("mlp",) else 1)
        return math.prod(self.size(axis) for axis in axes) / base

    @property
    def logit_scale(self) -> float:
        """Factor on the final hidden state before the readout: `output_mult / (d_model / base width)`."""
        return self.output_mult / self.width_mult("embed")

    @property
    def num_params(self) -> int:
        """Number of parameters, every bias and the padded vocabulary rows included.

        FLM's block with `num_heads * head_dim == d` and `d_ff == 4 d` has 12 L d² + 13 L d + V d + 2 d.
        """
        d = self.d_model
        query, key_value = self.num_heads * self.head_dim, self.size("heads") * self.head_dim
        biases = query + 2 * key_value + d + (self._ffn_matrices - 1) * self.d_ff + d if self.use_bias else 0
        norm = 2 * d if self.use_bias and self.norm == "layernorm" else d
        tables = (1 if self.tied_readout else 2) * self.vocab_size * d
        return tables + self.num_layers * (self._matrix_entries + biases + 2 * norm) + norm

    def flops_per_token(self, length: int) -> float:
        """Model FLOPs to train on one token of a sequence of `length` tokens: forward and backward.

        Convention (that of MaxText since July 2025): two FLOPs a multiply-add, the backward pass is
        twice the forward pass, causal attention counts the lower triangle only, recomputation and
        everything that is not a matmul count nothing, and the readout counts once.
        """
        return 3 * (self._layers_forward_flops() + self._attention_forward_flops((length + 1) / 2)
                    + self._readout_forward_flops())  # fmt: skip

    def hardware_flops_per_token(self, length: int) -> float:
        """FLOPs that dense attention of an unsplit length carries out for one token: whole blocks of it, and remat."""
        blocks = causal_blocks(length)
        keys = length * (blocks + 1) / (2 * blocks)
        layers, attention = self._layers_forward_flops(), self._attention_forward_flops(keys)
        # Of a block whose input alone is kept all but what the FFN gives out, which the backward pass does not look at.
        again = layers - 2 * self.num_layers * self.d_ff * self.d_model + attention
        recomputed = {
            "none": 0.0,
            "dots": 0.0,
            "dots_no_batch": attention,
            "full": again,
            "stage": layers + attention + again,
        }[self.remat]
        return 3 * (layers + attention + self._readout_forward_flops()) + recomputed

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values, for a checkpoint's metadata; `ModelConfig(**fields)` is the inverse."""
        return dataclasses.asdict(self)

    @property
    def _ffn_matrices(self) -> int:
        return 3 if self.activation == "swiglu" else 2

    @property
    def _matrix_entries(self) -> int:
        """Of one block: query and output matrix, key and value matrix, FFN."""
        attention = 2 * (self.num_heads + self.size("heads")) * self.head_dim
        return self.d_model * (attention + self._ffn_matrices * self.d_ff)

    def _layers_forward_flops(self) -> float:
        return 2 * self.num_layers * self._matrix_entries

    def _attention_forward_flops(self, keys: float) -> float:
        return 2 * self.num_layers * 2 * self.num_heads * self.head_dim * keys

    def _readout_forward_flops(self) -> float:
        return 2 * self.vocab_size * self.d_model


def causal_blocks(length: int) -> int:
    """Into how many blocks of queries dense attention divides a causal sequence.

    Each looks at the keys up to its own end: of four blocks the first at a quarter of them, all together at 5/8.
    """
    return 4 if length >= 256 and length % 4 == 0 else 1


def at_least_float32(dtype: Any) -> jnp.dtype:
    """The dtype of statistics, softmax, rotations and losses: float32, or float64 where everything is float64."""
    return jnp.promote_types(dtype, jnp.float32)


def _one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"ModelConfig.{name} must be one of {', '.join(map(str, allowed))}; found {value!r}")
