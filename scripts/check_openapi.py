#!/usr/bin/env python3
"""Asks `llmrun serve tiny` what /openapi.json says can be asked, and what can't; prints Markdown for docs/server.md.

    .venv/bin/python scripts/check_openapi.py [--max-examples 100] [--seed 1] [--workers 4] [--path /v1/messages]...

schemathesis makes the requests, in an environment of its own that is kept in the cache folder: bodies that fit and
bodies that don't, methods that there are not, keys that are none. Three passes: a server without keys, bounds of every
field included; one with a key, by somebody who has it; the same by somebody who has not. No answer may be a 5xx, or
have a status, a type, a header or a form that is not described; what does not fit the description has to be refused.

Left out: /events, which never ends; and that whatever fits is answered, as what fits may still be refused with a reason
(a text that is no grammar). The name of the model is one that is served, or "nothing": no other would ever be found by
chance. Answers end soon: 16 tokens where a request says nothing, 256 at most.

Exit status: 1 where something was found, or the server said a traceback or ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, build_opener

ROOT = Path(__file__).resolve().parents[1]
TOOL = "schemathesis==4.32.5"
KEY = "a-key-of-this-check"
LEFT_OUT = "positive_data_acceptance"
NAMES = ["tiny", "nothing"]


def tool() -> Path:
    """The program, installed where it is not yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "llmrun" / "tools" / TOOL.replace("==", "-")
    program = folder / "bin" / "schemathesis"
    if not program.exists() or subprocess.run([program, "--version"], capture_output=True, check=False).returncode:
        print(f"installing {TOOL} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "-q", "install", TOOL], check=True)
    return program


@contextmanager
def serving(home: Path, key: str) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it says on standard error; the last of it is said at the end."""
    command = [sys.executable, "-m", "llmrun", "serve", "tiny", "--port", "0", "--stop-timeout", "1"]
    # One thread: tiny gains nothing by two, and loses much where a busy machine keeps one of them waiting.
    command += ["-c", "256", "-n", "16", "-t", "1", "--seed", "1", "--pooling", "mean"]
    environment = {**os.environ, "LLMRUN_HOME": str(home), "LLMRUN_API_KEY": key}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    stderr, address, said = process.stderr, process.stderr.readline().strip(), list[str]()
    listening = threading.Thread(target=lambda: said.extend(stderr))
    listening.start()
    try:
        yield address, said
    finally:
        process.terminate()
        if status := process.wait():
            said.append(f"it ended with {status}\n")
        listening.join()


def description(address: str) -> dict[str, Any]:
    """What is served, with a choice of names for a model, and for chat completions with the simplest message: by chance
    few would say anything."""
    with build_opener(ProxyHandler({})).open(f"{address}/openapi.json") as response:
        document: dict[str, Any] = json.load(response)
    for component in document["components"]["schemas"].values():
        for name, told in component["properties"].items():
            if name == "model":
                for each in told.get("anyOf", [told]):
                    each |= {"enum": NAMES} if each["type"] == "string" else {}
    said = {"role": {"enum": ["user"]}, "content": {"type": "string"}}
    messages = document["components"]["schemas"]["openai.ChatBody"]["properties"]["messages"]
    simple = {"type": "object", "properties": said, "required": [*said]}
    messages["items"] = {"anyOf": [simple, messages["items"]]}
    (parameter,) = document["paths"]["/v1/models/{name}"]["get"]["parameters"]
    parameter["schema"]["enum"] = NAMES
    return document


def asked(program: Path, address: str, options: list[str], folder: Path) -> tuple[dict[str, Any], str]:
    """One pass: its report, and what it says."""
    (folder / "openapi.json").write_text(json.dumps(description(address)))
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command: list[str | Path] = [program, "--no-color", "run", folder / "openapi.json", "--url", address, *options]
    command += ["--exclude-path", "/events", "--exclude-checks", LEFT_OUT, "--request-timeout", "120"]
    command += ["--continue-on-failure", "--generation-database", "none", "--output-sanitize", "false"]
    command += ["--report", "json", "--report-json-path", report]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if not report.exists():
        sys.exit(f"schemathesis ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return json.loads(report.read_text()), done.stdout


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "-n", "--max-examples", type=int, default=100, help="of each operation, beside those at bounds"
    )
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--workers", type=int, default=4, help="operations that are asked side by side")
    options.add_argument("--path", action="append", default=[], help="these alone")
    chosen = options.parse_args()
    program, found = tool(), 0
    usual = ["--seed", str(chosen.seed), "--workers", str(chosen.workers)]
    usual += [each for path in chosen.path for each in ("--include-path", path)]
    usual += ["--max-examples", str(chosen.max_examples)]
    by_chance = [*usual, "--phases", "fuzzing"]
    passes = {
        "no key is needed": ("", usual),
        "with the key": (KEY, [*by_chance, "--header", f"Authorization: Bearer {KEY}"]),
        "without it": (KEY, by_chance),
    }
    print(f"Seed {chosen.seed}, {chosen.max_examples} examples, {TOOL}.\n")
    print("| | operations | requests | fitting, and answered | found | s |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as made:
        for name, (key, more) in passes.items():
            begin_s = time.monotonic()
            with serving(Path(made) / "home", key) as (address, said):
                report, shown = asked(program, address, more, Path(made))
            seconds = time.monotonic() - begin_s
            n = report["test_cases"]["unique_failures"] + report["test_cases"]["errored"]
            n += any(line.startswith(("Traceback", "it ended with")) for line in said)
            rates = [phase for each in report["valid_rates"].values() for phase in each.values()]
            answered = sum(phase["accepted"] for phase in rates)
            requests = report["test_cases"]["generated"]
            print(
                f"| {name} | {report['operations']['tested']} | {requests} | {answered} | {n} | {seconds:.0f} |",
                flush=True,
            )
            if n or report["exit_code"]:
                print(shown, *said, sep="", file=sys.stderr)
                found += max(n, 1)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
