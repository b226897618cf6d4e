r"""Scores a text with llmrun and with llama-perplexity, and prints the differences as Markdown tables.

    .venv/bin/python scripts/compare_quality.py [SOURCE[:LEVEL,LEVEL...]] [--text FILE] [-c N] [--chunks N] [--golden]

SOURCE is a model's name or file (default: tiny); each LEVEL is made of it by llmrun's quantizer, and compared with the
source itself as the reference. Both programs get the same layout, threads, context and batches; theirs keeps the
reference's log-probabilities in 16 bits, none lower than 16 below the highest, ours are exact. Exit 1 where a
perplexity is further away than its printed digits, or a mean divergence by more than 2 %.

--golden prints llama-perplexity's own figures instead, as tests/bench/data/quality.json has them:

    .venv/bin/python scripts/compare_quality.py tiny:Q4_K_M,Q2_K \
        --text tests/bench/data/quality-stories.txt --chunks 5 --golden > tests/bench/data/quality.json
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from llmrun.bench import quality  # noqa: E402
from llmrun.bench.perplexity import score  # noqa: E402
from llmrun.engine.jobs.quantize import Quantizer, Recipe, level_of  # noqa: E402
from llmrun.machine.hardware import default_threads  # noqa: E402
from llmrun.models.resolve import Model, find_model, open_whole  # noqa: E402
from llmrun.options.load import LoadConfig, Offload  # noqa: E402

PEERS = Path.home() / ".cache" / "llmrun-peers" / "0.3.36" / "build" / "bin"
LEVELS = ("Q6_K", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")
CONFIG = LoadConfig(repack="off", offload=Offload(n_gpu_layers=0))

_FINAL = re.compile(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)")
_LINES = {
    "ppl": r"Mean PPL\(Q\) ",
    "ppl_reference": r"Mean PPL\(base\) ",
    "correlation": r"Cor\(ln\(PPL\(Q\)\), ln\(PPL\(base\)\)\)",
    "ln_ratio": r"Mean ln\(PPL\(Q\)/PPL\(base\)\)",
    "kld": r"Mean    KLD",
    "kld_max": r"Maximum KLD",
    "kld_99": r"99\.0%   KLD",
    "kld_median": r"Median  KLD",
    "dp": r"Mean    Δp",
    "dp_rms": r"RMS Δp",
    "same_top": r"Same top p",
}
_IN_PERCENT = ("correlation", "dp", "dp_rms", "same_top")


@dataclass(frozen=True)
class Peer:
    """llama-perplexity, told to do what `CONFIG` does."""

    program: Path
    text: Path
    n_ctx: int
    n_chunks: int

    def run(self, path: Path, *more: str | Path, last: str) -> str:
        """What it prints, down to `last`."""
        command: list[str | Path] = [
            self.program,
            "-m",
            path,
            "-f",
            self.text,
            "-c",
            str(self.n_ctx),
            "--chunks",
            str(self.n_chunks),
        ]
        command += ["-b", str(self.n_ctx), "-t", str(default_threads()), "-ngl", "0", "--no-repack", *more]
        # About one run in ten ends before its log is written, with status 0; on a busy machine most of them.
        for _ in range(60):
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=3600)
            if done.returncode:
                raise RuntimeError(
                    f"llama-perplexity ended with {done.returncode}: {(done.stderr or done.stdout)[-500:]}"
                )
            if last in done.stdout + done.stderr:
                return done.stdout + done.stderr
        raise RuntimeError(f"llama-perplexity never prints '{last}': is the text long enough?")

    def arithmetic(self, path: Path) -> str:
        """The instructions that it was built with, as llama.cpp names them."""
        found = re.search(r"system_info: .*?\| (CPU : .*)", self.run(path, last="Final estimate"))
        assert found
        return found[1].strip()

    def perplexity(self, path: Path, *more: str | Path) -> dict[str, float]:
        """PPL and its error."""
        found = _FINAL.search(self.run(path, *more, last="Final estimate"))
        assert found
        return {"ppl": float(found[1]), "ppl_error": float(found[2])}

    def divergence(self, path: Path, base: Path) -> dict[str, float]:
        """Its figures beside the logits in `base`, by our names; shares of one where it prints percent."""
        said = self.run(path, "--kl-divergence-base", base, "--kl-divergence", last="Same top p:")
        figures = {}
        for name, pattern in _LINES.items():
            found = re.search(rf"{pattern}\s*:\s*(-?[\d.]+)%?(?: ±\s+([\d.]+))?", said)
            assert found, pattern
            scale = 0.01 if name in _IN_PERCENT else 1.0
            figures[name] = round(float(found[1]) * scale, 9)
            if found[2] is not None:
                figures[f"{name}_error"] = round(float(found[2]) * scale, 9)
        return figures


def ours(found: quality.Quality) -> dict[str, float]:
    """Our figures by the same names."""
    kld = found.kld
    assert kld is not None
    known: dict[str, Any] = {
        "ppl": found.ppl,
        "ppl_error": found.ppl_error,
        "ppl_reference": kld.ppl_reference,
        "correlation": kld.correlation,
        "kld_max": kld.kld_quantiles[1],
        "kld_99": kld.kld_quantiles[0.99],
        "kld_median": kld.kld_quantiles[0.5],
    }
    for name in ("ln_ratio", "kld", "dp", "dp_rms", "same_top"):
        estimate = getattr(kld, name)
        known |= {name: estimate.value, f"{name}_error": estimate.error}
    return known


def quantized(source: Model, level: str, folder: Path) -> Model:
    path = folder / f"{source.path.stem}-{level}.gguf"
    with Quantizer(source.path, source.header, Recipe(level_of(level))) as quantizer:
        quantizer.run(path)
    return Model(f"{source.name}-{level}", *open_whole(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="tiny")
    parser.add_argument("--text", type=Path, default=ROOT / "llmrun" / "data" / "quality.txt")
    parser.add_argument("-c", "--n-ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--peers", type=Path, default=PEERS)
    options = parser.parse_args()
    program = options.peers / "llama-perplexity"
    if not os.access(program, os.X_OK):
        sys.exit(f"no llama-perplexity in {options.peers}: name its folder with --peers")
    peer = Peer(program, options.text, options.n_ctx, options.chunks)
    text = quality.read_text(options.text)
    name, levels = options.source, LEVELS
    if ":" in name and not Path(name).exists():
        name, _, asked = name.rpartition(":")
        levels = tuple(asked.split(","))
    source = find_model(name)
    golden: dict[str, Any] = {}
    perplexities = ["| model | tokens | llama-perplexity | llmrun | difference |", "|---|---|---|---|---|"]
    divergences = ["| model | figure | llama-perplexity | llmrun | difference |", "|---|---|---|---|---|"]
    failed = False
    with tempfile.TemporaryDirectory(prefix="compare-quality-") as folder:
        base = Path(folder) / "base.kld"
        peer.perplexity(source.path, "--kl-divergence-base", base)
        for model in [source, *(quantized(source, level, Path(folder)) for level in levels)]:
            theirs = {**peer.divergence(model.path, base), **peer.perplexity(model.path)}
            golden[model.name] = theirs
            if options.golden:
                continue
            found = score(model, text, config=CONFIG, n_ctx=options.n_ctx, max_chunks=options.chunks, reference=source)
            mine = ours(found)
            failed |= not agree(mine, theirs, is_source=model is source)
            off = mine["ppl"] - theirs["ppl"]
            perplexities.append(
                f"| {model.name} | {found.n_tokens} | {theirs['ppl']:.4f} ± {theirs['ppl_error']:.5f} "
                f"| {mine['ppl']:.4f} ± {mine['ppl_error']:.5f} | {off:+.5f} |"
            )
            divergences += [
                f"| {model.name} | {figure} | {theirs[figure]:.6f} | {mine[figure]:.6f} "
                f"| {mine[figure] - theirs[figure]:+.6f} |"
                for figure in _LINES
                if figure != "ppl"
            ]
    if options.golden:
        wanted = {"n_ctx": options.n_ctx, "n_chunks": options.chunks, "models": golden}
        print(json.dumps(wanted, indent=1))
    else:
        print("\n".join([*perplexities, "", *divergences]))
    return int(failed)


def agree(mine: dict[str, float], theirs: dict[str, float], *, is_source: bool) -> bool:
    """Perplexity within half of the last printed digit and what their single-precision exp() adds; divergence 2 %."""
    near = abs(mine["ppl"] - theirs["ppl"]) <= 0.00005 + 2e-8 * theirs["ppl"]
    return near and (is_source or abs(mine["kld"] / theirs["kld"] - 1) <= 0.02)


if __name__ == "__main__":
    sys.exit(main())
