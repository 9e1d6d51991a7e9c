"""The manifest of a prepared task: what is in its files and what it was made of, as JSON beside them.

It is written last. A folder without a manifest is not a prepared task.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
RECORDS = ".array_record"
FORMAT = 2  # of the records and of the manifest
_READ = (1, 2)  # format 1 counted less; another number is not read


@dataclass(frozen=True)
class PreparedFile:
    """One record file.

    Attributes:
        name: inside the task's folder.
        records: number of packed sequences.
        size: in bytes.
        sha256: of the file, in hexadecimal.
    """

    name: str
    records: int
    size: int
    sha256: str


@dataclass
class SplitManifest:
    """What one split holds.

    Attributes:
        documents: number of documents.
        examples: that they became; a conversation is one, a classified text is two or more statements.
        tokens: of inputs and targets, without padding.
        loss_tokens: those with loss.
        bytes: UTF-8 bytes that the loss tokens stand for.
        characters: of the documents' text.
        scripts: of those characters, by script, e.g. `{"han": 812, "latin": 34}`.
        tokens_per_document: a histogram: upper bound, a power of two, to the number of documents.
        removed: kind of cleaning to the number of documents that it took out.
        sequences: packed sequences.
        padding: share of the positions that hold padding, 0 to 1.
        files: in the order of the records.
    """

    documents: int = 0
    examples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    bytes: int = 0
    characters: int = 0
    scripts: dict[str, int] = field(default_factory=dict)
    tokens_per_document: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    sequences: int = 0
    padding: float = 0.0
    files: list[PreparedFile] = field(default_factory=list)

    def include(self, later: "SplitManifest", length: int) -> None:
        """All of another part of the split, of sequences of `length`; its files come behind these."""
        for name in ("documents", "examples", "tokens", "loss_tokens", "bytes", "characters", "sequences"):
            setattr(self, name, getattr(self, name) + getattr(later, name))
        for name in ("scripts", "tokens_per_document", "removed"):
            mine = getattr(self, name)
            for key, count in getattr(later, name).items():
                mine[key] = mine.get(key, 0) + count
        self.files += later.files
        self.padding = 1 - self.tokens / (self.sequences * length) if self.sequences else 0.0

    @staticmethod
    def from_json(values: dict[str, Any]) -> "SplitManifest":
        """From plain JSON values."""
        return SplitManifest(**{**values, "files": [PreparedFile(**file) for file in values["files"]]})


@dataclass(frozen=True)
class Manifest:
    """What one prepared task holds.

    Attributes:
        name: of the task.
        length: tokens per sequence.
        vocabulary: `{"sha256": ..., "size": ...}` of the tokenizer.
        definition: of the task with its files, as `fingerprint()` gave it; preparing again compares it.
        splits: split -> what it holds.
        problems: what was found wrong, by kind with the first places (`Problems.to_json`).
        format: version of the format.
        version: of flm_jax, which wrote it; empty before format 2.
    """

    name: str
    length: int
    vocabulary: dict[str, Any]
    definition: dict[str, Any]
    splits: dict[str, SplitManifest]
    problems: dict[str, Any]
    format: int = FORMAT
    version: str = ""

    def write(self, directory: Path) -> None:
        """Writes the manifest into a task's folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a prepared task.

    Raises:
        FileNotFoundError: the folder has none.
        ValueError: it cannot be read, or is of another format.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a prepared task with a {MANIFEST}, found none in {directory}: change the gin binding "
            "`PREPARED_DIR`, or make the files with `flm data prepare`"
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields["format"] not in _READ:
            raise ValueError(f"its format is {fields['format']}, this version reads {FORMAT}")
        splits = {name: SplitManifest.from_json(split) for name, split in fields.pop("splits").items()}
        return Manifest(**fields, splits=splits)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"expected a manifest of format {FORMAT} in {path}, found one that cannot be read ({error}): "
            "prepare the task again with `flm data prepare --overwrite`"
        ) from error


def differences(found: Any, expected: Any, place: str = "") -> list[str]:
    """Where two JSON values differ, in words.

    Example: `differences({"length": 64}, {"length": 128})` is `["length: prepared with 64, asked for 128"]`.
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        return [
            line
            for key in sorted({*found, *expected})
            for line in differences(found.get(key), expected.get(key), f"{place}.{key}" if place else key)
        ]
    return [] if found == expected else [f"{place}: prepared with {found}, asked for {expected}"]


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
