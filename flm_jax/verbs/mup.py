"""`flm mup check`."""

import argparse

from flm_jax.verbs.parsing import add_gin, positive, search_paths, verb, whole_numbers


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    actions = verbs.add_parser("mup", help="maximal update parametrisation").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    check = verb(
        actions,
        "check",
        _check,
        "the coordinate check: whether activations and their changes are as large at every width",
    )
    check.add_argument(
        "--widths",
        type=whole_numbers,
        help="such as 64,128,256,512; by default ½, 1, 2 and 4 times the base width",
    )
    check.add_argument("--steps", type=positive, default=4, help="to train for; 4")
    check.add_argument("--seeds", type=positive, default=3, help="draws of the initial parameters; 3")
    check.add_argument("--learning_rate", type=float, help="at the base width; a hundredth of init_std")
    check.add_argument("--figure", help="draw the curves into this PNG file")
    check.add_argument("--json", help="write the numbers to this file")
    add_gin(check)


def _check(options: argparse.Namespace) -> int:
    from flm_jax import gin_setup
    from flm_jax.json_file import write_json
    from flm_jax.scaling import check_report
    from flm_jax.scaling.coordinate_check import coordinate_check
    from flm_jax.training.described_run import trainer_of

    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to check: give --gin_file=gin_configs/models/flm_tiny.gin, or that of your model"
        )
    trainer = trainer_of(options.gin_file, options.gin_bindings, search_paths(options))
    found = coordinate_check(
        trainer.stages[0].model,
        trainer.optimizer,
        options.widths,
        options.steps,
        options.seeds,
        options.learning_rate,
    )
    print(check_report.table(found))
    if options.json:
        write_json(options.json, check_report.to_json(found))
    if options.figure:
        check_report.figure(found, options.figure)
    return 0 if found.flat else 1
