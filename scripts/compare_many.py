"""Many answers side by side: how fast, and whether they are the same; prints Markdown.

    scripts/compare_many.py throughput MODEL... --peers FOLDER   beside llama-batched-bench, and beside one sequence
    scripts/compare_many.py shared MODEL...                      a system prompt of 1,000 tokens, beside one by one
    scripts/compare_many.py gaps MODEL...                        a prompt of 2,000 tokens beside 8 running answers
    scripts/compare_many.py equal MODEL...                       texts beside those of one by one; first differences
    scripts/compare_many.py soak exact --minutes N               random lengths and cancels: memory, and whose tokens
    scripts/compare_many.py kills MODEL                          a batch of 200, killed at 20 random points

FOLDER has llama.cpp's own tools, of the same commit. Words of prompts are drawn at random: no two begin alike, unless a
shared prefix is what is measured. `--repack`, `-t`: as for `llmrun run`. `exact` is a small synthetic model in F32,
all of which is computed in F32: only there a token that differs is another answer's, and not a matter of rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.bench.load import Call, Result, closed_loop, drive  # noqa: E402
from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.interface import Submitted  # noqa: E402
from llmrun.engine.protocol import PromptOptions  # noqa: E402
from llmrun.gguf import synth  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.machine.proc import Proc  # noqa: E402
from llmrun.models.resolve import find_model  # noqa: E402
from llmrun.options.load import LoadConfig  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402

BULK, WATCHED = PromptOptions(reuse=True, bulk=True), PromptOptions(reuse=True)
WORDS = "the cat sat on a mat and saw a dog run by so it hid under the old red barn until the sun went down".split()


def answer(n: int) -> SamplingConfig:
    """Greedy, so many tokens, whatever the model says."""
    return SamplingConfig(temperature=0, max_tokens=n, ignore_eos=True)


class Prompts:
    """Texts of so many tokens each, no two of which begin alike."""

    def __init__(self, engine: ChildEngine, seed: int = 0) -> None:
        self._engine, self._random = engine, random.Random(seed)

    def text(self, n_tokens: int) -> str:
        words = [self._random.choice(WORDS) for _ in range(n_tokens)]
        low, high = 1, 1
        while self._engine.count(" ".join((words * 4)[:high])) < n_tokens and high < 4 * n_tokens:
            low, high = high, 2 * high
        words *= 4
        while low < high:
            middle = (low + high) // 2
            if self._engine.count(" ".join(words[:middle])) < n_tokens:
                low = middle + 1
            else:
                high = middle
        return " ".join(words[:low])


EXACT = LoadConfig(type_k="f32", type_v="f32", flash_attn="off", repack="off")


def exact_model() -> Path:
    path = Path(tempfile.gettempdir()) / "llmrun-compare" / "exact.gguf"
    path.parent.mkdir(exist_ok=True)
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=4096), "F32")
    return path


@contextmanager
def opened(model: Path, args: argparse.Namespace) -> Iterator[ChildEngine]:
    config = EXACT if model.name == "exact.gguf" else LoadConfig(repack=args.repack, n_threads=args.threads)
    with ChildEngine(model, open_header(model), config) as engine:
        yield engine


def rates(result: Result, n_prompt: int) -> tuple[float, float, float]:
    """Tokens per second of one wave: prompts until the last first token, then tokens; and the seconds of all."""
    begin = min(each.asked_s for each in result.outcomes)
    first = max(each.token_s[0] for each in result.outcomes)
    last = max(each.token_s[-1] for each in result.outcomes)
    n_later = sum(sum(at > first for at in each.token_s) for each in result.outcomes)
    return len(result.outcomes) * n_prompt / (first - begin), n_later / (last - first), last - begin


def throughput(model: Path, args: argparse.Namespace) -> str:
    n_seq, n_prompt, n_gen, n_rows = 16, 128, 64, 64
    peer, ours, alone, whole = [], [], [], []
    for round_ in range(args.rounds):
        command = [str(args.peers / "llama-batched-bench"), "-m", str(model), "-c", str(n_seq * 256), "-npp",
                   str(n_prompt), "-ntg", str(n_gen), "-npl", str(n_seq), "--output-format", "jsonl"]  # fmt: skip
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
        peer.append((found["speed_pp"], found["speed_tg"]))
        with opened(model, args) as engine:
            prompts = Prompts(engine, round_)
            texts = [prompts.text(n_prompt) for _ in range(n_rows)]
            calls = [Call(text, answer(n_gen)) for text in texts]
            with engine.parallel(n_seq, n_prompt + n_gen + 16) as answers:  # prompts are a token or two longer
                drive(answers, closed_loop([Call("a", answer(2))], 1), BULK)
                ours.append(rates(drive(answers, closed_loop(calls[:n_seq], n_seq), BULK), n_prompt))
                whole.append(drive(answers, closed_loop(calls, n_seq + 4), BULK).seconds)
            with engine.parallel(1, n_prompt + n_gen) as answers:
                alone.append(rates(drive(answers, closed_loop(calls[:1], 1), BULK), n_prompt)[1])
    pp, tg = (statistics.median(o[i] / p[i] for o, p in zip(ours, peer, strict=True)) for i in (0, 1))
    allowed = [n_rows * (n_prompt / p[0] + n_gen / p[1]) for p in peer]
    of_allowed = statistics.median(a / w for a, w in zip(allowed, whole, strict=True))
    times = statistics.median(o[1] / a for o, a in zip(ours, alone, strict=True))
    mid = [statistics.median(o[i] for o in ours) for i in (0, 1)]
    theirs = [statistics.median(p[i] for p in peer) for i in (0, 1)]
    return (
        f"| {model.stem} | {mid[0]:.0f} | {theirs[0]:.0f} | **{pp:.3f}** | {mid[1]:.1f} | {theirs[1]:.1f} |"
        f" **{tg:.3f}** | {times:.2f} | {statistics.median(whole):.1f} s | **{of_allowed:.3f}** |"
    )


def shared(model: Path, args: argparse.Namespace) -> str:
    """64 rows behind one system prompt, side by side; and some of them each in a fresh `run`."""
    n_rows, n_alone = 64, 4
    with opened(model, args) as engine:
        prompts = Prompts(engine)
        system = prompts.text(1000)
        texts = [f"{system} {prompts.text(40)}" for _ in range(n_rows)]
        with engine.parallel(16, 1200) as answers:
            result = drive(answers, closed_loop([Call(text, answer(64)) for text in texts], 20), BULK)
        cached = sum(each.n_cached for each in result.outcomes) / sum(each.n_prompt for each in result.outcomes)
    alone = []
    for text in texts[:n_alone]:
        begin = time.perf_counter()
        command = [sys.executable, "-m", "llmrun", "run", str(model), text, "--raw", "--temp", "0", "-n", "64",
                   "--ignore-eos", "-q", "--no-prompt-cache", "--repack", args.repack]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        alone.append(time.perf_counter() - begin)
    one_by_one = n_rows * statistics.median(alone)
    return (
        f"| {model.stem} | {result.seconds:.1f} s | {one_by_one:.0f} s | **{one_by_one / result.seconds:.2f}** |"
        f" {100 * cached:.0f} % |"
    )


def gaps(model: Path, args: argparse.Namespace) -> str:
    """The gaps of 8 answers while a prompt of 2,000 tokens is computed beside them, and without one."""
    rows = []
    for round_ in range(3):
        with opened(model, args) as engine:
            prompts = Prompts(engine, round_)
            texts, long = [prompts.text(64) for _ in range(8)], prompts.text(2000)
            with engine.parallel(9, 2200) as answers:
                running = [answers.submit(text, answer(400), options=WATCHED) for text in texts]
                answers.wait(12)
                begin = time.perf_counter()
                late = answers.submit(long, answer(8), options=WATCHED)
                while late.stop_reason is None:
                    answers.wait()
                end = late.meter.token_s[0]
                while any(each.stop_reason is None for each in running):
                    answers.wait()
        before: list[float] = []
        beside: list[float] = []
        for each in running:
            at = each.meter.token_s
            for first, second in pairwise(at):
                (beside if first > begin and second < end else before if second < begin else []).append(second - first)
        usual, p99 = statistics.median(before), sorted(beside)[int(0.99 * len(beside))]
        rows.append(
            f"| {model.stem} | {1000 * usual:.0f} ms | {1000 * statistics.median(beside):.0f} ms |"
            f" {1000 * p99:.0f} ms | **{p99 / usual:.2f}** | {end - begin:.1f} s |"
        )
    return "\n".join(rows)


def equal(model: Path, args: argparse.Namespace) -> str:
    """100 prompts, one by one and 16 side by side; how likely the two tokens are where they first differ."""
    with opened(model, args) as engine:
        chance = random.Random(3)
        texts = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 40))).capitalize() for _ in range(100)]
        calls = [Call(text, SamplingConfig(temperature=0, max_tokens=48)) for text in texts]
        ids: dict[int, list[list[int]]] = {}
        for n_seq in (1, 16):
            with engine.parallel(n_seq, 128) as answers:
                made = [answers.submit(call.prompt, call.sampling, options=BULK) for call in calls]
                while answers.wait():
                    pass
                ids[n_seq] = [each.token_ids for each in made]
    differ = [i for i in range(len(texts)) if ids[1][i] != ids[16][i]]
    shown = ""
    if differ:
        margins = _margins(model, [(texts[i], ids[1][i], ids[16][i]) for i in differ])
        usual = _usual_margin(model, texts, ids[1])
        shown = f"{statistics.median(margins):.4f}, at most {max(margins):.4f} | {usual:.2f}"
    return f"| {model.stem} | {len(texts)} | {len(differ)} | {shown or ' | '} |"


class Logits:
    """What llama.cpp computes of a text, in this process."""

    def __init__(self, model: Path) -> None:
        from llmrun.engine.child import native

        self.llama = native.llama
        native.Log()
        self.llama.llama_backend_init()
        params = self.llama.llama_model_default_params()
        self.model = self.llama.llama_model_load_from_file(os.fsencode(model), params)
        self.vocab = native.Vocab(self.model)
        params = self.llama.llama_context_default_params()
        params.n_ctx = params.n_batch = 1024
        self.context = self.llama.llama_init_from_model(self.model, params)

    def behind(self, tokens: list[int]) -> list[float]:
        llama = self.llama
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        ids = (llama.llama_token * len(tokens))(*tokens)
        assert not llama.llama_decode(self.context, llama.llama_batch_get_one(ids, len(tokens)))
        return [*llama.llama_get_logits_ith(self.context, -1)[: self.vocab.n_tokens]]


def _margins(model: Path, differ: list[tuple[str, list[int], list[int]]]) -> list[float]:
    """How far the logits of the two tokens lie apart where two answers first differ."""
    of, found = Logits(model), []
    for text, one, other in differ:
        n = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
        if n is None:
            continue  # one is the other's beginning
        logits = of.behind(of.vocab.tokenize(text) + one[:n])
        found.append(abs(logits[one[n]] - logits[other[n]]))
    return found or [0.0]


def _usual_margin(model: Path, texts: list[str], ids: list[list[int]]) -> float:
    """Between the two likeliest tokens, in the median over some steps of some answers."""
    of, found = Logits(model), []
    for text, made in zip(texts[:20], ids, strict=False):
        logits = sorted(of.behind(of.vocab.tokenize(text) + made[: len(made) // 2]))
        found.append(logits[-1] - logits[-2])
    return statistics.median(found)


def soak(model: Path, args: argparse.Namespace) -> str:
    """16 sequences, random lengths and cancels. Every prompt is one of some, of which it is known how it goes on: an
    answer must begin as that says."""
    chance = random.Random(1)
    with opened(model, args) as engine:
        texts = [" ".join(chance.choices(WORDS, k=chance.randrange(3, 80))) for _ in range(40)]
        known = {text: engine.generate(text, answer(120)) for text in texts}
        for each in known.values():
            "".join(each)
        rss: list[tuple[float, int]] = []
        n_done = n_cancelled = n_wrong = 0
        with engine.parallel(16, 512) as answers:
            made: dict[Submitted, str] = {}
            begin = time.monotonic()
            while (now := time.monotonic() - begin) < 60 * args.minutes or made:
                while len(made) < 18 and now < 60 * args.minutes:
                    text = chance.choice(texts)
                    made[answers.submit(text, answer(chance.randrange(1, 121)), options=WATCHED)] = text
                if made and chance.random() < 0.2:
                    chance.choice([*made]).cancel()
                ended = answers.wait(0.5)
                if ended is not None:
                    ids, wanted = ended.token_ids, known[made.pop(ended)].token_ids
                    n_done, n_cancelled = n_done + 1, n_cancelled + (ended.stop_reason == "cancelled")
                    n_wrong += ids != wanted[: len(ids)]
                memory = Proc().memory(engine.pid).anonymous_bytes
                if memory:
                    rss.append((now, memory))
    early = statistics.median(n for at, n in rss if 100 <= at <= 140) if args.minutes > 2 else rss[0][1]
    grown = (statistics.median(n for _, n in rss[-50:]) - early) / 2**20
    return f"| {model.stem} | {args.minutes:g} min | {n_done} | {n_cancelled} | **{n_wrong}** | {grown:+.1f} MiB |"


def kills(model: Path, args: argparse.Namespace) -> str:
    """Ended by SIGKILL at 20 random moments, begun again each time; then every row is there once."""
    chance = random.Random(5)
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "rows.txt", Path(folder) / "out.jsonl"
        source.write_text("\n".join(" ".join(chance.choices(WORDS, k=12)) for _ in range(200)) + "\n")
        command = [sys.executable, "-m", "llmrun", "batch", str(model), str(source), "-o", str(out), "--raw",
                   "--temp", "0", "-n", "24", "--ignore-eos", "-q", "-np", "8"]  # fmt: skip
        begin = time.monotonic()
        subprocess.run(command, check=True)
        whole_s = time.monotonic() - begin
        expected = {json.loads(line)["id"] for line in out.read_text().splitlines()}
        out.unlink()
        n_killed = 0
        for _ in range(20):
            process = subprocess.Popen(command)
            try:
                process.wait(chance.uniform(0.01, 0.06) * whole_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                n_killed += 1
        subprocess.run(command, check=True)
        ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    whole = set(ids) == expected and len(ids) == 200
    return f"| {model.stem} | {n_killed} | {len(ids)} | {len(ids) - len(set(ids))} | **{'yes' if whole else 'no'}** |"


HEADS = {
    throughput: "| model | prompts t/s | llama-batched-bench | ratio | tokens t/s | llama-batched-bench | ratio"
    " | of one sequence | 64 rows | of what its rates allow |",
    shared: "| model | 64 rows side by side | each in a fresh `run` (median of 4 x 64) | times | of prompts known |",
    gaps: "| model | median gap without | beside, median | p99 | p99 of median without | the prompt took |",
    equal: "| model | prompts | differ | logits of the two tokens apart, median | usual margin |",
    soak: "| model | time | answers | cancelled | with a token of another | memory since minute 2 |",
    kills: "| model | killed | rows | twice | complete |",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[each.__name__ for each in HEADS])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--repack", default="auto")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args()
    kind = next(each for each in HEADS if each.__name__ == args.what)
    print(HEADS[kind])
    print("|---" * (HEADS[kind].count("|") - 1) + "|", flush=True)
    for name in args.models:
        print(kind(exact_model() if name == "exact" else find_model(name).path, args), flush=True)


if __name__ == "__main__":
    main()
