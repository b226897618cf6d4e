#!/usr/bin/env python3
"""How the chat templates that llama.cpp ships call tools, as it is found from them; Markdown for docs/server.md.

    scripts/check_tools.py [NAME...]          calls with random names, texts, numbers and objects, which the template
                                              writes, are read as they are, at once and cut at every byte
    scripts/check_tools.py --model            calls that a synthetic model is forced to make, its control tokens those
                                              of the template, keep to their schemas
    ... --reference                           and the same texts through llama.cpp's own parser: what differs is told

Names are parts of file names; all templates without. Templates are those of llama.cpp's source, whose build --reference
needs as well (--peers, as scripts/compare_peers.py has them): tool_reference.cpp is compiled against both.

Exit status: 1 where a call is read otherwise than it was written, breaks its schema, or is told otherwise by llama.cpp
and that is not known.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from check_templates import MARKER, PEERS, compile_reference  # noqa: E402

from llmrun.engine.child.answer_text import AnswerText  # noqa: E402
from llmrun.engine.child.chat_template import TemplateError, Templates  # noqa: E402
from llmrun.engine.child.reasoning import Splitter, opened_by  # noqa: E402
from llmrun.engine.child.tool_calls import CallSplitter, texts_of  # noqa: E402
from llmrun.engine.child.tool_syntax import HARMONY, ToolSyntax  # noqa: E402
from llmrun.engine.protocol import Tool  # noqa: E402
from llmrun.wire.request import Function, tools_of  # noqa: E402

BOS, EOS = "<s>", "</s>"
SPECIAL = {"bos_token": BOS, "eos_token": EOS}
QUESTION, ANSWER, NEXT = "A question, jxqv?", "An answer, qxzj.", "Another one, vzqx?"


def function(name: str, required: Sequence[str] = (), **properties: Any) -> Function:
    parameters = {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}
    return Function(name, "It does something.", parameters)


ANYTHING = {"type": "object", "additionalProperties": {}}
FUNCTIONS = [
    function("look_up", word={"type": "string"}, n={"type": "integer"}, more=ANYTHING),
    function("set-alarm", on={"type": "boolean"}, ratio={"type": "number"}, days={"type": "array", "items": {}}),
    function("stop"),
]
STRICT = [
    function(
        "get_weather",
        ["place", "days"],
        place={"type": "string", "minLength": 2, "maxLength": 12},
        days={"type": "integer", "minimum": 1, "maximum": 7},
        unit={"type": "string", "enum": ["C", "F"]},
    ),
    function(
        "book",
        ["code", "who", "seats"],
        code={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}$"},
        who={
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        seats={"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 99}, "maxItems": 3},
        window={"type": "boolean"},
    ),
    function(
        "rate",
        ["stars", "note"],
        stars={"type": "number", "minimum": 0, "maximum": 5},
        note={"type": ["string", "null"], "maxLength": 6},
        tags={"type": "array", "items": {"enum": ["good", "bad"]}, "maxItems": 2},
    ),
]

Calls = list[tuple[str, Any]]


class Text(NamedTuple):
    """What a model says, and the calls in it: as they were written, or as our server gives them."""

    text: str
    calls: Calls


def spec_of(each: Function) -> dict[str, Any]:
    told = {"name": each.name, "description": each.description, "parameters": each.parameters}
    return {"type": "function", "function": told}


# -- texts that templates write ---


def random_call(chance: random.Random, syntax: ToolSyntax) -> tuple[str, Any]:
    signs = "ab {}[]\",:'\\\n/é漢🙂"
    word = "".join(chance.choice(signs) for _ in range(chance.randint(1, 16)))
    if syntax.places is not None:  # where values stand bare, blanks around them are nobody's; where none is escaped, …
        word = re.sub(r"\n|['\\]" if syntax.places.quote == "'" else r"\n", "", f"w{word}w")
    more = {"a": [1, None, {"b": "}"}], "c": f"{chance.randint(0, 9)}", "d": {}}
    days = chance.sample(["mo", 2, True, -0.5], chance.randint(0, 4))
    made = {
        "look_up": {"word": word, "n": chance.randint(-5, 10**6), "more": more},
        "set-alarm": {"on": chance.random() < 0.5, "ratio": chance.choice([0.25, -3.5, 1e-7, 12]), "days": days},
        "stop": {},
    }
    name = chance.choice([*made])
    keys = [*made[name]]
    return name, {key: made[name][key] for key in keys[: chance.randint(1, len(keys))]} if keys else {}


def answer(calls: Calls) -> dict[str, Any]:
    made = [
        {"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": made}


class Template:
    """One of llama.cpp's, and how it calls tools."""

    def __init__(self, path: Path, templates: Templates) -> None:
        self.name, self.source, self._templates = path.stem, path.read_text(), templates
        self.syntax = templates.syntax_of(self.source, SPECIAL)
        self.tags = templates.tags_of(self.source, SPECIAL)
        self._opens = self.tags is not None and opened_by(self.render({"role": "user", "content": QUESTION}), self.tags)

    def reader(self, tools: Sequence[Tool]) -> AnswerText:
        """As the engine has it."""
        splitter = Splitter(self.tags, inside=self._opens) if self.tags is not None else None
        return AnswerText((), splitter, CallSplitter(self.syntax, texts_of(tools)))

    def render(self, *messages: dict[str, Any]) -> str:
        tools = [spec_of(each) for each in FUNCTIONS]
        made = self._templates.render(self.source, messages, SPECIAL, enable_thinking=False, tools=tools)
        return str.__str__(made)

    def written(self, calls: Calls) -> str:
        """What the template makes of an answer, as the model writes it: without its heading and its end, and behind
        thoughts that the prompt has opened."""
        asked, said, syntax = {"role": "user", "content": QUESTION}, answer(calls), self.syntax
        text = self.render(asked, said).rpartition(QUESTION)[2]
        if syntax.trigger not in text:  # it leaves out calls that nothing follows
            again = {"role": "user", "content": NEXT}
            text = self.render(asked, said, again).rpartition(NEXT)[0].rpartition(QUESTION)[2]
        begin = text.find(" to=" if syntax == HARMONY else syntax.trigger)
        last = (*syntax.post, *syntax.end)[-1] if syntax.post or syntax.end else "}"
        thought = f"{self.tags.close}\n\n" if self.tags is not None and self._opens else ""
        return thought + text[begin : text.rfind(last) + len(last)]

    def texts(self, n: int) -> Iterator[Text]:
        """Raises `TemplateError`."""
        chance = random.Random(1)
        for _ in range(n):
            n_calls = chance.choice([1, 1, 2, 3]) if self.syntax.sep is not None else 1
            calls = [random_call(chance, self.syntax) for _ in range(n_calls)]
            yield Text(self.written(calls), calls)


