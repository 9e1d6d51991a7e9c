"""Files of text: found by patterns, here or in the cloud, and opened plain, gzip or zstd.

A path with a scheme (`gs://`, `s3://`, `https://`, ...) is read through fsspec, which wants the package of that scheme
(gcsfs, s3fs, ...); everything else is a local file.
"""

import contextlib
import glob
import gzip
import os
import zlib
from collections.abc import Iterator
from typing import IO, Any

import fsspec
from backports import zstd

from flm_jax.tasks.problems import Problem

# What reading a damaged compressed file raises.
DAMAGES = (EOFError, zlib.error, gzip.BadGzipFile, zstd.ZstdError)

_BLOCK = 1 << 20


def find(pattern: str) -> list[str]:
    """The paths that match a glob pattern, in alphabetical order."""
    if "://" not in pattern:
        return sorted(glob.glob(os.path.expanduser(pattern), recursive=True))
    system, path = fsspec.core.url_to_fs(pattern)
    return sorted(str(system.unstrip_protocol(found)) for found in system.glob(path))


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


@contextlib.contextmanager
def open_file(path: str) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed by the suffixes `.gz` and `.zst`."""
    with contextlib.ExitStack() as opened:
        file: Any
        if "://" in path:
            file = opened.enter_context(fsspec.open(path, "rb"))
        else:
            file = opened.enter_context(open(path, "rb"))
        if path.endswith(".gz"):
            file = opened.enter_context(gzip.GzipFile(fileobj=file, mode="rb"))
        elif path.endswith(".zst"):
            file = opened.enter_context(zstd.ZstdFile(file, mode="rb"))
        yield file


def without_compression(path: str) -> str:
    """The path without the suffix of its compression: `a.jsonl.gz` is `a.jsonl`."""
    return path.removesuffix(".gz").removesuffix(".zst")


def lines(file: IO[bytes], max_bytes: int) -> Iterator[bytes | Problem]:
    """The lines of a file, each with its end; a problem in place of one that is too long, and where a file breaks."""
    while True:
        try:
            line = file.readline(max_bytes + 1)
            if len(line) > max_bytes:
                size = len(line)
                while not line.endswith(b"\n") and (line := file.readline(_BLOCK)):
                    size += len(line)
                yield _too_long(size, max_bytes, "line")
                continue
        except DAMAGES as error:
            yield Problem(f"the file is damaged and was read up to here ({error})")
            return
        if not line:
            return
        yield line


def pieces(file: IO[bytes], separator: bytes, max_bytes: int) -> Iterator[bytes | Problem]:
    """What lies between the separators of a file, or the whole; problems as in `lines`."""
    rest, dropped = b"", 0
    while True:
        try:
            block = file.read(_BLOCK)
        except DAMAGES as error:
            # What was read of the last piece is text, and its end is lost.
            if rest and not dropped:
                yield rest
            yield Problem(f"the file is damaged and was read only in part ({error})")
            return
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
        if len(rest) > max_bytes:
            # A separator may lie across two blocks.
            keep = max(len(separator) - 1, 0)
            dropped += len(rest) - keep
            rest = rest[len(rest) - keep :]
    yield _too_long(dropped + len(rest), max_bytes, "document") if dropped else _checked(rest, max_bytes)


def _checked(piece: bytes, max_bytes: int) -> bytes | Problem:
    return piece if len(piece) <= max_bytes else _too_long(len(piece), max_bytes, "document")


def _too_long(size: int, max_bytes: int, what: str) -> Problem:
    return Problem(f"a {what} of {size:,} bytes, more than max_record_bytes = {max_bytes:,}")
