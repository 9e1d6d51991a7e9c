"""Fits loss laws to trained models' losses, and says where there is no law to be seen."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats

from flm_jax.scaling.laws import LossLaw, SizeLaw

# Exponents that are looked for. Beyond them the curve is a logarithm, or flat but for its first point.
SIZE_EXPONENTS = (-4.0, -0.01)
LOSS_EXPONENTS = (0.01, 3.0)
# Hoffmann et al., section D.3: residuals of log-losses beyond it count linearly.
HUBER_DELTA = 1e-3
# Natural logarithm of how much of the loss one of the three terms may make up, at the middle of the points.
_TERM = (-15.0, 2.0)


class FitError(ValueError):
    """These points show no such law."""


def fit_size_law(millions: ArrayLike, losses: ArrayLike) -> SizeLaw:
    """The law L(C) = a C^b + c by least squares.

    Args:
        millions: `[n]`, millions of parameters; several runs of one size are several points.
        losses: `[n]`, nats per token, at one step on the same data.

    Raises:
        FitError: fewer than four sizes, losses that do not fall with size, or a best fit that is none: with an exponent
            at the end of `SIZE_EXPONENTS`, or c not above 0.
    """
    sizes, nats = np.asarray(millions, float), np.asarray(losses, float)
    _check_positive(sizes, nats)
    if (found := len(np.unique(sizes))) < 4:
        raise FitError(
            f"expected at least 4 sizes to fit a, b and c to, found {found}: add rows, or raise --fit_first"
        )
    _check_falls(sizes, nats, "size")
    law = nearest_size_law(sizes, nats)
    if law.c < 1e-3 * nats.min() or law.b > 0.99 * SIZE_EXPONENTS[1]:
        raise FitError(
            "the losses show no levelling off: the best fit is a straight line in log C, or has c = 0, so nothing "
            "tells where larger models end; add sizes further apart, and check that each was trained well"
        )
    if law.b < 0.99 * SIZE_EXPONENTS[0]:
        raise FitError(
            f"the losses are level behind the smallest size (b below {SIZE_EXPONENTS[0]:g}), which is no power law: "
            "add smaller sizes, or leave out the smallest one if it is an outlier"
        )
    return law


def nearest_size_law(millions: np.ndarray, losses: np.ndarray) -> SizeLaw:
    """The least squares of losses over `SIZE_EXPONENTS` and c >= 0, whatever they look like.

    For a given b the best a and c are those of a straight line, which leaves a search over b alone: a scan, then
    Brent's method between the best one's neighbours. It needs no start, and C's unit does not matter.
    """
    middle = np.log(millions).mean()
    logs = np.log(millions) - middle

    def line(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Squared residuals, a (of C = 1 at the middle) and c of each exponent."""
        powers = np.exp(b[:, None] * logs)
        centred = powers - powers.mean(1, keepdims=True)
        a = centred @ (losses - losses.mean()) / (centred**2).sum(1)
        c = losses.mean() - a * powers.mean(1)
        a = np.where(c < 0, powers @ losses / (powers**2).sum(1), a)
        c = np.maximum(c, 0)
        return ((a[:, None] * powers + c[:, None] - losses) ** 2).sum(1), a, c

    # In the exponent's logarithm, so that small ones are found as exactly as large ones.
    scan = np.linspace(np.log(-SIZE_EXPONENTS[1]), np.log(-SIZE_EXPONENTS[0]), 201)
    best = int(np.argmin(line(-np.exp(scan))[0]))
    bounds = scan[max(best - 1, 0)], scan[min(best + 1, len(scan) - 1)]
    refined = optimize.minimize_scalar(
        lambda log: line(-np.exp([log]))[0][0], bounds=bounds, method="bounded", options={"xatol": 1e-12}
    )
    b = -np.exp([refined.x])
    _, a, c = line(b)
    return SizeLaw(a=float(a[0] * np.exp(-b[0] * middle)), b=float(b[0]), c=float(c[0]))


def fit_loss_law(params: ArrayLike, tokens: ArrayLike, losses: ArrayLike) -> LossLaw:
    """The law L(N, D) = E + A / N^alpha + B / D^beta, as Hoffmann et al. fit it (arXiv 2203.15556, section D.3).

    Args:
        params: `[n]`, parameters.
        tokens: `[n]`, that each model was trained on, its learning rate decayed over just these.
        losses: `[n]`, nats per token.

    Raises:
        FitError: fewer than six distinct points, or than three of `params` or of `tokens`; both growing together;
            losses that do not fall with one of them; or a best fit that is none: with an exponent at the end of
            `LOSS_EXPONENTS`, or E not above 0.
    """
    sizes, data, nats = (np.asarray(each, float) for each in (params, tokens, losses))
    _check_positive(sizes, data, nats)
    pairs = len(np.unique(np.stack([sizes, data]), axis=1).T)
    if pairs < 6 or len(np.unique(sizes)) < 3 or len(np.unique(data)) < 3:
        raise FitError(
            "expected at least 6 distinct points, of 3 sizes and 3 numbers of tokens, to fit E, A, alpha, B and beta "
            f"to; found {pairs}, of {len(np.unique(sizes))} and {len(np.unique(data))}: add rows, or raise --fit_first"
        )
    if abs(together := np.corrcoef(np.log(sizes), np.log(data))[0, 1]) > 0.99:
        raise FitError(
            f"parameters and tokens change together (correlation of their logarithms {together:.3f}), so that nothing "
            "tells which of them lowers the loss: add models of one size on different numbers of tokens"
        )
    law = nearest_loss_law(sizes, data, nats)
    _check_falls(sizes, nats - law.B / data**law.beta, "size, the tokens' part taken off")
    _check_falls(data, nats - law.A / sizes**law.alpha, "tokens, the size's part taken off")
    smallest, largest = LOSS_EXPONENTS
    for name, exponent in (("alpha", law.alpha), ("beta", law.beta)):
        if not 1.01 * smallest < exponent < 0.99 * largest:
            raise FitError(
                f"the best {name} is at its bound of {exponent:.3g}, which is no power law: add sizes and numbers of "
                "tokens further apart, and check that each was trained well"
            )
    if 1e-3 * nats.min() > law.E:
        raise FitError(
            "the losses show no levelling off: the best E is 0, so nothing tells where larger models end; add sizes "
            "and numbers of tokens further apart"
        )
    return law