# -- reading ---


def read(template: Template, tools: Sequence[Tool], pieces: Sequence[bytes]) -> Calls | None:
    """None: arguments that are not JSON."""
    reader = template.reader(tools)
    for piece in pieces:
        reader.add(piece)
    reader.finish()
    found: dict[int, list[str]] = {}
    for call in reader.take_calls():
        parts = found.setdefault(call.index, ["", ""])
        parts[0], parts[1] = parts[0] + call.name, parts[1] + call.arguments
    try:
        return [(name, json.loads(arguments)) for name, arguments in found.values()]
    except ValueError:
        return None


def is_read(template: Template, tools: Sequence[Tool], text: Text) -> bool:
    """At once, and cut at every byte."""
    data = text.text.encode()
    return all(
        read(template, tools, cut) == text.calls for cut in ([data], [data[i : i + 1] for i in range(len(data))])
    )


class Reference:
    """llama.cpp's own parser."""

    def __init__(self, peers: Path, folder: Path) -> None:
        self._program = compile_reference(peers, folder, "tool_reference")

    def read(self, template: Template, functions: Sequence[Function], texts: Sequence[str]) -> list[Calls | str]:
        """The calls in each text, or why it could not be read."""
        case = {
            "template": template.source,
            "messages": [{"role": "user", "content": QUESTION}],
            "tools": [spec_of(each) for each in functions],
            "several": template.syntax.sep is not None,
            "texts": texts,
        }
        done = subprocess.run([self._program], input=json.dumps(case), capture_output=True, text=True, timeout=300)
        if not done.stdout:
            return [f"it died with {done.returncode}: {done.stderr.strip()[-200:]}"] * len(texts)
        answers = json.loads(done.stdout)
        if isinstance(answers, dict):
            return [answers["error"]] * len(texts)
        return [self._calls(each) for each in answers]

    @staticmethod
    def _calls(told: dict[str, Any]) -> Calls | str:
        if "error" in told:
            return str(told["error"])
        try:
            # Of texts in quotes it leaves control characters as they are, which is no JSON.
            return [(call["name"], json.loads(call["arguments"] or "{}", strict=False)) for call in told["calls"]]
        except ValueError:
            return f"no JSON: {told['calls']}"


