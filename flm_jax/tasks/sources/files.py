"""Files of text: found by patterns, here or in the cloud, and opened plain, gzip or zstd.

A path with a scheme (`gs://`, `s3://`, `https://`, ...) is read through fsspec, which wants the package of that scheme
(gcsfs, s3fs, ...); everything else is a local file.
"""

import contextlib
import glob
import gzip
import io
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO, Any

import fsspec
from backports import zstd

from flm_jax.tasks.problems import Problem

_DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)

_BLOCK = 1 << 20
# Of a compressed file at a time. Less than gzip and zstd ask for: where a file breaks, the position says how much of it
# was read, and what lies before the damage has been handed out.
_COMPRESSED_BLOCK = 4096
_DECOMPRESSED_BLOCK = 1 << 17
_UNREAD_RECORD = 1024  # bytes that a record of a damaged file is taken to have, where none could be read


class DamagedError(Exception):
    """A file breaks off.

    Attributes:
        reason: in words.
        read: bytes of the file, as it lies there, that were read.
        size: bytes of the file; None where it is not known.
        is_cut: whether its end is missing, so that `size` does not tell how much is lost.
    """

    def __init__(self, reason: str, read: int, size: int | None, is_cut: bool) -> None:
        super().__init__(reason)
        self.reason, self.read, self.size, self.is_cut = reason, read, size, is_cut

    def problem(self, records: int) -> Problem:
        """What is lost, after so many records.

        From what lies behind the damage, at the records' mean size. What a file lost that was cut off is not known:
        as many as were read. Where none was read, one for each 1,024 bytes.
        """
        left = max((self.size or 0) - self.read, 0)
        if not records:
            lost = (self.size or 0) // _UNREAD_RECORD
            how = f"about {max(lost, 1):,} records are lost, if they have {_UNREAD_RECORD:,} bytes each"
        elif self.is_cut or not self.size:
            lost = records
            how = f"how many records are lost is unknown and counted as the {records:,} before"
        else:
            lost = round(records * left / self.read)
            how = f"about {max(lost, 1):,} records are lost"
        return Problem(f"the file is damaged and was read up to here ({self.reason}); {how}", max(lost, 1))


class _Compressed:
    """Bytes of a file in small blocks, and how many there were."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        block = self._file.read(min(size, _COMPRESSED_BLOCK) if size >= 0 else _COMPRESSED_BLOCK)
        self.position += len(block)
        return block

    def seekable(self) -> bool:
        return False


class _Decompressed(io.RawIOBase):
    """What comes out of a compressed file, and the position in it up to which it came."""

    def __init__(self, path: str, file: IO[bytes]) -> None:
        self._stored = _Compressed(file)
        stored: Any = self._stored
        self._file = gzip.GzipFile(fileobj=stored) if path.endswith(".gz") else zstd.ZstdFile(stored)
        self.position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._file.read1(len(buffer))
        buffer[: len(block)] = block
        self.position = self._stored.position
        return len(block)


def find(pattern: str) -> list[str]:
    """The files that match a glob pattern, in alphabetical order; a path of a file, brackets and all, is that file."""
    if "://" not in pattern:
        path = os.path.expanduser(pattern)
        matches = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
        return sorted(match for match in matches if not os.path.isdir(match))
    system, path = fsspec.core.url_to_fs(pattern)
    matches = [path] if system.isfile(path) else system.glob(path)
    return sorted(str(system.unstrip_protocol(match)) for match in matches if not system.isdir(match))


def find_all(patterns: Sequence[str], what: str, binding: str) -> list[str]:
    """The files that match any of the patterns, each once under the first of its spellings.

    Args:
        patterns: in their order, each one's files in alphabetical order.
        what: is looked for, and
        binding: of gin, for the errors.

    Raises:
        FileNotFoundError: a pattern matches no file.
        ValueError: a file's name is not UTF-8, and could not be written to a manifest.
    """
    paths: dict[str, str] = {}
    for pattern in patterns:
        found = find(pattern)
        if not found:
            folder = os.path.isdir(os.path.expanduser(pattern))
            raise FileNotFoundError(
                f"expected at least one file for {what}, found {'a directory at' if folder else 'none that matches'} "
                f"{pattern!r} (in {os.getcwd()}): change the gin binding {binding}"
            )
        for path in found:
            try:
                path.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"expected file names in UTF-8 for {what}, found {path!r}: rename the file, or change the gin "
                    f"binding {binding}"
                ) from error
            paths.setdefault(path if "://" in path else os.path.realpath(path), path)
    return list(paths.values())


def stamp(path: str) -> dict[str, Any]:
    """Size and time of change of a file; None for both of one that has disappeared since it was found."""
    try:
        if "://" not in path:
            status = os.stat(path)
            return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        system, inner = fsspec.core.url_to_fs(path)
        found = system.info(inner)
    except FileNotFoundError:
        return {"bytes": None, "modified_ns": None}
    changed = next(
        (found[key] for key in ("etag", "ETag", "md5Hash", "mtime", "created") if found.get(key)), None
    )
    return {"bytes": found.get("size"), "changed": None if changed is None else str(changed)}


def open_stored(path: str) -> AbstractContextManager[IO[bytes]]:
    """A file's bytes as they lie there."""
    return fsspec.open(path, "rb") if "://" in path else open(path, "rb")  # type: ignore[no-any-return]


