"""`flm budget paper, ledger, plan`."""

import argparse
import math
import shlex
from typing import TYPE_CHECKING, Any

from flm_jax import gin_setup
from flm_jax.verbs.parsing import add_gin, positive, search_paths, verb

if TYPE_CHECKING:
    from flm_jax.budget.costs import CostTable
    from flm_jax.budget.rates import Rates

_SPEEDS = ("mfu", "hfu", "tokens_per_second")
# What describes a run that is planned, and has no meaning for one that was measured.
_PLANNED = ("gin_file", "hardware", "num_devices", *_SPEEDS, "length", "global_batch")
_SHAPE = "gin_configs/models/flm_101b.gin"


def add(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb."""
    actions = verbs.add_parser(
        "budget", help="what a run costs, and which run a budget should buy"
    ).add_subparsers(dest="action", required=True, metavar="ACTION")
    paper = verb(actions, "paper", _paper, "the cost tables of FLM-101B, figure by figure")
    paper.add_argument("--json", help="write the numbers to this file")
    _add_ledger(actions)
    _add_plan(actions)


def _add_ledger(actions: argparse._SubParsersAction) -> None:
    ledger = verb(
        actions, "ledger", _ledger, "cost of a run's stages, beside its last model trained from scratch"
    )
    ledger.add_argument(
        "--run",
        metavar="MODEL_DIR",
        dest="model_dir",
        help="of a run that flm train has measured, in place of gin files, machine and speed",
    )
    _add_machine(ledger, required=False)
    speed = ledger.add_mutually_exclusive_group()
    speed.add_argument(
        "--mfu", type=_numbers, help="share of the peak in model FLOPs; one number, or one a stage: .43,.42"
    )
    speed.add_argument(
        "--hfu", type=_numbers, help="in all FLOPs, recomputed ones (remat) included; likewise"
    )
    speed.add_argument(
        "--tokens_per_second", type=_numbers, help="measured, of all devices together; likewise"
    )
    ledger.add_argument(
        "--factor",
        type=float,
        default=72,
        help="k of the paper's formula: 72 (default) without, 96 with full recomputation",
    )
    ledger.add_argument("--length", type=positive, help="tokens of a sequence, in place of the config's")
    ledger.add_argument("--global_batch", type=positive, help="sequences a step, in place of the config's")
    ledger.add_argument("--law", help="also predict the loss: see `flm budget plan`")
    ledger.add_argument("--carryover", type=float, default=1.0, help="see `flm budget plan`")
    ledger.add_argument("--json", help="write the numbers to this file")
    add_gin(ledger)


def _add_plan(actions: argparse._SubParsersAction) -> None:
    plan = verb(actions, "plan", _plan, "the schedule with the lowest predicted loss for a budget")
    plan.add_argument("--budget", type=float, required=True, help="how much there is to spend")
    plan.add_argument("--unit", choices=("dollars", "device_hours", "days"), default="dollars")
    _add_machine(plan)
    plan.add_argument(
        "--mfu", type=float, required=True, help="share of the peak in model FLOPs, of all sizes"
    )
    plan.add_argument(
        "--law",
        required=True,
        help="besiroglu2024, hoffmann2022, or a JSON file with the keys E, A, alpha, B, beta (`flm scaling fit`)",
    )
    plan.add_argument(
        "--carryover", type=float, default=1.0, help="share of the tokens' worth that growing keeps; 1"
    )
    plan.add_argument("--max_stages", type=positive, default=3, help="at most so many; 1 never grows")
    plan.add_argument(
        "--min_share", type=float, default=0.05, help="of all tokens, that each stage has at least"
    )
    plan.add_argument(
        "--min_gain", type=float, default=0.01, help="share of the budget that growing must be worth; 0.01"
    )
    plan.add_argument("--tokens", type=float, default=math.inf, help="that there are, such as 3e11; no limit")
    plan.add_argument("--length", type=positive, help="tokens of a sequence; the model file's max_length")
    plan.add_argument("--batch_size", type=positive, default=2304, help="sequences a step; FLM-101B's 2304")
    plan.add_argument(
        "--learning_rate", type=float, default=4e-4, help="first peak, at the µP base width; FLM-101B's 4e-4"
    )
    plan.add_argument(
        "--heads_multiple",
        type=positive,
        default=1,
        help="heads of all sizes are a multiple of it; such as the devices of tensor parallelism",
    )
    plan.add_argument("--out", help="the gin file to write, for `flm train`")
    plan.add_argument("--json", help="write the numbers to this file")
    add_gin(plan)
    plan.epilog = f"--gin_file is a model's, whose proportions all sizes have; {_SHAPE} unless given."


def _add_machine(parser: argparse.ArgumentParser, required: bool = True) -> None:
    parser.add_argument(
        "--hardware", required=required, help="a chip of flm_jax/chips.py, such as a800 or v5p"
    )
    parser.add_argument("--num_devices", type=positive, required=required, help="that the run holds")
    parser.add_argument("--price", type=float, help="dollars for one device-hour")
    parser.add_argument("--watts", type=float, help="of one device; the data sheet's, which GPUs have")
    parser.add_argument("--pue", type=float, help="of the data centre; 1.10")
    parser.add_argument("--grid", type=float, help="tonnes of CO2 equivalent a MWh; 0.429, the US average")


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _rates(options: argparse.Namespace) -> "Rates":
    from flm_jax.budget.rates import Rates

    given = {
        name: value for name in ("price", "watts", "pue", "grid") if (value := getattr(options, name)) is not None
    }  # fmt: skip
    return Rates(**given)


def _write(file: str | None, numbers: dict[str, Any]) -> None:
    from flm_jax.json_file import write_json

    if file:
        write_json(file, numbers)


def _paper(options: argparse.Namespace) -> int:
    from flm_jax.budget import paper

    print(paper.table())
    _write(options.json, paper.to_json())
    return 0


def _ledger(options: argparse.Namespace) -> int:
    from flm_jax.budget.prediction import Prediction
    from flm_jax.budget.problem import Problem
    from flm_jax.scaling import published_laws

    law = published_laws.named(options.law) if options.law else None
    found = _planned(options) if options.model_dir is None else _measured(options)
    print(found.table())
    numbers = found.to_json()
    if law is not None:
        Problem(law, found.total.model_flops, options.carryover)  # refuses a carryover that is none
        prediction = Prediction.of(found, law, options.carryover)
        print(prediction.summary())
        numbers["prediction"] = vars(prediction)
    _write(options.json, numbers)
    return 0


def _measured(options: argparse.Namespace) -> "CostTable":
    """Of a run that was trained."""
    from flm_jax.budget import measured

    given = [f"--{name}" for name in (*_PLANNED, "gin_search_paths") if getattr(options, name)]
    given += [f"--gin.{binding}" for binding in options.gin_bindings]
    if given:
        raise ValueError(
            f"--run={options.model_dir} has been measured: leave out {', '.join(given)}, which is for a "
            "run that is planned"
        )
    return measured.cost_table(options.model_dir, _rates(options), options.factor)


def _planned(options: argparse.Namespace) -> "CostTable":
    """Of the run that gin files describe."""
    from flm_jax.budget.costs import CostTable, PlannedStage, Speed
    from flm_jax.budget.machine import Machine
    from flm_jax.grow.schedule import Route
    from flm_jax.tasks.packing import sequence_length
    from flm_jax.training import described_run

    if not options.gin_file:
        raise gin_setup.GinError(
            "nothing says what to count: give --run=MODEL_DIR of a run that was trained, or all --gin_file of one, "
            "such as gin_configs/models/flm_101b.gin and gin_configs/growth/flm_101b.gin behind "
            "gin_configs/runs/pretrain.gin"
        )
    measure = next((name for name in _SPEEDS if getattr(options, name)), None)
    if not options.hardware or not options.num_devices or measure is None:
        raise ValueError(
            "a run that is planned needs --hardware, --num_devices and one of --mfu, --hfu and --tokens_per_second "
            "(one that was trained: --run=MODEL_DIR alone)"
        )
    machine = Machine.of(options.hardware, options.num_devices, _rates(options))
    speed = Speed(measure, getattr(options, measure))
    run = described_run.trainer_of(
        options.gin_file,
        options.gin_bindings,
        search_paths(options),
        options.length,
        options.global_batch,
        steps_required=True,
    )
    route = Route.of(run.stages, sequence_length(run.task_feature_lengths))
    stages = [
        PlannedStage(
            str(index + 1),
            route.config(index),
            stage.num_steps(route.length),
            stage.batch_size,
            route.length,
        )
        for index, stage in enumerate(route.stages)
    ]
    return CostTable.of(stages, machine, speed, options.factor)


def _plan(options: argparse.Namespace) -> int:
    import gin

    from flm_jax.budget import emit, plan_report, planner
    from flm_jax.budget.machine import Machine
    from flm_jax.config import ModelConfig
    from flm_jax.json_file import write_text
    from flm_jax.scaling import published_laws

    machine = Machine.of(options.hardware, options.num_devices, _rates(options))
    files = options.gin_file or [_SHAPE]
    gin_setup.parse(files, options.gin_bindings, search_paths(options))
    shape = gin_setup.built(gin.get_configurable(ModelConfig))
    if not options.learning_rate > 0:
        raise ValueError(f"--learning_rate must be positive, found {options.learning_rate}")
    found = planner.plan(
        planner.Wish(
            shape=shape,
            machine=machine,
            mfu=options.mfu,
            seconds=machine.seconds(options.budget, options.unit),
            law=published_laws.named(options.law),
            length=options.length or shape.max_length,
            batch_size=options.batch_size,
            carryover=options.carryover,
            max_stages=options.max_stages,
            min_share=options.min_share,
            min_gain=options.min_gain,
            max_tokens=options.tokens,
            heads_multiple=options.heads_multiple,
        )
    )
    print(plan_report.table(found))
    if options.out:
        bindings = [f"--gin.{binding}" for binding in options.gin_bindings]
        model = [*(f"--gin_file={file}" for file in files), *bindings]
        text = emit.gin(found, _command(options), shlex.join(model), options.learning_rate)
        write_text(options.out, text)
        print(f"written: {options.out}")
    _write(options.json, plan_report.to_json(found))
    return 0


def _command(options: argparse.Namespace) -> str:
    """What was asked for, with every default that was taken: the answer depends on them too."""
    names = ("budget", "unit", "hardware", "num_devices", "price", "watts", "pue", "grid", "mfu", "law", "carryover",
             "max_stages", "min_share", "min_gain", "tokens", "length", "batch_size", "learning_rate",
             "heads_multiple")  # fmt: skip
    values = {name: getattr(options, name) for name in names}
    flags = [f"--{name}={value}" for name, value in values.items() if value not in (None, math.inf)]
    files = [f"--gin_file={file}" for file in options.gin_file]
    return shlex.join(
        ["flm", "budget", "plan", *files, *flags, *(f"--gin.{each}" for each in options.gin_bindings)]
    )
