"""What tuning gives, beside llama-bench; prints Markdown.

    scripts/compare_tuning.py busy MODEL... --peers FOLDER        decode alone, beside one busy process and beside two
    scripts/compare_tuning.py workloads MODEL... --peers FOLDER   prompt and answer together, with what `tune` found
        --first-use                                               with what the first use chose
    scripts/compare_tuning.py grid MODEL...                       what `tune` found, beside the best of all combinations
    scripts/compare_tuning.py steps MODEL...                      2,000 steps in a row: the slowest of them
    scripts/compare_tuning.py parent MODEL...                     CPU time of the parent while an answer is made
    scripts/compare_tuning.py starts                              50 cold starts of `run tiny Hi`
    scripts/compare_tuning.py alignment MODEL... --peers FOLDER   ggml's work memory aligned, and as malloc gives it

FOLDER has llama.cpp's own tools, of the same commit. `busy`: bare steps as llama-bench's are, behind a prompt of 64
tokens, with llmrun's guard, in turn with llama-bench at its defaults, with one thread and with OMP_WAIT_POLICY=PASSIVE;
medians, and the slowest step of ours in medians. `workloads`: each workload is tuned first, then measured in turn; a
ratio above 1 is ours. `grid`: prefill is measured for layout x prefill threads x micro-batch x flash attention,
decoding for layout x threads x flash attention, twice each, for 512 tokens of prompt and 128 of answer; the best
combination is then measured in turn with what `tune` found.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.protocol import Trial  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.machine import hardware  # noqa: E402
from llmrun.models.resolve import find_model  # noqa: E402
from llmrun.options.load import AutoOnOff, LoadConfig  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402
from llmrun.planning.load_plan import wants_repack  # noqa: E402
from llmrun.tuning import first_use  # noqa: E402
from llmrun.tuning.dials import Dials, Workload, class_of  # noqa: E402
from llmrun.tuning.tune import WholeModel, tune  # noqa: E402

PEERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "default": ([], {}),
    "-t 1": (["-t", "1"], {}),
    "PASSIVE": ([], {"OMP_WAIT_POLICY": "PASSIVE"}),
}
N_PROMPT, N_STEPS = 64, 128
FLASH: tuple[AutoOnOff, ...] = ("auto", "off")
Times = dict[tuple[object, ...], float]
ASKED = (Workload(64, 512), Workload(512, 128), Workload(2048, 64))


def llama_bench(folder: Path, model: Path, options: list[str], environment: dict[str, str]) -> float:
    """Tokens per second of the only test."""
    command = [os.fspath(folder / "llama-bench"), "-m", os.fspath(model), "-r", "1", "-o", "json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ours(model: Path, config: LoadConfig) -> tuple[float, float]:
    """Tokens per second of 128 steps, bare as llama-bench's are, behind its warm-up and a prompt, as every answer is:
    that is where the guard sees first who else computes; and the slowest in medians."""
    with ChildEngine(model, open_header(model), replace(config, thread_guard="on")) as engine:
        engine.run_trial(Trial(0, 1, n_ctx=N_PROMPT + N_STEPS))
        step_s = engine.run_trial(Trial(N_PROMPT, N_STEPS)).step_s
        return N_STEPS / sum(step_s), max(step_s) / statistics.median(step_s)


@contextmanager
def beside(n_busy: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    others = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(n_busy)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def busy(models: list[Path], peers: Path, rounds: int, busy_processes: list[int]) -> None:
    print(
        "| model | beside | ours | worst step | "
        + " | ".join(f"llama-bench {name}" for name in PEERS)
        + " | of the best | of its default |"
    )
    print("|---" * (6 + len(PEERS)) + "|")
    for model in models:
        header = open_header(model)
        choice = first_use.choices(header, LoadConfig())["short"]
        config = choice.dials.applied(LoadConfig())
        for n_busy in busy_processes:
            with beside(n_busy):
                mine: list[tuple[float, float]] = []
                theirs: dict[str, list[float]] = {name: [] for name in PEERS}
                for _ in range(rounds):
                    mine.append(ours(model, config))
                    tested = ["-p", "0", "-n", str(N_STEPS), "-d", str(N_PROMPT)]
                    for name, (options, environment) in PEERS.items():
                        theirs[name].append(llama_bench(peers, model, [*tested, *options], environment))
            speed = statistics.median(each for each, _ in mine)
            found = {name: statistics.median(each) for name, each in theirs.items()}
            cells = " | ".join(f"{each:.1f} t/s" for each in found.values())
            worst = max(each for _, each in mine)
            print(
                f"| {model.stem}, {choice.dials.words()} | {n_busy} | {speed:.1f} t/s | {worst:.1f} | {cells} |"
                f" **{speed / max(found.values()):.3f}** | {speed / found['default']:.2f} |",
                flush=True,
            )


def workloads(
    models: list[Path], peers: Path, rounds: int, seconds: float, asked: list[Workload], *, by_first_use: bool
) -> None:
    print("| model | prompt, answer | chosen | ours | llama-bench | ratio (median of pairs) | from | to |")
    print("|---|---|---|---|---|---|---|---|")
    for model in models:
        found = find_model(os.fspath(model))
        chosen = first_use.choices(found.header, LoadConfig()) if by_first_use else {}
        for workload in asked:
            known = chosen.get(class_of(workload.n_prompt))
            dials = known.dials if known else tune(found, workload, budget_s=seconds).dials
            config = dials.applied(LoadConfig())
            mine, theirs = [], []
            total = workload.n_prompt + workload.n_gen
            for _ in range(rounds):
                with ChildEngine(model, found.header, config) as engine:
                    engine.run_trial(Trial(workload.n_prompt, 1, n_ctx=total))  # as llama-bench warms up
                    done = engine.run_trial(Trial(workload.n_prompt, workload.n_gen))
                mine.append((done.prefill_s or 0.0) + sum(done.step_s))
                pg = f"{workload.n_prompt},{workload.n_gen}"
                theirs.append(total / llama_bench(peers, model, ["-p", "0", "-n", "0", "-pg", pg], {}))
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            a, b, ratio = (statistics.median(each) for each in (mine, theirs, ratios))
            what = f"{model.stem} | {workload.n_prompt}, {workload.n_gen} | {dials.words()}"
            spread = f"**{ratio:.3f}** | {min(ratios):.3f} | {max(ratios):.3f}"
            print(f"| {what} | {a:.2f} s | {b:.2f} s | {spread} |", flush=True)


def seconds_of(workload: Workload, prefill: Times, decode: Times, one: Dials) -> float:
    """Of the whole workload, by what was measured of its two parts."""
    of_prompt = prefill[one.repack, one.n_threads_batch, one.n_ubatch, one.flash_attn]
    return workload.seconds(1 / of_prompt, 1 / decode[one.repack, one.n_threads, one.flash_attn])


def grid(models: list[Path], rounds: int, seconds: float) -> None:
    print("| model | prompt, answer | tuned | best of the grid | tuned / best (median of pairs) | from | to |")
    print("|---|---|---|---|---|---|---|")
    threads = range(1, hardware.default_threads() + 1)
    for model in models:
        found = find_model(os.fspath(model))
        for workload in ASKED[1:2]:
            tuned = tune(found, workload, budget_s=seconds).dials
            with WholeModel(found, LoadConfig(), workload) as whole:
                prefill: Times = {}
                decode: Times = {}
                every = itertools.product(whole.layouts, threads, threads, (64, 128, 512), FLASH)
                dials = [Dials(repack, n, batch, size, flash) for repack, n, batch, size, flash in every]
                # Prefill does not depend on the threads for decoding, nor decoding on the others: as few as tell both.
                few = [each for each in dials if each.n_threads == each.n_threads_batch]
                few += [each for each in dials if each.n_ubatch == 512 and each not in few]
                for each in few * 2:
                    prefill_s, decode_s = whole.measure(each)
                    for times, key, taken_s in (
                        (prefill, (each.repack, each.n_threads_batch, each.n_ubatch, each.flash_attn), prefill_s),
                        (decode, (each.repack, each.n_threads, each.flash_attn), decode_s),
                    ):
                        times[key] = min(taken_s, times.get(key, taken_s))
                best = min(dials, key=partial(seconds_of, workload, prefill, decode))
                ratios = []
                for i in range(rounds):
                    pair = (tuned, best) if i % 2 else (best, tuned)
                    took = {one: workload.seconds(*(1 / each for each in whole.measure(one))) for one in pair}
                    ratios.append(took[best] / took[tuned])
            asked = f"{model.stem} | {workload.n_prompt}, {workload.n_gen} | {tuned.words()} | {best.words()}"
            print(
                f"| {asked} | **{statistics.median(ratios):.3f}** | {min(ratios):.3f} | {max(ratios):.3f} |", flush=True
            )


def steps(models: list[Path]) -> None:
    print("| model | beside | median | slowest | in medians | changes of threads |")
    print("|---|---|---|---|---|---|")
    for model in models:
        for n_busy in (0, 1, 2):
            with beside(n_busy), ChildEngine(model, open_header(model), LoadConfig(n_ctx=2304)) as engine:
                generation = engine.generate("a b c", SamplingConfig(max_tokens=2000, ignore_eos=True))
                for _ in generation:
                    pass
                middle, slowest = generation.timing.gap_s(0.5) or 1.0, generation.timing.gap_s(1.0) or 0.0
                changes = len(generation.done.threads) if generation.done else 0
            print(
                f"| {model.stem} | {n_busy} | {middle * 1e3:.1f} ms | {slowest * 1e3:.1f} ms |"
                f" **{slowest / middle:.1f}** | {changes} |",
                flush=True,
            )


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond."""
    tasks = Path("/proc", str(pid), "task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9


def parent(models: list[Path]) -> None:
    """Five answers of each, to a pipe: from the first token to the last but one that is read."""
    print("| model | tokens | rate | CPU of the parent for each token | share of a core | at 15 t/s |")
    print("|---|---|---|---|---|---|")
    for model in models:
        n = 900 if model.stem == "tiny" else 256
        asked = ["Once", "--raw", "-n", str(n), "--ignore-eos", "--no-tune"]
        used, took = [], []
        for _ in range(5):
            command = [sys.executable, "-m", "llmrun", "run", os.fspath(model), *asked]
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
            assert run.stdout
            seen = []
            while os.read(run.stdout.fileno(), 1 << 16):
                with suppress(OSError):  # it has ended
                    seen.append((time.monotonic(), cpu_s(run.pid)))
            run.wait()
            (begin_s, before_s), (end_s, after_s) = seen[0], seen[-2]
            used.append(after_s - before_s)
            took.append(end_s - begin_s)
        used_s, took_s = statistics.median(used), statistics.median(took)
        shares = f"{used_s / took_s:.2%} | {15 * used_s / n:.2%}"
        print(f"| {model.stem} | {n} | {n / took_s:.0f} t/s | {used_s / n * 1e6:.0f} µs | {shares} |", flush=True)


def starts(n: int) -> None:
    """Each in turn with the same without a guard, as it was before there was one."""
    print("| `run tiny Hi` | median | slowest of all |\n|---|---|---|")
    found: dict[str, list[float]] = {"auto": [], "off": []}
    for _ in range(n):
        for guard, rates in found.items():
            command = [sys.executable, "-m", "llmrun", "run", "tiny", "Hi", "--json", "--thread-guard", guard]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
            rates.append(json.loads(done.stdout)["timing"]["tg_tps"])
    for guard, rates in found.items():
        print(f"| guard {guard} | {statistics.median(rates):.0f} t/s | {min(rates):.0f} t/s |")
    ratio = statistics.median(a / b for a, b in zip(*found.values(), strict=True))
    print(f"\n{n} starts of each; with the guard {ratio:.3f} of without (median of pairs)")


def alignment(models: list[Path], peers: Path, rounds: int) -> None:
    """A prompt and an answer of 64 tokens, each in a process of its own, in random order."""
    print("| model | tokens of prompt | memory | prefill | of llama-bench | decode | of llama-bench |")
    print("|---|---|---|---|---|---|---|")

    def own(model: Path, n_prompt: int, aligned: str) -> tuple[float, float]:
        os.environ["LLMRUN_ALIGN"] = aligned
        with ChildEngine(model, open_header(model), LoadConfig(thread_guard="off", repack="auto")) as engine:
            engine.run_trial(Trial(n_prompt, 1, n_ctx=n_prompt + 64))
            prefill_s = engine.run_trial(Trial(n_prompt, 0)).prefill_s or 1.0
            return n_prompt / prefill_s, 64 / sum(engine.run_trial(Trial(0, 64)).step_s)

    def peer(model: Path, n_prompt: int) -> tuple[float, float]:
        repack = [] if wants_repack(open_header(model), LoadConfig()) else ["--repack", "0"]
        ways = (["-p", str(n_prompt), "-n", "0"], ["-p", "0", "-n", "64"])
        prefill, decode = (llama_bench(peers, model, [*way, *repack], {}) for way in ways)
        return prefill, decode

    for model, n_prompt in itertools.product(models, (512, 2048)):
        ways = {
            "llama-bench": partial(peer, model, n_prompt),
            "aligned": partial(own, model, n_prompt, "on"),
            "as malloc gives it": partial(own, model, n_prompt, "off"),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name in random.sample([*ways], len(ways)):
                found[name].append(ways[name]())
        for name, rates in found.items():
            cells = []
            for i, theirs in enumerate(zip(*found["llama-bench"], strict=True)):
                mine = [rate[i] for rate in rates]
                ratio = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
                cells += [f"{statistics.median(mine):.1f} t/s", f"**{ratio:.3f}**"]
            print(f"| {model.stem} | {n_prompt} | {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("busy", "workloads", "grid", "steps", "parent", "starts", "alignment"))
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside", nargs="*", type=int, default=[0, 1, 2], metavar="N", help="so many busy processes")
    parser.add_argument("--seconds", type=float, default=20, help="for each search")
    parser.add_argument("--first-use", action="store_true", help="workloads: as the first use chooses, no search")
    parser.add_argument("--workload", nargs="*", default=[], metavar="P,N", help="these alone, such as 512,128")
    asked = parser.parse_args()
    models = [model.resolve() if model.suffix else model for model in asked.models]
    if asked.what in ("busy", "workloads", "alignment") and asked.peers is None:
        parser.error("--peers is needed")
    with tempfile.TemporaryDirectory() as home:
        os.environ["LLMRUN_HOME"] = home  # what is found is not to be kept
        if asked.what == "busy":
            busy(models, asked.peers, asked.rounds, asked.beside)
        elif asked.what == "workloads":
            chosen = [Workload(*map(int, each.split(","))) for each in asked.workload]
            workloads(
                models, asked.peers, asked.rounds, asked.seconds, chosen or [*ASKED], by_first_use=asked.first_use
            )
        elif asked.what == "alignment":
            alignment(models, asked.peers, asked.rounds)
        elif asked.what == "grid":
            grid(models, asked.rounds, asked.seconds)
        elif asked.what == "starts":
            starts(50)
        else:
            {"steps": steps, "parent": parent}[asked.what](models)


if __name__ == "__main__":
    main()
