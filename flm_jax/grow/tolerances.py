"""How far a growth that keeps the function may move it, by the precision of the computation."""

# Largest difference of a logit over the largest logit.
LOGITS = {"float64": 1e-12, "float32": 5e-6}
# Nats per token of the loss on one batch. In bfloat16 matmuls of another width round differently.
LOSS = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-3}
