"""What a text is written in: its characters counted by script."""

import functools
import unicodedata

import numpy as np

SCRIPTS = ("other", "space", "digit", "han", "latin", "kana", "hangul", "cyrillic", "arabic")

# Unicode's property Script (Scripts.txt of 17.0), first and last code point; ranges that only unassigned code
# points keep apart are joined. Kana is Hiragana and Katakana, with the marks of long sound (30FC, FF70) and of
# voice (FF9E, FF9F) that Unicode leaves to both; Arabic has its stretching mark (640), which other scripts borrow.
_RANGES = {
    "han": "2E80-2FD5 3005 3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF F900-FAD9 16FE2-16FE3 16FF0-16FF6 "
    "20000-33479",
    "latin": "41-5A 61-7A AA BA C0-D6 D8-F6 F8-2B8 2E0-2E4 1D00-1D25 1D2C-1D5C 1D62-1D65 1D6B-1D77 1D79-1DBE "
    "1E00-1EFF 2071 207F 2090-209F 212A-212B 2132 214E 2160-2188 2C60-2C7F A722-A787 A78B-A7FF AB30-AB5A "
    "AB5C-AB64 AB66-AB69 AB6C-AB6D FB00-FB06 FF21-FF3A FF41-FF5A 10780-107BF 1DF00-1DFFF",
    "kana": "3041-3096 309D-309F 30A1-30FA 30FC-30FF 31F0-31FF 32D0-32FE 3300-3357 FF66-FF9F 1AFF0-1B168 1F200",
    "hangul": "1100-11FF 302E-302F 3131-318E 3200-321E 3260-327E A960-A97C AC00-D7FB FFA0-FFDC",
    "cyrillic": "400-484 487-52F 1C80-1C8A 1D2B 1D78 2DE0-2DFF A640-A69F FE2E-FE2F 1E030-1E08F",
    "arabic": "600-604 606-60B 60D-61A 61C-61E 620-64A 656-66F 671-6DC 6DE-6FF 750-77F 870-8E1 8E3-8FF "
    "FB50-FD3D FD40-FDFF FE70-FEFC 10E60-10E7E 10EC2-10EFF 1EE00-1EEF1",
}

_PIECE = 1 << 15  # characters at a time: what numpy holds of them stays in the processor's cache


def code_points(text: str) -> np.ndarray:
    """The characters of a text as uint32 `[characters]`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@functools.cache
def script_table() -> np.ndarray:
    """The place in `SCRIPTS` of every code point, uint8 `[0x110000]`; read-only.

    Decimal digits (Nd) of any script are `digit`, what `str.isspace` holds true is `space`.
    """
    table = np.zeros(0x110000, np.uint8)
    for name, ranges in _RANGES.items():
        for bounds in ranges.split():
            first, _, last = bounds.partition("-")
            table[int(first, 16) : int(last or first, 16) + 1] = SCRIPTS.index(name)
    for code in range(len(table)):
        character = chr(code)
        if character.isspace():
            table[code] = SCRIPTS.index("space")
        elif unicodedata.category(character) == "Nd":
            table[code] = SCRIPTS.index("digit")
    table.flags.writeable = False
    return table


def script_counts(text: str) -> dict[str, int]:
    """The characters (code points) of a text by script; the counts add up to `len(text)`.

    Returns:
        A count for each of `SCRIPTS`. `other` is punctuation, symbols, marks that belong to no one script, and
        all other scripts.

    Example: `script_counts("JAX 是 2018 年")` has 3 latin, 2 han, 4 digit and 3 space.
    """
    if text.isascii():
        # A byte is a character; 128 counts are looked up, not every character.
        counts = np.bincount(np.frombuffer(text.encode("ascii"), np.uint8), minlength=128)
        totals = np.bincount(script_table()[:128], counts, len(SCRIPTS)).astype(np.int64)
    else:
        totals = np.zeros(len(SCRIPTS), np.int64)
        for start in range(0, len(text), _PIECE):
            scripts = script_table()[code_points(text[start : start + _PIECE])]
            totals += np.bincount(scripts, minlength=len(SCRIPTS))
    return dict(zip(SCRIPTS, totals.tolist(), strict=True))
