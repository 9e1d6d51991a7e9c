"""The ledger of a run: what is kept is what an uninterrupted run has, what is spent is everything."""

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.reader import Reader
from flm_jax.training import hardware
from flm_jax.training.bookkeeper import Bookkeeper
from flm_jax.training.hardware import Peak
from flm_jax.training.ledger import LEDGER_FILE, Entry, Ledger, LedgerError, Work, read_ledger
from flm_jax.training.run import Run
from flm_jax.training.run_log import read_metrics
from flm_jax.training.trainer import Outcome
from tests.compiled_flops import matmul_flops
from tests.models import small_config
from tests.training import runs
from tests.training.test_growth import LARGE, MEDIUM, SMALL, growing

PEAK = Peak(1e12, "a test")
CONFIGS = (small_config(), small_config(num_layers=3))
LENGTH, BATCH, STEPS = 64, 4, (11, 9)  # two stages


class Killed(Exception):
    """In place of a signal: nothing behind it runs."""


def leg(index: int) -> Any:
    """What the books want to know of a stage."""
    return SimpleNamespace(
        index=index,
        config=CONFIGS[index],
        route=SimpleNamespace(length=LENGTH),
        stage=SimpleNamespace(batch_size=BATCH),
        mesh=SimpleNamespace(devices=np.array(jax.devices()[:2])),
    )


def tokens_of(step: int) -> int:
    return BATCH * LENGTH - step % 7


def process(model_dir: Path, resumed: int, kill: int | None, checkpoint: int, log: int) -> int:
    """Simulates one process of a run from a checkpoint on; gives the newest checkpoint when it ends."""
    ticks = itertools.count()
    books = Bookkeeper(model_dir, -1.0, now=lambda: float(next(ticks)))
    saved, step = resumed, resumed
    ends = list(itertools.accumulate(STEPS))
    index = 0 if resumed <= ends[0] else 1  # at the boundary it grows again
    books.begin(leg(index), step, PEAK)
    books.hardware_flops = 10 * (index + 1)
    while True:
        while step < ends[index]:
            with books.spending("training"):
                if step == kill:
                    return saved
                books.step(float(tokens_of(step)))
            step += 1
            if step % log == 0:
                books.write()
            if step % checkpoint == 0 or step == ends[index]:
                books.close_entry()
                saved = step
        if index == len(ends) - 1:
            books.__exit__()
            return saved
        index += 1
        books.begin(leg(index), step, PEAK)
        books.hardware_flops = 10 * (index + 1)


