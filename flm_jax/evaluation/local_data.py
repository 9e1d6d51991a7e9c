"""Benchmarks of lm-eval on files of this machine, in place of the Hugging Face Hub.

A task reads `DATA_DIR/TASK.SPLIT.jsonl`, `DATA_DIR/TASK/SPLIT.jsonl`, or either with `.gz`: rows as the stock task's
data set has them. Prompts, choices and metrics stay those of the stock task: a YAML of ours includes it and changes
where rows come from.
"""

import contextlib
import difflib
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_SHOWN = 5  # problems of a kind


def leaves(index: Mapping[str, Any], name: str) -> list[str]:
    """The tasks behind a name of lm-eval's index: its own, or those of the group or tag, in their order."""
    entry = index[name]
    if entry.kind.name == "TAG":
        return sorted(entry.tags)
    if entry.kind.name != "GROUP":
        return [name]
    return [leaf for member in entry.cfg["task"] for leaf in _members(index, member)]


def _members(index: Mapping[str, Any], member: Any) -> list[str]:
    """Of an entry in a group's list: a name, a task with other settings, or a group that is written out there."""
    if isinstance(member, str):
        return leaves(index, member) if member in index else [member]
    if member.get("group", None) in index:
        return leaves(index, member["group"])
    inner = member["task"]
    return (
        [leaf for each in inner for leaf in _members(index, each)]
        if isinstance(inner, list)
        else _members(index, inner)
    )


@contextlib.contextmanager
def local_data(
    index: Mapping[str, Any], names: list[str], data_dir: Path, scratch: Path, num_fewshot: int | None
) -> Iterator[dict[str, list[Path]]]:
    """While it lasts, lm-eval's tasks of these names read files of `data_dir`; gives the files of each.

    Args:
        index: Of a `TaskManager`.
        names: Of tasks.
        data_dir: Where the files are.
        scratch: For what is written on the way.
        num_fewshot: Worked examples asked for; None is each task's own number.

    Raises:
        ValueError: files are missing, or a row is none; naming the files.
    """
    files = {name: _files(index, name, data_dir, num_fewshot) for name in names}
    missing = [problem for _, problems in files.values() for problem in problems]
    if missing:
        more = f", and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ValueError(
            f"expected {', '.join(missing[:_SHOWN])}{more} (also with .gz, or as TASK/SPLIT.jsonl), found no such "
            f"file{_nearest(missing[0], data_dir)}: change --data_dir or --tasks"
        )
    before = {name: index[name].yaml_path for name in names}
    try:
        for name, (found, _) in files.items():
            for path in found.values():
                _check_rows(path)
            index[name].yaml_path = _write_yaml(index[name], name, found, scratch)
        yield {name: list(found.values()) for name, (found, _) in files.items()}
    finally:
        for name, path in before.items():
            index[name].yaml_path = path


def _files(
    index: Mapping[str, Any], name: str, data_dir: Path, num_fewshot: int | None
) -> tuple[dict[str, Path], list[str]]:
    """The file of each split that there is one for, and those that are missing."""
    if name not in index or index[name].kind.name != "TASK":
        raise ValueError(
            f"expected tasks that lm-eval describes in YAML, found {name}, which is written in Python and loads its "
            "data itself: leave it out of --tasks, or run it without --data_dir"
        )
    config = index[name].cfg
    found = {}
    named = {config.get(kind) for kind in _SPLITS} | {_fewshot_split(config)}
    for split in sorted(filter(None, named)):
        bases = (data_dir / f"{name}.{split}.jsonl", data_dir / name / f"{split}.jsonl")
        existing = [
            path for base in bases for path in (base, base.with_name(base.name + ".gz")) if path.is_file()
        ]
        if existing:
            found[split] = existing[0]
    wanted = {config.get("test_split") or config.get("validation_split")}
    if shots(config, num_fewshot):
        wanted.add(_fewshot_split(config))
    return found, [
        str(data_dir / f"{name}.{split}.jsonl") for split in sorted(filter(None, wanted - set(found)))
    ]


def shots(config: Mapping[str, Any], num_fewshot: int | None) -> int:
    """Worked examples before each question; a task that has fixed none keeps none."""
    fixed = config.get("num_fewshot")
    return (fixed or 0) if fixed == 0 or num_fewshot is None else num_fewshot


def _fewshot_split(config: Mapping[str, Any]) -> str | None:
    """Where lm-eval takes worked examples from; None where the task itself has them."""
    own = config.get("fewshot_config") or {}
    if own.get("samples") and not own.get("split"):
        return None
    named = own.get("split") or config.get("fewshot_split")
    return named or next((config[kind] for kind in _SPLITS[:3] if config.get(kind)), None)


def _nearest(missing: str, data_dir: Path) -> str:
    if not data_dir.is_dir():
        return f"; there is no directory {data_dir}"
    names = [str(path.relative_to(data_dir)) for path in data_dir.rglob("*.jsonl*")]
    near = difflib.get_close_matches(Path(missing).name, names, n=3)
    return f"; there are {', '.join(near)}" if near else ""


def _opened(path: Path) -> IO[str]:
    return gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")  # type: ignore[return-value]  # fmt: skip


def _check_rows(path: Path) -> None:
    """Refuses a file in which not every row has the fields of the first: `datasets` would make them None in silence."""
    fields = None
    with _opened(path) as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"expected a JSON object in {path}, line {number}; found {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"expected a JSON object in {path}, line {number}; found {line[:40]!r}")
            fields = fields or set(row)
            if different := fields ^ set(row):
                raise ValueError(
                    f"expected the fields of the first row in every row of {path}, found line {number} without or "
                    f"with {', '.join(sorted(different))}"
                )
    if fields is None:
        raise ValueError(f"expected a row in {path}, found none")


def _write_yaml(entry: Any, name: str, found: dict[str, Path], scratch: Path) -> Path:
    """The stock task, reading these files; splits that have none are given up."""
    config = entry.cfg
    lines = {
        "include": str(entry.yaml_path.resolve()),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "custom_dataset": None,
        "dataset_kwargs": {
            "data_files": {split: str(path.resolve()) for split, path in found.items()},
            "cache_dir": str(scratch / "datasets"),
        },
        **{kind: None for kind in _SPLITS if config.get(kind) and config[kind] not in found},
    }
    path = scratch / f"{name}.yaml"
    path.write_text(json.dumps(lines), "utf-8")  # JSON is YAML
    return path


def check_fields(task: Any, files: list[Path]) -> None:
    """Refuses rows without a field that the task names: lm-eval would take the name itself for the text.

    Raises:
        ValueError: naming the field and the file.
    """
    for setting in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        value = getattr(task.config, setting)
        if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) and value not in task.features:
            raise wrong_schema(task.config.task, files, f"no field {value!r} ({setting})")


def wrong_schema(name: str, files: list[Path], reason: str) -> ValueError:
    """The error for rows that are not those of the stock task."""
    path = files[0]
    with _opened(path) as lines:
        fields = sorted(json.loads(next(lines)))
    return ValueError(
        f"expected rows in the schema of lm-eval's task {name} in {', '.join(map(str, files))}, found {reason}; the "
        f"fields there are {', '.join(fields)}: write the rows as the task's own data set has them, or describe a "
        "task of your own by a YAML in --include_path"
    )
