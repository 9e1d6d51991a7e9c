"""Measuring a trained model: the IQ suite, benchmarks through lm-eval, reports."""