@contextlib.contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by the suffixes `.gz` and `.zst`.

    Raises:
        DamagedError: reading met the end of what can be decompressed.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_stored(path))
        if without_compression(path) == path:
            yield file
            return
        content = _Decompressed(path, file)
        try:
            yield opened.enter_context(io.BufferedReader(content, _DECOMPRESSED_BLOCK))
        except _DAMAGES as error:
            size, is_cut = stamp(path)["bytes"], isinstance(error, EOFError)
            raise DamagedError(str(error), content.position, size, is_cut) from error


def without_compression(path: str) -> str:
    """The path without the suffix of its compression: `a.jsonl.gz` is `a.jsonl`."""
    return path.removesuffix(".gz").removesuffix(".zst")


def lines(file: IO[bytes], max_bytes: int) -> Iterator[bytes | Problem]:
    """The lines of a file, each with its end; a problem in place of one that is too long."""
    while line := file.readline(max_bytes + 1):
        if len(line) <= max_bytes:
            yield line
            continue
        size = len(line)
        while not line.endswith(b"\n") and (line := file.readline(_BLOCK)):
            size += len(line)
        yield _too_long(size, max_bytes, "line")


def pieces(file: IO[bytes], separator: bytes, max_bytes: int) -> Iterator[bytes | Problem]:
    """What lies between the separators of a file, or the whole; a problem in place of a piece that is too long."""
    rest, dropped = b"", 0
    # `read` would lose what it has read of a block when it meets damage. Not all of fsspec's files have `read1`.
    read = getattr(file, "read1", file.read)
    while True:
        try:
            block = read(_BLOCK)
        except _DAMAGES:
            # What was read of the last piece is text, and its end is lost.
            if rest and not dropped:
                yield _checked(rest, max_bytes)
            raise
        if not block:
            break
        *found, rest = (rest + block).split(separator) if separator else (rest + block,)
        for piece in found:
            yield (
                _too_long(dropped + len(piece), max_bytes, "document")
                if dropped
                else _checked(piece, max_bytes)
            )
            dropped = 0
        # A separator may lie across two blocks: its first bytes may be the last ones here.
        own = len(rest) - max(len(separator) - 1, 0)
        if own > 0 and dropped + own > max_bytes:
            dropped += own
            rest = rest[own:]
    yield _too_long(dropped + len(rest), max_bytes, "document") if dropped else _checked(rest, max_bytes)


def _checked(piece: bytes, max_bytes: int) -> bytes | Problem:
    return piece if len(piece) <= max_bytes else _too_long(len(piece), max_bytes, "document")


def _too_long(size: int, max_bytes: int, what: str) -> Problem:
    return Problem(f"a {what} of {size:,} bytes, more than max_record_bytes = {max_bytes:,}")
