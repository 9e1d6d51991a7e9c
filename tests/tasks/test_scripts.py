import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm_jax.tasks.scripts import _PIECE, SCRIPTS, script_counts

# How the names of letters begin, in Unicode's list of names.
PREFIXES = {
    "han": ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"),
    "latin": ("LATIN ", "FULLWIDTH LATIN "),
    "kana": ("HIRAGANA ", "KATAKANA ", "HALFWIDTH KATAKANA ", "KATAKANA-HIRAGANA PROLONGED"),
    "hangul": ("HANGUL ", "HALFWIDTH HANGUL "),
    "cyrillic": ("CYRILLIC ",),
    "arabic": ("ARABIC ",),
}


def reference(character: str) -> str | None:
    """By name and category, where these tell; else None."""
    if character.isspace():
        return "space"
    category = unicodedata.category(character)
    if category == "Nd":
        return "digit"
    name = unicodedata.name(character, "")
    if category[0] == "L":
        for script, prefixes in PREFIXES.items():
            if name.startswith(prefixes):
                return script
    return "other" if category in ("Ps", "Pe", "Pd", "Cs", "Co") else None


def test_every_letter_digit_and_space_of_unicode_has_the_script_of_its_name() -> None:
    texts: dict[str, list[str]] = {}
    for code in range(0x110000):
        if script := reference(chr(code)):
            texts.setdefault(script, []).append(chr(code))
    assert set(texts) == set(SCRIPTS)
    for script, characters in texts.items():
        wrong = [c for c in characters if script_counts(c)[script] != 1]
        assert not wrong, (script, [(f"{ord(c):X}", unicodedata.name(c, "")) for c in wrong[:10]])


@given(st.text() | st.text(st.characters(max_codepoint=127)))
def test_counts_add_up_and_are_those_of_the_single_characters(text: str) -> None:
    counts = script_counts(text)
    assert list(counts) == list(SCRIPTS)
    assert sum(counts.values()) == len(text)
    for script in SCRIPTS:
        assert counts[script] == sum(script_counts(character)[script] for character in text)


@pytest.mark.parametrize("size", [_PIECE - 1, _PIECE, 3 * _PIECE + 5])
def test_long_texts_are_counted_whole(size: int) -> None:
    counts = script_counts("漢a1 é"[:5] * size)
    assert counts == {
        **dict.fromkeys(SCRIPTS, 0),
        "han": size,
        "latin": 2 * size,
        "digit": size,
        "space": size,
    }


def test_an_example() -> None:
    counts = script_counts("JAX 是 2018 年，よカ한Яع!\n")
    assert counts == {
        "other": 2,
        "space": 4,
        "digit": 4,
        "han": 2,
        "latin": 3,
        "kana": 2,
        "hangul": 1,
        "cyrillic": 1,
        "arabic": 1,
    }
