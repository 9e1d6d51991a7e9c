"""A `tokenizer.json` of Hugging Face's library `tokenizers`, as it is, where it gives text back exactly.

That is so for byte-level BPE (GPT-2, Llama 3, ...) and for models with byte fallback, as long as nothing before the
model changes or drops text, but for writing spaces as U+2581 as sentencepiece does. What is not known to be exact is
refused. Encoding neither adds nor recognises special tokens, and the file's truncation, padding and dropout are off.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flm_jax.tasks.tokenizers.byte_tokens import ByteTokens
from flm_jax.tasks.tokenizers.exactness import SPACE_MARK, check_exact
from flm_jax.tasks.tokenizers.library import library
from flm_jax.tasks.tokenizers.reserved import NUM_RESERVED, RESERVED_NAMES

_CUTS_ONLY = ("ByteLevel", "Digits", "FixedLength", "Punctuation", "Split", "UnicodeScripts")
_MODELS = ("BPE", "Unigram")


class HuggingFaceJson(ByteTokens):
    """A tokenizer of the library `tokenizers`; tokens that were added to it count with the bytes of their text.

    A file with our reserved ids (`has_reserved_ids`) keeps its ids, those of others are moved up by 3.

    Args:
        content: of the file.
        where: the file, for messages.

    Raises:
        ValueError: it does not give text back exactly, it says why; or the library cannot read it, or is not
            installed.
    """

    kind = "huggingface"

    def __init__(self, content: bytes, where: Path) -> None:
        tokenizers = library("tokenizers")
        record = json.loads(content)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(
                f"expected a tokenizer.json that the library tokenizers {tokenizers.__version__} reads, found another "
                f"in {where}: {error}"
            ) from error
        if reasons := list(_inexact(record)):
            raise ValueError(
                f"expected a tokenizer that gives any text back exactly, found {'; '.join(reasons)} in {where}: take "
                "one with byte-level BPE and no normalizer, or train one with `flm tokenizer train`"
            )
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        if record["model"].get("dropout"):
            self._tokenizer.model.dropout = None
        self.marks_spaces = any(map(_is_space_mark, steps(record.get("normalizer"), "normalizers")))
        offset = 0 if has_reserved_ids(record) else NUM_RESERVED
        super().__init__(content, where, self._token_bytes(record, where), offset)
        special = [token["content"] for token in record.get("added_tokens", ()) if token["special"]]
        for joint in ("", " ", "a"):
            check_exact(self, str(where), {"it reads text as a special token": joint.join(special)})
        for added in record.get("added_tokens", ()):
            if (given := self._tokenizer.token_to_id(added["content"])) != added["id"]:
                raise ValueError(
                    f"expected the added token {added['content']!r} to have the id {added['id']} of the file, the "
                    f"library tokenizers gives it {given}, because it numbers those that are not in the model's "
                    f"vocabulary without a gap: {where}"
                )

    def library_decode(self, ids: Sequence[int]) -> str:
        """The text of ids by the file's own decoder, which others use and `decode` does not."""
        return self._tokenizer.decode([token - self.offset for token in ids], skip_special_tokens=False)

    def _ids(self, text: str) -> list[int]:
        # Without offsets it is twice as fast, and there is that for batches only.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _token_bytes(self, record: dict[str, Any], where: Path) -> list[bytes]:
        known = self._tokenizer.get_vocab(with_added_tokens=False)
        if is_byte_level(record):
            alphabet = {character: byte for byte, character in enumerate(byte_characters())}
            of_model = {
                token: bytes(alphabet[character] for character in name)
                if alphabet.keys() >= set(name)
                else b""
                for name, token in known.items()
            }
            bytes_known = {piece for piece in of_model.values() if len(piece) == 1}
        else:
            byte_names = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
            space = SPACE_MARK if self.marks_spaces else " "
            of_model = {
                token: byte_names.get(name, name.replace(space, " ").encode("utf-8"))
                for name, token in known.items()
            }
            bytes_known = {byte_names[name] for name in byte_names.keys() & known.keys()}
        if len(bytes_known) != 256:
            raise ValueError(
                f"expected a token for each of the 256 bytes, found {len(bytes_known)} in {where}, so characters it "
                "does not know would be lost: take another tokenizer, or train one with `flm tokenizer train`"
            )
        of_added = {}
        for added in record.get("added_tokens", ()):
            token, text = added["id"], added["content"].encode("utf-8")
            if not added["special"] and of_model.get(token, text) != text:
                raise ValueError(
                    f"expected the added token {added['content']!r} to have an id of its own, found that of "
                    f"{of_model[token]!r} in {where}"
                )
            of_added[token] = b"" if added["special"] else text
        of_token = {**of_model, **of_added}
        return [of_token.get(token, b"") for token in range(max(of_token) + 1)]


def is_tokenizer_json(record: dict[str, Any]) -> bool:
    """Whether it looks like a `tokenizer.json`."""
    return isinstance(record.get("model"), dict) and "added_tokens" in record


def has_reserved_ids(record: dict[str, Any]) -> bool:
    """Whether its ids 0, 1 and 2 are our pad, eos and unk: special tokens of the names that we give them."""
    special = {token["id"]: token["content"] for token in record["added_tokens"] if token["special"]}
    return all(special.get(token) == name for token, name in enumerate(RESERVED_NAMES))


def _inexact(record: dict[str, Any]) -> Iterator[str]:
    """Why text may not come back."""
    for step in steps(record.get("normalizer"), "normalizers"):
        if step["type"] == "Prepend":
            yield f"the normalizer Prepend, whose {step['prepend']!r} in front is not in the text"
        elif not _is_space_mark(step) or is_byte_level(record):
            yield f"the normalizer {step['type']}, which changes text"
    for step in steps(record.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] not in _CUTS_ONLY:
            yield f"the pre-tokenizer {step['type']}, which drops or replaces characters"
        elif step.get("behavior") == "Removed":
            yield f"the pre-tokenizer {step['type']}, which drops what it cuts at"
        elif step.get("add_prefix_space"):
            yield f"the pre-tokenizer {step['type']} with add_prefix_space, which adds a space"
    model = record["model"]
    # Old files do not say which model: only BPE had merges.
    kind = model.get("type", "BPE" if "merges" in model else "unknown")
    if kind not in _MODELS:
        yield f"the model {kind}, which does not know every text"
    elif not is_byte_level(record) and not model.get("byte_fallback"):
        yield f"the model {kind} without byte level or byte fallback, which does not know every character"
    for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(mark):
            yield f"the model's {mark} {model[mark]!r}, which is not in the text"
    for added in record.get("added_tokens", ()):
        if not added["special"] and (added["lstrip"] or added["rstrip"]):
            yield f"the added token {added['content']!r}, which takes the spaces beside it"


def _is_space_mark(normalizer: dict[str, Any]) -> bool:
    """Whether it only writes spaces as U+2581."""
    return (
        normalizer["type"] == "Replace"
        and normalizer["pattern"] == {"String": " "}
        and normalizer["content"] == SPACE_MARK
    )


def is_byte_level(record: dict[str, Any]) -> bool:
    """Whether the model sees a character for each byte (`byte_characters`)."""
    return any(step["type"] == "ByteLevel" for step in steps(record.get("pre_tokenizer"), "pretokenizers"))


def steps(component: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of a sequence one by one, which stand at the key `parts`."""
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component[parts]:
            yield from steps(part, parts)
    else:
        yield component


def byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (`bytes_to_unicode` of OpenAI's GPT-2).

    A byte that is a visible Latin-1 character is written as itself, the n-th other as character 256 + n.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in visible)
    moved = {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
