"""A vocabulary as a `tokenizer.json` of Hugging Face with our ids, for models that leave.

`tokenizers` and `transformers` then read text as the model was trained to: `Vocabulary` on the file gives the same ids,
pieces and bytes as on the file that it was made from. Special tokens have names that begin with `<|flm_`; with
`split_special_tokens`, which `tokenizer_config.json` sets, even those are ordinary text in a text.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from flm_jax.tasks.tokenizers.exactness import PROBES
from flm_jax.tasks.tokenizers.huggingface_json import HuggingFaceJson, byte_characters, has_reserved_ids
from flm_jax.tasks.tokenizers.reserved import EOS_ID, NUM_RESERVED, PAD_ID, RESERVED_NAMES, UNK_ID
from flm_jax.tasks.tokenizers.tokenizer_json import (
    BYTE_NAMES,
    Record,
    added_token,
    complete,
    cuts_of_names,
    dump,
    moved,
)
from flm_jax.tasks.vocabulary import Vocabulary

# Beside the probes, texts of some length in which a mistake in merges, patterns or spaces would show.
CHECKED_TEXTS = (
    "The cat's 3 hats, they'LL cost $1,234.50 in 2024! I'd've said\u2026 \u201cno\u201d (e.g. <b>HTML</b>).\n",
    "语言模型在北京2024年的训练成本约为10万美元，真的吗？ 繁體字與標點：「你好」。",
    "def f(x):\n    if x >= 0x41:\n\t\treturn x**2  # y\n\n\n    \n\treturn None\r\n" * 3,
    "👩‍👧‍👦 🇨🇳 😈😡 x😈y \ufe0f é e\u0301 ｂ㍿ﬁ ſ'ſ İ ß",
    "a" + " " * 1000 + "b" + "\n" * 300 + "\t \n \t" * 20,
    "aaaaaaaaaaaaa ====----.... hahahahaha 1111111 " * 3,
    "".join(map(chr, range(0x250))),
    "".join(f"{chr(first)}a " for first in range(0x250, 0xD800, 0x11)),
    "<|flm_pad|> <|flm_eos|><|flm_unk|></s><0x00><0xFF><|endoftext|>",
)


def to_tokenizer_json(vocabulary: Vocabulary) -> bytes:
    """The content of a `tokenizer.json` whose ids are the vocabulary's.

    As a model begins its documents, id 0 goes in front of a text (`add_special_tokens=False` leaves it out).

    Raises:
        ValueError: the library would not read text as the vocabulary does, it says which or why; the file has changed
            since the vocabulary was opened; or `tokenizers` is not installed.
    """
    content = vocabulary.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != vocabulary.sha256:
        raise ValueError(f"{vocabulary.path} has changed since it was opened: open it again")
    if vocabulary.kind == "sentencepiece":
        record = _of_sentencepiece(content, vocabulary.path)
    elif vocabulary.kind == "tiktoken":
        record = _of_tiktoken(json.loads(content))
    else:
        record = json.loads(content)
        if not has_reserved_ids(record):
            record = moved(record, {token: token + NUM_RESERVED for token in range(vocabulary.size)})
    made = dump(record)
    _check(made, vocabulary)
    return made


def tokenizer_config(max_length: int | None = None) -> Record:
    """What `tokenizer_config.json` holds: `transformers` reads text with it as `Vocabulary` does.

    Args:
        max_length: tokens that the model takes, if it has a limit.
    """
    limit = {} if max_length is None else {"model_max_length": max_length}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens_map(),
        "padding_side": "left",  # behind a prompt it would stand between that and what is generated
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        **limit,
    }


def special_tokens_map() -> Record:
    """What `special_tokens_map.json` holds.

    A document begins with our pad: that is the `bos_token`, and has to be seen. What others pad with they hide, from
    attention and from the loss, so it is neither that nor the end but the unknown, which is in no text.
    """
    return {
        "bos_token": RESERVED_NAMES[PAD_ID],
        "eos_token": RESERVED_NAMES[EOS_ID],
        "pad_token": RESERVED_NAMES[UNK_ID],
        "unk_token": RESERVED_NAMES[UNK_ID],
    }


def export_tokenizer(vocabulary: Vocabulary, out: str | Path, max_length: int | None = None) -> list[Path]:
    """Writes `tokenizer.json` and the two files that `transformers` reads beside it into a folder; gives their paths.

    Raises:
        ValueError: as `to_tokenizer_json`; nothing is written.
    """
    contents = {
        "tokenizer.json": to_tokenizer_json(vocabulary),
        "tokenizer_config.json": dump(tokenizer_config(max_length)),
        "special_tokens_map.json": dump(special_tokens_map()),
    }
    folder = Path(out).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def _of_sentencepiece(content: bytes, where: Path) -> Record:
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(content)
    kind, pieces, rules = proto.trainer_spec.model_type, proto.pieces, proto.normalizer_spec
    types = type(pieces[0])
    if kind not in (proto.trainer_spec.UNIGRAM, proto.trainer_spec.BPE):
        raise ValueError(f"expected a sentencepiece model of unigram or bpe, found another in {where}")
    if rules.precompiled_charsmap or rules.add_dummy_prefix or rules.remove_extra_whitespaces:
        raise ValueError(
            f"expected a sentencepiece model that takes text as it is, found the normalisation {rules.name!r}, "
            f"add_dummy_prefix={rules.add_dummy_prefix} and remove_extra_whitespaces={rules.remove_extra_whitespaces} "
            f"in {where}: train one with `flm tokenizer train`"
        )
    if any(piece.type == types.UNUSED for piece in pieces):
        raise ValueError(f"expected a sentencepiece model without unused pieces, found some in {where}")
    names = [*RESERVED_NAMES, *(piece.piece for piece in pieces[NUM_RESERVED:])]
    control = {
        token for token, piece in enumerate(pieces) if token >= NUM_RESERVED and piece.type == types.CONTROL
    }
    given = {token for token, piece in enumerate(pieces) if piece.type == types.USER_DEFINED}
    added = [added_token(token, names[token], special=token in control) for token in sorted(control | given)]
    learnt = {piece.piece: piece.score for piece in pieces if piece.type == types.NORMAL}
    cuts: list[Record] = []
    if kind == proto.trainer_spec.UNIGRAM:
        lowest = min(learnt.values())
        scores = [[name, learnt.get(name, lowest)] for name in names]
        model: Record = {"type": "Unigram", "unk_id": UNK_ID, "vocab": scores, "byte_fallback": True}
        hidden = [*RESERVED_NAMES, *(names[token] for token in sorted(control)), *BYTE_NAMES]
        cuts = cuts_of_names(hidden, learnt)
    else:
        ids = {name: token for token, name in enumerate(names)}
        ranked = sorted(learnt, key=lambda name: -learnt[name])
        unknown = {"unk_token": RESERVED_NAMES[UNK_ID], "fuse_unk": True, "byte_fallback": True}
        model = {"type": "BPE", "vocab": ids, "merges": _merges(ranked), **unknown}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    return complete(model, added, space if rules.escape_whitespaces else None, cuts)


def _of_tiktoken(record: Record) -> Record:
    characters = byte_characters()
    tokens = [base64.b64decode(token or "") for token in record["ranks"]]
    names = ["".join(characters[byte] for byte in token) for token in tokens]
    ids = {name: token for token, name in enumerate(RESERVED_NAMES)}
    ids |= {name: rank + NUM_RESERVED for rank, name in enumerate(names) if name}
    merges = _merges([name for name in names if name])
    # tiktoken takes a word that is a token whole, before it merges.
    model = {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": True}
    pattern = {"Regex": _in_oniguruma(record["pattern"])}
    cuts = [
        {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
    ]
    return complete(model, [], None, cuts)


def _merges(ranked: Sequence[str]) -> list[list[str]]:
    """Pairs that byte-pair encoding merges, in their order: all those that make the first token, the second, ...

    Both libraries merge any two tokens whose text is a token, `tokenizers` only pairs of a list. A token's pairs are
    in the order of their tokens, as `transformers` puts them.
    """
    rank = {token: place for place, token in enumerate(ranked)}
    merges = []
    for token in ranked:
        halves = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [pair for pair in halves if pair[0] in rank and pair[1] in rank]
        merges += [list(pair) for pair in sorted(known, key=lambda pair: (rank[pair[0]], rank[pair[1]]))]
    return merges


def _in_oniguruma(pattern: str) -> str:
    r"""A pattern of Rust's fancy-regex as the library tokenizers reads it, which differs in two things.

    In Oniguruma `x{1,3}+` repeats what fancy-regex only holds on to, and `$` is also the end of a line.
    """
    atom = r"\\[pP]\{\w+\}|\[(?:\\.|[^\]\\])+\]|\\?."
    held = re.sub(rf"({atom})(\{{\d+(?:,\d*)?\}})\+", r"(?>\1\2)", pattern)
    return re.sub(r"(?<!\\)\$(?=[|)]|$)", r"\\z", held)


def _check(content: bytes, vocabulary: Vocabulary) -> None:
    """Raises a ValueError unless the file does to text what the vocabulary does."""
    refused = (
        f"so {vocabulary.path} cannot be given out as a tokenizer.json: `flm export` without --tokenizer writes the "
        "weights alone"
    )
    made = HuggingFaceJson(content, vocabulary.path)
    if made.pieces != vocabulary.pieces:
        pairs = enumerate(zip_longest(made.pieces, vocabulary.pieces))
        token, (found, expected) = next((token, pair) for token, pair in pairs if pair[0] != pair[1])
        raise ValueError(f"expected the piece {expected!r} at {token}, found {found!r}, {refused}")
    added = [token["content"] for token in json.loads(content)["added_tokens"]]
    for text in [*PROBES.values(), *CHECKED_TEXTS, *added]:
        ids = vocabulary.encode(text)
        if (found_ids := made.encode(text)) != ids:
            place = next(place for place, (a, b) in enumerate(zip_longest(found_ids, ids)) if a != b)
            part = slice(place, place + 5)
            raise ValueError(
                f"expected the ids {ids[part]} ({vocabulary.decode(ids[part])!r}) at token {place} of {text[:80]!r}, "
                f"found {found_ids[part]}: the library tokenizers reads this text in another way, {refused}"
            )
        if (back := made.library_decode(ids)) != vocabulary.decode(ids):
            raise ValueError(
                f"expected {text[:80]!r} back, found {back[:80]!r}: the library tokenizers decodes this text in "
                f"another way, {refused}"
            )
