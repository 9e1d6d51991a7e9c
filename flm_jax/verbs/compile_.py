"""`flm compile`."""

import argparse
import sys

from flm_jax.verbs.parsing import add_gin, positive, verb


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    compile_ = verb(
        verbs,
        "compile",
        _compile,
        "compile a run for TPUs or GPUs that are not here: memory, FLOPs, time, layout",
    )
    compile_.add_argument("--topology", required=True, help="such as v5p:4x8x8, 2xv5e:16x16 or a800:24x8")
    compile_.add_argument("--global_batch", type=positive, help="sequences a step, in place of the config's")
    compile_.add_argument("--length", type=positive, help="tokens of a sequence, in place of the config's")
    compile_.add_argument("--stage", type=positive, help="of a run of several; all of them unless given")
    compile_.add_argument(
        "--search", action="store_true", help="find layouts in place of those of the config"
    )
    compile_.add_argument("--json", help="write the report's numbers to this file")
    add_gin(compile_)


def _compile(options: argparse.Namespace) -> int:
    from flm_jax.pods import topology

    topology.prepare_environment()  # before what follows imports jax
    from flm_jax.pods import compiling, request
    from flm_jax.pods.search import NoLayoutError

    def say(line: str) -> None:
        print(f"flm compile: {line}", file=sys.stderr, flush=True)

    try:
        report = compiling.compile_run(request.from_options(options), options.stage, say)
    except NoLayoutError as error:
        say(str(error))
        return 1
    print(report.table())
    if options.json:
        report.write_json(options.json)
    return 0 if report.fits else 1
