"""Compares llmrun with llama.cpp's own tools, built from the same commit, and prints Markdown for docs/performance.md.

    scripts/compare_peers.py greedy  MODEL...                    same tokens as `llama-completion --temp 0`
    scripts/compare_peers.py engine  MODEL [--repack on|off]     prefill and decode rate against llama-bench
    scripts/compare_peers.py bench   MODEL...                    every test of `llmrun bench` against its model
    scripts/compare_peers.py offload MODEL                       the same for every offload setting, on RPC workers
    scripts/compare_peers.py oneshot MODEL                       wall time and memory of a cold one-shot run

MODEL is a file, or SHAPE:LEVEL for a synthetic one, such as llama-1.2b:Q4_K_M. The runs are interleaved, theirs, ours,
theirs, ours; what is reported is the median of each and the median of the pairs' ratios: machines drift by more than
what is to be found. --peers names the folder of the peers' programs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from check_offload import worker

from llmrun.engine.engine import ChildEngine
from llmrun.engine.meter import Timing
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.machine.hardware import default_threads
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.load_plan import wants_repack

PEERS = Path.home() / ".cache" / "llmrun-peers" / "0.3.36" / "build" / "bin"
CONTROL = 3  # LLAMA_TOKEN_TYPE_CONTROL
MODELS = Path(tempfile.gettempdir()) / "llmrun-compare"


def model_file(name: str, *, for_chat: bool = False) -> Path:
    """The file, or the synthetic model written now if no earlier call has.

    One `for_chat` has ChatML's tags for tokens, as the vocabularies of models for chat have.
    """
    if Path(name).exists():
        return Path(name)
    shape, _, level = name.partition(":")
    if shape not in synth.SHAPES:
        sys.exit(f"no file {name} and no shape {shape}; shapes: {', '.join(synth.SHAPES)}")
    path = MODELS / f"{shape}-{level or 'Q4_K_M'}{'-chat' if for_chat else ''}.gguf"
    if not path.exists():
        MODELS.mkdir(exist_ok=True)
        texts, scores, types = synth.vocabulary(synth.SHAPES[shape].n_vocab)
        if for_chat:
            texts[-2:], types[-2:] = [b"<|im_start|>", b"<|im_end|>"], [CONTROL, CONTROL]
        synth.write(path, synth.SHAPES[shape], level or "Q4_K_M", vocab=(texts, scores, types))
    return path


def check_quiet() -> None:
    busy = psutil.cpu_percent(interval=2)
    if busy > 15:
        print(f"warning: other processes use {busy:.0f} % of the CPUs; the figures will be poor", file=sys.stderr)


def interleaved(rounds: int) -> Iterator[int]:
    for i in range(rounds):
        print(f"round {i + 1} of {rounds}", file=sys.stderr)
        yield i


def row(name: str, theirs: list[float], ours: list[float], unit: str) -> str:
    ratios = [b / a for a, b in zip(theirs, ours, strict=True)]
    low, high = min(ratios), max(ratios)
    return (
        f"| {name} | {statistics.median(theirs):.4g} {unit} | {statistics.median(ours):.4g} {unit} "
        f"| **{statistics.median(ratios):.3f}** | {low:.3f} to {high:.3f} |"
    )


HEAD = "| | {peer} | llmrun | ratio (median of pairs) | range |\n|---|---|---|---|---|"


# -- greedy ---

PROMPTS = ["Once upon a time", "The little fox", "1 + 1 =", "Hello! How are you?\n", "naïve 漢字 🙂"]


def greedy(options: argparse.Namespace) -> None:
    n = 100
    print(f"{n} tokens at temperature 0, llmrun against `llama-completion --temp 0`:\n")
    print("| model | prompt | same |\n|---|---|---|")
    failed = False
    for name in options.model:
        path = model_file(name)
        header = open_header(path)
        with ChildEngine(path, header, LoadConfig(n_ctx=header.n_ctx_train or 0)) as engine:
            for prompt, penalty in [*((prompt, 1.0) for prompt in PROMPTS), (PROMPTS[0], 1.3)]:
                command = [
                    options.peers / "llama-completion",
                    "-m",
                    path,
                    "-no-cnv",
                    "--no-display-prompt",
                    "-n",
                    str(n),
                ]
                command += ["-p", prompt, "--temp", "0", "-t", str(engine.n_threads), "-c", str(header.n_ctx_train)]
                command += [
                    "--repeat-penalty",
                    str(penalty),
                    "-ngl",
                    "0",
                    "--repack" if engine.repack else "--no-repack",
                    "--no-escape",
                ]
                done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
                # Two line ends of its own behind the text, and before them a mark where the model ended.
                text = done.stdout.decode(errors="replace").removesuffix("\n\n")
                theirs = text.removesuffix("\n").removesuffix(" [end of text]") if "[end of text]" in text else text
                generation = engine.generate(
                    prompt, SamplingConfig(temperature=0, max_tokens=n, repeat_penalty=penalty)
                )
                ours = "".join(generation)
                same = ours == theirs
                failed |= not same
                verdict = f"yes, {len(generation.token_ids)} tokens" if same else f"NO: {theirs!r} / {ours!r}"
                print(f"| {path.name} | {prompt!r}{', repeat penalty 1.3' if penalty > 1 else ''} | {verdict} |")
    sys.exit(failed)


# -- engine ---


def exact_prompt(engine: ChildEngine, n_tokens: int) -> str:
    """A text of exactly `n_tokens` tokens: a few more or less would cost a whole micro-batch."""
    length = n_tokens
    for _ in range(8):
        generation = engine.generate("b " * (length // 2) + "b" * (length % 2), SamplingConfig(max_tokens=0))
        list(generation)
        n = generation.timing.n_prompt
        if n == n_tokens:
            return "b " * (length // 2) + "b" * (length % 2)
        length = max(1, length - (n - n_tokens))
    sys.exit(f"no text of exactly {n_tokens} tokens was found")


def engine(options: argparse.Namespace) -> None:
    path = model_file(options.model[0])
    pairs = compare_engine(options, path, LoadConfig(repack=options.repack), [])
    print(f"`{path.name}`, {default_threads()} threads, repack {options.repack}, {options.rounds} rounds:\n")
    print(HEAD.format(peer="llama-bench"))
    for test, (theirs, ours) in pairs.items():
        print(row(test, theirs, ours, "t/s"))


Pairs = dict[str, tuple[list[float], list[float]]]


def compare_engine(
    options: argparse.Namespace,
    path: Path,
    config: LoadConfig,
    arguments: list[str],
    threads: int | None = None,
    *,
    bare: bool = False,
) -> Pairs:
    """Rates of prefill and decode, theirs with `arguments` and ours with `config`, by test; `bare` without sampling and
    detokenization, as theirs."""
    n_pp, n_tg = options.n_prompt, options.n_gen
    pairs: Pairs = {f"prefill, {n_pp} tokens": ([], []), f"decode, {n_tg} tokens": ([], [])}
    config = replace(config, n_threads=threads)
    header, prompt = open_header(path), ""
    for _ in interleaved(options.rounds):
        # Loaded anew each time, as theirs is: where its pages come to lie makes a percent or two.
        repack = wants_repack(header, config)
        flags = ["-t", str(threads or default_threads()), "--repack", str(int(repack)), *arguments]
        theirs = llama_bench(options, path, n_pp, n_tg, flags)
        with ChildEngine(path, header, config) as ours:
            if bare:
                ours.trial(n_pp, 1)
                pp, tg = ours.trial(n_pp, 0), ours.trial(0, n_tg)
                rates = [n_pp / known(pp.prefill_s), n_tg / sum(tg.step_s)]
            else:
                prompt = prompt or exact_prompt(ours, n_pp)
                warm_up(ours)
                rates = [known(run(ours, prompt, 1).pp_tps), known(run(ours, "b", n_tg).tg_tps)]
        for (a, b), one, other in zip(pairs.values(), theirs, rates, strict=True):
            a.append(one)
            b.append(other)
    return pairs


def llama_bench(options: argparse.Namespace, path: Path, n_pp: int, n_tg: int, flags: list[str]) -> list[float]:
    """Its rates of one repetition: prefill, decode."""
    command = [options.peers / "llama-bench", "-m", path, "-p", str(n_pp), "-n", str(n_tg), "-r", "1", "-o", "json"]
    tests = json.loads(subprocess.run([*command, *flags], capture_output=True, check=True).stdout)
    return [next(t["avg_ts"] for t in tests if t[kind]) for kind in ("n_prompt", "n_gen")]


# -- bench ---


def bench(options: argparse.Namespace) -> None:
    """Every number of `llmrun bench` against the tool that it is llama.cpp's for: the same trials, in turn."""
    print(f"{options.rounds} rounds, {default_threads()} threads\n")
    print("| model | test | llama.cpp's | llmrun | ratio (median of pairs) | range |\n|---|---|---|---|---|---|")
    for name in options.model:
        path = model_file(name)
        with ChildEngine(path, open_header(path), LoadConfig(repack=options.repack, n_ctx=4096)) as ours:
            for test, (a, b) in {**single(options, path, ours), **batched(options, path, ours)}.items():
                print(f"| {path.stem} {row(test, a, b, 't/s')}", flush=True)


