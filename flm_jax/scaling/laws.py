"""Loss as a function of size and tokens: the two forms that predictions and plans are made with."""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class SizeLaw:
    """L(C) = a C^b + c at one number of steps and one data: µScaling's form (arXiv 2304.06875).

    Attributes:
        a: Nats at C = 1.
        b: Exponent, negative where larger is better.
        c: Nats, of an infinitely large model after these steps.
    """

    a: float
    b: float
    c: float

    def loss(self, millions: ArrayLike) -> Any:
        """Nats per token of models of so many million parameters."""
        return self.a * np.asarray(millions, float) ** self.b + self.c


@dataclasses.dataclass(frozen=True)
class LossLaw:
    """L(N, D) = E + A / N^alpha + B / D^beta: the parametric form of Hoffmann et al. (arXiv 2203.15556, eq. 2).

    Attributes:
        E: Nats per token, of the text itself.
        A, alpha: What a finite model adds, N in parameters.
        B, beta: What finite data adds, D in tokens.
    """

    E: float
    A: float
    alpha: float
    B: float
    beta: float

    def loss(self, params: ArrayLike, tokens: ArrayLike) -> Any:
        """Nats per token of a model of `params` parameters trained on `tokens` tokens from scratch."""
        return self.floor(params) + self.B / np.asarray(tokens, float) ** self.beta

    def floor(self, params: ArrayLike) -> Any:
        """Nats per token that a model of `params` parameters approaches, however long it is trained."""
        return self.E + self.A / np.asarray(params, float) ** self.alpha

    def tokens(self, params: ArrayLike, loss: ArrayLike) -> Any:
        """After how many tokens from scratch a model of `params` parameters has this loss; infinite below its floor."""
        above = np.asarray(loss, float) - self.floor(params)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(above > 0, (self.B / np.maximum(above, 0)) ** (1 / self.beta), np.inf)
