"""`flm eval`."""

import argparse
import sys
from typing import TYPE_CHECKING

from flm_jax.verbs.parsing import add_mesh, mesh_shape, names, not_negative, positive, verb

if TYPE_CHECKING:
    from flm_jax.evaluation.suites import Suite


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    evaluate = verb(
        verbs,
        "eval",
        _eval,
        "measure checkpoints: loss on held-out text, the IQ suite, benchmarks; several of them side by side",
    )
    of = evaluate.add_argument_group("which checkpoints")
    of.add_argument(
        "--model_dir",
        action="append",
        required=True,
        help="a run's directory, of `flm train` or of t5x; repeat for several",
    )
    of.add_argument(
        "--step", type=int, action="append", default=[], help="of one run; repeat; the newest unless given"
    )
    of.add_argument("--stages", action="store_true", help="the last checkpoint of each stage of the runs")
    of.add_argument("--tokenizer", help="the file of the tokenizer; that of the prepared tasks unless given")

    what = evaluate.add_argument_group("what to measure")
    what.add_argument("--prepared_dir", help="loss on its held-out text: what `flm data prepare` wrote")
    what.add_argument("--num_sequences", type=positive, help="of each prepared task; all unless given")
    _add_iq(what)
    _add_benchmarks(what)

    how = evaluate.add_argument_group("how, and where to")
    how.add_argument("--batch_size", type=positive, default=32, help="sequences or questions at a time")
    add_mesh(evaluate)
    how.add_argument("--json", help="write the numbers to this file")
    how.add_argument("--report", help="write report.json, report.md and report.png to this directory")


def _add_iq(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--suite", choices=["iq"], help="the generated tasks of the paper's IQ test")
    what.add_argument(
        "--iq_tasks", type=names, help="of the suite, with commas between them; all unless given"
    )
    what.add_argument("--languages", type=names, help="en,zh unless given")
    what.add_argument("--num_items", type=positive, help="questions of each task; the paper's unless given")
    what.add_argument(
        "--shots", type=not_negative, help="examples before each question; the paper's unless given"
    )
    what.add_argument("--symbolic_dir", help="with the files of SuperGLUE and CLUE: symbolic mapping too")
    what.add_argument("--seed", type=int, help="of the questions; 0 unless given")


def _add_benchmarks(what: argparse._ArgumentGroup) -> None:
    what.add_argument(
        "--tasks", type=names, default=[], help="of lm-eval, with commas between them: mmlu,hellaswag"
    )
    what.add_argument(
        "--num_fewshot", type=not_negative, help="examples before each question; the task's unless given"
    )
    what.add_argument("--limit", type=positive, help="questions of each task; all unless given")
    what.add_argument("--data_dir", help="read their data from files here, without a network")
    what.add_argument("--include_path", help="a directory with tasks of your own")


# What asks the questions, and the flags that say how.
_SETTINGS = {
    "prepared_dir": ("num_sequences",),
    "suite": ("iq_tasks", "languages", "num_items", "shots", "symbolic_dir", "seed"),
    "tasks": ("num_fewshot", "limit", "data_dir", "include_path"),
}


def _check_settings(options: argparse.Namespace) -> None:
    for asks, settings in _SETTINGS.items():
        idle = [f"--{name}" for name in settings if getattr(options, name) is not None]
        if idle and not getattr(options, asks):
            raise ValueError(
                f"{', '.join(idle)} would change nothing without --{asks}: give that too, or leave it out"
            )


def _eval(options: argparse.Namespace) -> int:
    _check_settings(options)
    from flm_jax.evaluation.evaluating import Request, evaluate
    from flm_jax.json_file import write_json

    def say(line: str) -> None:
        print(f"flm eval: {line}", file=sys.stderr, flush=True)

    request = Request(
        checkpoints=_checkpoints(options),
        prepared_dir=options.prepared_dir,
        suites=_suites(options),
        tokenizer=options.tokenizer,
        mesh=mesh_shape(options),
        batch_size=options.batch_size,
        num_sequences=options.num_sequences,
    )
    report = evaluate(request, say)
    print(report.table())
    if options.json:
        one = len(report.checkpoints) == 1
        write_json(options.json, report.checkpoints[0].to_json() if one else report.to_json())
    if options.report:
        for path in report.write(options.report):
            say(f"wrote {path}")
    return 0


def _checkpoints(options: argparse.Namespace) -> list[tuple[str, int | None]]:
    from flm_jax.evaluation.opened import stage_ends

    if options.stages:
        if options.step:
            raise ValueError("--stages and --step both say which checkpoints: give one of them")
        return [(directory, step) for directory in options.model_dir for step in stage_ends(directory)]
    if options.step:
        if len(options.model_dir) > 1:
            raise ValueError(
                f"--step is a checkpoint of one run, found {len(options.model_dir)} of --model_dir: leave it out for "
                "the newest of each, or give --stages"
            )
        return [(options.model_dir[0], step) for step in options.step]
    return [(directory, None) for directory in options.model_dir]


def _suites(options: argparse.Namespace) -> "list[Suite]":
    suites: list[Suite] = []
    if options.suite == "iq":
        from flm_jax.evaluation.iq_suite import IqSuite

        suites.append(
            IqSuite(
                tasks=options.iq_tasks,
                languages=options.languages or ("en", "zh"),
                num_items=options.num_items,
                shots=options.shots,
                symbolic_dir=options.symbolic_dir,
                seed=options.seed or 0,
            )
        )
    if options.tasks:
        from flm_jax.evaluation.benchmark_suite import BenchmarkSuite

        suites.append(
            BenchmarkSuite(
                tasks=options.tasks,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                data_dir=options.data_dir,
                include_path=options.include_path,
            )
        )
    return suites
