#!/usr/bin/env python3
"""Clients from npm, and programs that are built on clients, drive `llmrun serve`; Markdown for docs/server.md.

    scripts/check_clients.py [--folder FOLDER]              openai, @anthropic-ai/sdk and ai, with tiny: what each did
    scripts/check_clients.py --heavy [NAME ...] [--source FOLDER]
                                                            codex, claude-code, opencode, aider, guidellm

The first installs packages of npm into --folder (a temporary one by default) and checks each answer against what was
asked for. The second is about requests, as a synthetic model says noise: each program is pointed at the server by its
own settings, with a home and a git repository of its own, and a relay before the server notes what was asked and
answered. --source: llama.cpp's models folder, for a real vocabulary and a template with tools.

Exit status: 1 where a client could not do a thing, or a request of a program was refused.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "server")]

from serving import serving  # noqa: E402

PACKAGES = ("openai", "@anthropic-ai/sdk", "ai", "@ai-sdk/openai-compatible", "zod")
PEERS = Path.home() / ".cache" / "llmrun-peers" / "0.3.36"
TEMPLATE = "Qwen-Qwen2.5-7B-Instruct.jinja"
MODEL = "long.gguf"
LIMIT_S = 400.0
_KEY = "not-a-key"
_END = "2+2"
"""What favours the end of an answer of noise: some thirty tokens then."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def npm_install(folder: Path, packages: Sequence[str]) -> None:
    if not all((folder / "node_modules" / name).exists() for name in packages):
        say(f"npm install {' '.join(packages)}")
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages]
        subprocess.run(command, check=True, stdout=sys.stderr)


def npm_version(folder: Path, name: str) -> str:
    return str(json.loads((folder / "node_modules" / name / "package.json").read_text())["version"])


# -- libraries ---------------------------------------------------------------------------------------------------------


