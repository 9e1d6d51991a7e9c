"""The pieces of the decoder, one idea a file. Letters in shapes: B batch, L length, S keys, D d_model,
H num_heads, G key-value heads, R query heads of each (H = G R; R is 1 unless heads are grouped), K head_dim,
F d_ff, V vocab_size.
"""