def single(options: argparse.Namespace, path: Path, ours: ChildEngine) -> Pairs:
    n_pp, n_tg, n_depth = options.n_prompt, options.n_gen, options.depth
    tests = {
        f"pp{n_pp}": (n_pp, 0, 0),
        f"tg{n_tg}": (0, n_tg, 0),
        f"pp{n_pp} @ d{n_depth}": (n_pp, 0, n_depth),
        f"tg{n_tg} @ d{n_depth}": (0, n_tg, n_depth),
    }
    pairs: Pairs = {name: ([], []) for name in tests}
    for _ in interleaved(options.rounds):
        command = [options.peers / "llama-bench", "-m", path, "-p", str(n_pp), "-n", str(n_tg), "-r", "1"]
        command += ["-d", f"0,{n_depth}", "-t", str(ours.n_threads), "--repack", str(int(ours.repack)), "-o", "json"]
        theirs = {
            (t["n_prompt"], t["n_gen"], t["n_depth"]): t["avg_ts"]
            for t in json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        }
        for name, (pp, tg, depth) in tests.items():
            pairs[name][0].append(theirs[pp, tg, depth])
            ours.trial(pp, min(1, tg))  # llama-bench warms up before each test as well
            tried = ours.trial(pp, tg, n_depth=depth)
            pairs[name][1].append(pp / tried.prefill_s if tried.prefill_s else tg / sum(tried.step_s))
    return pairs