def libraries(folder: Path) -> bool:
    npm_install(folder, PACKAGES)
    script = shutil.copy(ROOT / "scripts" / "check_clients.mjs", folder)  # packages are looked for beside it
    found: dict[str, dict[str, str | None]] = {}
    with serving("tiny", "--temp", "0") as server:
        command = ["node", script, server.ready().address]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=True)
        for line in done.stdout.splitlines():
            told = json.loads(line)
            found.setdefault(told["client"], {})[told["what"]] = told["problem"]
    columns = list(dict.fromkeys(what for did in found.values() for what in did))
    print(f"| client | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for client, did in found.items():
        named = ", ".join(f"{name} {npm_version(folder, name)}" for name in client.split(", "))
        cells = ["–" if what not in did else "yes" if did[what] is None else f"**{did[what]}**" for what in columns]
        print(f"| {named} | {' | '.join(cells)} |")
    return bool(found) and all(problem is None for did in found.values() for problem in did.values())


# -- programs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noted:
    """A request, and how it was answered.

    Attributes:
        error: what a refusal said, or a stream in its middle.
    """

    method: str
    path: str
    body: dict[str, Any]
    status: int
    n_sent: int
    error: str | None


class Relay:
    """Stands before a server and notes what is asked of it."""

    def __init__(self, upstream: str) -> None:
        noted: list[Noted] = []
        self.noted = noted
        netloc = urlsplit(upstream).netloc

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                there = http.client.HTTPConnection(netloc, timeout=LIMIT_S)
                data, status = b"", 499
                try:
                    headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
                    there.request(self.command, self.path, body or None, headers)
                    response = there.getresponse()
                    status = response.status
                    self.send_response_only(status)
                    for name, value in response.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection"):
                            self.send_header(name, value)
                    self.send_header("connection", "close")
                    self.end_headers()
                    while piece := response.read1(65536):
                        data += piece
                        self.wfile.write(piece)
                        self.wfile.flush()
                except OSError:  # one of both is gone
                    pass
                finally:
                    there.close()
                    noted.append(note(self.command, self.path, body, status, data))
                    self.close_connection = True

            do_POST = do_HEAD = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def note(method: str, path: str, body: bytes, status: int, data: bytes) -> Noted:
    try:
        document = json.loads(body or b"{}")
    except ValueError:
        document = {}
    error = None
    if status >= 400:
        error = data.decode(errors="replace")[:400]
    elif b'"error":{' in data:
        error = data[data.index(b'"error":{') :][:400].decode(errors="replace")
    return Noted(method, path, document if isinstance(document, dict) else {}, status, len(body), error)


@dataclass(frozen=True)
class Program:
    """Attributes:
    packages: of npm or of PyPI.
    files: to be written, below the repository or, beginning with ~, below its home; ADDRESS is replaced.
    command: the first is looked for among what was installed.
    env: its own settings; ADDRESS is replaced.
    """

    packages: tuple[str, ...]
    command: tuple[str, ...]
    is_python: bool = False
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


_CODEX = """model = "long.gguf"
model_provider = "here"
model_context_window = 32768
[model_providers.here]
name = "here"
base_url = "ADDRESS/v1"
env_key = "HERE_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""
_OPENCODE = {
    "provider": {
        "here": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": "ADDRESS/v1", "apiKey": _KEY},
            "models": {MODEL: {"limit": {"context": 32768, "output": 512}}},
        }
    },
    "model": f"here/{MODEL}",
    "small_model": f"here/{MODEL}",
    "share": "disabled",
    "autoupdate": False,
}
_QUIET_CLAUDE = dict.fromkeys(
    ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_ERROR_REPORTING", "DISABLE_AUTOUPDATER"),
    "1",
)
_ASK = "Say what hello.py does. Change nothing."
PROGRAMS = {
    "codex": Program(
        ("@openai/codex",),
        ("codex", "exec", "--sandbox", "read-only", _ASK),
        files={"~/.codex/config.toml": _CODEX},
        env={"HERE_KEY": _KEY},
    ),
    "claude-code": Program(
        ("@anthropic-ai/claude-code",),
        ("claude", "-p", _ASK, "--model", MODEL, "--output-format", "json", "--max-turns", "2"),
        env={
            "ANTHROPIC_BASE_URL": "ADDRESS",
            "ANTHROPIC_API_KEY": _KEY,
            "ANTHROPIC_SMALL_FAST_MODEL": MODEL,
            "ANTHROPIC_DEFAULT_HAIKU_MODEL": MODEL,
            **_QUIET_CLAUDE,
        },
    ),
    "opencode": Program(
        ("opencode-ai",),
        ("opencode", "run", _ASK),
        files={"opencode.json": json.dumps(_OPENCODE)},
        env={"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
    ),
    "aider": Program(
        ("aider-chat",),
        (
            *("aider", "--model", f"openai/{MODEL}", "--openai-api-base", "ADDRESS/v1", "--openai-api-key", _KEY),
            *("--message", _ASK, "--yes", "--no-check-update", "--analytics-disable", "--no-show-model-warnings"),
            *("--no-auto-commits", "hello.py"),
        ),
        is_python=True,
    ),
    "guidellm": Program(
        ("guidellm", "torch==2.13.0"),
        (
            *("guidellm", "run", "--backend", f"kind=openai_http,target=ADDRESS,model={MODEL}"),
            *("--profile", "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=8"),
            *("--data", "kind=json_file,path=prompts.jsonl", "--output", "kind=json,path=out.json"),
            "--disable-progress",
        ),
        is_python=True,
        files={"prompts.jsonl": "".join(json.dumps({"prompt": f"{_ASK} {n}"}) + "\n" for n in range(8))},
    ),
}


def program(name: str, folder: Path, upstream: str) -> bool:
    """Runs it once and prints a row of the table. False where one of its requests was refused, or it made none."""
    wanted = PROGRAMS[name]
    bin_ = install(name, folder)
    home, repository = folder / name / "home", folder / name / "repository"
    for made in (home, repository):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    (repository / "hello.py").write_text('print("Hello")\n')
    with Relay(upstream) as relay:

        def filled(text: str) -> str:
            return text.replace("ADDRESS", relay.address)

        for file, text in wanted.files.items():
            place = home / file[2:] if file.startswith("~/") else repository / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(filled(text))
        # Nothing of ours: no settings, no key, no proxy.
        env = {"HOME": str(home), "PATH": f"{bin_}:{os.environ['PATH']}", "TERM": "dumb", "LANG": "C.UTF-8"}
        env |= {name: filled(value) for name, value in wanted.env.items()}
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
        for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-q", "-m", "begin")):
            subprocess.run(["git", *arguments], cwd=repository, env=env, check=True)
        version = said_by([wanted.command[0], "--version"], repository, env, 60)[1].strip().splitlines()[-1:]
        begin_s = time.monotonic()
        code, text = said_by([filled(each) for each in wanted.command], repository, env, LIMIT_S)
        took_s = time.monotonic() - begin_s
        noted = list(relay.noted)
    (folder / name / "said").write_text(text)
    (folder / name / "requests.json").write_text(json.dumps([vars(each) for each in noted], indent=1))
    answers = [each for each in noted if each.method == "POST"]
    kinds = Counter(f"{each.method} {each.path.partition('?')[0]} {each.status}" for each in noted)
    asked = ", ".join(f"{n} × {kind}" if n > 1 else kind for kind, n in kinds.items()) or "nothing"
    sizes = max((each.n_sent for each in answers), default=0)
    tools = max((len(each.body.get("tools") or ()) for each in answers), default=0)
    ended = "its limit" if code is None else str(code)
    print(f"| {' '.join([name, *version])[:60]} | {asked} | {sizes / 1e3:.0f} kB, {tools} | {ended} | {took_s:.0f} s |")
    for each in noted:
        if each.error:
            say(f"  {name}: {each.method} {each.path} {each.status}: {each.error}")
    last = " / ".join(text.strip().splitlines()[-4:])
    say(f"  {name} said last: {last[:600]}")
    return bool(answers) and all(each.status == 200 and each.error is None for each in answers)


def install(name: str, folder: Path) -> Path:
    """The folder of its commands."""
    wanted = PROGRAMS[name]
    if not wanted.is_python:
        npm_install(folder, wanted.packages)
        return folder / "node_modules" / ".bin"
    place = folder / name / "venv"
    if not (place / "bin" / wanted.command[0]).exists():
        say(f"pip install {' '.join(wanted.packages)}")
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        pip = [str(place / "bin" / "python"), "-m", "pip", "-q", "install", "--no-compile", *wanted.packages]
        subprocess.run(pip, check=True, stdout=sys.stderr)
    return place / "bin"


def said_by(command: Sequence[str], cwd: Path, env: dict[str, str], limit_s: float) -> tuple[int | None, str]:
    """Exit status (None: ended at its limit) and all that it said; what it started ends with it."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        data, _ = process.communicate(timeout=limit_s)
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        code, data = None, b""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if code is None:
        data, _ = process.communicate()
    return code, data.decode(errors="replace")


def long_model(path: Path, source: Path) -> None:
    """Two layers of noise with 32,768 tokens of context, a real vocabulary and a template that knows tools."""
    from llmrun.gguf import synth
    from llmrun.gguf.reader import open_header

    metadata = open_header(source / "ggml-vocab-llama-spm.gguf").metadata
    texts, scores, types = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    vocab: Any = ([*texts], [*scores], [*types])  # type: ignore[misc]
    shape = replace(synth.SHAPES["micro"], n_vocab=len(vocab[0]), n_ctx_train=32768)
    template = (source / "templates" / TEMPLATE).read_text()
    synth.write(path, shape, "Q8_0", vocab=vocab, chat_template=template)


def programs(names: Sequence[str], folder: Path, source: Path) -> bool:
    model = folder / MODEL
    if not model.exists():
        long_model(model, source)
    print("| program | asked and answered | longest, tools | ended with | took |\n|---|---|--:|--:|--:|", flush=True)
    arguments = ("-c", "32768", "-np", "2", "-l", _END, "-n", "400", "--no-tune")
    with serving(str(model), *arguments) as server:
        upstream = server.ready().address
        right = [program(name, folder, upstream) for name in names]
    return all(right)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--heavy", nargs="*", choices=[*PROGRAMS], metavar="NAME")
    options.add_argument("--folder", type=Path, help="where packages are installed, and left")
    options.add_argument("--source", type=Path, help=f"by default below {PEERS}")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmrun-clients-") as scratch:
        folder = (asked.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if asked.heavy is None:
            return 0 if libraries(folder) else 1
        source = asked.source or next(PEERS.glob("llama_cpp_python-*/vendor/llama.cpp/models"))
        return 0 if programs(asked.heavy or [*PROGRAMS], folder, source) else 1


if __name__ == "__main__":
    sys.exit(main())
