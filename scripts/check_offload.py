"""Where the layers are, and what they take: computed from the header, beside what llama.cpp did.

For every model, with one and with two workers on loopback, for every number of layers from none to all: llama.cpp's own
buffers by device against the footprint, and the greedy answer against that of no layer offloaded. Then auto, with
workers that offer less and less: as many layers as fit, never more.

    .venv/bin/python scripts/check_offload.py                     small models of every architecture that synth.py has
    .venv/bin/python scripts/check_offload.py MODEL... --every 4  other models, every fourth N

Prints a table in Markdown; exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from llmrun.engine.buffers import FootprintCheck, total_error
from llmrun.engine.engine import ChildEngine
from llmrun.gguf import synth
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import CPU

PROMPT = "Once upon a time there was a machine that could count, and it counted everything that it saw."
N_TOKENS = 24
ROUNDING = 1.5 * 1024 * 1024 / 100
"""Bytes that a buffer's size in llama.cpp's log may be off: it is rounded to 0.01 MiB, and padded to an alignment."""
TARGET = 0.03
"""Of the total."""


@dataclass(frozen=True)
class Outcome:
    """One load. `worst` is the largest error of weights and memory on any device, in bytes."""

    text: str
    tokens: list[int]
    layers: tuple[str, ...]
    checks: list[FootprintCheck]

    @property
    def total_error(self) -> float | None:
        return total_error(self.checks)

    def worst(self, *kinds: str) -> float:
        off = [abs((check.computed or 0) - check.taken) for check in self.checks if check.kind in kinds]
        return max(off, default=0)

    def taken(self, device: str) -> int:
        return sum(check.taken for check in self.checks if check.device == device)


@contextmanager
def worker(memory_mib: float | None = None) -> Iterator[str]:
    """A worker on a free port of this machine; its "host:port"."""
    limit = [] if memory_mib is None else ["--memory", f"{memory_mib / 1024:.6f}"]
    command = [sys.executable, "-m", "llmrun", "worker", "--json", "--port", "0", "-t", "1", *limit]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        yield f"{ready['host']}:{ready['port']}"
    finally:
        process.terminate()
        process.wait(10)


def load(path: Path, config: LoadConfig) -> Outcome:
    model = find_model(str(path))
    with ChildEngine(model.path, model.header, config, expected_tokens=512) as engine:
        generation = engine.generate(PROMPT, SamplingConfig(temperature=0, max_tokens=N_TOKENS))
        text = "".join(generation)
        return Outcome(text, generation.token_ids, engine.plan.placement.layers, engine.checks(generation))


class Table:
    def __init__(self) -> None:
        self.failures = 0
        print("| model | devices | settings | N tried | tokens equal | weights, KV off | total off |")
        print("|---|---|---|---|---|---|---|", flush=True)

    def row(self, name: str, devices: str, settings: str, outcomes: Sequence[Outcome], reference: list[int]) -> None:
        equal = sum(outcome.tokens == reference for outcome in outcomes)
        worst = max(outcome.worst("weights", "kv") for outcome in outcomes)
        errors = [outcome.total_error for outcome in outcomes]
        unknown = any(error is None for error in errors)
        total = max((abs(error) for error in errors if error is not None), default=0.0)
        allowed = ROUNDING * 4
        bad = equal < len(outcomes) or worst > allowed or total > TARGET or unknown
        self.failures += bad
        print(
            f"| {name} | {devices} | {settings} | {len(outcomes)} | {equal} | {worst / 1024:.0f} KiB |"
            f" {'unknown' if unknown else f'{total * 100:.2f} %'}{' **!**' if bad else ''} |",
            flush=True,
        )


def check(path: Path, name: str, every: int, n_ubatch: int, table: Table) -> None:
    base = LoadConfig(n_ctx=512, n_ubatch=n_ubatch, n_threads=1, repack="off")
    plain = load(path, replace(base, offload=Offload(n_gpu_layers=0)))
    n_all = len(plain.layers)
    table.row(name, "none", "", [plain], plain.tokens)
    for n_workers in (1, 2):
        with ExitStack() as stack:
            config = replace(base, rpc=tuple(stack.enter_context(worker()) for _ in range(n_workers)))
            outcomes = []
            for n in sorted({*range(0, n_all + 1, every), n_all}):
                outcome = load(path, replace(config, offload=Offload(n_gpu_layers=n)))
                offloaded = sum(device != CPU for device in outcome.layers)
                assert offloaded == n, f"{name}: {n} layers asked for, {offloaded} are planned"
                outcomes.append(outcome)
            table.row(name, f"{n_workers} RPC", f"-ngl 0..{n_all}", outcomes, plain.tokens)
            everything = Offload(n_gpu_layers="all")
            more = {
                "-ngl all -nkvo": replace(config, offload=replace(everything, kv=False)),
                "-ngl all -cmoe": replace(config, offload=replace(everything, n_cpu_moe="all")),
                "-ngl all -ot attn=CPU": replace(
                    config, offload=replace(everything, override_tensor=(("attn_", CPU),))
                ),
                "-ngl all --repack on": replace(config, offload=everything, repack="on"),
                "-ngl all, load mode none": replace(config, offload=everything, load_mode="none"),
            }
            for settings, other in more.items():
                if settings.endswith("-cmoe") and not find_model(str(path)).header.n_expert:
                    continue
                table.row(name, f"{n_workers} RPC", settings, [load(path, other)], plain.tokens)


def check_auto(path: Path, name: str, table: Table) -> None:
    """Less and less memory: the layers that auto offloads, and that one more would not have fitted."""
    base = LoadConfig(n_ctx=512, n_threads=1, repack="off", offload=Offload(fit_target=0))
    with worker() as endpoint:
        whole = load(path, replace(base, rpc=(endpoint,)))
    need = whole.taken("RPC0") / 2**20
    for share in (1.01, 0.9, 0.75, 0.6, 0.45, 0.3):
        limit = need * share
        with worker(limit) as endpoint:
            config = replace(base, rpc=(endpoint,))
            outcome = load(path, config)
            n = sum(device != CPU for device in outcome.layers)
            taken = outcome.taken("RPC0") / 2**20
            more = None
            if n < len(outcome.layers):
                more = measured(path, replace(config, offload=Offload(n_gpu_layers=n + 1)))
            fits = taken <= limit and (more is None or more > limit)
            table.failures += not fits or outcome.tokens != whole.tokens
            beyond = "" if more is None else f", {n + 1} would take {more:.2f}"
            print(
                f"| {name} | 1 RPC of {limit:.2f} MiB | auto: {n} of {len(outcome.layers)} layers, {taken:.2f} MiB"
                f"{beyond} | 1 | {int(outcome.tokens == whole.tokens)} | | {'' if fits else '**!**'} |",
                flush=True,
            )


def measured(path: Path, config: LoadConfig) -> float:
    """MiB that so many layers would take on the worker, by the footprint: they are not loaded."""
    from llmrun.engine.engine import ChildEngine as Planned

    model = find_model(str(path))
    with worker() as endpoint, Planned(model.path, model.header, replace(config, rpc=(endpoint,))) as engine:
        return engine.footprint(512).by_device["RPC0"].total / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--every", type=int, default=1, help="try every so many N")
    arguments = parser.parse_args()
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        models = [(path, path.stem) for path in arguments.models]
        if not models:
            for name, shape in synth.SHAPES.items():
                path = Path(folder) / f"{name}.gguf"
                level = "MXFP4_MOE" if name.startswith("gpt-oss") else "Q8_0"
                synth.write(path, shape if name == "micro" else synth.small(shape), level)
                models.append((path, name))
        # Of a small model, a whole micro-batch would take more to compute in than all of its weights.
        n_ubatch = 512 if arguments.models else 64
        for path, name in models:
            check(path, name, arguments.every, n_ubatch, table)
        for name in () if arguments.models else ("llama-1.2b", "qwen3-30b-a3b", "gemma3-1b", "granite-4-h-tiny"):
            # Larger: a worker lends 16 MiB at least.
            path = Path(folder) / f"{name}.gguf"
            synth.write(path, synth.small(synth.SHAPES[name], n_layer=12, n_embd=1024), "Q8_0")
            check_auto(path, f"{name}, 12 layers of 1024", table)
    print(f"\n{table.failures} rows differ" if table.failures else "\nall as computed")
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
