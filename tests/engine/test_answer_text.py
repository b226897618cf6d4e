"""Bytes of tokens to text that can be shown: counted by hand, and the same however the text is cut."""

from __future__ import annotations

import random

import pytest

from llmrun.engine.child.answer_text import AnswerText, StopSearch, overlap
from llmrun.engine.child.reasoning import THINK, Splitter


@pytest.mark.parametrize(
    ("text", "beginning", "n"),
    [("abc", "cd", 1), ("abc", "abc", 3), ("aab", "aabaab", 3), ("abab", "aba", 2), ("aba", "abab", 3), ("", "a", 0)],
)
def test_overlap(text: str, beginning: str, n: int) -> None:
    """The longest end of the one that is a beginning of the other."""
    assert overlap(text, beginning) == n


def test_only_what_may_become_a_stop_string_is_held() -> None:
    """The beginning of one waits; what can no longer become one is shown at once."""
    search = StopSearch(["END", "."])
    assert [search.add(piece) for piece in ("one E", "N", "X E", "N")] == ["one ", "", "ENX ", ""]
    assert search.finish() == "EN" and search.found is None


def test_the_first_stop_string_counts() -> None:
    """Neither it nor anything behind it is shown, whichever of two that come together is named first."""
    for strings in (["b", "a"], ["a", "b"]):
        search = StopSearch(strings)
        assert search.add("xxabyy") == "xx" and search.found == strings.index("a") and search.finish() == ""


def test_empty_stop_strings_stop_nothing() -> None:
    search = StopSearch([""])
    assert search.add("ab") == "ab" and search.found is None


def test_characters_wait_for_their_last_byte() -> None:
    """Four bytes of one character: nothing, nothing, nothing, the character."""
    text = AnswerText([])
    assert [text.add(bytes([byte])) for byte in "🙂".encode()] == [("", ""), ("", ""), ("", ""), ("🙂", "")]


def test_bytes_that_are_no_text() -> None:
    """Each becomes U+FFFD: at once where it can't be a beginning, at the end where it was one."""
    text = AnswerText([])
    assert text.add(b"\xff") == ("\ufffd", "")
    assert text.add(b"a\xf0\x9f") == ("a", "")
    assert text.finish() == ("\ufffd", "")


def test_a_stop_string_of_the_thinking_stops_nothing() -> None:
    """Stop strings are for the answer."""
    text = AnswerText(["stop"], Splitter(THINK, inside=True))
    assert text.add(b"I stop</think>") == ("", "I stop")
    assert text.add(b"go stop on") == ("go ", "") and text.stopped
    assert text.finish() == ("", "")


def test_what_was_held_comes_at_the_end() -> None:
    """The beginning of a tag, and of a stop string behind it."""
    text = AnswerText(["<s"], Splitter(THINK, inside=False))
    assert text.add(b"<") == ("", "")
    assert text.finish() == ("<", "")


def test_which_tokens_are_shown() -> None:
    """Of each character its own, whatever was left out before it: thoughts, their tags and blanks, a stop string."""
    rng = random.Random(6)
    words = ["ab", "abc", "🙂", " ", "c", "</think>", "<think>", "</", "stop", "st", "\n"]
    for _ in range(300):
        text = rng.choice(["<think>", "", "hm"]) + "".join(rng.choice(words) for _ in range(rng.randrange(12)))
        traced = AnswerText(["stop"], Splitter(THINK, inside=rng.random() < 0.5), traced=True)
        shown, of = "", list[int]()
        for i, character in enumerate(text):
            if traced.stopped:
                break
            shown += traced.add(character.encode(), token=i)[0]
            of += traced.take_shown_of()
        shown += traced.finish()[0]
        of += traced.take_shown_of()
        assert "".join(text[i] for i in of) == shown and of == sorted(of), (text, shown)


def test_any_cut_gives_the_same() -> None:
    """Text, characters of four bytes and stop strings, byte by byte and in pieces of any length."""
    rng = random.Random(5)
    words = ["ab", "abc", "🙂", "ü", " ", "c", "a", "</think>", "<think>", "</"]
    for _ in range(300):
        data = "".join(rng.choice(words) for _ in range(rng.randrange(12))).encode()
        stop, inside = [rng.choice(["abc", "🙂a", "aab"])], rng.random() < 0.5
        shown = set()
        for size in (1, 2, 3, len(data) or 1):
            text = AnswerText(stop, Splitter(THINK, inside=inside))
            answer = thinking = ""
            for begin in range(0, len(data), size):
                if text.stopped:
                    break
                one, other = text.add(data[begin : begin + size])
                answer, thinking = answer + one, thinking + other
            rest, rest_of_thinking = text.finish()
            shown.add((answer + rest, thinking + rest_of_thinking, text.stopped))
        assert len(shown) == 1, (data, stop, shown)