@given(
    kills=st.lists(st.integers(0, sum(STEPS) - 1), max_size=5),
    checkpoint=st.integers(1, 8),
    log=st.integers(1, 5),
)
def test_kept_is_what_an_uninterrupted_run_has(
    tmp_path_factory: pytest.TempPathFactory, kills: list[int], checkpoint: int, log: int
) -> None:
    model_dir, resumed, done = tmp_path_factory.mktemp("run"), 0, 0
    for kill in [kill for kill in kills if kill >= 0]:
        if kill >= resumed:
            before, resumed = resumed, process(model_dir, resumed, kill, checkpoint, log)
            done += max(resumed, kill // log * log) - before  # what was written down when the kill came
    process(model_dir, resumed, None, checkpoint, log)
    done += sum(STEPS) - resumed

    ledger = read_ledger(model_dir)
    ends = [0, *itertools.accumulate(STEPS)]
    for index, (first, last) in enumerate(itertools.pairwise(ends)):
        steps, tokens = last - first, sum(map(tokens_of, range(first, last)))
        rate = CONFIGS[index].flops_per_token(LENGTH)
        cost = ledger.stages[index + 1]
        assert cost.kept == Work(
            steps, tokens, steps * BATCH * LENGTH, int(tokens * rate), steps * 10 * (index + 1)
        )
        assert cost.params == CONFIGS[index].num_params
    total = ledger.total
    assert total.kept.tokens == sum(map(tokens_of, range(sum(STEPS)))) and not ledger.uncovered
    assert total.spent.steps == done and total.spent.tokens >= total.kept.tokens
    for step in (*range(checkpoint, sum(STEPS), checkpoint), *ends[1:]):
        then = ledger.at(step)
        assert then.total.kept.tokens == sum(map(tokens_of, range(step)))
        assert then.total.kept.steps == step <= then.total.spent.steps
        assert then.total.device_hours <= total.device_hours


def test_every_second_counts_once(tmp_path: Path) -> None:
    """The inner of two activities has the time, and what no activity has is `other`."""
    clock = [100.0]
    with Bookkeeper(tmp_path, 90.0, now=lambda: clock[0]) as books:
        books.begin(leg(0), 0, PEAK)  # ten seconds since the start
        books.hardware_flops = 7
        with books.spending("training"):
            clock[0] += 5
            with pytest.raises(Killed), books.spending("evaluating"):
                clock[0] += 3
                raise Killed
            clock[0] += 1
            books.step(100.0)
            assert books.training_seconds() == 6
        clock[0] += 2
    cost = read_ledger(tmp_path).total
    expected = {"training": 6, "compiling": 0, "evaluating": 3, "growing": 0, "saving": 0, "other": 12}
    assert cost.seconds == expected
    assert cost.device_hours == pytest.approx(2 * 21 / 3600)
    assert cost.training_share == pytest.approx(6 / 21)
    assert cost.mfu == pytest.approx(100 * CONFIGS[0].flops_per_token(LENGTH) / 6 / 1e12)


def entry(first: int, last: int, **changes: Any) -> Entry:
    seconds = dict.fromkeys(("training", "compiling", "evaluating", "growing", "saving", "other"), 0.0)
    tokens = 10 * (last - first)
    made = Entry(
        1, 1000, first, last, tokens, tokens, 6 * tokens, 8 * tokens, seconds | {"training": 1800.0}, 8,
        "NVIDIA H100 80GB HBM3", 8e12, 700.0,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def test_energy_is_that_of_the_data_sheet_or_none() -> None:
    assert hardware.watts("NVIDIA H100 80GB HBM3") == hardware.watts("NVIDIA H200") == 700
    assert hardware.watts("NVIDIA A100-SXM4-80GB") == 400 and hardware.watts("NVIDIA A100 80GB PCIe") == 300
    assert hardware.watts("cpu") is None and hardware.watts("TPU v5p chip") is None
    known = Ledger((entry(0, 5), entry(5, 10)))
    assert known.total.kwh == pytest.approx(8 * 0.7) and "700 W for each NVIDIA H100" in known.energy
    half = Ledger((*known.entries, entry(10, 15, device_kind="cpu", watts=None)))
    assert half.total.kwh is None
    assert half.energy == "not estimated: no data sheet gives the power of cpu"
    assert json.loads(half.to_text())["total"]["spent"]["kwh"] is None


def test_flops_that_one_program_does_not_tell_are_not_known() -> None:
    ledger = Ledger((entry(0, 5), entry(5, 10, stage=2, hardware_flops=None)))
    assert ledger.total.kept.hardware_flops is None and ledger.stages[1].kept.hardware_flops == 400
    assert ledger.total.kept.model_flops == 600


def test_steps_of_others_are_not_covered() -> None:
    """From before there was a ledger; and t5x has gone on from 25, and left a checkpoint in mid-entry."""
    ledger = Ledger((entry(10, 20), entry(20, 30), entry(40, 45), entry(45, 50)))
    assert ledger.uncovered == [(0, 10), (30, 40)] and ledger.total.kept.steps == 30
    assert ledger.gaps[0] == "ledger.json does not cover steps 0 to 10" and ledger.gaps[0] in ledger.table()
    between = Ledger((entry(0, 20), entry(20, 30), entry(25, 40)))
    assert between.uncovered == [(20, 25)]
    assert (between.total.kept.steps, between.total.spent.steps) == (35, 45)
    resumed = Ledger((entry(100, 100),))
    assert resumed.uncovered == [(0, 100)]
    with pytest.raises(LedgerError, match="the ledger knows, 20, 40; found 30"):
        between.at(30)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "JSONDecodeError"),
        (lambda text: text.replace('"format": 1', '"format": 7'), "the format is 7"),
        (lambda text: text.replace('"tokens": 50, "positions"', '"positions"'), "'tokens'"),
        (lambda text: text.replace('"last_step": 5', '"last_step": -5'), "last_step is -5"),
        (lambda text: text.replace('"growing"', '"groving"'), "seconds are of training, .*groving"),
        (lambda text: "[]", "TypeError"),
        (lambda text: '{"format": 1, "entries": []}', "there is no entry"),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, damage: Any, message: str) -> None:
    text = Ledger((entry(0, 5),)).to_text()
    assert damage(text) != text
    (tmp_path / LEDGER_FILE).write_text(damage(text))
    for read in (read_ledger, lambda path: Bookkeeper(path, 0.0)):
        with pytest.raises(LedgerError, match=rf"{LEDGER_FILE}, found .*{message}.*move it away"):
            read(tmp_path)
    assert (tmp_path / LEDGER_FILE).read_text() == damage(text)


