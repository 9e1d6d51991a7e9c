"""FLOPs of training by the formula of Narayanan et al. 2021 (arXiv 2104.04473, section 5.1), which the paper uses.

    F / token = k L d^2 (1 + s / (6 d) + V / (16 L d))

Narayanan's k is 96: forward, a backward of twice that, and every layer's forward once more. FLM-101B's footnote 6 puts
72 in its place where nothing is recomputed, and for models of others the middle of both, 84 +- 12.

It is an approximation also where it holds: all attention counts, not the causal half; and since k stands before the
bracket, a smaller k takes from the readout what only layers compute again (4.5 V d at k = 72, where 6 V d is right).
`ModelConfig.flops_per_token` counts exactly.
"""

NO_RECOMPUTATION = 72
FULL_RECOMPUTATION = 96
CENTRE = (NO_RECOMPUTATION + FULL_RECOMPUTATION) // 2


def flops_per_token(
    num_layers: int, d_model: int, vocab_size: int, length: int, factor: float = NO_RECOMPUTATION
) -> float:
    """FLOPs to train on one token of a sequence of `length` tokens; an FFN of 4 `d_model` is taken for granted.

    Args:
        num_layers: L.
        d_model: d.
        vocab_size: V.
        length: s.
        factor: k, 72 without and 96 with full recomputation.

    Raises:
        ValueError: `factor` is not positive.
    """
    if not factor > 0:
        raise ValueError(
            f"--factor must be positive, 72 without and 96 with full recomputation; found {factor}"
        )
    attention, readout = length / (6 * d_model), vocab_size / (16 * num_layers * d_model)
    return factor * num_layers * d_model**2 * (1 + attention + readout)
