"""FLM's decoder in torch, for transformers' `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`.

Pre-norm blocks (LayerNorm or RMSNorm) with xPos or RoPE, multi-head or grouped-query attention, a tanh-approximated
GELU or SwiGLU, and the multipliers of FLM-101B's config. Written by `flm export` (flm_jax); names and layout of the
parameters are those of FLM-101B's published checkpoint: matrices [inputs, outputs], query, key and value in one.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_flm import FLMConfig


class FLMLinear(nn.Module):
    """x W + b with W [inputs, outputs], as GPT-2's Conv1D."""

    def __init__(self, inputs, outputs, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        """Maps x [..., in] to [..., out]."""
        return F.linear(x, self.weight.T, self.bias)


class FLMNorm(nn.Module):
    """LayerNorm, or RMSNorm with the sum of squares over `norm_denominator`; in float32 at least."""

    def __init__(self, config):
        super().__init__()
        self.is_rms = config.norm == "rmsnorm"
        self.epsilon = config.layer_norm_epsilon
        self.denominator = config.norm_denominator or config.n_embd
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        has_bias = config.use_bias and not self.is_rms
        self.bias = nn.Parameter(torch.zeros(config.n_embd)) if has_bias else None

    def forward(self, x):
        """Normalises x [B, L, D]; same shape and dtype."""
        wide = _wide(x)
        if self.is_rms:
            out = wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) / self.denominator + self.epsilon)
        else:
            centred = wide - wide.mean(-1, keepdim=True)
            out = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.epsilon)
        out = out * self.weight.to(wide.dtype)
        return (out if self.bias is None else out + self.bias.to(wide.dtype)).to(x.dtype)


