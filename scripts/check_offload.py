"""Where the layers are, and what they take: computed from the header, beside what llama.cpp did.

For every model, with one and with two workers on loopback, for every number of layers from none to all: llama.cpp's own
buffers by device against the footprint, and the greedy answer against that of no layer offloaded. Then auto, with
workers that offer less and less: as many layers as fit, never more.

    .venv/bin/python scripts/check_offload.py                     small models of every architecture that synth.py has
    .venv/bin/python scripts/check_offload.py MODEL... --every 4  other models, files or shapes by name; every fourth N
    .venv/bin/python scripts/check_offload.py --device Vulkan0    a device of this machine in place of workers; of two,
                                                                  Vulkan0,Vulkan1, the first and then both

Another kind of device rounds otherwise. Where two tokens are as likely as each other to it, the answers part: such an
answer is counted apart, as a near tie, with how far apart the two were to the CPU.

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
from typing import Literal

from llmrun.engine.buffers import FootprintCheck, total_error
from llmrun.engine.devices import find_devices
from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import PromptOptions, TokenLogprobs
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
NEAR = 0.05
"""Two tokens whose logarithms of probability are no further apart than that are a near tie."""
N_LIKELIEST = 8
AUTO_SHAPES = ("llama-1.2b", "qwen3-30b-a3b", "gemma3-1b", "granite-4-h-tiny")


@dataclass(frozen=True)
class Outcome:
    """One load. `worst` is the largest error of weights and memory on any device, in bytes. `offered`: what there was
    for auto on the first device, in bytes."""

    logprobs: list[TokenLogprobs]
    layers: tuple[str, ...]
    checks: list[FootprintCheck]
    offered: int | None

    @property
    def total_error(self) -> float | None:
        return total_error(self.checks)

    def worst(self, *kinds: str) -> float:
        off = [abs((check.computed or 0) - check.taken) for check in self.checks if check.kind in kinds]
        return max(off, default=0)

    def taken(self, device: str) -> int:
        return sum(check.taken for check in self.checks if check.device == device)


def distance(reference: Sequence[TokenLogprobs], answer: Sequence[TokenLogprobs]) -> float | None:
    """How far apart two tokens were to the reference where an answer parts from it; None: they are the same."""
    for own, other in zip(reference, answer, strict=True):
        if own.id != other.id:
            return next((own.logprob - each.logprob for each in own.top if each.id == other.id), float("inf"))
    return None


@contextmanager
def worker(memory_mib: float | None = None, device: str | None = None) -> Iterator[str]:
    """A worker on a free port of this machine; its "host:port"."""
    limit = [] if memory_mib is None else ["--memory", f"{memory_mib / 1024:.6f}"]
    lends = [] if device is None else ["--device", device]
    command = [sys.executable, "-m", "llmrun", "worker", "--json", "--port", "0", "-t", "1", *limit, *lends]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        yield f"{ready['host']}:{ready['port']}"
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def using(config: LoadConfig, devices: Sequence[str], n: int = 1) -> Iterator[tuple[str, LoadConfig]]:
    """What the first `n` of these devices are called, and the settings that use them; of none, of `n` workers."""
    with ExitStack() as stack:
        if devices:
            names = tuple(devices[:n])
            yield ", ".join(names), replace(config, offload=replace(config.offload, devices=names))
        else:
            yield f"{n} RPC", replace(config, rpc=tuple(stack.enter_context(worker()) for _ in range(n)))


@contextmanager
def lending(config: LoadConfig, device: str | None, limit: float) -> Iterator[LoadConfig]:
    """The settings with which auto finds `limit` MiB: on a worker, or on a device of which the rest is left free."""
    if device is None:
        with worker(limit) as endpoint:
            yield replace(config, rpc=(endpoint,))
        return
    free = next(each.free_bytes for each in find_devices().devices if each.name == device)
    assert free, f"{device} does not tell what is free"
    target = free - round(limit * 2**20)
    yield replace(config, offload=replace(config.offload, devices=(device,), fit_target=target))


def with_layers(config: LoadConfig, n: int | Literal["all"]) -> LoadConfig:
    return replace(config, offload=replace(config.offload, n_gpu_layers=n))


def load(path: Path, config: LoadConfig) -> Outcome:
    model = find_model(str(path))
    with ChildEngine(model.path, model.header, config, expected_tokens=512) as engine:
        greedy = SamplingConfig(temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
        generation = engine.generate(PROMPT, greedy, options=PromptOptions(n_logprobs=N_LIKELIEST))
        for _ in generation:
            pass
        plan = engine.plan
        free = plan.budgets[0].free_bytes if plan.budgets else None
        offered = None if free is None else free - config.offload.fit_target
        return Outcome(generation.logprobs, plan.placement.layers, engine.checks(generation), offered)


class Table:
    def __init__(self) -> None:
        self.failures = self.n_loads = self.n_near = 0
        print("| model | devices | settings | N tried | tokens equal | weights, KV off | total off |")
        print("|---|---|---|---|---|---|---|", flush=True)

    def row(self, name: str, devices: str, settings: str, outcomes: Sequence[Outcome], reference: Outcome) -> None:
        equal, near, said = self.compared(outcomes, reference)
        worst = max(outcome.worst("weights", "kv") for outcome in outcomes)
        errors = [outcome.total_error for outcome in outcomes]
        unknown = any(error is None for error in errors)
        total = max((abs(error) for error in errors if error is not None), default=0.0)
        allowed = ROUNDING * 4
        bad = equal + near < len(outcomes) or worst > allowed or total > TARGET or unknown
        self.failures += bad
        print(
            f"| {name} | {devices} | {settings} | {len(outcomes)} | {said} | {worst / 1024:.0f} KiB |"
            f" {'unknown' if unknown else f'{total * 100:.2f} %'}{' **!**' if bad else ''} |",
            flush=True,
        )

    def compared(self, outcomes: Sequence[Outcome], reference: Outcome) -> tuple[int, int, str]:
        """How many answers are the reference's, how many part from it at a near tie, and both in words."""
        apart = (distance(reference.logprobs, outcome.logprobs) for outcome in outcomes)
        parted = [each for each in apart if each is not None]
        near = [each for each in parted if each <= NEAR]
        equal = len(outcomes) - len(parted)
        self.n_loads += len(outcomes)
        self.n_near += len(near)
        said = [f"{equal}"]
        if near:
            said.append(f"{len(near)} near ties ({max(near):.4f})")
        if len(parted) > len(near):
            said.append(f"{len(parted) - len(near)} **not** ({max(parted):.4f})")
        return equal, len(near), ", ".join(said)


