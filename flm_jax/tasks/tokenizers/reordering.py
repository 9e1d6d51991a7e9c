"""A foreign `tokenizer.json` with its ids put in our order, for models that enter.

Our 0 is the token with which their documents begin, our 1 the one that ends them, our 2 one that no text has; behind
them come all others in their order. `source_ids` says whose row of their embeddings each of our ids takes.

Where the three are different tokens, that is a permutation, and a model whose rows were put in this order computes
what it did. Where begin and end are one token (GPT-2, FLM-101B), two of our ids are copies of its row, because one is
what documents begin with and the other a target: there is an id more, no token of theirs is lost, and where theirs
gives the end the probability p, every log-probability is lower by log(1 + p).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flm_jax.tasks.tokenizers.exactness import PROBES
from flm_jax.tasks.tokenizers.huggingface_json import HuggingFaceJson, is_tokenizer_json
from flm_jax.tasks.tokenizers.reserved import NUM_RESERVED
from flm_jax.tasks.tokenizers.tokenizer_json import Record, dump, moved

_WHERE = Path("tokenizer.json")  # for messages


@dataclass(frozen=True)
class Reordered:
    """A tokenizer in our order.

    Attributes:
        content: a `tokenizer.json` that `Vocabulary` opens without moving ids.
        source_ids: int32 [V'], the foreign id of each of our ids. Ids to which the file gives no token come last.
    """

    content: bytes
    source_ids: np.ndarray


def reorder(content: bytes, bos: int, eos: int, unk: int | None = None) -> Reordered:
    """Puts the ids of a `tokenizer.json` in our order.

    Args:
        content: of the file.
        bos: their id that begins a document.
        eos: their id that ends one; may be `bos`.
        unk: their id for the unknown. None, or one of the two others: the first id that has no token, else the first
            other special token, else a copy of `eos`.

    Raises:
        ValueError: an id is not in the file, or is one of text; or the file is none that `Vocabulary` opens, it says
            why; or `tokenizers` is not installed.
    """
    try:
        record = json.loads(content)
    except ValueError as error:
        raise ValueError(f"expected a tokenizer.json, found damaged JSON ({error})") from error
    if not isinstance(record, dict) or not is_tokenizer_json(record):
        raise ValueError("expected a tokenizer.json of Hugging Face, found other JSON")
    theirs = HuggingFaceJson(content, _WHERE)
    size = len(theirs.pieces) - theirs.offset
    named = _named(record)
    special = {token["id"] for token in record["added_tokens"] if token["special"]}
    for name, token in (("bos", bos), ("eos", eos), ("unk", unk)):
        _check_id(name, token, size, named, special)
    if unk is None or unk in (bos, eos):
        free = [token for token in range(size) if token not in named] + sorted(special)
        unk = next((token for token in free if token not in (bos, eos)), eos)
    rest = [token for token in range(size) if token not in (bos, eos, unk)]
    rest.sort(key=lambda token: token not in named)  # stable: what has no token goes last
    source_ids = np.array([bos, eos, unk, *rest], np.int32)
    made = dump(moved(record, {token: NUM_RESERVED + place for place, token in enumerate(rest)}))
    _check(theirs, made, source_ids)
    return Reordered(made, source_ids)


def _named(record: Record) -> set[int]:
    """The ids that have a token."""
    vocab = record["model"]["vocab"]
    of_model = range(len(vocab)) if isinstance(vocab, list) else vocab.values()
    return {*of_model, *(token["id"] for token in record["added_tokens"])}


def _check_id(name: str, token: int | None, size: int, named: set[int], special: set[int]) -> None:
    if token is None and name == "unk":
        return
    if token is None or not 0 <= token < size:
        raise ValueError(
            f"expected {name} to be an id from 0 to {size - 1} of the tokenizer.json, found {token}"
        )
    if token in named and token not in special:
        raise ValueError(
            f"expected {name} to be a special token of the tokenizer.json ({sorted(special)[:10]}), found {token}, "
            "which is one of text"
        )


def _check(theirs: HuggingFaceJson, made: bytes, source_ids: np.ndarray) -> None:
    """Raises a ValueError unless both read text as the same tokens."""
    ours = HuggingFaceJson(made, _WHERE)
    for text in PROBES.values():
        found = source_ids[ours.encode(text)].tolist()
        if found != (expected := [token - theirs.offset for token in theirs.encode(text)]):
            raise ValueError(
                f"expected {text!r} to be the tokens {expected} of the tokenizer.json, found {found} after its ids "
                "were put in our order: this tokenizer cannot be taken over"
            )
