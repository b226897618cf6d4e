"""The colours of a line of code, by Pygments."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any

# SGR code → Pygments' kinds of tokens.
_COLORS = {
    "1": "Name.Class Name.Function Name.Namespace Generic.Heading",
    "2": "Comment Generic.Prompt",
    "31": "Generic.Deleted",
    "32": "Literal.String Generic.Inserted",
    "35": "Keyword Name.Decorator Name.Tag Generic.Subheading",
    "36": "Literal Name.Builtin Name.Attribute",
}
_TOKENS = {kind: style for style, kinds in _COLORS.items() for kind in kinds.split()}

_LEXED_LINE = 500  # characters of a line: a lexer's regexes are not trusted with more
_LEXED_LINES = 400  # context for a line's colours
_LEXED = 16 << 10
_LEXED_S = 0.2  # of CPU time: what one line's colours may take before the block goes on without

# What models write, under any name that Pygments has for it. Not all that it knows: some lexers take minutes for a line
# that was made for them. These were tried with such lines.
_LANGUAGES = frozenset(
    "python pycon pytb bash console fish powershell ps1con bat c cpp objective-c csharp java kotlin scala groovy go"
    " rust zig nim d swift dart javascript jsx typescript tsx json yaml toml ini html xml css scss sass less php ruby"
    " perl lua r julia matlab octave fortran haskell ocaml fsharp elixir erlang clojure lisp scheme racket sql"
    " postgresql mysql sqlite3 graphql protobuf docker make cmake nginx terraform nix diff latex markdown rst vim asm"
    " nasm llvm cuda glsl hlsl verilog systemverilog vhdl solidity ada vb.net awk sed jinja html+jinja vue properties"
    " http tcl wast gdscript crystal".split()
)


@lru_cache(maxsize=1)
def _languages() -> dict[str, str]:
    """All names of `_LANGUAGES` → Pygments' name. Only its own: a plugin of someone's is not asked."""
    from pygments.lexers import get_all_lexers  # type: ignore[import-untyped]

    known = [(name, aliases) for name, aliases, _, _ in get_all_lexers(plugins=False)]
    return {alias: name for name, aliases in known if _LANGUAGES.intersection(aliases) for alias in aliases}


def lexer_of(info: str) -> Any:
    """Pygments' lexer for a fence's info string, None where it has none. The name is a model's: only looked up."""
    match = re.match(r"[ \t]*\{?\.?([A-Za-z0-9_+#-]{1,32})(?=[\s,:;{}]|$)", info)
    if not match:
        return None
    name = _languages().get(match[1].lower())
    if name is None:
        return None
    from pygments.lexers import find_lexer_class

    try:
        return find_lexer_class(name)(stripnl=False)
    except Exception:  # noqa: BLE001 - a lexer is a program for one language, and the answer goes on without
        return None


@lru_cache(maxsize=512)
def _style_of(kind: tuple[str, ...]) -> str:
    for length in range(len(kind), 0, -1):
        if style := _TOKENS.get(".".join(kind[:length])):
            return style
    return ""


class Highlighter:
    """A block's lines, one after the other, with the colours that the block so far gives them.

    The block is lexed again for each line, which knows of strings and comments that began above. What is lexed begins
    anew where a line alone has the tokens that it has in its block, and otherwise ends after `_LEXED_LINES`.
    """

    def __init__(self, lexer: Any) -> None:
        self._lexer = lexer
        self._context: list[str] = []
        self._chars = 0

    def stop(self) -> None:
        self._lexer = None

    def line(self, line: str) -> list[tuple[str, str]]:
        """The line in pieces with their styles."""
        if self._lexer is None:
            return [(line, "")]
        if len(line) > _LEXED_LINE or len(self._context) >= _LEXED_LINES or self._chars > _LEXED:
            self.stop()
            return [(line, "")]
        context = "".join(self._context)
        tokens, lexed_s = self._timed(context, line)
        if tokens is not None and lexed_s > _LEXED_S:
            # The first line of a language also pays for its patterns, which a slow machine compiles for longer.
            tokens, lexed_s = self._timed(context, line)
        if tokens is None or lexed_s > _LEXED_S:
            self.stop()
            return [(line, "")]
        if len(self._context) > 3 and line.lstrip()[:1].isalpha() and self._lex("", line) == tokens:
            self._context, self._chars = [], 0
        self._context.append(line + "\n")
        self._chars += len(line) + 1
        return tokens

    def _timed(self, context: str, line: str) -> tuple[list[tuple[str, str]] | None, float]:
        """The line's pieces and the CPU time that they took [s]."""
        begin_s = time.thread_time()
        tokens = self._lex(context, line)
        return tokens, time.thread_time() - begin_s

    def _lex(self, context: str, line: str) -> list[tuple[str, str]] | None:
        pieces: list[tuple[str, str]] = []
        begin, end = len(context), len(context) + len(line)
        at = begin
        try:
            for index, kind, value in self._lexer.get_tokens_unprocessed(context + line + "\n"):
                stop = min(index + len(value), end)
                if stop > at:
                    if index > at:
                        return None  # it left something out
                    pieces.append((value[at - index : stop - index], _style_of(tuple(kind))))
                    at = stop
        except Exception:  # noqa: BLE001 - as above
            return None
        return pieces if at == end and "".join(piece for piece, _ in pieces) == line else None