def nearest_loss_law(
    params: np.ndarray, tokens: np.ndarray, losses: np.ndarray, *, near: LossLaw | None = None
) -> LossLaw:
    """The least Huber loss of log-losses over `LOSS_EXPONENTS`, whatever they look like.

    Minimised over the logarithms of the three terms at the middle of the points, whose sum is a log-sum-exp, by
    L-BFGS-B; from a law that is `near`, or from the best of a grid of exponents, with the terms that least squares
    give them.
    """
    middle = np.log(params).mean(), np.log(tokens).mean()
    logs = np.stack([np.log(params) - middle[0], np.log(tokens) - middle[1]])
    log_losses = np.log(losses)

    def huber(theta: np.ndarray) -> tuple[float, np.ndarray]:
        terms = np.concatenate(
            [theta[:2, None] - theta[3:, None] * logs, np.full((1, losses.size), theta[2])]
        )
        total = np.logaddexp.reduce(terms)
        residuals = (total - log_losses) / HUBER_DELTA  # in deltas: L-BFGS stops at changes far below 1
        slopes = np.exp(terms - total) * np.clip(residuals, -1, 1) / HUBER_DELTA
        gradient = np.concatenate([slopes.sum(1), -(slopes[:2] * logs).sum(1)])
        return float(special.huber(1.0, residuals).sum()), gradient

    if near is None:
        starts = sorted(_grid(logs, losses), key=lambda theta: huber(theta)[0])[:4]
    else:
        at_middle = near.A * np.exp(-near.alpha * middle[0]), near.B * np.exp(-near.beta * middle[1])
        starts = [np.array([*np.log([*at_middle, near.E]), near.alpha, near.beta])]
    bounds = [tuple(log_losses.mean() + np.array(_TERM))] * 3 + [LOSS_EXPONENTS] * 2
    # The value is in squared deltas, some hundreds: below these tolerances there are only the Huber loss's kinks.
    options = {"maxiter": 5000, "maxfun": 20000, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-7}
    found = [
        optimize.minimize(huber, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for start in starts
    ]
    p, q, e, alpha, beta = (float(each) for each in min(found, key=lambda each: each.fun).x)
    return LossLaw(
        E=float(np.exp(e)),
        A=float(np.exp(p + alpha * middle[0])),
        alpha=alpha,
        B=float(np.exp(q + beta * middle[1])),
        beta=beta,
    )


def _grid(logs: np.ndarray, losses: np.ndarray) -> list[np.ndarray]:
    """Where L-BFGS may start: 25 pairs of exponents, each with its best non-negative terms."""
    grid = []
    for alpha in (0.1, 0.2, 0.4, 0.8, 1.6):
        for beta in (0.1, 0.2, 0.4, 0.8, 1.6):
            powers = np.stack(
                [np.exp(-alpha * logs[0]), np.exp(-beta * logs[1]), np.ones(losses.size)], axis=1
            )
            terms = np.maximum(optimize.nnls(powers, losses)[0], 1e-3 * losses.mean())
            grid.append(np.array([*np.log(terms), alpha, beta]))
    return grid


def _check_positive(*values: np.ndarray) -> None:
    if len({each.shape for each in values}) > 1 or values[0].ndim != 1:
        raise FitError(f"expected as many sizes as losses, found shapes {[each.shape for each in values]}")
    for each in values:
        if (wrong := each[~((each > 0) & np.isfinite(each))]).size:
            raise FitError(f"expected positive, finite numbers, found {wrong[0]:g}")


def _check_falls(sizes: np.ndarray, losses: np.ndarray, what: str) -> None:
    """Kendall's rank test: a fit has three parameters or more, and finds a curve in any few losses."""
    test = stats.kendalltau(sizes, losses, alternative="less")
    if not test.pvalue < 0.05:
        raise FitError(
            f"no power law to be seen: the losses do not fall with {what} (Kendall's tau {test.statistic:.2f}, p = "
            f"{test.pvalue:.2f}; a law needs p < 0.05); check that all were trained on the same data with learning "
            "rates that suit them, or add models further apart"
        )