def batched(options: argparse.Namespace, path: Path, ours: ChildEngine) -> Pairs:
    n_pp, n_tg = 64, 16
    sequences = (1, 2, 4, 8)
    pairs: Pairs = {f"{what}, {n} sequences": ([], []) for n in sequences for what in (f"pp{n_pp}", f"tg{n_tg}")}
    for _ in interleaved(options.rounds):
        command = [options.peers / "llama-batched-bench", "-m", path, "-c", str(8 * (n_pp + n_tg))]
        command += ["-npp", str(n_pp), "-ntg", str(n_tg), "-npl", ",".join(map(str, sequences)), "-b", "2048"]
        command += ["-t", str(ours.n_threads), "--output-format", "jsonl", *([] if ours.repack else ["--no-repack"])]
        said = subprocess.run(command, capture_output=True, check=True, text=True)
        lines = [
            json.loads(line) for line in (said.stdout + said.stderr).splitlines() if line.startswith('{"n_kv_max"')
        ]
        for line in lines:
            n = line["pl"]
            ours.trial(n_pp, 1, n_seq=n)  # the first use of a context finds its memory untouched
            tried = ours.trial(n_pp, n_tg, n_seq=n)
            rates = (n * n_pp / known(tried.prefill_s), n * n_tg / sum(tried.step_s))
            for what, theirs, mine in zip(("pp", "tg"), (line["speed_pp"], line["speed_tg"]), rates, strict=True):
                name = f"{what}{n_pp if what == 'pp' else n_tg}, {n} sequences"
                pairs[name][0].append(theirs)
                pairs[name][1].append(mine)
    return pairs


# -- offload ---


def offload(options: argparse.Namespace) -> None:
    """Each side has a worker of its own, of the same kind: one that serves somebody keeps everybody else waiting."""
    path = model_file(options.model[0])
    n_layers = (open_header(path).n_layer or 0) + 1
    half = n_layers // 2
    everything = Offload(n_gpu_layers="all")
    settings: dict[str, tuple[LoadConfig, list[str]]] = {
        "-ngl 0": (LoadConfig(offload=Offload(n_gpu_layers=0)), ["-ngl", "0"]),
        f"-ngl {half}": (LoadConfig(offload=Offload(n_gpu_layers=half)), ["-ngl", str(half)]),
        "-ngl all": (LoadConfig(offload=everything), ["-ngl", "999"]),
        "-ngl all -nkvo": (LoadConfig(offload=replace(everything, kv=False)), ["-ngl", "999", "-nkvo", "1"]),
        "-ngl all -ctk q8_0 -ctv q8_0": (
            LoadConfig(offload=everything, type_k="q8_0", type_v="q8_0"),
            ["-ngl", "999", "-ctk", "q8_0", "-ctv", "q8_0"],
        ),
        "-ngl all -fa off": (LoadConfig(offload=everything, flash_attn="off"), ["-ngl", "999", "-fa", "off"]),
        "-ngl all -ot ffn=CPU": (
            LoadConfig(offload=replace(everything, override_tensor=(("ffn_", "CPU"),))),
            ["-ngl", "999", "-ot", "ffn_=CPU"],
        ),
        f"-ngl {half} --load-mode none": (
            LoadConfig(offload=Offload(n_gpu_layers=half), load_mode="none"),
            ["-ngl", str(half), "-lm", "none"],
        ),
    }
    print(f"`{path.name}`, one thread here and one in the worker, {options.rounds} rounds:\n")
    print("| settings | test | llama-bench | llmrun | ratio (median of pairs) | range |\n|---|---|---|---|---|---|")
    with worker() as theirs, worker() as mine:
        for name, (config, arguments) in settings.items():
            if options.only and not any(word in name for word in options.only):
                continue
            config = replace(config, rpc=(mine,), repack="off")
            pairs = compare_engine(options, path, config, ["--rpc", theirs, *arguments], threads=1, bare=True)
            for test, (a, b) in pairs.items():
                print(f"| `{name}` {row(test, a, b, 't/s')}", flush=True)


