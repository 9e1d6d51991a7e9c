"""Sources of text files: JSON lines and plain text."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flm_jax.tasks.problems import Problem
from flm_jax.tasks.sources import files
from flm_jax.tasks.sources.base import Document, chosen
from flm_jax.tasks.sources.file_source import FieldsSource, FileSource, Raw


@dataclass(frozen=True)
class JsonLines(FieldsSource):
    """One JSON object a line, plain, gzip or zstd (by the suffixes `.gz` and `.zst`); a field is a key of it.

    Example: `JsonLines("en/*.jsonl.gz", fields={"inputs": "prompt", "targets": "response"})`.
    """

    def document(self, raw: Any) -> Document:
        """The document of a line."""
        if isinstance(raw, Problem):
            raise raw
        try:
            record = json.loads(raw.decode("utf-8"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise Problem(f"not JSON ({error})") from error
        except UnicodeDecodeError as error:
            raise Problem(f"not UTF-8 (byte {error.start} of the line)") from error
        except ValueError as error:  # a number of too many digits
            raise Problem(f"not JSON that can be read ({error})") from error
        if not isinstance(record, dict):
            is_array = isinstance(record, list)
            hint = "; of a file that is one array make one object a line: jq -c '.[]'" if is_array else ""
            raise Problem(f"expected a JSON object, found {type(record).__name__}{hint}")
        return chosen(record, self.fields)

    def _raw(self, path: str) -> Iterator[Raw]:
        with files.open_file(path) as file:
            for number, line in enumerate(files.lines(file, self.max_record_bytes), start=1):
                if number == 1 and isinstance(line, bytes):
                    line = line.removeprefix(codecs.BOM_UTF8)
                if isinstance(line, Problem) or line.strip():
                    yield Raw(f"{path}:{number}", line, 0 if isinstance(line, Problem) else len(line))


@dataclass(frozen=True)
class PlainText(FileSource):
    r"""UTF-8 text files, plain, gzip or zstd (by the suffixes `.gz` and `.zst`).

    Attributes:
        separator: what stands between two documents of a file, e.g. `"\n\n"` or `"<|endoftext|>"`; it belongs
            to neither. Empty: each file is one document. It is looked for as it is: an empty line in a file with
            Windows's line ends is `"\r\n\r\n"`, and `"\n\n"` does not cut such a file.
    """

    separator: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """The keys of every document."""
        return ("targets",)

    def document(self, raw: Any) -> Document:
        """The document of a piece; cut in bytes, so that bad UTF-8 costs one document and not the file."""
        if isinstance(raw, Problem):
            raise raw
        try:
            return {"targets": raw.decode("utf-8")}
        except UnicodeDecodeError as error:
            raise Problem(f"not UTF-8 (byte {error.start} of the document)") from error

    def _raw(self, path: str) -> Iterator[Raw]:
        try:
            with files.open_file(path) as file:
                pieces = files.pieces(file, self.separator.encode("utf-8"), self.max_record_bytes)
                for number, piece in enumerate(pieces, start=1):
                    if number == 1 and isinstance(piece, bytes):
                        piece = piece.removeprefix(codecs.BOM_UTF8)
                    # Blank at a separator at the end, for example: there is no text to lose.
                    if isinstance(piece, Problem) or piece.strip():
                        size = 0 if isinstance(piece, Problem) else len(piece)
                        yield Raw(f"{path}, document {number}", piece, size)
        except files.DamagedError as error:
            if self.separator:
                raise
            yield Raw(path, Problem(f"the file is damaged and its end is lost ({error.reason})"), 0)