def _wide(x):
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rotation(positions, config):
    """Cosines and sines for queries and keys at `positions` [B, L], each [B, 1, L, K/2], float32.

    xPos multiplies a query at position n by zeta^(n/B) and a key at m by zeta^(-m/B); positions are centred, which
    leaves scores as they are and exponents small.
    """
    positions = positions[:, None, :, None].float()
    pairs = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    angles = positions * config.rotary_theta**-pairs
    cos, sin = angles.cos(), angles.sin()
    if not config.rotary_use_xpos:
        return (cos, sin), (cos, sin)
    zeta = (pairs + config.rotary_xpos_gamma) / (1 + config.rotary_xpos_gamma)
    scale = zeta ** ((positions - config.n_positions // 2) / config.rotary_xpos_scale_base)
    return (cos * scale, sin * scale), (cos / scale, sin / scale)


def rotate(x, cos, sin):
    """Rotates the pairs (i, i + K/2) of `x` [B, H, L, K]."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def visible(attention_mask, past, length, keys, device):
    """True where a query may look at a key: [B or 1, 1, L, S]; of that shape already with a static cache in generate().

    Every query sees itself, padding too: a row without keys would be NaN, and spoil what is behind it.
    """
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask
    query = past + torch.arange(length, device=device)[:, None]
    key = torch.arange(keys, device=device)[None]
    mask = (key <= query)[None, None]
    if attention_mask is None:
        return mask
    if attention_mask.dim() != 2:
        raise ValueError(
            f"FLM takes an attention_mask [batch, keys] or of 4 dimensions, found {attention_mask.dim()}"
        )
    kept = F.pad(attention_mask.bool(), (0, keys - attention_mask.shape[1]))[:, None, None]
    return mask & (kept | (key == query))


class FLMAttention(nn.Module):
    """Causal attention; the query heads of a key-value head follow each other."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.widths = [n * config.head_dim for n in (config.n_head, config.n_head_kv, config.n_head_kv)]
        self.c_attn = FLMLinear(config.n_embd, sum(self.widths), config.use_bias)
        self.c_proj = FLMLinear(self.widths[0], config.n_embd, config.use_bias)

    def forward(self, x, rotations, attention_mask, past, cache):
        """Maps x [B, L, D] to [B, L, D]; `past` tokens are in the cache before them, if there is one."""
        query, key, value = (
            part.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for part in self.c_attn(x).split(self.widths, dim=-1)
        )
        query, key = rotate(query, *rotations[0]), rotate(key, *rotations[1])
        if cache is not None:
            # transformers before 5 asks where they go in a static cache.
            places = {"cache_position": past + torch.arange(x.shape[1], device=x.device)}
            key, value = cache.update(key, value, self.layer_idx, places)
        shared = self.config.n_head // self.config.n_head_kv
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
        # A static cache has room for more keys than there are.
        mask = visible(attention_mask, past, query.shape[2], key.shape[2], x.device)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class FLMMLP(nn.Module):
    """The feed-forward network; `c_gate` is SwiGLU's."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = FLMLinear(config.n_embd, config.n_inner, config.use_bias)
        gated = config.activation_function == "swiglu"
        self.c_gate = FLMLinear(config.n_embd, config.n_inner, config.use_bias) if gated else None
        self.c_proj = FLMLinear(config.n_inner, config.n_embd, config.use_bias)

    def forward(self, x):
        """Maps x [B, L, D] to [B, L, D]."""
        hidden = self.c_fc(x)
        if self.c_gate is None:
            return self.c_proj(F.gelu(hidden, approximate="tanh"))
        return self.c_proj(F.silu(self.c_gate(x)) * hidden)


class FLMBlock(nn.Module):
    """x + Attention(Norm(x)), then x + MLP(Norm(x))."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.ln_1 = FLMNorm(config)
        self.attn = FLMAttention(config, layer_idx)
        self.ln_2 = FLMNorm(config)
        self.mlp = FLMMLP(config)

    def forward(self, x, rotations, attention_mask, past, cache):
        """Maps x [B, L, D] to [B, L, D]; the rest as of `FLMAttention`."""
        x = x + self.attn(self.ln_1(x), rotations, attention_mask, past, cache)
        return x + self.mlp(self.ln_2(x))


class FLMPreTrainedModel(PreTrainedModel):
    """What transformers asks about the model."""

    config_class = FLMConfig
    base_model_prefix = "transformer"
    _no_split_modules = ["FLMBlock"]
    _supports_sdpa = True
    _supports_cache_class = True

    def _init_weights(self, module):
        if isinstance(module, (FLMLinear, nn.Embedding, nn.Linear)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, FLMNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class FLMModel(FLMPreTrainedModel):
    """Token ids to the final hidden state, before the readout's multiplier."""

    def __init__(self, config):
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.h = nn.ModuleList(FLMBlock(config, layer) for layer in range(config.n_layer))
        self.ln_f = FLMNorm(config)
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    def forward(self, x, attention_mask, position_ids, cache):
        """Maps embedded tokens `x` [B, L, D] to [B, L, D]; `cache` holds keys and values before them, or is None."""
        length = x.shape[1]
        past = 0 if cache is None else int(cache.get_seq_length())
        if position_ids is None:
            if attention_mask is None or attention_mask.dim() == 4:
                position_ids = past + torch.arange(length, device=x.device)[None]
            else:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        x = (_wide(x) * self.config.input_mult).to(x.dtype)
        rotations = rotation(position_ids, self.config)
        for block in self.h:
            x = block(x, rotations, attention_mask, past, cache)
        return self.ln_f(x)


class FLM(FLMPreTrainedModel, GenerationMixin):
    """The model with its readout, whose table is the embedding's unless `tie_word_embeddings` is false."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.transformer = FLMModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.loss_type = "ForCausalLM"
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, L, V] of `input_ids` [B, L]; of the last `logits_to_keep` positions alone where that is not 0."""
        x = self.transformer.wte(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        cache = past_key_values if use_cache else None
        x = self.transformer(x, attention_mask, position_ids, cache)
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        x = (_wide(x) * (self.config.output_mult / self.config.mup_scale_factor)).to(x.dtype)
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            # Trainer hands on how many labels there are in all the batches of an update: `num_items_in_batch`.
            loss = self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
