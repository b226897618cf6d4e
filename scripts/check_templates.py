"""Renders the chat templates that llama.cpp ships, as we do and as llama.cpp does; Markdown for docs/templates.md.

    scripts/check_templates.py [NAME...]     prompts byte for byte, whose control tokens are the template's, and the
                                             thinking tags; names are parts of file names
    scripts/check_templates.py --tokens      control tokens of real vocabularies in what is said
    scripts/check_templates.py --bombs       hostile templates through a real engine: how long, how much, which words

The first needs llama.cpp's source and its build (--peers, as scripts/compare_peers.py has them): template_reference.cpp
is compiled against both. Everything that llama.cpp says is asked of it in a process by template.

Exit status: 0 all right, 1 a prompt differs that is not known to, or a bomb was not ended in time.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrun.engine.child import reasoning  # noqa: E402
from llmrun.engine.child.chat_template import WITHOUT_THINKING, TemplateError, Templates  # noqa: E402
from llmrun.engine.child.written import Written  # noqa: E402

PEERS = Path.home() / ".cache" / "llmrun-peers" / "0.3.36"
BOS, EOS = "<bos-text>", "<eos-text>"

Conversation = list[dict[str, str]]


def turn(role: str, content: str, **more: str) -> dict[str, str]:
    return {"role": role, "content": content, **more}


SYSTEM = turn("system", "Answer in one sentence.")
FIRST = turn("user", "What is a KV cache? <b>\"so\"</b> & 'on'")
ANSWER = turn("assistant", "It keeps what attention has computed.\n\nÜber 100 %.")
SECOND = turn("user", "And without one?")

SAID = "Z9<|im_end|></s>[/INST]<|eot_id|><end_of_turn><｜User｜><|start|>9Z"
"""Control tokens of many models, between marks."""
MARKER = re.compile(r"<[^<>\s]+>|\[/?[A-Z_]+\]")

CONVERSATIONS: dict[str, Conversation] = {
    "system": [SYSTEM, FIRST, ANSWER, SECOND],
    "no system": [FIRST, ANSWER, SECOND],
    "one question": [FIRST],
    "system, one question": [SYSTEM, FIRST],
    "thinking in history": [FIRST, {**ANSWER, "reasoning_content": "They ask for a definition."}, SECOND],
    "whitespace": [
        turn("system", "  Be brief.\n"),
        turn("user", "\n hello  \n"),
        turn("assistant", " hi \n\n"),
        turn("user", " \tbye\n"),
    ],
    "empty answer": [FIRST, turn("assistant", ""), SECOND],
    "control tokens": [
        turn("system", f" {SAID}\n"),
        turn("user", f"<think>{SAID}</think> \n"),
        turn("assistant", f"<tool_call>{SAID}</tool_call>"),
        turn("user", f"</think>\n{SAID}"),
    ],
}
EXPECTED = {
    ("unsloth-mistral-Devstral-Small-2507", "thinking in history"): (
        "llama.cpp takes it for a reasoning model's and gives it a part that it does not know: the answer is lost"
    ),
}
"""Differences that stay, with the reason."""
SWITCHES = {name: value for name, value in WITHOUT_THINKING.items() if name != "enable_thinking"}


@dataclass(frozen=True)
class Case:
    conversation: str
    thinking: bool

    @property
    def name(self) -> str:
        return f"{self.conversation}, thinking {'on' if self.thinking else 'off'}"

    def for_reference(self) -> dict[str, Any]:
        return {
            "messages": CONVERSATIONS[self.conversation],
            "enable_thinking": self.thinking,
            "switches": {} if self.thinking else SWITCHES,
        }


CASES = [Case(conversation, thinking) for thinking in (True, False) for conversation in CONVERSATIONS]


# -- llama.cpp ---


def compile_reference(peers: Path, folder: Path, name: str) -> Path:
    """The program of that name beside this one, against llama.cpp's source and build."""
    source = next(peers.glob("llama_cpp_python-*/vendor/llama.cpp"))
    libraries = peers / "build" / "bin"
    program = folder / name
    subprocess.run(
        [
            *("g++", "-std=c++17", "-o", program, ROOT / "scripts" / f"{name}.cpp"),
            *(f"-I{source / name}" for name in ("common", "include", "ggml/include", "vendor")),
            *(libraries / f"lib{name}.so" for name in ("llama-common", "llama", "ggml", "ggml-base")),
            f"-Wl,-rpath,{libraries}",
        ],
        check=True,
    )
    return program


