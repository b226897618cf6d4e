#!/usr/bin/env python3
"""How the chat templates that llama.cpp ships call tools, as it is found from them; Markdown for docs/server.md.

    scripts/check_tools.py FOLDER [--calls 200]     FOLDER: llama.cpp's models/templates

Of each template: the text that tells a call, and whether calls with random names, texts and numbers, which the template
writes, are read as they are, cut at every character. Exit status: 1 where one is not.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.child.chat_template import TemplateError, Templates  # noqa: E402
from llmrun.engine.child.tool_calls import CallSplitter  # noqa: E402
from llmrun.engine.child.tool_syntax import HARMONY, ToolSyntax  # noqa: E402

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
NAME, KEYS = "look_up", ("word", "n", "more")
PARAMETERS = {
    "type": "object",
    "properties": {"word": {"type": "string"}, "n": {"type": "integer"}, "more": {"type": "object"}},
}
TOOLS = [{"type": "function", "function": {"name": NAME, "description": "Looks up.", "parameters": PARAMETERS}}]
QUESTION = "A question, jxqv?"


def arguments(chance: random.Random, syntax: ToolSyntax) -> dict[str, Any]:
    signs = "ab {}[]\",:'\\\n/é漢" if syntax.places is None else "ab {}[]\",:'\\/é漢"
    word = "".join(chance.choice(signs) for _ in range(chance.randint(1, 16)))
    word = word if syntax.places is None else f"w{word}w"  # where values stand bare, blanks around them are nobody's
    made = {"word": word, "n": chance.randint(-5, 10**6), "more": {"a": [1, None, {"b": "}"}]}}
    return {key: made[key] for key in KEYS[: chance.randint(1, 3)]}


def answer(calls: list[dict[str, Any]]) -> dict[str, Any]:
    made = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": NAME, "arguments": json.dumps(each)}}
        for i, each in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


def read(syntax: ToolSyntax, pieces: list[str]) -> list[Any]:
    splitter, found = CallSplitter(syntax, {NAME: {"word"}}), dict[int, str]()
    for _, more in [*(splitter.add(piece) for piece in pieces), splitter.finish()]:
        for call in more:
            found[call.index] = found.get(call.index, "") + call.arguments
    return [json.loads(text) for text in found.values()]


def problems(templates: Templates, source: str, syntax: ToolSyntax, n: int) -> list[str]:
    """Of so many calls, those that were not read as they are."""
    chance, found = random.Random(1), []
    for _ in range(n):
        calls = [arguments(chance, syntax) for _ in range(chance.choice([1, 1, 2, 3]) if syntax.sep is not None else 1)]
        messages = [{"role": "user", "content": QUESTION}, answer(calls)]
        try:
            prompt = templates.render(source, messages, SPECIAL, enable_thinking=False, tools=TOOLS)
        except TemplateError as error:
            return [f"it can't be rendered: {error}"]
        text = str.__str__(prompt).rpartition(QUESTION)[2]
        text = text[max(0, text.find(syntax.trigger)) :]  # without the heading
        cut = chance.randint(0, len(text))
        for pieces in ([text], [*text], [text[:cut], text[cut:]]):
            try:
                if read(syntax, pieces) == calls:
                    continue
            except ValueError:
                pass
            found.append(repr(text[:300]))
            break
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--calls", type=int, default=200)
    asked = options.parse_args()
    templates, wrong, in_words = Templates(), 0, []
    print("| template | a call begins with | several | arguments | calls read |")
    print("|---|---|---|---|--:|")
    n_found = 0
    for path in sorted(asked.folder.glob("*.jinja")):
        source = path.read_text()
        syntax = templates.syntax_of(source, SPECIAL)
        if syntax.is_generic:
            in_words.append(path.stem)
            continue
        n_found += 1
        failed = [] if syntax == HARMONY else problems(templates, source, syntax, asked.calls)
        for text in failed[:1]:
            print(f"{path.stem}: {text}", file=sys.stderr)
        wrong += bool(failed)
        trigger = syntax.trigger.replace("|", "\\|").replace("\n", "⏎")
        how = "each in its place" if syntax.places else "JSON"
        count = "its own reader" if syntax == HARMONY else f"{asked.calls - len(failed)} of {asked.calls}"
        print(f"| {path.stem} | `{trigger}` | {'yes' if syntax.sep is not None else 'no'} | {how} | {count} |")
    print(f"\n{n_found} of {n_found + len(in_words)}; in words: {', '.join(in_words)}.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
