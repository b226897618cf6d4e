"""Holds what `llmrun plan` says of memory against what llama.cpp then takes; prints Markdown.

    scripts/check_memory.py                 models of every kind, written, loaded and asked, about 1 GB each
    scripts/check_memory.py --laid-out      all shapes in full size, none written: llama.cpp lays them out alone

A row is one model at several contexts and types of keys and values. What llama.cpp takes is what its log says of its
buffers; off is the plan, at the setting where it is off the most. "What-if" is `--what-if` for a machine like this one,
where llama.cpp is not asked and what it computes in is estimated. "RSS beyond": by how much more the engine's process
has grown, by the kernel, than these buffers: the vocabulary, threads' work space; less what was never touched of them.

Exits with 1 if weights, keys or values differ by more than the log's rounding, or a total by more than 3 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.buffers import by_device  # noqa: E402
from llmrun.engine.devices import find_devices  # noqa: E402
from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.gguf import synth  # noqa: E402
from llmrun.gguf.reader import Header, open_header  # noqa: E402
from llmrun.gguf.shapes import Mla  # noqa: E402
from llmrun.machine.proc import Proc  # noqa: E402
from llmrun.models.resolve import find_model  # noqa: E402
from llmrun.options.load import LoadConfig  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402
from llmrun.planning.footprint import CPU, Need  # noqa: E402
from llmrun.planning.predict.elsewhere import Elsewhere  # noqa: E402
from llmrun.planning.predict.machines import parse  # noqa: E402
from llmrun.planning.predict.prediction import Question  # noqa: E402
from llmrun.tuning.sources import placed  # noqa: E402

MODELS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("llama-1.2b", {}, "Q4_K_M"),
    ("qwen3-0.6b", {}, "Q8_0"),
    ("phi4-mini", {"n_layer": 6}, "Q4_K_M"),
    ("gemma3-1b", {}, "Q4_K_M"),
    ("gemma3-4b", {"n_layer": 8}, "Q4_0"),
    ("gpt-oss-20b", {"n_layer": 2, "n_vocab": 32_768}, "MXFP4_MOE"),
    ("qwen3-30b-a3b", {"n_layer": 2, "n_expert": 64}, "Q4_K_M"),
    # llama.cpp knows the one without `q_lora_rank` by its 27 layers.
    ("deepseek-v2-lite", {"n_layer": 2, "mla": Mla(q_lora_rank=1536)}, "Q4_K_M"),
    ("lfm2-1.2b", {}, "Q4_K_M"),
    ("qwen3.5-0.8b", {}, "Q4_K_M"),
    ("qwen3-next-80b", {"n_layer": 4, "n_expert": 32}, "Q4_K_M"),
    ("granite-4-h-tiny", {"n_layer": 8}, "Q4_K_M"),
    ("mamba2-2.7b", {"n_layer": 24}, "Q4_K_M"),
)
CONTEXTS = (2048, 16_384)
KV_TYPES = ("f16", "q8_0")
PROMPT = "one two three four " * 40
"""Several hundred tokens: most of what is computed in has then been touched."""
MIB = 1 << 20
ROUNDING = 64 << 10
"""Bytes that llama.cpp's log may be off: it rounds every buffer to 0.01 MiB, of which a model has up to four, and they
are padded to an alignment."""
TARGET = 0.03


@dataclass(frozen=True)
class Row:
    """One model at one setting: bytes by the plan, by llama.cpp, by `--what-if` (all together), and by the kernel."""

    name: str
    n_ctx: int
    kv: str
    plan: Need
    taken: Need
    what_if: int
    rss: int | None = None

    @property
    def error(self) -> float:
        return self.plan.total / self.taken.total - 1

    @property
    def what_if_error(self) -> float:
        return self.what_if / self.taken.total - 1

    @property
    def off(self) -> int:
        """Bytes that weights, keys and values differ by at most."""
        return max(abs(self.plan.weights - self.taken.weights), abs((self.plan.kv or 0) - (self.taken.kv or 0)))


def settings(header: Header) -> Iterator[tuple[str, LoadConfig]]:
    for n_ctx in CONTEXTS:
        if n_ctx <= (header.n_ctx_train or n_ctx):
            for kind in KV_TYPES:
                yield kind, LoadConfig(n_ctx=n_ctx, type_k=kind, type_v=kind, repack="off")  # type: ignore[arg-type]


def planned(header: Header, config: LoadConfig) -> tuple[Need, int]:
    """What `plan` says of this machine, and what `--what-if` says of one like it, in bytes of RAM."""
    question = Question(config=config)
    need = placed(header, question, FOUND).footprint.by_device[CPU]
    elsewhere = Elsewhere(parse("kind=cpu,bandwidth=30,memory=1024")).predict(header, question)
    return need, sum(elsewhere.memory_bytes.values())


def loaded(path: Path, header: Header, name: str, bare_rss: int) -> Iterator[Row]:
    for kind, config in settings(header):
        need, what_if = planned(header, config)
        with ChildEngine(path, header, config) as engine:
            generation = engine.generate(PROMPT, SamplingConfig(temperature=0, max_tokens=2))
            for _ in generation:
                pass
            taken = by_device(generation.buffers, engine.devices)[CPU]
            rss = Proc().memory(engine.pid).rss_bytes
        found = Need(taken["weights"], taken["kv"], taken["compute"])
        yield Row(name, config.n_ctx or 0, kind, need, found, what_if, rss - bare_rss if rss else None)


def laid_out(header: Header, name: str) -> Iterator[Row]:
    """What llama.cpp lays out is what it takes: `loaded` shows it."""
    for kind, config in settings(header):
        need, what_if = planned(header, config)
        if need.compute is not None:
            yield Row(name, config.n_ctx or 0, kind, need, need, what_if)


def bare_rss() -> int:
    """Bytes of an engine's process before it has a model: with `tiny`, without what that takes."""
    tiny = find_model("tiny")
    with ChildEngine(tiny.path, tiny.header, LoadConfig(n_ctx=256)) as engine:
        generation = engine.generate("a", SamplingConfig(max_tokens=1))
        for _ in generation:
            pass
        taken = sum(each.n_bytes for each in generation.buffers)
        return (Proc().memory(engine.pid).rss_bytes or 0) - taken


