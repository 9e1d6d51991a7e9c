"""Random strings in place of labels, such as `<30mFC%4Z>`: nobody has read them, so only the shots say what they mean.

As in symbol tuning (Wei et al. 2023, arXiv 2305.08298), which the paper's IQ tests follow.
"""

import string

from flm_jax.evaluation.iq.draws import Draws

_LENGTH = 8
# No quotes and backslashes, which JSON would escape, and no brackets.
_KINDS = (string.ascii_lowercase, string.ascii_uppercase, string.digits, "!#$%&*+=?@^~")


def symbols(draws: Draws, count: int) -> tuple[str, ...]:
    """`count` different strings of 10 characters.

    Between its brackets each has small letters, capitals, digits and marks, so that none is a word; there are some
    10^14 of them. No two begin with the same character: the first token tells them apart, or nearly.
    """
    found: list[str] = []
    while len(found) < count:
        text = draws.text("".join(_KINDS), _LENGTH)
        mixed = all(any(letter in kind for letter in text) for kind in _KINDS)
        if mixed and not any(text[0] == other[1] for other in found):
            found.append(f"<{text}>")
    return tuple(found)