def check(path: Path, name: str, devices: Sequence[str], every: int, n_ubatch: int, table: Table) -> None:
    base = LoadConfig(n_ctx=512, n_ubatch=n_ubatch, n_threads=1, repack="off")
    plain = load(path, with_layers(base, 0))
    n_all = len(plain.layers)
    table.row(name, "none", "", [plain], plain)
    for n_devices in range(1, (len(devices) or 2) + 1):
        with using(base, devices, n_devices) as (called, config):
            outcomes = []
            for n in sorted({*range(0, n_all + 1, every), n_all}):
                outcome = load(path, with_layers(config, n))
                offloaded = sum(device != CPU for device in outcome.layers)
                assert offloaded == n, f"{name}: {n} layers asked for, {offloaded} are planned"
                outcomes.append(outcome)
            table.row(name, called, f"-ngl 0..{n_all}", outcomes, plain)
            everything = with_layers(config, "all")
            more = {
                "-ngl all -nkvo": replace(everything, offload=replace(everything.offload, kv=False)),
                "-ngl all -cmoe": replace(everything, offload=replace(everything.offload, n_cpu_moe="all")),
                "-ngl all -ot attn=CPU": replace(
                    everything, offload=replace(everything.offload, override_tensor=(("attn_", CPU),))
                ),
                "-ngl all --repack on": replace(everything, repack="on"),
                "-ngl all, load mode none": replace(everything, load_mode="none"),
            }
            for settings, other in more.items():
                if settings.endswith("-cmoe") and not find_model(str(path)).header.n_expert:
                    continue
                table.row(name, called, settings, [load(path, other)], plain)


def check_auto(path: Path, name: str, device: str | None, table: Table) -> None:
    """Less and less memory: the layers that auto offloads, and that one more would not have fitted."""
    base = LoadConfig(n_ctx=512, n_threads=1, repack="off", offload=Offload(fit_target=0))
    with using(base, [device] if device else []) as (called, config):
        whole = load(path, config)
    on = device or "RPC0"
    need = whole.taken(on) / 2**20
    for share in (1.01, 0.9, 0.75, 0.6, 0.45, 0.3):
        with lending(base, device, need * share) as config:
            outcome = load(path, config)
            n = sum(device != CPU for device in outcome.layers)
            taken = outcome.taken(on) / 2**20
            limit = (outcome.offered or 0) / 2**20
        more = None
        if n < len(outcome.layers):
            more = measured(path, base, device, n + 1)
        fits = taken <= limit and (more is None or more > limit)
        equal, near, said = table.compared([outcome], whole)
        table.failures += not fits or not equal + near
        beyond = "" if more is None else f", {n + 1} would take {more:.2f}"
        print(
            f"| {name} | {called} of {limit:.2f} MiB | auto: {n} of {len(outcome.layers)} layers, {taken:.2f} MiB"
            f"{beyond} | 1 | {said} | | {'' if fits else '**!**'} |",
            flush=True,
        )


def measured(path: Path, base: LoadConfig, device: str | None, n: int) -> float:
    """MiB that so many layers would take on the device, by the footprint: they are not loaded."""
    model = find_model(str(path))
    with (
        using(with_layers(base, n), [device] if device else []) as (_, config),
        ChildEngine(model.path, model.header, config) as engine,
    ):
        return engine.footprint(512).by_device[device or "RPC0"].total / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="files, or names of shapes")
    parser.add_argument("--every", type=int, default=1, help="try every so many N")
    parser.add_argument("--device", default="", help="devices in place of workers, by commas")
    arguments = parser.parse_args()
    devices = [name for name in arguments.device.split(",") if name]
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        for given in arguments.models or synth.SHAPES:
            shape = synth.SHAPES.get(given)
            path = Path(folder, f"{given}.gguf") if shape else Path(given)
            if shape:
                level = "MXFP4_MOE" if given.startswith("gpt-oss") else "Q8_0"
                synth.write(path, shape if given == "micro" else synth.small(shape), level)
            # Of a small model, a whole micro-batch would take more to compute in than all of its weights.
            check(path, path.stem, devices, arguments.every, 64 if shape else 512, table)
        for name in AUTO_SHAPES:
            if arguments.models and name not in arguments.models:
                continue
            # Larger: a worker lends 16 MiB at least.
            path = Path(folder) / f"{name}.gguf"
            synth.write(path, synth.small(synth.SHAPES[name], n_layer=12, n_embd=1024), "Q8_0")
            check_auto(path, f"{name}, 12 layers of 1024", devices[0] if devices else None, table)
    print(f"\n{table.n_loads} loads, {table.n_near} of them with a near tie")
    print(f"{table.failures} rows differ" if table.failures else "all as computed")
    return 1 if table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