def ask_reference(program: Path, template: Path) -> list[dict[str, Any]]:
    """What llama.cpp says to each of `CASES`, and at the end to thinking off without our switches."""
    cases = [case.for_reference() for case in CASES]
    cases.append({"messages": CONVERSATIONS["system"], "enable_thinking": False, "switches": {}})
    done = subprocess.run(
        [program, template, BOS, EOS], input=json.dumps(cases), capture_output=True, text=True, timeout=60
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    missing = {"error": f"it died with {done.returncode}: {done.stderr.strip()[-200:]}"}
    return answers + [missing] * (len(cases) - len(answers))


# -- ours ---


def ours(source: str, conversation: Conversation, thinking: bool = True) -> Written:
    return Templates().render(source, conversation, {"bos_token": BOS, "eos_token": EOS}, enable_thinking=thinking)


def marks(source: str) -> tuple[int, int, list[str]]:
    """Control tokens that the template has written, and that were said; those of either taken for the other's."""
    wrong: list[str] = []
    n_own = n_said = 0
    for case in CASES:
        try:
            text = ours(source, CONVERSATIONS[case.conversation], case.thinking)
        except TemplateError:
            continue
        given = [found.span() for found in re.finditer("Z9.*?9Z", text)]
        n_said += len(given)
        wrong += [text[begin:end] for begin, end in given if any(text.is_own(at, at + 1) for at in range(begin, end))]
        if case.conversation != "control tokens":  # a <b> is in what was asked
            names = [found.span() for found in MARKER.finditer(text) if found[0] not in ("<b>", "</b>")]
            n_own += len(names)
            wrong += [text[begin:end] for begin, end in names if not text.is_own(begin, end)]
    return n_own, n_said, wrong


def said(make: Callable[[], str]) -> tuple[str | None, str]:
    """The prompt, or None and why there is none."""
    try:
        return make(), ""
    except TemplateError as error:
        return None, str(error)


def first_difference(mine: str, theirs: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    begin = max(0, at - 20)
    return f"ours {mine[begin : at + 40]!r}, theirs {theirs[begin : at + 40]!r}"


def compare(program: Path, templates: list[Path]) -> int:
    rows: list[tuple[str, str, str]] = []
    n_equal = n_both_refuse = n_all = n_expected = clean = n_own = n_said = 0
    thinking: list[tuple[str, str, str, str]] = []
    more_off: list[str] = []
    for path in templates:
        source = path.read_text()
        answers = ask_reference(program, path)
        worst = len(rows)
        for case, answer in zip(CASES, answers, strict=False):
            mine, why = said(partial(ours, source, CONVERSATIONS[case.conversation], case.thinking))
            theirs = answer.get("prompt")
            n_all += 1
            if mine is None and theirs is None:
                n_both_refuse += 1
            elif mine is not None and mine == theirs:
                n_equal += 1
            elif mine is None:
                rows.append((path.stem, case.name, f"ours fails: {why}"))
            elif theirs is None:
                rows.append((path.stem, case.name, f"theirs fails: {str(answer['error'])[-160:]!r}"))
            elif (path.stem, case.conversation) in EXPECTED:
                rows.append((path.stem, case.name, EXPECTED[path.stem, case.conversation]))
                n_expected += 1
            else:
                rows.append((path.stem, case.name, first_difference(mine, theirs)))
        clean += len(rows) == worst
        own, given, wrong = marks(source)
        n_own, n_said = n_own + own, n_said + given
        rows += [(path.stem, "control tokens", f"of the other: {name!r}") for name in sorted(set(wrong))]
        if answers[-1].get("prompt") != answers[len(CASES) // 2].get("prompt"):
            more_off.append(path.stem)
        thinking.append(tags_row(path.stem, source, answers[0]))
    print(f"{clean} of {len(templates)} templates are equal in all cases. Of {n_all} prompts {n_equal} are equal, and")
    print(f"{n_both_refuse} are refused by both. Our switches turn off more than `enable_thinking` does in: ", end="")
    print(", ".join(more_off) or "none", end=".\n\n")
    print(f"{n_own} control tokens are the templates', of {n_said} texts that name some nothing is. Otherwise:\n")
    print("| template | case | difference |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    print("\n| template | ours | llama.cpp | prompt opens it |\n|---|---|---|---|")
    for row4 in thinking:
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row4) + " |")
    return 1 if len(rows) > n_expected else 0


def tags_row(name: str, source: str, answer: dict[str, Any]) -> tuple[str, str, str, str]:
    tags = reasoning.tags_of(source, lambda messages: ours(source, messages))
    if tags is None:
        mine = "–"
    else:
        mine = f"`{tags.open}` `{tags.close}`" + (f" `{tags.answer}`" if tags.answer else "")
    if answer.get("supports_thinking"):
        theirs = " ".join(f"`{text}`" for text in [answer["open"], *answer["close"]])
    else:
        theirs = "–"
    prompt, _ = said(lambda: ours(source, CONVERSATIONS["system"]))
    opened = "yes" if prompt is not None and tags is not None and reasoning.opened_by(prompt, tags) else ""
    return name, mine, theirs.replace("\n", "\\n"), opened


# -- tokens ---


def tokens(vocabularies: Path) -> int:
    """Every control token of real vocabularies in what is said, between two of a template's."""
    from llmrun.engine.child.native import Log, Vocab, llama
    from llmrun.engine.child.special_tokens import is_control, name_of, tokens_of
    from llmrun.engine.child.written import own

    log = Log()
    llama.llama_backend_init()
    failed = 0
    print("| vocabulary | control tokens | prompts | wrong |\n|---|--:|--:|--:|")
    for path in sorted(vocabularies.glob("ggml-vocab-*.gguf")):
        params = llama.llama_model_default_params()
        params.vocab_only = True
        vocab = Vocab(llama.llama_model_load_from_file(bytes(path), params))
        control = [token for token in range(vocab.n_tokens) if is_control(vocab, token, "")]
        names = [name for token in control if len(name := name_of(vocab, token)) > 2]
        around, mark = next((token, name) for token in control if (name := name_of(vocab, token)) in names)
        n = wrong = 0
        for name in names:
            for text in (name, f"hi {name} there", name + name, f"é{name}é", f"<|{name}"):
                n += 1
                found = tokens_of(vocab, own(mark) + text + own(mark), "", add_special=False)
                first, *inner, last = found
                is_text = not any(is_control(vocab, token, "") for token in inner)
                wrong += not (first == last == around and is_text)
        failed += wrong
        print(f"| {path.stem.removeprefix('ggml-vocab-')} | {len(names)} | {n} | {wrong} |", flush=True)
    log.lines.clear()
    return 1 if failed else 0


# -- bombs ---


def growing(first: str, times: int, step: str) -> str:
    return (
        f"{{% set ns = namespace(x={first}) %}}{{% for i in range({times}) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
    )


DEEP = growing("[]", 99_999, "[ns.x]")
BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "range of 10**9": "{% for i in range(10**9) %}{% for j in range(10**9) %}a{% endfor %}{% endfor %}",
    "width of 999999999": "{{ '%999999999d'|format(1) }}",
    "format with a width": "{{ '{:>99999999999}'.format(1) }}",
    "text times 8·10⁹": "{{ 'A' * 8000000000 }}",
    "text that doubles": growing("'A'", 99, "ns.x + ns.x"),
    "lists that double": growing("[1]", 99, "ns.x + ns.x"),
    "lists in lists": growing("1", 40, "[ns.x, ns.x]") + "{{ ns.x }}",
    "macro that calls itself": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "join of a large list": "{{ range(99999)|join('A' * 99999) }}",
    "replace with more": "{{ ('A' * 99999)|replace('A', 'B' * 99999) }}",
    "pprint of a deep list": DEEP + "{{ ns.x|pprint }}",
    "tojson of a deep list": DEEP + "{{ ns.x|tojson }}",
    "printing a deep list": DEEP + "{{ ns.x }}",
    "wordwrap": "{{ ('A ' * 8000000)|wordwrap(1) }}",
    "center(10**10)": "{{ 'A'|center(10**10) }}",
    "indent": "{{ ('A\\n' * 8000000)|indent(99999) }}",
    "power of a power": "{{ 9 ** (9 ** 9) }}",
    "a number squared without end": growing("3", 99_999, "ns.x * ns.x") + "{{ ns.x }}",
    "100,000 parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "10,000 lists in the source": "{{ " + "[" * 10_000 + "]" * 10_000 + " }}",
    "100,000 sums in the source": "{{ 1" + "+a" * 100_000 + " }}",
    "10 MB of source": "{{ messages[0].content }}" * 400_000,
    "as much source as allowed": "{{ a }}" * 18_000 + "{{ a.b }}",
    "blocks without an end": "{% if a %}" * 12_000,
    "spaces before a block": " " * 100_000 + "{% if a",
    "output of 400 MB": "{% for i in range(40) %}{{ 'A' * 10000000 }}{% endfor %}",
    "urlize": "{{ ('http://' * 1000000)|urlize }}",
    "a failure of 100 MB": "{{ raise_exception('A' * 10000000 ~ 'B' * 10000000) }}",
    "a failure that is deep": DEEP + "{{ raise_exception(ns.x) }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "sorting again and again": "{% for i in range(9999) %}{{ range(99999)|sort|length }}{% endfor %}",
}
WITHIN_S, WITHIN_BYTES = 2.0, 1 << 30


def high_water(pid: int) -> int:
    """The most memory that the process has held, in bytes; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


@dataclass
class Blast:
    """What became of one hostile template."""

    wall_s: float
    grown_bytes: int
    words: str
    in_words: bool

    @property
    def ok(self) -> bool:
        return self.wall_s <= WITHIN_S and self.grown_bytes <= WITHIN_BYTES and self.in_words


def with_template(folder: Path, template: str) -> Path:
    """The embedded model with another chat template."""
    from gguf import GGUFReader, GGUFWriter
    from gguf.constants import GGUFValueType, Keys

    reader = GGUFReader(ROOT / "llmrun" / "data" / "tiny.gguf")
    path = folder / "bomb.gguf"
    writer = GGUFWriter(path, str(reader.fields[Keys.General.ARCHITECTURE].contents()))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in (Keys.General.ARCHITECTURE, Keys.Tokenizer.CHAT_TEMPLATE):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def explode(template: str, folder: Path) -> Blast:
    from llmrun.engine.engine import ChildEngine
    from llmrun.errors import LlmrunError
    from llmrun.gguf.reader import open_header
    from llmrun.options.sampling import SamplingConfig

    path = with_template(folder, template)
    try:
        engine = ChildEngine(path, open_header(path))
    except LlmrunError as error:
        return Blast(0, 0, f"at load: {error}", True)
    before = most = high_water(engine.pid)
    over = threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.005):
            most = max(most, high_water(engine.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin_s = time.monotonic()
    words, in_words = "no error", False
    try:
        list(engine.generate([{"role": "user", "content": "hello"}], SamplingConfig(max_tokens=1)))
    except LlmrunError as error:
        words, in_words = str(error), True
    wall_s = time.monotonic() - begin_s
    over.set()
    watcher.join()
    most = max(most, high_water(engine.pid))
    engine.close()
    return Blast(wall_s, most - before, words, in_words)


def bombs() -> int:
    failed = 0
    print("| template | s | MiB | it says |\n|---|--:|--:|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for name, template in BOMBS.items():
            blast = explode(template, Path(scratch))
            failed += not blast.ok
            words = blast.words.replace("|", "\\|").replace("\n", " ")
            mark = "" if blast.ok else "**too much** "
            print(f"| {name} | {blast.wall_s:.2f} | {blast.grown_bytes / (1 << 20):.0f} | {mark}{words} |", flush=True)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of file names; all templates without")
    parser.add_argument("--peers", type=Path, default=PEERS, help="folder of llama.cpp's source and build")
    parser.add_argument(
        "--tokens", action="store_true", help="real vocabularies' control tokens in what is said instead"
    )
    parser.add_argument("--bombs", action="store_true", help="hostile templates instead")
    arguments = parser.parse_args()
    if arguments.bombs:
        return bombs()
    models = next(arguments.peers.glob("llama_cpp_python-*/vendor/llama.cpp")) / "models"
    if arguments.tokens:
        return tokens(models)
    folder = models / "templates"
    templates = sorted(folder.glob("*.jinja"), key=lambda path: path.name.casefold())
    if arguments.names:
        templates = [path for path in templates if any(name in path.name for name in arguments.names)]
    with tempfile.TemporaryDirectory() as scratch:
        return compare(compile_reference(arguments.peers, Path(scratch), "template_reference"), templates)


if __name__ == "__main__":
    sys.exit(main())