PYTHON = r"\b(True|False|None)\b|\['", "the template writes values as Python does, which llama.cpp does not read"
EXPECTED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        (
            *("ByteDance-Seed-OSS", "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Qwen3-Coder", "Qwen3.5-4B"),
            *("StepFun3.5-Flash", "openbmb-MiniCPM5-1B", "google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved"),
        ),
        PYTHON,
    ),
    "CohereForAI-c4ai-command-r-plus-tool_use": ("", "llama.cpp can't render arrays for this template"),
    **dict.fromkeys(
        ("deepseek-ai-DeepSeek-V3.2", "deepseek-ai-DeepSeek-V4", "deepseek-ai-DeepSeek-V4-Flash-0731"),
        (r'"note" string="false">null', "llama.cpp reads what may be a text as nothing else"),
    ),
    "MiniMax-M1": (r"}\n{", "llama.cpp does not read more than one call"),
    "MiniMax-M2": (r"</invoke>\n<invoke", "llama.cpp does not read more than one call"),
    "upstage-Solar-Open-100B": ("", "llama.cpp reads no call of this form"),
}
"""Of templates: which texts llama.cpp reads otherwise, and why. Ours are as they were written."""


def differences(
    reference: Reference, template: Template, functions: Sequence[Function], texts: Sequence[Text]
) -> list[tuple[bool, str]]:
    """Whether it is known, and both readings."""
    theirs = reference.read(template, functions, [text.text for text in texts])
    pattern, _ = EXPECTED.get(template.name, (r"$^", ""))
    return [
        (re.search(pattern, text.text) is not None, f"{text.text!r}: ours {text.calls}, llama.cpp's {told}")
        for text, told in zip(texts, theirs, strict=True)
        if told != text.calls
    ]


# -- a model that is forced ---


def vocabulary_of(source: str) -> tuple[list[bytes], list[float], list[int]]:
    """Of a synthetic model, its last tokens control tokens with the names that the template's have."""
    from llmrun.gguf import synth

    texts, scores, types = synth.vocabulary(synth.SHAPES["micro"].n_vocab)
    names = [name for name in dict.fromkeys(MARKER.findall(source)) if name not in (BOS, EOS)][:80]
    for i, name in enumerate(names, len(texts) - len(names)):
        texts[i], types[i] = name.encode(), 3
    return texts, scores, types


def said(vocab: tuple[list[bytes], list[float], list[int]], tokens: Sequence[int]) -> str:
    """The text of tokens, control tokens by their names."""
    made = b""
    for token in tokens:
        text = vocab[0][token]
        is_byte = vocab[2][token] == 6
        made += bytes([int(text[3:5], 16)]) if is_byte else text.replace("▁".encode(), b" ")
    return made.decode(errors="replace")


