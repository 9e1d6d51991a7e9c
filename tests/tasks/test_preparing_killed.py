"""`prepare` in processes, killed at any moment and started again: the files are those of one undisturbed process."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.manifest import Manifest
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.shards import shards
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary
from tests import prepared_data

SHARD_BYTES = 20_000

PREPARE = """
import sys
from flm_jax.tasks.corpora import Corpus
from flm_jax.tasks.prepare import prepare
from flm_jax.tasks.sources import JsonLines
from flm_jax.tasks.vocabulary import Vocabulary

def main(text, tokenizer, out, num_workers, shard_bytes):
    task = Corpus("en", JsonLines(text, validation_every=10))
    prepare([task], Vocabulary(tokenizer), 32, out, shard_bytes=int(shard_bytes), num_workers=int(num_workers))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files, with bad lines; about 20 shards."""
    folder = tmp_path_factory.mktemp("text")
    lines = prepared_data.write_texts(folder, documents=900)["en"].read_bytes().splitlines(keepends=True)
    for number in (3, 400, 401, 899):
        lines[number] = b"broken %d\n" % number
    (folder / "a.jsonl").write_bytes(b"".join(lines[:600]))
    (folder / "b.jsonl").write_bytes(b"".join(lines[600:]))
    return folder / "[ab].jsonl"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(
    text: Path, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The files of one process that is left alone."""
    out = tmp_path_factory.mktemp("undisturbed")
    task = Corpus("en", JsonLines(str(text), validation_every=10))
    manifest = prepare([task], vocabulary, 32, out, shard_bytes=SHARD_BYTES, num_workers=1)["en"]
    assert len(manifest.splits["train"].files) > 15 and manifest.problems["count"] == 4
    return hashes(out / "en")


def start(text: Path, vocabulary: Vocabulary, out: Path, num_workers: int) -> subprocess.Popen:
    script = out.parent / "script.py"
    script.write_text(PREPARE)
    arguments = [text, vocabulary.path, out, num_workers, SHARD_BYTES]
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env={**os.environ, "PYTHONPATH": os.getcwd()},
        stderr=subprocess.PIPE, start_new_session=True, text=True,
    )  # fmt: skip


def processes_of(session: int) -> list[int]:
    """That are still there, of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


@pytest.mark.parametrize(("num_workers", "whole"), [(1, 1), (2, 12)])
def test_killed_and_started_again(
    text: Path, vocabulary: Vocabulary, undisturbed: dict[str, str], tmp_path: Path, num_workers: int, whole: int
) -> None:  # fmt: skip
    out = tmp_path / "out"
    parts = out / ".en.partial" / "parts"
    process = start(text, vocabulary, out, num_workers)
    give_up = time.monotonic() + 120
    while len(list(parts.glob("*.json"))) < whole:
        assert process.poll() is None and time.monotonic() < give_up, process.communicate()
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "en").exists()  # killed in time
    while left := processes_of(process.pid):
        assert time.monotonic() < give_up, left
        time.sleep(0.1)
    there = len(list(parts.glob("*.json")))
    assert there >= whole
    again = start(text, vocabulary, out, num_workers)
    _, told = again.communicate(timeout=300)
    assert again.returncode == 0, told
    assert "shards of train are there, going on behind them" in told
    assert hashes(out / "en") == undisturbed
    assert [path.name for path in out.iterdir()] == ["en"]


def test_any_shards_that_are_whole_are_used(
    text: Path, vocabulary: Vocabulary, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    """Processes end out of order: the third shard may be there, and the second not."""
    task = Corpus("en", JsonLines(str(text), validation_every=10))
    partial = tmp_path / ".en.partial"

    class Killed(BaseException):
        pass

    def killed(manifest: Manifest, folder: Path) -> None:
        for number in (1, 4, 5):
            (folder / f"train-{number:05d}.array_record").unlink()
            (folder / "parts" / f"train-{number:05d}.json").unlink()
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Manifest, "write", killed)
        prepare([task], vocabulary, 32, tmp_path, shard_bytes=SHARD_BYTES, num_workers=1)
    kept = (partial / "train-00003.array_record").stat().st_mtime_ns
    prepare([task], vocabulary, 32, tmp_path, shard_bytes=SHARD_BYTES, num_workers=1)
    assert hashes(tmp_path / "en") == undisturbed
    assert (tmp_path / "en" / "train-00003.array_record").stat().st_mtime_ns == kept


def test_what_another_definition_has_left_is_not_used(
    text: Path, vocabulary: Vocabulary, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    partial = tmp_path / ".en.partial"
    (partial / "parts").mkdir(parents=True)
    (partial / "parts" / "train-00000.json").write_text('{"request": "another"}')
    (partial / "definition.json").write_text(json.dumps({"length": 16}))
    task = Corpus("en", JsonLines(str(text), validation_every=10))
    prepare([task], vocabulary, 32, tmp_path, shard_bytes=SHARD_BYTES, num_workers=1)
    assert hashes(tmp_path / "en") == undisturbed


@given(cut=st.integers(1, 30_000), data=st.data())
def test_shards_are_the_records_in_order_from_any_of_them_on(
    text: Path, cut: int, data: st.DataObject
) -> None:
    source = JsonLines(str(text), validation_every=10)
    for split in source.splits:
        found = list(shards(source, split, cut))
        assert [shard.number for shard in found] == list(range(len(found)))
        records = [record for shard in found for record in shard.records]
        assert records == list(source.records(split))
        assert all(sum(record.size for record in shard.records[:-1]) < cut for shard in found)
        behind = data.draw(st.integers(1, len(found)))
        later = list(shards(source, split, cut, behind, found[behind - 1].end))
        assert later == found[behind:]


def test_an_error_in_a_process_is_the_error(text: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    changed = tmp_path / "tokenizer.model"
    changed.write_bytes(vocabulary.path.read_bytes())
    opened = Vocabulary(changed)
    changed.write_bytes(b"something else")
    task = Corpus("en", JsonLines(str(text)))
    with pytest.raises(ValueError, match=r"tokenizer\.model"):
        prepare([task], opened, 32, tmp_path / "out", shard_bytes=SHARD_BYTES, num_workers=2)


def test_settings_are_checked(text: Path, vocabulary: Vocabulary, tmp_path: Path) -> None:
    task = Corpus("en", JsonLines(str(text)))
    for wrong in itertools.chain([{"shard_bytes": 0}], [{"num_workers": 0}], [{"max_bad_share": -0.1}]):
        with pytest.raises(ValueError, match=r"prepare\.shard_bytes and prepare\.num_workers"):
            prepare([task], vocabulary, 32, tmp_path, **wrong)