def run(engine: ChildEngine, prompt: str, n: int) -> Timing:
    """One greedy generation; end tokens are forbidden, or a random model might stop at once."""
    generation = engine.generate(prompt, SamplingConfig(temperature=0, max_tokens=n, logit_bias={2: float("-inf")}))
    list(generation)
    return generation.timing


def warm_up(engine: ChildEngine) -> None:
    """llama-bench warms up before each test as well."""
    run(engine, "b c d e f g h", 2)


def known(rate: float | None) -> float:
    assert rate is not None
    return rate


# -- one-shot ---


@dataclass
class Cost:
    wall_s: float
    peak_rss: int


def cost_of(command: list[Any]) -> Cost:
    """Wall time, and the peak of the resident memory of the process and its children together."""
    begin = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        resident = 0
        try:
            for member in (process, *process.children(recursive=True)):
                resident += member.memory_info().rss
        except psutil.Error:
            pass
        peak = max(peak, resident)
        time.sleep(0.01)
    wall_s = time.perf_counter() - begin
    if process.returncode:
        sys.exit(f"{command[0]} ended with {process.returncode}")
    return Cost(wall_s, peak)


def oneshot(options: argparse.Namespace) -> None:
    path = model_file(options.model[0])
    prompt = "b c d e"
    n, threads = 32, str(default_threads())
    theirs_command = [
        options.peers / "llama-completion",
        "-m",
        path,
        "-no-cnv",
        "-p",
        prompt,
        "-n",
        str(n),
        "--temp",
        "0",
    ]
    theirs_command += ["-t", threads, "--ignore-eos", "-c", str(options.peer_ctx)]
    ours_command = [Path(sys.executable).with_name("llmrun"), "run", path, prompt, "-n", str(n), "--temp", "0", "--raw"]
    ours_command += ["-t", threads, "-l", "2-inf"]
    theirs, ours = [], []
    for _ in interleaved(options.rounds):
        theirs.append(cost_of(theirs_command))
        ours.append(cost_of(ours_command))
    print(
        f"`{path.name}`, cold process, short prompt, {n} tokens, {threads} threads, {options.rounds} rounds, "
        f"`llama-completion -c {options.peer_ctx}`:\n"
    )
    print(HEAD.format(peer="llama-completion"))
    print(row("wall time", [c.wall_s for c in theirs], [c.wall_s for c in ours], "s"))
    print(row("peak resident memory", [c.peak_rss / 2**20 for c in theirs], [c.peak_rss / 2**20 for c in ours], "MiB"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["greedy", "engine", "bench", "offload", "oneshot"])
    parser.add_argument("model", nargs="+")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repack", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("-p", "--n-prompt", type=int, default=512)
    parser.add_argument("-n", "--n-gen", type=int, default=64)
    parser.add_argument("--only", nargs="*", help="offload: settings that have one of these texts in them")
    parser.add_argument("-d", "--depth", type=int, default=512, help="bench: tokens before")
    parser.add_argument("--peer-ctx", type=int, default=4096, help="oneshot: their -c; 0 is their default")
    parser.add_argument("--peers", type=Path, default=PEERS)
    options = parser.parse_args()
    if not os.access(options.peers / "llama-bench", os.X_OK):
        sys.exit(f"no llama-bench in {options.peers}: build llama.cpp's tools and name their folder with --peers")
    check_quiet()
    {"greedy": greedy, "engine": engine, "bench": bench, "offload": offload, "oneshot": oneshot}[options.what](options)


if __name__ == "__main__":
    main()