def forced(template: Template, n: int, folder: Path) -> tuple[list[Text], list[str]]:
    """Answers of a model that knows nothing and has to call; and what is wrong with them."""
    from jsonschema import Draft202012Validator

    from llmrun.engine.engine import ChildEngine
    from llmrun.engine.protocol import PromptOptions
    from llmrun.gguf import synth
    from llmrun.gguf.reader import open_header
    from llmrun.options.load import LoadConfig
    from llmrun.options.sampling import SamplingConfig

    path, vocab = folder / "model.gguf", vocabulary_of(template.source)
    shape = replace(synth.SHAPES["micro"], n_ctx_train=1 << 15)
    synth.write(path, shape, "F32", vocab=vocab, chat_template=template.source)
    tools = [*tools_of(STRICT, "tools")]
    known = {tool.name: Draft202012Validator(tool.parameters) for tool in tools}
    texts, wrong = list[Text](), list[str]()
    with ChildEngine(path, open_header(path), LoadConfig(n_threads=1)) as engine:
        for seed in range(n):
            options = PromptOptions(tools=tools, must_call=True, several_calls=seed % 2 > 0, thinks=False)
            sampling = SamplingConfig(seed=seed, max_tokens=600)
            made = engine.generate([{"role": "user", "content": QUESTION}], sampling, options=options)
            content = "".join(made)
            text = said(vocab, made.token_ids)
            if made.stop_reason == "length":  # noise may write texts without end
                continue
            calls = [(call.name, json.loads(call.arguments)) for call in made.calls]
            broken = [error.message for name, each in calls for error in known[name].iter_errors(each)]
            if content.strip() or not calls or broken:
                wrong.append(f"{text!r}: {content!r}, {calls}, {broken}")
            elif not is_read(template, tools, Text(text, calls)):
                wrong.append(f"{text!r}: cut otherwise, it is not {calls}")
            texts.append(Text(text, calls))
    return texts, wrong


# -- all of them ---


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names; all templates without")
    parser.add_argument("--calls", type=int, default=200, help="texts of each template")
    parser.add_argument("--model", action="store_true", help="a synthetic model's calls instead")
    parser.add_argument("--reference", action="store_true", help="and what llama.cpp reads in them")
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of llama.cpp's source and build")
    asked = parser.parse_args()
    folder = next(asked.peers.glob("llama_cpp_python-*/vendor/llama.cpp")) / "models" / "templates"
    with tempfile.TemporaryDirectory() as scratch:
        reference = Reference(asked.peers, Path(scratch)) if asked.reference else None
        return check(asked, sorted(folder.glob("*.jinja")), reference, Path(scratch))


def check(asked: argparse.Namespace, paths: Sequence[Path], reference: Reference | None, folder: Path) -> int:
    templates, failed, in_words, n_found, known = Templates(), False, list[str](), 0, list[str]()
    print("| template | a call begins with | several | arguments | calls right | as llama.cpp |")
    print("|---|---|---|---|--:|--:|")
    for path in paths:
        if asked.names and not any(name in path.stem for name in asked.names):
            continue
        template = Template(path, templates)
        syntax = template.syntax
        if syntax.is_generic:
            in_words.append(path.stem)
            continue
        n_found += 1
        functions = STRICT if asked.model else FUNCTIONS
        if asked.model:
            texts, wrong = forced(template, asked.calls, folder)
        else:
            texts, wrong = [], []
            try:
                texts = [*template.texts(asked.calls)]
                tools = tools_of(functions, "tools")
                wrong = [repr(text) for text in texts if not is_read(template, tools, text)]
            except TemplateError as error:
                wrong = [f"it can't be rendered: {error}"]
        differ = differences(reference, template, functions, texts) if reference is not None else []
        unknown = [words for is_known, words in differ if not is_known]
        for line in [*wrong[:1], *unknown[:1]]:
            print(f"{path.stem}: {line[:1000]}", file=sys.stderr)
        known += [path.stem] if len(unknown) < len(differ) else []
        failed |= bool(wrong or unknown)
        print(
            row(path.stem, syntax, len(texts), len(wrong), len(differ) if reference is not None else None), flush=True
        )
    print(f"\n{n_found} of {n_found + len(in_words)}; in words: {', '.join(in_words)}.")
    for name in known:
        print(f"- {name}: {EXPECTED[name][1]}.")
    return 1 if failed else 0


def row(name: str, syntax: ToolSyntax, n: int, n_wrong: int, n_differ: int | None) -> str:
    trigger = syntax.trigger.replace("|", "\\|").replace("\n", "⏎")
    how = "JSON" if syntax.places is None else "literals" if syntax.places.quote else "each in its place"
    right = f"{n - n_wrong} of {n}" if n else "–"
    equal = "" if n_differ is None else f"{n - n_differ} of {n}" if n else "–"
    return f"| {name} | `{trigger}` | {'yes' if syntax.sep is not None else 'no'} | {how} | {right} | {equal} |"


if __name__ == "__main__":
    sys.exit(main())