def rows(*, write: bool) -> Iterator[Row]:
    if not write:
        for name, shape in synth.SHAPES.items():
            if name != "micro":
                yield from laid_out(synth.header_of(shape, "MXFP4_MOE" if name.startswith("gpt") else "Q4_K_M"), name)
        return
    bare = bare_rss()
    for name, changes, level in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            synth.write(path, replace(synth.SHAPES[name], **changes), level)
            names = {"n_layer": "layers", "n_vocab": "tokens", "n_expert": "experts"}
            what = "".join(f", {changes[key]} {called}" for key, called in names.items() if key in changes)
            yield from loaded(path, open_header(path), f"{name} {level}{what}", bare)


def shown(found: list[Row]) -> str:
    """All settings of one model."""

    def mib(figures: Iterable[int | None]) -> str:
        said = ["–" if each is None else f"{each / MIB:,.1f}" for each in figures]
        return said[0] if len({*said}) == 1 else ", ".join(said)

    grown = [(row.rss - row.taken.total) / MIB for row in found if row.rss is not None]
    parts = [
        found[0].name,
        mib(row.taken.weights for row in found),
        mib(row.taken.kv for row in found),
        mib(row.taken.compute for row in found),
        f"{max(row.off for row in found) / 1024:.0f} KiB" if grown else "–",
        f"{max((row.error for row in found), key=abs):+.2%}" if grown else "–",
        f"{max((row.what_if_error for row in found), key=abs):+.2%}",
        f"{min(grown):.0f} to {max(grown):.0f}" if grown else "–",
    ]
    return f"| {' | '.join(parts)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laid-out", action="store_true", help="no model is written or loaded")
    write = not parser.parse_args().laid_out
    settings = "; ".join(f"{n_ctx:,} {', '.join(KV_TYPES)}" for n_ctx in CONTEXTS)
    print(f"MiB by llama.cpp, at {settings}\n")
    print("| model | weights | KV | compute | weights, KV off | total off | what-if off | RSS beyond |")
    print("|---|---|---|---|---|---|---|---|")
    found: list[Row] = []
    for _, group in groupby(rows(write=write), key=lambda row: row.name):
        of_one = [*group]
        found += of_one
        print(shown(of_one), flush=True)
    by_plan, elsewhere = [abs(row.error) for row in found], [abs(row.what_if_error) for row in found]
    if write:
        print(f"\nWeights, keys and values are off by at most {max(row.off for row in found) / 1024:.0f} KiB,")
        print(f"all of it by {max(by_plan):.3%}.")
    print(f"\nWhat-if: {statistics.median(elsewhere):.2%} in the median of {len(found)}, {max(elsewhere):.2%} at most.")
    return int(any(row.off > ROUNDING for row in found) or max(*by_plan, *elsewhere) > TARGET)


FOUND = find_devices()

if __name__ == "__main__":
    sys.exit(main())
