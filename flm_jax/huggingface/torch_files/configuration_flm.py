"""Sizes and constants of an FLM model (FLM-101B, arXiv 2309.03852, and its successors' blocks)."""

from transformers import PretrainedConfig


class FLMConfig(PretrainedConfig):
    """The fields of FLM-101B's published config.json, with those of blocks that it has not.

    Attributes:
        n_head_kv: Key-value heads of grouped-query attention; `n_head` unless given.
        head_dim: `n_embd // n_head` unless given.
        norm: `layernorm` or `rmsnorm`.
        norm_denominator: Of RMSNorm's sum of squares; `n_embd` unless given.
        activation_function: `gelu_fast` (tanh-approximated) or `swiglu`.
        use_bias: On matrices and LayerNorm.
        rotary_xpos_scale_base: Positions per e-fold of decay; with `rotary_use_xpos` false positions are plain RoPE.
        mup_scale_factor: Logits are times `output_mult / mup_scale_factor`.
    """

    model_type = "flm"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_head_kv",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
    }

    def __init__(
        self,
        vocab_size=100352,
        n_embd=10240,
        n_layer=80,
        n_head=80,
        n_head_kv=None,
        head_dim=None,
        n_inner=None,
        n_positions=2048,
        activation_function="gelu_fast",
        norm="layernorm",
        layer_norm_epsilon=1e-5,
        norm_denominator=None,
        use_bias=True,
        rotary_theta=10000.0,
        rotary_use_xpos=True,
        rotary_xpos_scale_base=512.0,
        rotary_xpos_gamma=0.4,
        input_mult=1.0,
        output_mult=1.0,
        mup_scale_factor=1.0,
        initializer_range=0.016,
        use_cache=True,
        tie_word_embeddings=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.n_embd = n_embd
        self.n_layer = n_layer
        self.n_head = n_head
        self.n_head_kv = n_head if n_head_kv is None else n_head_kv
        self.head_dim = n_embd // n_head if head_dim is None else head_dim
        self.n_inner = 4 * n_embd if n_inner is None else n_inner
        self.n_positions = n_positions
        self.activation_function = activation_function
        self.norm = norm
        self.layer_norm_epsilon = layer_norm_epsilon
        self.norm_denominator = norm_denominator
        self.use_bias = use_bias
        self.rotary_theta = rotary_theta
        self.rotary_use_xpos = rotary_use_xpos
        self.rotary_xpos_scale_base = rotary_xpos_scale_base
        self.rotary_xpos_gamma = rotary_xpos_gamma
        self.input_mult = input_mult
        self.output_mult = output_mult
        self.mup_scale_factor = mup_scale_factor
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
