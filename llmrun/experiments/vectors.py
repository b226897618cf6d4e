"""Experiment 12: the same run with the CPU's vector instructions cut down.

A build for every CPU (`scripts/build_wheel`) has ggml's CPU backend once for each generation of instructions, of which
llama.cpp loads the best that runs here. A child can be told which to load (`LLMRUN_CPU_VARIANT`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager

from llmrun.bench.plot.figures import Axis, Figure, Panel, Series
from llmrun.engine.devices import variants
from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import Trial
from llmrun.experiments.experiment import Cell, Finding, Result, Table, judged, shown
from llmrun.experiments.lab import Lab
from llmrun.experiments.spread import BARS
from llmrun.gguf.reader import open_header
from llmrun.units import UNKNOWN, significant

SHAPE, LEVELS = "qwen3-0.6b", ("Q4_K_M", "Q8_0", "F16")
# GGML_CPU_ALL_VARIANTS of ggml's CMakeLists.txt: name → what it adds; from the oldest on.
ADDS: Mapping[str, str] = {
    "x64": "SSE2",
    "sse42": "SSE4.2",
    "sandybridge": "AVX",
    "ivybridge": "AVX, F16C",
    "piledriver": "AVX, F16C, FMA",
    "haswell": "AVX2, FMA",
    "skylakex": "AVX-512",
    "cannonlake": "AVX-512 VBMI",
    "cascadelake": "AVX-512 VNNI",
    "icelake": "AVX-512 VBMI, VNNI",
    "cooperlake": "AVX-512 VNNI, BF16",
    "zen4": "AVX-512 VBMI, VNNI, BF16",
    "alderlake": "AVX2, AVX-VNNI",
    "sapphirerapids": "AVX-512 VNNI, BF16, AMX",
}
_DRAWN: Mapping[str, str] = {
    "x64": "SSE2",
    "sse42": "SSE4.2",
    "sandybridge": "AVX",
    "haswell": "AVX2",
    "skylakex": "AVX-512",
    "cascadelake": "+ VNNI",
    "sapphirerapids": "+ AMX",
}
"""What a picture has room for: those that add what others are called by."""
_N_PROMPT, _N_GEN = 256, 24


@contextmanager
def _variant(name: str) -> Iterator[None]:
    """Children that are started meanwhile load this one."""
    before = os.environ.get("LLMRUN_CPU_VARIANT")
    os.environ["LLMRUN_CPU_VARIANT"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["LLMRUN_CPU_VARIANT"]
        else:
            os.environ["LLMRUN_CPU_VARIANT"] = before


def vectors(lab: Lab) -> Result:
    claim = "Vector instructions make CPUs fit for inference."
    there = variants()
    known = [name for name in ADDS if name in there]
    method = (
        f"{SHAPE}'s shape, a prompt of {_N_PROMPT} tokens and {_N_GEN} decoded, with ggml's CPU backend of one"
        " generation of"
        " instructions after the other. What a generation has no faster way for is computed as the one before does.",
    )
    if len(known) < 2:
        why = (
            "This build has one variant of ggml's CPU backend, for this very CPU. `scripts/build_wheel` makes one"
            " with all of them, and"
            " LLMRUN_WHEELS=dist scripts/setup installs it."
        )
        return Result((Finding(claim, "rise", "–", "not measured", why),), method)
    levels = LEVELS[:2] if lab.quick else LEVELS

    def of(variant: str, level: str) -> Cell:
        def take() -> Mapping[str, float | None]:
            path = lab.model(SHAPE, level)
            lab.unload()
            with _variant(variant), closing(ChildEngine(path, open_header(path), lab.config())) as engine:
                engine.run_trial(Trial(32, 2, n_ctx=512))
                done = engine.run_trial(Trial(_N_PROMPT, _N_GEN, n_ctx=512))
            return {"pp_tps": _N_PROMPT / (done.prefill_s or 1.0), "tps": len(done.step_s) / sum(done.step_s)}

        return Cell(f"{variant}, {level}", take)

    # Twelve variants, of which the oldest take ten times as long: one round of all is as long as three elsewhere.
    lab.measure([of(variant, level) for variant in known for level in levels], rounds=1)
    rows, findings = [], []
    for variant in known:
        cells = [lab.cells.errors.get(f"{variant}, {level}") for level in levels]
        if all(cells):
            rows.append((variant, ADDS[variant], *["not run here"] * (2 * len(levels))))
            continue
        rates = [
            (lab.spread(f"{variant}, {level}", "pp_tps"), lab.spread(f"{variant}, {level}", "tps")) for level in levels
        ]
        rows.append((variant, ADDS[variant], *(shown(each) for pair in rates for each in pair)))
    ran = [variant for variant in known if lab.spread(f"{variant}, {levels[0]}", "pp_tps")]
    if len(ran) > 1:
        parts, gains = [], []
        for name, what in (("pp_tps", "prompts"), ("tps", "decoding")):
            found = [each.median for variant in ran if (each := lab.spread(f"{variant}, {levels[0]}", name))]
            gains.append(found[-1] / found[0])
            parts.append(f"{what} {significant(gains[-1])} ×")
        text = f"{levels[0]}, {ADDS[ran[-1]]} beside {ADDS[ran[0]]}: {', '.join(parts)}"
        why = "More for prompts, which compute, than for decoding, which reads." if gains[0] > gains[1] else ""
        findings.append(Finding(claim, "rise", text, judged([gain > 1.2 for gain in gains]), why))
    else:
        findings.append(Finding(claim, "rise", UNKNOWN, "not measured", "Fewer than two of the variants run here."))
    drawn = [variant for variant in ran if variant in _DRAWN] or ran
    ticks = tuple((float(i), _DRAWN.get(variant, variant)) for i, variant in enumerate(drawn))

    def line(level: str, name: str) -> Series:
        spreads = [(i, lab.spread(f"{variant}, {level}", name)) for i, variant in enumerate(drawn)]
        return Series(level, tuple(spread.point(i) for i, spread in spreads if spread))

    panels = tuple(
        Panel(
            "sweep",
            what,
            Axis("", ticks=ticks),
            Axis("tokens per second"),
            tuple(line(level, name) for level in levels),
        )
        for name, what in (("pp_tps", f"prompt of {_N_PROMPT}"), ("tps", "decode"))
    )
    columns = ("variant", "adds", *(f">{level}, {what}" for level in levels for what in ("prompt, t/s", "decode, t/s")))
    return Result(
        tuple(findings),
        method,
        (Table("By generation of instructions", columns, tuple(rows)),),
        {"": Figure(f"{SHAPE} by vector instructions", panels, (BARS,))} if ran else {},
        (
            *(
                [f"Not in this build: {', '.join(name for name in ADDS if name not in there)}."]
                if len(there) < len(ADDS)
                else []
            ),
            "What a compiler makes of plain C with fewer instructions is part of it: the variants differ in more than"
            " loops by hand.",
        ),
    )
