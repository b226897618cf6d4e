#!/usr/bin/env python3
"""Lines of code of `llmrun/` by package: without blank lines, comments and docstrings.

usage: scripts/count_code.py [COMMIT...]    each commit beside the working tree
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines that hold at least one token of code, those of docstrings left out."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        # A docstring, also one below an attribute: a statement that is nothing but a text.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def sources(commit: str | None) -> dict[str, str]:
    """Path below `llmrun/` → text, of a commit or of the working tree."""
    if commit is None:
        return {str(p.relative_to(ROOT / "llmrun")): p.read_text() for p in (ROOT / "llmrun").rglob("*.py")}
    git = ["git", "-C", str(ROOT)]
    names = subprocess.check_output([*git, "ls-tree", "-r", "--name-only", commit, "llmrun/"], text=True).split()
    return {
        name.removeprefix("llmrun/"): subprocess.check_output([*git, "show", f"{commit}:{name}"], text=True)
        for name in names
        if name.endswith(".py")
    }


def main() -> None:
    for commit in [*sys.argv[1:], None]:
        by_package: Counter[str] = Counter()
        for path, text in sources(commit).items():
            by_package[path.partition("/")[0] if "/" in path else "(root)"] += code_lines(text)
        print(f"{commit or 'working tree'}: {by_package.total()} lines of code")
        for package, n in sorted(by_package.items()):
            print(f"  {package:12} {n:6}")


if __name__ == "__main__":
    main()
