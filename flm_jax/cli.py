"""`flm VERB ...`, also `python -m flm_jax VERB ...`.

Exit codes: 0 done; 1 a run gave up (gradients not finite) or the program is at fault; 2 a flag, gin binding, file or
checkpoint is wrong; 130 interrupted by Ctrl-C; 143 a run was stopped by SIGTERM, its state saved: the same command goes
on with it.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence

from flm_jax import __version__, gin_setup
from flm_jax.verbs import budget, compile_, evaluate, generate, mup, scaling, tokenizer, weights
from flm_jax.verbs.parsing import add_gin, parse_gin, positive, verb

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_UNREAD, EXIT_STOPPED = 1, 2, 130, 141, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    try:
        options.gin_bindings = _gin_bindings(rest, getattr(options, "takes_gin", False), parser)
        code = options.run(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads what is printed, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if os.environ.get("FLM_TRACEBACK"):
            raise
        named = " ".join(filter(None, (options.verb, getattr(options, "action", None))))
        # gin adds lines that say which binding was at work; one mistake is one line here, but for lists.
        message = re.sub(r"\n(?!  (?!In call))\s*", " ", str(error).strip())
        message = re.sub(r"(In call to configurable '\S+') \(<.*?>\)", r"(\1)", message)
        print(f"flm {named}: error: {message} (FLM_TRACEBACK=1 shows where)", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("flm: interrupted; the same command goes on with what is saved", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flm", description=__doc__.split("\n\n")[1], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"flm_jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verb(verbs, "train", _train, "train a model, or go on with it; everything comes from gin")
    train.add_argument("--coordinator", help="HOST:PORT of process 0, where several processes train together")
    train.add_argument("--num_processes", type=positive, help="in all")
    train.add_argument("--process_id", type=int, help="of this one, from 0")
    train.add_argument(
        "--dry_run",
        action="store_true",
        help="check everything but the data, say what each process would do, and stop",
    )
    train.add_argument("--topology", help="of a dry run: devices that are not here, as in `flm compile`")
    add_gin(train)

    data = verbs.add_parser("data", help="prepare text for training").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    prepare = verb(data, "prepare", _prepare, "tokenize, chunk and pack tasks into record files")
    prepare.add_argument(
        "--overwrite", action="store_true", help="replace tasks prepared with other settings"
    )
    add_gin(prepare)

    _add_inspect(data)

    tokenizer.add(verbs)
    _add_grow(verbs)

    budget.add(verbs)
    compile_.add(verbs)
    scaling.add(verbs)
    mup.add(verbs)
    generate.add(verbs)
    weights.add(verbs)
    evaluate.add(verbs)

    demo = verb(
        verbs, "demo", _demo, "train and grow a small English-Chinese model on text found on this machine"
    )
    demo.add_argument("--out", default="demo_out", help="directory of everything that is made")
    demo.add_argument("--json", help="write the closing table's numbers to this file")
    demo.set_defaults(takes_gin=True)
    demo.epilog = "--gin.NAME=value is handed on to `flm train`, e.g. --gin.STEPS_SMALL=50."
    return parser


def _add_inspect(data: argparse._SubParsersAction) -> None:
    inspect = verb(
        data, "inspect", _inspect, "what is in sources, or in prepared tasks: counts, samples, problems"
    )
    inspect.add_argument("--prepared_dir", help="what `flm data prepare` wrote, in place of --gin_file")
    inspect.add_argument("--task", action="append", default=[], help="repeat for several; all unless given")
    inspect.add_argument("--split", default="train")
    inspect.add_argument("--num_documents", type=positive, default=1000, help="to read of each task")
    inspect.add_argument("--all", action="store_true", help="read all documents")
    inspect.add_argument("--samples", type=positive, default=2, help="to show of each task")
    inspect.add_argument("--json", help="write what was found to this file")
    add_gin(inspect)


def _add_grow(verbs: argparse._SubParsersAction) -> None:
    grow = verb(
        verbs, "grow", _grow, "grow a checkpoint into one of a larger model, which `flm train` goes on with"
    )
    grow.add_argument(
        "--checkpoint", required=True, help="MODEL_DIR/checkpoint_<step>, or MODEL_DIR for the newest"
    )
    grow.add_argument(
        "--target",
        action="append",
        default=[],
        help="gin file with the larger ModelConfig, over the checkpoint's own; or that of a run with stages, whose "
        "next stage then says how to grow; repeat for several",
    )
    grow.add_argument("--out", required=True, help="MODEL_DIR of the run that goes on; empty, or not there")
    grow.add_argument(
        "--method",
        help="such as lemon, or an operator for each axis: embed=average,layers=zero; msg unless given",
    )
    grow.add_argument(
        "--ramp_steps", type=positive, help="over which the method's mask opens, if it has one; 100"
    )
    grow.add_argument("--optimizer_state", help="carry (default), age, asymmetric or reset")
    grow.add_argument("--multipliers", help="carry (default) or rederive")
    grow.add_argument(
        "--batch_size", type=positive, help="of the run that goes on; the checkpoint's unless given"
    )
    grow.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    grow.add_argument(
        "--no_verify",
        action="store_true",
        help="do not compare both models first, for which both must fit into memory",
    )
    add_gin(grow, files=False)


def _gin_bindings(rest: Sequence[str], takes_gin: bool, parser: argparse.ArgumentParser) -> list[str]:
    wrong = [flag for flag in rest if not (takes_gin and flag.startswith("--gin.") and "=" in flag)]
    if wrong:
        hint = "; gin bindings are --gin.NAME=value" if takes_gin else ""
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    return [flag.removeprefix("--gin.") for flag in rest]


def _train(options: argparse.Namespace) -> int:
    from flm_jax import allocator
    from flm_jax.pods import topology

    allocator.keep_freed_memory()  # before what follows imports jax
    if options.topology:
        if not options.dry_run:
            raise gin_setup.GinError(
                "--topology is that of a --dry_run: a run takes the devices that are there"
            )
        topology.prepare_environment()
    import gin

    from flm_jax.grow.errors import FunctionChangedError
    from flm_jax.training import processes, trainer

    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to train: give --gin_file=gin_configs/models/flm_tiny.gin, a --gin_file with data and "
            "--gin_file=gin_configs/runs/pretrain.gin (see the README)"
        )
    processes.join(options.coordinator, options.num_processes, options.process_id)
    parse_gin(options)
    run = gin_setup.built(gin.get_configurable(trainer.Trainer))
    if options.dry_run:
        from flm_jax.pods import launch

        devices = topology.parse(options.topology).devices() if options.topology else None
        if processes.is_first():
            print(launch.dry_run(run, devices))
        return 0
    try:
        outcome = run.run()
    except (trainer.TrainingAbortedError, FunctionChangedError) as error:
        print(f"flm train: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0 if outcome is trainer.Outcome.FINISHED else EXIT_STOPPED


def _prepare(options: argparse.Namespace) -> int:
    import gin

    from flm_jax.tasks import prepare

    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to prepare: give --gin_file=gin_configs/data/..., or your own"
        )
    parse_gin(options)
    gin.get_configurable(prepare.prepare)(overwrite=options.overwrite)
    return 0


def _inspect(options: argparse.Namespace) -> int:
    import gin

    from flm_jax.tasks import inspection

    if options.prepared_dir:
        found = inspection.inspect_prepared(options.prepared_dir, options.task)
    elif options.gin_file:
        options.gin_file.append("gin_configs/data/inspect.gin")
        parse_gin(options)
        found = gin.get_configurable(inspection.inspect)(
            names=options.task,
            split=options.split,
            num_documents=None if options.all else options.num_documents,
            num_samples=options.samples,
        )
    else:
        raise gin_setup.GinError(
            "nothing says what to inspect: give --gin_file with the data, or --prepared_dir"
        )
    print("\n".join(each.report() for each in found))
    if options.json:
        inspection.write(options.json, found)
    return 0


def _grow(options: argparse.Namespace) -> int:
    from flm_jax.grow.errors import FunctionChangedError
    from flm_jax.training import growth_request

    growth, out = growth_request.from_options(options)
    growth.check_empty(out)
    print(growth.describe())
    if options.dry_run:
        return 0
    try:
        growth_request.carry_out(growth, out, verifies=not options.no_verify)
    except FunctionChangedError as error:
        print(f"flm grow: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _demo(options: argparse.Namespace) -> int:
    from flm_jax.demo.run import DemoError, demo

    try:
        demo(options.out, options.json, [f"--gin.{binding}" for binding in options.gin_bindings])
    except DemoError as error:
        print(f"flm demo: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0
