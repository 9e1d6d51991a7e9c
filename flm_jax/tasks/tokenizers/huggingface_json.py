"""A `tokenizer.json` of Hugging Face's library `tokenizers`, as it is, where it gives text back exactly.

That is so for byte-level BPE (GPT-2, Llama 3, ...) and for models with byte fallback, as long as nothing before the
model changes or drops text. What is not known to be exact is refused. Encoding neither adds nor recognises special
tokens, and the file's truncation, padding and dropout are off.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flm_jax.tasks.tokenizers.byte_tokens import ByteTokens
from flm_jax.tasks.tokenizers.exactness import check_exact
from flm_jax.tasks.tokenizers.library import library

_CUTS_ONLY = ("ByteLevel", "Digits", "FixedLength", "Punctuation", "Split", "UnicodeScripts")
_MODELS = ("BPE", "Unigram")


class HuggingFaceJson(ByteTokens):
    """A tokenizer of the library `tokenizers`; tokens that were added to it count with the bytes of their text.

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
        super().__init__(content, where, self._token_bytes(record, where))
        special = [token["content"] for token in record.get("added_tokens", ()) if token["special"]]
        for joint in ("", " ", "a"):
            check_exact(self, str(where), {"it reads text as a special token": joint.join(special)})

    def _ids(self, text: str) -> list[int]:
        # Without offsets it is twice as fast, and there is that for batches only.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _token_bytes(self, record: dict[str, Any], where: Path) -> list[bytes]:
        known = self._tokenizer.get_vocab(with_added_tokens=False)
        if _is_byte_level(record):
            alphabet = {character: byte for byte, character in enumerate(_byte_characters())}
            of_model = {
                token: bytes(alphabet[character] for character in name)
                if alphabet.keys() >= set(name)
                else b""
                for name, token in known.items()
            }
            bytes_known = {piece for piece in of_model.values() if len(piece) == 1}
        else:
            byte_names = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
            of_model = {token: byte_names.get(name, name.encode("utf-8")) for name, token in known.items()}
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


def _inexact(record: dict[str, Any]) -> Iterator[str]:
    """Why text may not come back."""
    for step in _steps(record.get("normalizer"), "normalizers"):
        yield f"the normalizer {step['type']}, which changes text"
    for step in _steps(record.get("pre_tokenizer"), "pretokenizers"):
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
    elif not _is_byte_level(record) and not model.get("byte_fallback"):
        yield f"the model {kind} without byte level or byte fallback, which does not know every character"
    for mark in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(mark):
            yield f"the model's {mark} {model[mark]!r}, which is not in the text"
    for added in record.get("added_tokens", ()):
        if not added["special"] and (added["lstrip"] or added["rstrip"]):
            yield f"the added token {added['content']!r}, which takes the spaces beside it"


def _is_byte_level(record: dict[str, Any]) -> bool:
    return any(step["type"] == "ByteLevel" for step in _steps(record.get("pre_tokenizer"), "pretokenizers"))


def _steps(component: dict[str, Any] | None, parts: str) -> Iterator[dict[str, Any]]:
    if component is None:
        return
    if component["type"] == "Sequence":
        for part in component[parts]:
            yield from _steps(part, parts)
    else:
        yield component


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte (`bytes_to_unicode` of OpenAI's GPT-2).

    A byte that is a visible Latin-1 character is written as itself, the n-th other as character 256 + n.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in visible)
    moved = {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [moved.get(byte, chr(byte)) for byte in range(256)]
