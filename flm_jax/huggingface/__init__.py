"""Weights in and out: checkpoints of ours as folders that Hugging Face's transformers reads, and the way back."""
