"""`flm scaling sweep, fit`."""

import argparse
import os
import sys

from flm_jax.verbs.parsing import add_gin, positive, search_paths, verb, whole_numbers


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    actions = verbs.add_parser(
        "scaling", help="what small models tell of large ones, before these are trained"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_sweep(actions)
    _add_fit(actions)


def _add_sweep(actions: argparse._SubParsersAction) -> None:
    sweep = verb(
        actions,
        "sweep",
        _sweep,
        "try gin bindings on small widths, and find the best; everything else comes from gin, as in flm train",
    )
    sweep.add_argument(
        "--out", required=True, help="directory of the results; the same command goes on there"
    )
    sweep.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="NAME=VALUE,VALUE",
        help="a gin binding and its values; of a random search also NAME=LOW..HIGH; repeat for several",
    )
    sweep.add_argument(
        "--widths", type=whole_numbers, default=[None], help="such as 64,128,256; the model's own"
    )
    sweep.add_argument("--seeds", type=positive, default=1, help="how many of each point; 1")
    sweep.add_argument(
        "--random", type=positive, metavar="POINTS", help="to draw, in place of the whole grid"
    )
    sweep.add_argument(
        "--at_once",
        type=positive,
        default=4,
        help="trials of one shape that the first device trains together, fewer if they do not fit; 4",
    )
    sweep.add_argument("--csv", help="write each width's best point to this file, for flm scaling fit")
    sweep.add_argument("--figure", help="draw the losses into this PNG file")
    sweep.add_argument("--json", help="write trials and optima to this file")
    add_gin(sweep)


def _sweep(options: argparse.Namespace) -> int:
    from pathlib import Path

    from flm_jax import gin_setup
    from flm_jax.json_file import write_json, write_text
    from flm_jax.scaling import sweep_figure, sweep_report, trials
    from flm_jax.scaling.sweep import Sweep

    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to train: give the gin files of a run of one stage, as to flm train"
        )
    variations, seeds = [trials.Variation.parse(text) for text in options.vary], range(options.seeds)
    if options.random:
        wanted = trials.at_random(options.widths, variations, seeds, options.random)
    else:
        wanted = trials.grid(options.widths, variations, seeds)
    sweep = Sweep(Path(options.out), options.gin_file, options.gin_bindings, search_paths(options))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    results = sweep.run(wanted, options.at_once, say)
    print(sweep_report.table(results))
    if options.csv:
        write_text(options.csv, sweep_report.to_csv(results))
    if options.json:
        write_json(options.json, sweep_report.to_json(results))
    if options.figure:
        sweep_figure.draw(results, options.figure)
    return 0


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
