"""Metrics of seqio's evaluation by inference; the names of the arguments tell seqio what to give."""

from collections.abc import Sequence

import numpy as np


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Share of the responses that are the wanted text, space around it aside: `{"exact_match": 0 to 1}`."""
    pairs = zip(targets, predictions, strict=True)
    return {"exact_match": float(np.mean([wanted.strip() == found.strip() for wanted, found in pairs]))}


def log_likelihood(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Mean log-likelihood of a whole response, nats: `{"log_likelihood": ...}`."""
    del targets
    return {"log_likelihood": float(np.mean(scores))}
