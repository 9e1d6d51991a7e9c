"""The scripts of `launch/` with stand-ins for gcloud, srun and flm, which write down how they were called."""

import os
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

# `describe` gives the states one after the other; ssh runs the command here. Two rounds of training that end as asked.
_GCLOUD = r"""#!/usr/bin/env bash
echo "gcloud" $* >> "$LOG"
case "$*" in
  *" describe "*)
    state=$(head -n 1 states); sed -i 1d states
    [ "$state" = NOT_FOUND ] && { echo "ERROR: (gcloud) NOT_FOUND: no such resource" >&2; exit 1; }
    [ "$state" = OFFLINE ] && { echo "ERROR: (gcloud) UNAVAILABLE: no network" >&2; exit 1; }
    echo "$state" ;;
  *" ssh "*) for last; do :; done; bash -c "${last#--command=}" ;;
esac
"""
# As pkill -f would: a pattern of the command line matches the shell that asks.
_PKILL = r"""#!/usr/bin/env bash
for word; do [ "$word" = -f ] && kill -TERM $PPID; done
exit 1
"""
_FLM = r"""#!/usr/bin/env bash
echo "flm $*" >> "$LOG"
code=$(head -n 1 codes); sed -i 1d codes; exit "$code"
"""
_NOTHING = "#!/usr/bin/env bash\nexit 0\n"


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run(
    tmp_path: Path, script: str, arguments: list[str], states: list[str], codes: list[int]
) -> tuple[int, list[str]]:
    """Exit code and the calls, in order."""
    for name, text in {"gcloud": _GCLOUD, "pkill": _PKILL, "sleep": _NOTHING, "flm": _FLM}.items():
        _script(tmp_path / "bin" / name, text)
    _script(
        tmp_path / "bin" / "srun",
        '#!/usr/bin/env bash\necho "srun $SRUN_CPUS_PER_TASK" >> "$LOG"\n"${@:2}"\n',
    )
    _script(tmp_path / "bin" / "scontrol", '#!/usr/bin/env bash\necho "scontrol $*" >> "$LOG"\n')
    _script(tmp_path / "flm" / "bin" / "flm", _FLM)
    _script(tmp_path / "flm" / "bin" / "pip", _NOTHING)
    _script(tmp_path / "flm" / "bin" / "activate", "")
    (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
    (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
    settings = {"NAME": "flm", "ZONE": "z", "TYPE": "t", "VERSION": "v", "SLICES": "2", "RUN": "run.gin"}
    settings |= {"SOURCE": "flm_jax[tpu] @ here", "VENV": str(tmp_path / "flm"), "LOG": str(tmp_path / "log")}
    settings |= {
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "8",
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", str(LAUNCH / script), *arguments],
        cwd=tmp_path,
        env=settings,
        timeout=60,
        check=False,
        capture_output=True,
    )
    log = tmp_path / "log"
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def _verbs(calls: list[str]) -> list[str]:
    """What was asked for, without its arguments."""
    known = (" describe ", " create ", " delete ", " ssh ", " scp ")
    return [
        next((name.strip() for name in known if name in call), call.split()[0])
        for call in calls
        if " describe " not in call
    ]


TPU = pytest.mark.parametrize(
    ("script", "ready", "lost"),
    [("tpu_slice.sh", "READY", "PREEMPTED"), ("tpu_multislice.sh", "ACTIVE", "SUSPENDED")],
)
_ROUND = ["ssh", "scp", "ssh", "flm"]


@TPU
def test_a_slice_is_made_and_trained_on(tmp_path: Path, script: str, ready: str, lost: str) -> None:
    del lost
    code, calls = run(tmp_path, script, [], ["NOT_FOUND", "CREATING", ready], [0])
    assert (code, _verbs(calls)) == (0, ["create", *_ROUND])
    assert calls[-1] == "flm train --gin_file=run.gin"


@TPU
def test_a_slice_that_is_lost_is_made_again(tmp_path: Path, script: str, ready: str, lost: str) -> None:
    states = [ready, lost, "NOT_FOUND", ready]
    code, calls = run(tmp_path, script, [], states, [143, 0])
    assert (code, _verbs(calls)) == (0, [*_ROUND, "delete", "create", *_ROUND])


@TPU
def test_a_slice_is_not_deleted_when_nobody_can_tell(
    tmp_path: Path, script: str, ready: str, lost: str
) -> None:
    del lost
    code, calls = run(tmp_path, script, [], ["OFFLINE", "REPAIRING", ready], [0])
    assert (code, _verbs(calls)) == (0, _ROUND)


@TPU
@pytest.mark.parametrize("fault", [1, 2])
def test_what_a_person_must_look_at_ends_the_loop(
    tmp_path: Path, script: str, ready: str, lost: str, fault: int
) -> None:
    del lost
    code, calls = run(tmp_path, script, [], [ready, ready], [fault, 0])
    assert (code, _verbs(calls)) == (42, _ROUND)


@pytest.mark.parametrize(
    ("code", "ends_with", "requeued"),
    [(0, 0, False), (1, 1, False), (2, 2, False), (130, 130, False), (143, 0, True), (134, 0, True)],
)
def test_slurm(tmp_path: Path, code: int, ends_with: int, requeued: bool) -> None:
    found, calls = run(tmp_path, "slurm.sbatch", ["run.gin"], [], [code])
    assert found == ends_with
    assert calls[:2] == ["srun 8", "flm train --gin_file=run.gin"]
    assert calls[2:] == (["scontrol requeue 7"] if requeued else [])


def test_slurm_wants_a_run(tmp_path: Path) -> None:
    code, calls = run(tmp_path, "slurm.sbatch", [], [], [])
    assert code and not calls
