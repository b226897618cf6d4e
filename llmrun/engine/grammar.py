"""llguidance, which says what tokens may come next: the only door to it.

A grammar is what `LLMatcher.grammar_from_…` returns: a text. It is compiled against the tokens of a vocabulary; against
single bytes where no model is needed. Imported only where an answer has a form.
"""

from __future__ import annotations

import importlib.util
import sys
import threading
import types
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

if "llguidance" not in sys.modules and not TYPE_CHECKING:
    # Its front imports 60 modules, half of the time to the first token of a small model; the library needs none.
    found = importlib.util.find_spec("llguidance")
    sys.modules["llguidance"] = types.ModuleType("llguidance")
    sys.modules["llguidance"].__path__ = list(found.submodule_search_locations) if found else []
    try:
        from llguidance._lib import LLMatcher, LLParserLimits, LLTokenizer
    finally:
        del sys.modules["llguidance"]
else:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_STACK = 512 << 20
"""Bytes of address space: chains of references are followed by recursion, in native code; 1 MiB of schema needs 100."""

_LIMITS = LLParserLimits(max_items_in_row=20_000, step_max_items=200_000, verbose_errors=False)
"""A grammar may go on in so many ways: ten times what is usual with llguidance."""

Verdict = Literal["complete", "incomplete", "wrong"]


class BadGrammar(Exception):
    """llguidance rejects the grammar: its own words, in one line."""


def of_llama(tokens: Sequence[bytes], ends: Sequence[int], vocab: int, tokenize: int) -> LLTokenizer:
    """Of a vocabulary of llama.cpp: 0.4 s for 150,000 tokens.

    `tokens` are the bytes of each, a control token's begin with 0xFF; `ends` the ones that end an answer; `vocab` and
    `tokenize` the addresses of the vocabulary and of `llama_tokenize`, which cuts text that is forced.
    """
    return LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,no-any-return]
        tokens=tokens, vocab_ptr=vocab, tokenize_fptr=tokenize, eos_token=list(ends)
    )


@cache
def of_bytes() -> LLTokenizer:
    """256 tokens of one byte each, and some of control."""
    return LLTokenizer("byte")


def compiled(grammar: str, tokens: LLTokenizer | None = None) -> LLMatcher:
    """A matcher at its beginning; it takes at least one text. Raises `BadGrammar`.

    The work is bounded by llguidance's own limits: some seconds for the worst that is known.
    """
    made: list[LLMatcher] = []

    def compile_() -> None:
        matcher = LLMatcher(tokens or of_bytes(), grammar, log_level=0, limits=_LIMITS)
        made.append(matcher)

    default = threading.stack_size(_STACK)
    try:
        thread = threading.Thread(target=compile_)
        thread.start()
    finally:
        threading.stack_size(default)
    thread.join()
    matcher = made[0]
    matcher.compute_bitmask()  # only here a grammar with no text at all fails
    if matcher.is_error():
        raise BadGrammar(" ".join(matcher.get_error().split()))
    return matcher


def of_schema(schema: str, **options: Any) -> str:
    """The grammar of a JSON schema, as a text; what llguidance does not know is left out. Raises `BadGrammar`."""
    try:
        return LLMatcher.grammar_from_json_schema(schema, overrides={"lenient": True, **options})  # type: ignore
    except ValueError as error:  # a number beyond its own
        raise BadGrammar(str(error)) from None


def of_lark(lark: str) -> str:
    """The grammar of llguidance's dialect of Lark, as a text."""
    return LLMatcher.grammar_from_lark(lark)


def judge(grammar: str, text: str) -> Verdict:
    """Whether a whole text is what the grammar says, could go on to be, or breaks it."""
    matcher = compiled(grammar)
    data = list(text.encode("utf-8", errors="replace"))
    if data and matcher.try_consume_tokens(data) < len(data):
        return "wrong"
    return "complete" if matcher.is_accepting() else "incomplete"
