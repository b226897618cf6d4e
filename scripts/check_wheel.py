"""The wheel for every CPU (scripts/build_wheel) beside the build for this one; prints Markdown.

    .venv/bin/python scripts/check_wheel.py WHEEL [--rounds 5] [-p 256] [-n 32]

Both answer the same prompts at temperature 0; then three synthetic models run in turn on each of them (prefill and
decode, the median of the pairs' ratios). Where qemu-user is installed, CPUs of other generations are emulated: which
variant ggml then loads, by its own log, and what it answers.
Exit 1 where an answer differs or a ratio is below 0.97.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.gguf import synth  # noqa: E402

PROMPTS = ("What do GPU layers do?", "What is a token?", "Once upon a time", "1 + 1 =", "Hello!")
LEVELS = ("Q4_K_M", "Q8_0", "Q4_0")
CPUS = ("Nehalem", "SandyBridge", "Haswell")  # qemu-user knows no AVX-512
ANSWER = """
import os, sys
from llmrun.engine.child import native
llama = native.llama
model = llama.llama_model_load_from_file(os.fsencode(sys.argv[1]), llama.llama_model_default_params())
params = llama.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 128, 1, 1
context, vocab = llama.llama_init_from_model(model, params), native.Vocab(model)
pick = llama.llama_sampler_init_greedy()
tokens, text = vocab.tokenize("Once upon a time"), b""
for _ in range(12):
    array = (llama.llama_token * len(tokens))(*tokens)
    assert llama.llama_decode(context, llama.llama_batch_get_one(array, len(tokens))) == 0
    tokens = [llama.llama_sampler_sample(pick, context, -1)]
    text += vocab.piece(tokens[0])
print(text.decode(errors="replace"))
"""
"""In one process, without children: those would not be emulated."""


def llmrun(overlay: Path | None, *arguments: str, within_s: float = 600) -> subprocess.CompletedProcess[str]:
    """`llmrun ARGUMENTS` with this environment's binding, or with that of the wheel."""
    path = os.pathsep.join([str(ROOT), *([str(overlay)] if overlay else [])])
    command = [sys.executable, "-m", "llmrun", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=within_s, stdin=subprocess.DEVNULL
    )


def answers(overlay: Path | None) -> list[str]:
    return [llmrun(overlay, "run", "tiny", prompt, "--temp", "0", "-n", "60", "-q").stdout for prompt in PROMPTS]


def rates(overlay: Path | None, model: Path, n_prompt: int, n_gen: int) -> tuple[float, float]:
    """Tokens per second of prefill and of decoding, one sample each."""
    sizes = ("-p", str(n_prompt), "-n", str(n_gen), "-r", "1")
    done = llmrun(overlay, "bench", str(model), *sizes, "-o", "json", "-q")
    if done.returncode:
        sys.exit(done.stderr)
    prefill, decode = (row["avg_ts"] for row in json.loads(done.stdout))
    return prefill, decode


def emulated(overlay: Path) -> list[tuple[str, str, str]]:
    """For each generation of CPU: the variant that ggml loads there, and how `tiny` goes on with a story."""
    qemu = shutil.which("qemu-x86_64")
    path = os.pathsep.join([str(ROOT), str(overlay)])
    model = ROOT / "llmrun" / "data" / "tiny.gguf"
    found = []
    for cpu in CPUS if qemu else ():
        command = [str(qemu), "-cpu", cpu, os.path.realpath(sys.executable), "-c", ANSWER, str(model)]
        packages = os.pathsep.join([path, *(entry for entry in sys.path if entry.endswith("site-packages"))])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": packages}, capture_output=True, text=True, timeout=900
        )
        variant = re.search(r"libggml-cpu-(\w+)", done.stderr)
        found.append((cpu, variant[1] if variant else "none", done.stdout.strip() or f"none (exit {done.returncode})"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--shape", default="qwen3-0.6b")
    parser.add_argument("--rounds", type=int, default=5, help="0: no speed")
    parser.add_argument("-p", type=int, default=256)
    parser.add_argument("-n", type=int, default=32)
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        overlay = Path(scratch) / "overlay"
        with zipfile.ZipFile(args.wheel) as archive:
            archive.extractall(overlay)
        same = answers(None) == answers(overlay)
        print(f"{len(PROMPTS)} answers at temperature 0: {'the same' if same else 'DIFFERENT'}\n")
        print("| emulated CPU | variant that ggml loads | Once upon a time ... |\n|---|---|---|")
        for cpu, variant, text in emulated(overlay):
            failed |= "none" in (variant, text[:4])
            print(f"| {cpu} | {variant} | {text} |", flush=True)
        print("\n| model | test | build for this CPU | wheel | ratio (median of pairs) |\n|---|---|---|---|---|")
        for level in LEVELS if args.rounds else ():
            model = Path(scratch) / f"{args.shape}-{level}.gguf"
            synth.write(model, synth.SHAPES[args.shape], level)
            pairs = [
                (rates(None, model, args.p, args.n), rates(overlay, model, args.p, args.n)) for _ in range(args.rounds)
            ]
            model.unlink()
            for index, test in enumerate((f"pp{args.p}", f"tg{args.n}")):
                native, wheel = ([pair[side][index] for pair in pairs] for side in (0, 1))
                ratio = statistics.median(w / n for n, w in zip(native, wheel, strict=True))
                failed |= ratio < 0.97
                middle = f"{statistics.median(native):.4g} t/s | {statistics.median(wheel):.4g} t/s"
                print(f"| {level} | {test} | {middle} | **{ratio:.3f}** |", flush=True)
    return int(failed or not same)


if __name__ == "__main__":
    sys.exit(main())
