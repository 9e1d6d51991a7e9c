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
FORMAT = 1  # of the records and of the manifest; another number is not read


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
        tokens: of inputs and targets, without padding.
        loss_tokens: those with loss weight 1.
        bytes: UTF-8 bytes of the documents' targets: what the loss tokens stand for.
        sequences: packed sequences.
        padding: share of the positions that hold padding, 0 to 1.
        files: in the order of the records.
    """

    documents: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    bytes: int = 0
    sequences: int = 0
    padding: float = 0.0
    files: list[PreparedFile] = field(default_factory=list)


@dataclass(frozen=True)
class Manifest:
    """What one prepared task holds.

    Attributes:
        name: of the task.
        length: tokens per sequence.
        vocabulary: `{"sha256": ..., "size": ...}` of the tokenizer.
        definition: of the task with its files, as `fingerprint()` gave it; preparing again compares it.
        splits: split -> what it holds.
        problems: `{"count": ..., "places": [...]}`, what the source could not read.
        format: version of the format.
    """

    name: str
    length: int
    vocabulary: dict[str, Any]
    definition: dict[str, Any]
    splits: dict[str, SplitManifest]
    problems: dict[str, Any]
    format: int = FORMAT

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
        if fields["format"] != FORMAT:
            raise ValueError(f"its format is {fields['format']}, this version reads {FORMAT}")
        splits = {
            name: SplitManifest(**{**split, "files": [PreparedFile(**file) for file in split["files"]]})
            for name, split in fields.pop("splits").items()
        }
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
