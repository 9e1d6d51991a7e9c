"""The pieces of the decoder, one idea a file. Letters in shapes: B batch, L length, S keys, D d_model,
H num_heads, K head_dim, F d_ff, V vocab_size.
"""
