"""Pods without a pod: a run compiled ahead of time for accelerators that are not here, laid out, and launched."""
