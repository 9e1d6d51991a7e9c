"""Parts of a `tokenizer.json` with our ids, which the tokenizers of every kind have in common."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flm_jax.tasks.tokenizers.exactness import SPACE_MARK
from flm_jax.tasks.tokenizers.huggingface_json import is_byte_level, steps
from flm_jax.tasks.tokenizers.reserved import PAD_ID, RESERVED_NAMES

Record = dict[str, Any]

BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def added_token(token: int, content: str, *, special: bool) -> Record:
    """An entry of `added_tokens`: a text that is one token, whatever the model makes of it."""
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token, "content": content, **options, "special": special}


def reserved_tokens() -> list[Record]:
    """The entries of pad, eos and unk, by which a file is known to have our ids."""
    return [added_token(token, name, special=True) for token, name in enumerate(RESERVED_NAMES)]


def complete(
    model: Record, added: Sequence[Record], normalizer: Record | None, cuts: Sequence[Record]
) -> Record:
    """The whole file: id 0 in front of every text, as a model begins a document, and the decoder that fits.

    Args:
        model: with the reserved names at 0, 1 and 2.
        added: the other added tokens.
        normalizer: as in the file.
        cuts: pre-tokenizers, one after the other.
    """
    record: Record = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [*reserved_tokens(), *added],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(cuts)} if cuts else None,
        "post_processor": _begin_with_pad(),
        "model": model,
    }
    if is_byte_level(record):
        decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    else:
        parts: list[Record] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if next(steps(normalizer, "normalizers"), None):  # none but the one of spaces is exact
            parts.insert(0, {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
        decoder = {"type": "Sequence", "decoders": parts}
    return {**record, "decoder": decoder}


def dump(record: Record) -> bytes:
    """The file's content, the same for the same record."""
    return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode("utf-8")


def cuts_of_names(names: Iterable[str], pieces: Iterable[str]) -> list[Record]:
    """Pre-tokenizers that keep a Unigram model from reading names of its vocabulary in a text.

    It looks for every entry of its vocabulary, also for `<0x41>` and for special tokens. A text that holds such a name
    is cut inside of it, where no piece reaches across, so that all else stays as it is.

    Args:
        names: what no text may be read as.
        pieces: what text is read as.

    Raises:
        ValueError: there is no such place.
    """
    pairs = {piece[place : place + 2] for piece in pieces for place in range(len(piece) - 1)}
    patterns: dict[str, None] = {}
    for name in names:
        place = next(
            (place for place in range(1, len(name)) if name[place - 1 : place + 1] not in pairs), None
        )
        if place is None:
            raise ValueError(
                f"expected a Unigram model in which {name!r} can be told from text, found one whose pieces reach "
                "across all of it: the library tokenizers would read it as its token; take a BPE model"
            )
        head, tail = re.escape(name[:place]), re.escape(name[place:])
        if name in BYTE_NAMES and place <= 3:
            tail = re.escape(name[place:3]) + "[0-9A-F]{2}>"
        patterns[f"{head}(?={tail})"] = None
    if not patterns:
        return []
    split = {"type": "Split", "pattern": {"Regex": "|".join(patterns)}, "invert": False}
    return [{**split, "behavior": "MergedWithPrevious"}]


def moved(record: Record, ids: Mapping[int, int]) -> Record:
    """The same tokenizer with other ids and ours in front; truncation, padding and dropout are off.

    Args:
        record: of a tokenizer that gives text back exactly.
        ids: the new id of each id that is kept, 3 or more, in the order of the old ones within the model and behind it.

    Raises:
        ValueError: it calls something by one of our names, or see `cuts_of_names`.
    """
    model = {**record["model"]}
    added = [{**token, "id": ids[token["id"]]} for token in record["added_tokens"] if token["id"] in ids]
    cuts = list(steps(record.get("pre_tokenizer"), "pretokenizers"))
    if isinstance(model["vocab"], list):
        scored = model["vocab"]
        lowest = min(score for _, score in scored)  # by which the library scores what it does not know
        kept = [entry for token, entry in enumerate(scored) if token in ids]
        names = [name for name, _ in kept]
        model["vocab"] = [[name, lowest] for name in RESERVED_NAMES] + kept
        unknown = model.get("unk_id")
        model["unk_id"] = 2 if unknown is None else ids.get(unknown, 2)
        cuts += [cut for cut in cuts_of_names(RESERVED_NAMES, names) if cut not in cuts]
    else:
        of_model = {name: ids[token] for name, token in model["vocab"].items() if token in ids}
        names = list(of_model)
        model["vocab"] = {name: token for token, name in enumerate(RESERVED_NAMES)} | of_model
        model["dropout"] = None
        if model.get("unk_token") not in (None, *names):
            model["unk_token"] = RESERVED_NAMES[2]
    if taken := set(RESERVED_NAMES) & {*names, *(token["content"] for token in added)}:
        raise ValueError(
            f"expected a tokenizer without tokens of our names, found {', '.join(sorted(taken))} at other ids than "
            "ours: take the file that it was made from"
        )
    return complete(model, sorted(added, key=lambda token: token["id"]), record.get("normalizer"), cuts)


def _begin_with_pad() -> Record:
    name = RESERVED_NAMES[PAD_ID]
    begin = {"SpecialToken": {"id": name, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": kind}} for kind, part in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [begin, first],
        "pair": [begin, first, second],
        "special_tokens": {name: {"id": name, "ids": [PAD_ID], "tokens": [name]}},
    }
