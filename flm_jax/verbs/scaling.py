"""`flm scaling fit`."""

import argparse
import os

from flm_jax.verbs.parsing import positive, verb


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    actions = verbs.add_parser(
        "scaling", help="what small models tell of large ones, before these are trained"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_fit(actions)


def _add_fit(actions: argparse._SubParsersAction) -> None:
    fit = verb(
        actions,
        "fit",
        _fit,
        "fit a loss law to trained models and predict others. Columns params_millions,loss: L(C) = a C^b + c; "
        "with tokens_millions: L(N, D) = E + A / N^alpha + B / D^beta. A column width names rows, others are ignored",
    )
    rest = "[--fit_first=N] [--json FILE] [--figure PNG] [--predict MILLIONS[,TOKENS_MILLIONS]]"
    fit.usage = f"flm scaling fit CSV {rest}\n       flm scaling fit --csv=FILE {rest}"
    file = fit.add_mutually_exclusive_group(required=True)
    file.add_argument("file", nargs="?", metavar="CSV", help="one model a row, its loss in nats per token")
    file.add_argument("--csv", metavar="FILE", help="the same, as a flag")
    fit.add_argument(
        "--fit_first", type=positive, metavar="N", help="fit the first N rows and hold out the rest"
    )
    fit.add_argument(
        "--predict",
        action="append",
        type=_model,
        default=[],
        metavar="MILLIONS[,TOKENS_MILLIONS]",
        help="also predict a model that nobody trained; with tokens if the CSV has them; repeat for several",
    )
    fit.add_argument("--json", metavar="FILE", help="write the law, intervals and predictions to this file")
    fit.add_argument("--figure", metavar="PNG", help="draw points, curve and band into this file")


def _model(text: str) -> tuple[float, ...]:
    """Millions of parameters and maybe of tokens; an argparse type."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in (1, 2) or not all(0 < number < float("inf") for number in numbers):
        raise argparse.ArgumentTypeError(
            f"expected positive MILLIONS or MILLIONS,TOKENS_MILLIONS, found {text}"
        )
    return numbers


def _fit(options: argparse.Namespace) -> int:
    # Before what follows imports numpy. A fit's matrices are tiny: on busy cores BLAS threads made one 20 times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from flm_jax.scaling import points, prediction

    path = options.file or options.csv
    found = prediction.predict(points.read_csv(path), options.fit_first, options.predict)
    print(found.table())
    if options.json:
        found.write_json(options.json, csv=path, fit_first=options.fit_first)
    if options.figure:
        from flm_jax.scaling import figure

        figure.draw(found, options.figure)
    return 0
