"""What tuning gives, beside llama-bench; prints Markdown.

    scripts/compare_tuning.py busy MODEL... --peers FOLDER        decode alone, beside one busy process and beside two
    scripts/compare_tuning.py workloads MODEL... --peers FOLDER   prompt and answer together, with what `tune` found

FOLDER has llama.cpp's own tools, of the same commit. `busy`: an answer of llmrun as `run` gives it, with its guard,
in turn with llama-bench at its defaults, with one thread and with OMP_WAIT_POLICY=PASSIVE; medians, and the slowest
step of ours in medians. `workloads`: each workload is tuned first, then measured in turn; a ratio above 1 is ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.protocol import Trial  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.models.resolve import find_model  # noqa: E402
from llmrun.options.load import LoadConfig  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402
from llmrun.tuning import first_use  # noqa: E402
from llmrun.tuning.dials import Workload  # noqa: E402
from llmrun.tuning.tune import tune  # noqa: E402

PEERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "default": ([], {}),
    "-t 1": (["-t", "1"], {}),
    "PASSIVE": ([], {"OMP_WAIT_POLICY": "PASSIVE"}),
}
N_STEPS = 128
ASKED = (Workload(64, 512), Workload(512, 128), Workload(2048, 64))


def llama_bench(folder: Path, model: Path, options: list[str], environment: dict[str, str]) -> float:
    """Tokens per second of the only test."""
    command = [os.fspath(folder / "llama-bench"), "-m", os.fspath(model), "-r", "1", "-o", "json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **environment})
    return float(json.loads(done.stdout)[0]["avg_ts"])


def ours(model: Path, config: LoadConfig) -> tuple[float, float]:
    """Tokens per second of an answer, and its slowest step in medians."""
    with ChildEngine(model, open_header(model), config) as engine:
        asked = SamplingConfig(max_tokens=N_STEPS, ignore_eos=True, temperature=0)
        generation = engine.generate("a b c", asked)
        for _ in generation:
            pass
        timing = generation.timing
        return timing.tg_tps or 0.0, (timing.gap_s(1.0) or 0.0) / (timing.gap_s(0.5) or 1.0)


def busy(models: list[Path], peers: Path, rounds: int) -> None:
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
        for n_busy in (0, 1, 2):
            others = [subprocess.Popen(["yes"], stdout=subprocess.DEVNULL) for _ in range(n_busy)]
            try:
                mine: list[tuple[float, float]] = []
                theirs: dict[str, list[float]] = {name: [] for name in PEERS}
                for _ in range(rounds):
                    mine.append(ours(model, config))
                    for name, (options, environment) in PEERS.items():
                        theirs[name].append(
                            llama_bench(peers, model, ["-p", "0", "-n", str(N_STEPS), *options], environment)
                        )
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            speed = statistics.median(each for each, _ in mine)
            found = {name: statistics.median(each) for name, each in theirs.items()}
            cells = " | ".join(f"{each:.1f} t/s" for each in found.values())
            worst = max(each for _, each in mine)
            print(
                f"| {model.stem}, {choice.dials.words()} | {n_busy} | {speed:.1f} t/s | {worst:.1f} | {cells} |"
                f" **{speed / max(found.values()):.3f}** | {speed / found['default']:.2f} |",
                flush=True,
            )


def workloads(models: list[Path], peers: Path, rounds: int, seconds: float) -> None:
    print("| model | prompt, answer | chosen | ours | llama-bench | ratio (median of pairs) | from | to |")
    print("|---|---|---|---|---|---|---|---|")
    for model in models:
        found = find_model(os.fspath(model))
        for workload in ASKED:
            dials, _ = tune(found, LoadConfig(), workload, budget_s=seconds)
            config = dials.applied(LoadConfig())
            mine, theirs = [], []
            total = workload.n_prompt + workload.n_gen
            for _ in range(rounds):
                with ChildEngine(model, found.header, config) as engine:
                    engine.run_trial(Trial(8, 1, n_ctx=total))
                    done = engine.run_trial(Trial(workload.n_prompt, workload.n_gen))
                mine.append((done.prefill_s or 0.0) + sum(done.step_s))
                pg = f"{workload.n_prompt},{workload.n_gen}"
                theirs.append(total / llama_bench(peers, model, ["-p", "0", "-n", "0", "-pg", pg], {}))
            ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
            a, b, ratio = (statistics.median(each) for each in (mine, theirs, ratios))
            asked = f"{model.stem} | {workload.n_prompt}, {workload.n_gen} | {dials.words()}"
            spread = f"**{ratio:.3f}** | {min(ratios):.3f} | {max(ratios):.3f}"
            print(f"| {asked} | {a:.2f} s | {b:.2f} s | {spread} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("busy", "workloads"))
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    asked = parser.parse_args()
    models = [model.resolve() for model in asked.models]
    if asked.what == "busy":
        busy(models, asked.peers, asked.rounds)
    else:
        workloads(models, asked.peers, asked.rounds, asked.seconds)


if __name__ == "__main__":
    main()
