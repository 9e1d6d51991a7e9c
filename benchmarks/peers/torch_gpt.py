"""GPTs in PyTorch: in the style of nanoGPT, eager and compiled, and Hugging Face's GPT-2."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Pre-norm block with PyTorch's own attention."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv, self.out = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.up, self.down = nn.Linear(d_model, 4 * d_model), nn.Linear(4 * d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, d_model] to the same."""
        batch, length, d_model = x.shape
        parts = self.qkv(self.norm1(x)).split(d_model, dim=2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, d_model))
        return x + self.down(functional.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    """Learned positions, tied readout."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab, shape.d_model)
        self.positions = nn.Embedding(shape.length, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape.d_model, shape.num_heads) for _ in range(shape.num_layers))
        self.norm = nn.LayerNorm(shape.d_model)

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        x = self.tokens(inputs) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        logits = functional.linear(self.norm(x), self.tokens.weight)
        return functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


class HuggingFace(nn.Module):
    """transformers' GPT-2 at the shape."""

    def __init__(self, shape) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=shape.vocab,
                n_positions=shape.length,
                n_embd=shape.d_model,
                n_layer=shape.num_layers,
                n_head=shape.num_heads,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
            )
        )

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The mean loss."""
        logits = self.model(inputs).logits
        return functional.cross_entropy(logits.float().view(-1, logits.shape[-1]), targets.view(-1))


def make(shape, name: str) -> Callable[[], None]:
    """One step on random tokens."""
    torch.manual_seed(0)
    model = HuggingFace(shape) if name == "huggingface" else Gpt(shape)
    run = torch.compile(model) if name == "nanogpt_compiled" else model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    targets = torch.randint(0, shape.vocab, (shape.batch, shape.length))
    inputs = targets.roll(1, dims=1)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=shape.dtype == "bfloat16"):
            loss = run(inputs, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    step()
    return step
