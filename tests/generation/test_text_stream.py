"""Where text is cut, and when it is handed out; no model is needed for that."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flm_jax.generation.text_stream import TextStream
from tests.generation.text_cutting import cut

# Few letters, so that stop strings occur, overlap and contain one another; characters of one to four bytes.
LETTERS = "ab\né中😈"
TEXTS = st.text(LETTERS, max_size=12)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=3)


def parts(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> list[str]:
    """What is handed out at each piece, and at the end."""
    text = TextStream(stop)
    return [*(text.add(piece) for piece in pieces), text.end()]


def pieces_of(content: bytes, cuts: set[int]) -> list[bytes]:
    bounds = [0, *sorted(cut for cut in cuts if cut < len(content)), len(content)]
    return [content[start:end] for start, end in itertools.pairwise(bounds)]


@given(TEXTS, STOPS, st.sets(st.integers(0, 40)))
@example("a\n\nb", ["\n\n"], {2})
@example("ab中", ["b中x", "中"], {3, 4})
@example("aab", ["ab"], {1, 2})
def test_the_cut_is_exact_wherever_tokens_end(text: str, stop: list[str], cuts: set[int]) -> None:
    assert "".join(parts(pieces_of(text.encode(), cuts), stop)) == cut(text, stop)


@given(TEXTS, STOPS, st.sets(st.integers(0, 40)))
def test_nothing_is_shown_that_might_have_to_be_taken_back(
    text: str, stop: list[str], cuts: set[int]
) -> None:
    stream, shown, read = TextStream(stop), "", b""
    for piece in pieces_of(text.encode(), cuts):
        shown, read = shown + stream.add(piece), read + piece
        whole = read.decode(errors="ignore")
        if stream.stopped:
            assert shown == cut(whole, stop)
            assert stream.add(b"more") == stream.end() == ""
            return
        # Nothing less either: what waits is the beginning of a stop string.
        waiting = whole.removeprefix(shown)
        assert shown + waiting == whole
        assert not waiting or any(len(each) > len(waiting) and each.startswith(waiting) for each in stop)


@given(st.lists(st.binary(max_size=4), max_size=8), STOPS)
@example([b"\xe4", b"\xb8", b"\xad"], [])  # a character of three tokens
@example([b"a\xe4", b"b"], ["ab"])  # half a character, then another
@example([b"a\xf0\x9f\x98"], [])  # never finished
def test_only_whole_characters_come_out(pieces: list[bytes], stop: list[str]) -> None:
    found = parts(pieces, stop)
    whole = b"".join(pieces).decode("utf-8", errors="ignore")
    assert "".join(found) == cut(whole, stop)
    assert "\ufffd" not in "".join(found) or b"\xef\xbf\xbd" in b"".join(pieces)
    for each in found:
        each.encode("utf-8")  # no half of a surrogate pair


def test_a_stop_string_inside_a_token_and_across_tokens() -> None:
    assert parts([b"one. Two", b" three"], ["."]) == ["one", "", ""]
    assert parts([b"one", b"\n", b"\nQ: x"], ["\n\nQ:"]) == ["one", "", "", ""]
    assert parts([b"one\n\nQ", b"? no"], ["\n\nQ:"]) == ["one", "\n\nQ? no", ""]
    assert parts([b"aaa", b"ab"], ["aab"]) == ["a", "a", ""]
    assert parts([b"x\n\nQ"], ["\n\nQ:"]) == ["x", "\n\nQ"]


@pytest.mark.parametrize("wrong", [[""], ["a", ""], "END"])
def test_stop_strings_that_are_none(wrong: Sequence[str]) -> None:
    with pytest.raises(ValueError, match=r"expected a list of stop strings \(--stop\)"):
        TextStream(wrong)