def test_no_file_and_the_inverse(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"ledger\.json, found none; `flm train` writes it under MODEL_DIR"
    ):
        read_ledger(tmp_path)
    ledger = Ledger((entry(0, 5), entry(5, 5), entry(5, 9, stage=2)))
    (tmp_path / LEDGER_FILE).write_text(ledger.to_text())
    assert read_ledger(tmp_path) == ledger
    assert [line.split()[:2] for line in ledger.table().splitlines()[1:]] == [
        ["stage", "1"],
        ["stage", "2"],
        ["all", "1,000"],
    ]


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_that_grows_and_is_killed(
    prepared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Killed behind step 3 and, grown, behind step 8, with a checkpoint every other step and at the stage's end."""

    def start(directory: Path) -> Outcome:
        return growing(directory, prepared_dir, checkpoint_period=2, eval_period=6).run()

    programs: list[tuple[int, int]] = []  # FLOPs of a step: as compiled, as the books have it
    compile_step = Run._compile

    def compiled(self: Run) -> None:
        compile_step(self)
        assert self.books.hardware_flops is not None
        programs.append((matmul_flops(self._train_step.as_text()), self.books.hardware_flops))

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_compile", compiled)
        assert start(tmp_path / "whole") is Outcome.FINISHED
    assert len(programs) == 4  # the second stage under its mask, and without
    for by_compiler, by_books in programs:
        assert by_books == pytest.approx(by_compiler, rel=0.02)
    printed = capsys.readouterr().out
    one_step = Run._one_step
    for kill in (3, 9):

        def killed(self: Run, feed: Any, kill: int = kill) -> None:
            one_step(self, feed)
            if self.last_step == kill:
                monkeypatch.setattr(self.books, "write", lambda: None)  # so is what it does when it ends
                raise Killed

        monkeypatch.setattr(Run, "_one_step", killed)
        with pytest.raises(Killed):
            start(tmp_path / "parts")
    monkeypatch.setattr(Run, "_one_step", one_step)
    assert start(tmp_path / "parts") is Outcome.FINISHED

    whole, parts = read_ledger(tmp_path / "whole"), read_ledger(tmp_path / "parts")
    assert [cost.kept for cost in parts.stages.values()] == [cost.kept for cost in whole.stages.values()]
    assert whole.total.kept == whole.total.spent == parts.total.kept
    assert parts.total.spent.steps == 15 + (3 - 2) + (9 - 8)
    assert whole.at(8).total.kept == parts.at(8).total.kept
    for row in whole.table().splitlines():
        assert row[:84] in printed  # up to the FLOPs; behind these the time has gone on

    # By another way: the tokens from the data, the FLOPs from the configs.
    reader = Reader(prepared_dir, runs.MIXTURE, {"targets": 64}, seed=0)
    for index, (config, first, size) in enumerate([(SMALL, 0, 40), (MEDIUM, 40, 40), (LARGE, 80, 20)], 1):
        cost = whole.stages[index]
        tokens = int((reader.batch(first, size)["decoder_segment_ids"] > 0).sum())
        assert (cost.params, cost.kept.steps, cost.kept.tokens) == (config.num_params, 5, tokens)
        assert cost.kept.positions == size * 64 > tokens
        assert cost.kept.model_flops == tokens * config.flops_per_token(64)
        assert cost.kept.hardware_flops == pytest.approx(
            size * 64 * config.hardware_flops_per_token(64), rel=0.01
        )
        assert cost.seconds["training"] > 0 and (cost.seconds["growing"] > 0) == (index > 1)
        assert cost.seconds["compiling"] > 0 and cost.seconds["saving"] > 0 and cost.seconds["evaluating"] > 0
    last = read_metrics(tmp_path / "parts")[-1]
    logged = [record for record in read_metrics(tmp_path / "parts") if "train/tokens" in record][-1]
    assert whole.total.kept.positions == logged["train/tokens"] and last["step"] == 15


@pytest.mark.usefixtures("quick_compilation")
def test_a_run_from_before_there_was_a_ledger(
    prepared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    runs.trainer(tmp_path, prepared_dir, train_steps=5).run()
    (tmp_path / LEDGER_FILE).unlink()
    capsys.readouterr()
    assert runs.trainer(tmp_path, prepared_dir, train_steps=8).run() is Outcome.FINISHED
    assert capsys.readouterr().out.count("ledger.json does not cover steps 0 to 5") == 2
    ledger = read_ledger(tmp_path)
    assert ledger.uncovered == [(0, 5)] and ledger.total.kept.steps == 3
    (tmp_path / LEDGER_FILE).write_text("{")
    with pytest.raises(LedgerError, match="move it away"):
        runs.trainer(tmp_path, prepared_dir).run()
