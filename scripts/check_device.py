"""What works on a device, tried as a user would: every command that computes, on one device of this machine.

    .venv/bin/python scripts/check_device.py Vulkan0
    .venv/bin/python scripts/check_device.py RPC0       a worker on loopback, which it starts

Where the layers of many shapes lie, and what that takes, is compared by check_offload.py. How fast anything is, nothing
here shows: a device in software is one as well.

Prints a table in Markdown; exits with 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from check_offload import N_LIKELIEST, NEAR, distance, worker

from llmrun.engine import prefixes
from llmrun.engine.engine import ChildEngine
from llmrun.engine.limits import Limits
from llmrun.engine.protocol import PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig

ROOT = Path(__file__).resolve().parents[1]
QUESTION = "What do GPU layers do?"
QUESTIONS = (QUESTION, "What is a token?", "Once upon a time", "Hello!", "What is a context?", "What is quantization?")
"""Of which `tiny` knows the answers by heart: no rounding changes one."""
GREEDY = ("--temp", "0", "-n", "48", "--no-tune")
ENGINE_SHAPES = ("llama-1.2b", "gemma3-1b", "mamba2-2.7b", "lfm2-1.2b", "deepseek-v2-lite")
"""Attention, windows, states, both, latent attention."""
ALONE, SHARED = PromptOptions(n_logprobs=N_LIKELIEST), PromptOptions(n_logprobs=N_LIKELIEST, reuse=True)
LITTLE = "100000"
"""Bytes, less than any of the buffers."""


class Wrong(Exception):
    """Something is not as it should be."""


def expect(is_so: object, problem: str) -> None:
    if not is_so:
        raise Wrong(problem)


@dataclass(frozen=True)
class Device:
    """`name`, as `llmrun devices` shows it, and what a command needs to be given to use it."""

    name: str
    endpoint: str | None

    @property
    def given(self) -> tuple[str, ...]:
        return ("--rpc", self.endpoint) if self.endpoint else ()

    @property
    def only(self) -> tuple[str, ...]:
        return (*self.given, "--device", self.name)

    def config(self, **offload: Any) -> LoadConfig:
        return LoadConfig(
            n_ctx=1024,
            n_threads=1,
            repack="off",
            rpc=(self.endpoint,) if self.endpoint else (),
            offload=Offload(**{"n_gpu_layers": "all", "devices": (self.name,), **offload}),
        )


def llmrun(
    *arguments: str, stdin: str = "", code: int = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Raises `Wrong` where it ends with another code, or says what no user should see."""
    done = subprocess.run(
        [sys.executable, "-m", "llmrun", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        timeout=900,
    )
    said = done.stderr.strip()
    expect(done.returncode == code, f"{arguments[0]} ends with {done.returncode}, not {code}: {said[-300:]}")
    expect("Traceback" not in said, f"a traceback: {said[-300:]}")
    return done


def document(*arguments: str, stdin: str = "") -> Any:
    return json.loads(llmrun(*arguments, stdin=stdin).stdout)


def answer(*arguments: str) -> str:
    return llmrun("run", "tiny", QUESTION, *GREEDY, "-q", *arguments).stdout


def seen(device: Device) -> str:
    found = document("devices", *device.given, "--json")["devices"]
    each = next((each for each in found if each["name"] == device.name), None)
    if each is None:
        raise Wrong(f"it is not among {', '.join(each['name'] for each in found)}")
    expect(each["kind"] in ("gpu", "igpu") and each["total_bytes"], f"kind {each['kind']}, {each['total_bytes']} bytes")
    expect(0 < each["free_bytes"] <= each["total_bytes"], f"{each['free_bytes']} of {each['total_bytes']} bytes free")
    lines = llmrun("devices", *device.given).stdout.splitlines()
    return next(" ".join(line.split()) for line in lines if line.startswith(device.name))


def doctor(device: Device) -> str:
    checks = document("doctor", "--json")["checks"]
    return "; ".join(f"{each['name']}: {each['message']}" for each in checks if each["name"] in ("llama.cpp", "GPU"))


def ceilings(device: Device) -> str:
    made = document("devices", *device.given, "--measure", "--seconds", "0.1", "--json")["ceilings"]
    own = next((each for each in made if each["device"] == device.name), None)
    if own is None or not own["read_bytes_per_s"] or not own["flops_per_s"]:
        raise Wrong(f"{own}")
    expect(all(each["median"] > 0 for each in own["flops_per_s"].values()), f"{own}")
    return f"reads; products of {', '.join(own['flops_per_s'])}"


def layers(device: Device) -> str:
    """Every number of layers of `tiny`: the same answer, and the meter line has the device's memory."""
    expected, shown = answer("-ngl", "0", *device.given), []
    for n in range(8):
        done = llmrun("run", "tiny", QUESTION, *GREEDY, "-ngl", str(n), *device.only)
        expect(done.stdout == expected, f"with {n} layers: {done.stdout!r}, not {expected!r}")
        taken = re.search(rf"· {device.name} ([0-9.]+ [KMG]iB)", done.stderr.splitlines()[-1])
        # Without layers too: large batches are computed there, where the device is of this machine.
        expect(taken or not n, f"with {n} layers the meter line is {done.stderr.splitlines()[-1]}")
        shown += [taken[1]] if taken else []
    return f"0 to 7: one answer; meter line: {device.name} {', '.join(shown)}"


def settings(device: Device) -> str:
    """Other ways to compute, of which no answer depends."""
    expected = answer("-ngl", "0", *device.given)
    ways: tuple[tuple[str, ...], ...] = (
        ("-fa", "off"),
        ("-fa", "on"),
        ("-ctk", "q8_0", "-ctv", "q8_0"),
        ("-nkvo",),
        ("-ot", "ffn_=CPU"),
        ("-lm", "none"),
        ("--draft", "lookup"),
        ("-ub", "8"),
    )
    for way in ways:
        said = answer("-ngl", "all", *device.only, *way)
        expect(said == expected, f"{' '.join(way)}: {said!r}, not {expected!r}")
    return ", ".join(" ".join(way) for way in ways)


def auto(device: Device) -> str:
    done = llmrun("run", "tiny", QUESTION, *GREEDY, "-ngl", "auto", *device.only)
    line = next((line for line in done.stderr.splitlines() if line.startswith("auto:")), "")
    expect(f"of 7 layers 7 on {device.name}" in line, f"it says '{line}'")
    none = llmrun("run", "tiny", QUESTION, *GREEDY, "-ngl", "auto", *device.only, "-fitt", "100000000")
    said = next((line for line in none.stderr.splitlines() if line.startswith("auto:")), "")
    expect("none fits" in said and none.stdout == done.stdout, f"without room it says '{said}'")
    return f"“{line}”; without room “{said}”"


def whole_document(device: Device) -> str:
    """`--json`: what lies where, by plan, by llama.cpp's buffers and by the device itself."""
    said = document("run", "tiny", QUESTION, *GREEDY, "--json", "-ngl", "4", *device.only)
    expect(said["plan"]["layers"] == ["CPU"] * 3 + [device.name] * 4, f"layers {said['plan']['layers']}")
    kinds = {each["kind"] for each in said["memory"]["footprint"] if each["device"] == device.name and each["taken"]}
    expect(kinds == {"weights", "kv", "compute"}, f"on the device there are {kinds}")
    error = said["memory"]["footprint_error"]
    expect(error is not None and abs(error) < 0.03, f"the footprint is {error} off")
    after = next((each for each in said["devices_after"] if each["name"] == device.name), None)
    expect(after and after["free_bytes"] is not None, f"the device afterwards: {after}")
    verbose = llmrun("run", "tiny", QUESTION, *GREEDY, "-v", "-ngl", "4", *device.only).stderr
    expect(f"3-5 and the output on {device.name}" in verbose, f"--verbose says {verbose[-600:]}")
    return f"plan, buffers, devices after; footprint {error:+.2%}"


def bench(device: Device) -> str:
    """A row with all layers in RAM, one with all on the device, one of four sequences; the record has the device."""
    few = ("-p", "32", "-n", "8", "-r", "2", "-q")
    ran = llmrun("bench", "tiny", *few, "-ngl", "0,all", "-B", "1,4", "-o", "json", *device.only)
    rows = json.loads(ran.stdout)
    expect(all(row["error"] is None and row["avg_ts"] > 0 for row in rows), f"{[row['error'] for row in rows]}")
    where = {tuple(row["settings"]["layers"]) for row in rows}
    expect(where == {("CPU",) * 7, (device.name,) * 7}, f"layers {where}")
    kept = document("bench", "history", "show", "last", "--json")
    names = [each["name"] for each in kept["machine"]["devices"]]
    expect(device.name in names, f"the record's devices are {names}")
    backends = {row["backends"] for row in rows}
    return f"{len(rows)} rows, backends {', '.join(sorted(backends))}; record: devices {', '.join(names)}"


def out_of_memory(device: Device) -> str:
    """What does not fit is refused before it is loaded, and what the device refuses ends with the same code."""
    refused = llmrun(
        "run", "tiny", "Hi", "-c", "16777216", "--no-tune", "-ngl", "all", *device.only, code=10
    ).stderr.strip()
    expect(device.name in refused and "try: " in refused, f"it says {refused}")
    said = [refused.splitlines()[0]]
    if device.name.startswith("Vulkan"):
        small = {"GGML_VK_FORCE_MAX_BUFFER_SIZE": LITTLE, "GGML_VK_FORCE_MAX_ALLOCATION_SIZE": LITTLE}
        broken = llmrun("run", "tiny", "Hi", "--no-tune", "-ngl", "all", *device.only, code=10, environment=small)
        said.append(broken.stderr.strip().splitlines()[0])
    return "; ".join(f"“{each}”" for each in said)


def chat(device: Device) -> str:
    """Two turns and one of them again, from a pipe."""
    turns = f"{QUESTION}\nWhat is a token?\n"
    given = ("--ephemeral", "--temp", "0", "--no-tune", "-q")
    expected = llmrun("chat", "tiny", *given, "-ngl", "0", *device.given, stdin=turns).stdout
    said = llmrun("chat", "tiny", *given, "-ngl", "all", *device.only, stdin=turns).stdout
    expect(said == expected and len(said.splitlines()) >= 2, f"{said!r}, not {expected!r}")
    return "two turns, as on the CPU"


def batch(device: Device) -> str:
    """Several at once: the answers of one after the other."""
    rows, made = "\n".join(QUESTIONS) + "\n", []
    for n, where in (("1", ("-ngl", "0", *device.given)), ("4", ("-ngl", "all", *device.only))):
        said = llmrun("batch", "tiny", "-", "-np", n, *GREEDY, "-q", *where, stdin=rows).stdout
        lines = sorted((json.loads(line) for line in said.splitlines()), key=lambda line: str(line["custom_id"]))
        made.append([line["response"]["body"]["choices"][0]["message"]["content"] for line in lines])
    expect(made[0] == made[1] and len(made[0]) == len(QUESTIONS), f"{made[1]}, not {made[0]}")
    return f"{len(QUESTIONS)} rows, four at a time, as one by one on the CPU"


def words(n: int, seed: int) -> str:
    choose = random.Random(seed).choice
    return " ".join(choose(("cat", "dog", "sun", "tree", "river", "stone", "bird", "house")) for _ in range(n))


def sequences(device: Device, folder: Path) -> str:
    """Eight prompts, three at a time, some of which begin alike: each as if it were alone on the device."""
    sampling = SamplingConfig(temperature=0, max_tokens=12, ignore_eos=True)
    story = words(120, 0)
    prompts = [story, words(9, 1), story + words(30, 2), words(60, 3), story + words(5, 4), words(9, 1), words(200, 5)]
    n_near = n_all = 0
    for name in ENGINE_SHAPES:
        path = written(folder, name)
        with ChildEngine(path, open_header(path), device.config()) as engine:
            alone = []
            for prompt in prompts:
                generation = engine.generate(prompt, sampling, options=ALONE)
                list(generation)
                alone.append(generation.logprobs)
            with engine.parallel(3, 400) as answers:
                made = [answers.submit(prompt, sampling, options=SHARED) for prompt in prompts]
                while answers.wait():
                    pass
        for one, other in zip(alone, made, strict=True):
            apart = distance(one, other.logprobs)
            n_all += 1
            if apart is not None:
                expect(apart <= NEAR, f"{name}: an answer parts where the tokens were {apart:.3f} apart")
                n_near += 1
    return f"{n_all} answers of {len(ENGINE_SHAPES)} shapes, three at a time; {n_near} near ties"


def states(device: Device, folder: Path) -> str:
    """What a prompt was computed to is read by the next process, which goes on as this one did."""
    sampling = SamplingConfig(temperature=0, max_tokens=16, ignore_eos=True)
    limits, kept = replace(Limits(), prefix_s=0.0), []
    for name in ENGINE_SHAPES:
        path, found = written(folder, name), []
        for _ in range(2):
            with ChildEngine(path, open_header(path), device.config(), limits=limits, keeps_prefixes=name) as engine:
                generation = engine.generate(words(150, 6), sampling)
                list(generation)
                engine.flush()
                found.append((generation.token_ids, generation.timing.n_cached))
        expect(found[0][0] == found[1][0], f"{name}: {found[1][0]}, not {found[0][0]}")
        expect(not found[0][1] and found[1][1], f"{name}: {found[0][1]}, then {found[1][1]} tokens were known")
        kept.append(f"{found[1][1]}")
    entries = {each.model for each in prefixes.entries()}
    expect(entries >= {*ENGINE_SHAPES}, f"kept are {entries}")
    return f"{len(kept)} shapes: {', '.join(kept)} tokens known, one answer"


def written(folder: Path, name: str) -> Path:
    path = folder / f"{name}.gguf"
    if not path.exists():
        synth.write(path, replace(synth.small(synth.SHAPES[name]), n_ctx_train=4096), "Q8_0")
    return path


def lent(device: Device) -> str:
    """The device behind a worker: what it lends is its memory, and no more than it is told to."""
    expected = answer("-ngl", "0")
    with worker(64, device.name) as endpoint:
        listed = document("devices", "--rpc", endpoint, "--json")["devices"][-1]
        expect(listed["total_bytes"] == 64 << 20, f"{listed['total_bytes']} bytes are lent")
        given = ("--rpc", endpoint, "--device", "RPC0", "-ngl", "all")
        expect(answer(*given) == expected, "the answer is another one")
    return "64 MiB by `llmrun worker --device`, the same answer"


def checks(device: Device, folder: Path) -> list[tuple[str, Callable[[], str]]]:
    found: list[tuple[str, Callable[[], str]]] = [
        ("devices", lambda: seen(device)),
        ("doctor", lambda: doctor(device)),
        ("every number of layers", lambda: layers(device)),
        ("other settings, all layers", lambda: settings(device)),
        ("auto", lambda: auto(device)),
        ("--json, --verbose", lambda: whole_document(device)),
        ("out of memory", lambda: out_of_memory(device)),
        ("chat", lambda: chat(device)),
        ("batch", lambda: batch(device)),
        ("sequences side by side", lambda: sequences(device, folder)),
        ("states on disk", lambda: states(device, folder)),
        ("bench and its record", lambda: bench(device)),
        ("ceilings", lambda: ceilings(device)),
    ]
    return found if device.endpoint else [*found, ("lent to others", lambda: lent(device))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("device", help="as `llmrun devices` names it; RPC0: a worker that is started")
    parser.add_argument("--only", default="", help="the checks whose names contain this")
    given = parser.parse_args(arguments)
    failures = 0
    print("| what | outcome |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["LLMRUN_HOME"] = folder  # neither this machine's history nor what it has measured
        endpoint = stack.enter_context(worker()) if given.device == "RPC0" else None
        for name, check in checks(Device(given.device, endpoint), Path(folder)):
            if given.only not in name:
                continue
            try:
                said = check()
            except Wrong as problem:
                failures += 1
                said = f"**!** {problem}"
            print(f"| {name} | {said} |".replace("\n", " "), flush=True)
    print(f"\n{failures} are not as they should be" if failures else "\nall as it should be")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
