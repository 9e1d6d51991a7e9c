"""The trainer: state, step, checkpoints, log and loop."""
