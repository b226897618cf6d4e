"""Guesses ahead: what they gain, and that they change nothing in what is said; prints Markdown.

    scripts/compare_drafts.py gain MODEL...            texts that repeat, and one that does not, in turn
    scripts/compare_drafts.py chance MODEL --n N       N answers with and without guesses, told apart by chi-square
    scripts/compare_drafts.py equal MODEL...           greedy texts; how near the tokens are where they differ
    scripts/compare_drafts.py prefix MODEL...          a prompt of 4,000 tokens, and again in the next process

`gain`: "repeats" is an answer of one token over and over (a bias makes any model say it), the most that guessing can
gain; "prompt" asks a real model to go on in what it has read twice (`--real`); "chance" is an answer at temperature 1
of random tokens. `chance`: the text of each answer is one of some; two wrong rules are tried beside: every guess is
taken, and one in twenty that is wrong. `-md MODEL`: guesses by that model in place of look-up.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from compare_many import WORDS, Logits, Prompts  # noqa: E402

from llmrun.engine.engine import ChildEngine  # noqa: E402
from llmrun.engine.protocol import PromptOptions  # noqa: E402
from llmrun.gguf.reader import open_header  # noqa: E402
from llmrun.models.resolve import find_model  # noqa: E402
from llmrun.options.load import LoadConfig  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402

N_TOKENS = 192
STORY = (
    "The lighthouse keeper wrote down the wind, the tide and the names of the ships that passed. On the first day there"
    " were nine of them, on the second day eleven, and on the third day the fog took all of them away."
)
CODE = """class Point:
    def __init__(self, x: float, y: float, z: float) -> None:
        self.x = x
        self.y = y
        self.z = z

    def distance(self, other: "Point") -> float:
        return ((self.x - other.x) ** 2 + (self.y - other.y) ** 2 + (self.z - other.z) ** 2) ** 0.5


"""
REPEATS = {"story": f"{STORY}\n\n{STORY}\n\n{STORY[:90]}", "code": f"{CODE}{CODE}class Point:\n"}


def other_than(draft: str) -> tuple[str, str]:
    return "off", draft


class Both:
    """One model twice: without guesses and with them."""

    def __init__(self, model: Path, draft: str, repack: str, threads: int | None) -> None:
        configs = (LoadConfig(draft=each, repack=repack, n_threads=threads) for each in other_than(draft))  # type: ignore[arg-type]
        self.engines = [ChildEngine(model, open_header(model), config) for config in configs]

    def __enter__(self) -> Both:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines:
            engine.close()

    def rates(self, prompt: str, sampling: SamplingConfig, rounds: int) -> tuple[list[float], list[float], int, int]:
        """Tokens per second of each in turn, and what was guessed and right the last time."""
        found: tuple[list[float], list[float]] = [], []
        n_drafted = n_accepted = 0
        for _ in range(rounds):
            for engine, rates in zip(self.engines, found, strict=True):
                generation = engine.generate(prompt, sampling, options=PromptOptions(reuse=True))
                for _ in generation:
                    pass
                rates.append(generation.timing.tg_tps or 0.0)
                n_drafted, n_accepted = generation.timing.n_drafted, generation.timing.n_accepted
        return *found, n_drafted, n_accepted


def gain(model: Path, args: argparse.Namespace) -> str:
    rows = []
    greedy = SamplingConfig(temperature=0, max_tokens=N_TOKENS, ignore_eos=True)
    chance = SamplingConfig(temperature=1, top_k=0, top_p=1, min_p=0, seed=5, max_tokens=N_TOKENS, ignore_eos=True)
    with Both(model, args.model_draft or "lookup", args.repack, args.threads) as both:
        prompt = Prompts(both.engines[0]).text(200)
        ids = both.engines[0].generate("a", SamplingConfig(temperature=0, max_tokens=1, ignore_eos=True))
        list(ids)
        again = SamplingConfig(
            temperature=0, max_tokens=N_TOKENS, ignore_eos=True, logit_bias={ids.token_ids[0]: 100.0}
        )
        asked = {"repeats": (prompt, again), "chance": (prompt, chance)}
        if args.real:
            asked |= {name: (text, greedy) for name, text in REPEATS.items()}
        for name, (text, sampling) in asked.items():
            plain, guessed, n_drafted, n_accepted = both.rates(text, sampling, args.rounds)
            ratio = statistics.median(b / a for a, b in zip(plain, guessed, strict=True))
            rows.append(
                f"| {model.stem} | {name} | {statistics.median(plain):.1f} | {statistics.median(guessed):.1f} |"
                f" **{ratio:.2f}** | {n_accepted} of {n_drafted} |"
            )
    return "\n".join(rows)


# -- the same distribution ---


def said(engine: ChildEngine, prompt: str, n: int, seed: int) -> tuple[Counter[str], int]:
    """Answers by their text, and tokens that were guessed."""
    found: Counter[str] = Counter()
    n_drafted = 0
    for i in range(n):
        sampling = SamplingConfig(temperature=1.0, seed=seed + i, max_tokens=6, ignore_eos=True, top_k=20)
        generation = engine.generate(prompt, sampling, options=PromptOptions(reuse=True))
        found["".join(generation)] += 1
        n_drafted += generation.timing.n_drafted
    return found, n_drafted


def told_apart(one: Counter[str], other: Counter[str]) -> tuple[float, int, float]:
    """Chi-square of two samples, its degrees of freedom, and how often chance makes it as large (Wilson and Hilferty's
    cube root). Texts that are rarer than ten together count as one."""
    both = one + other
    frequent = [text for text, n in both.items() if n >= 10]
    cells = [(one[text], other[text]) for text in frequent]
    cells.append((one.total() - sum(a for a, _ in cells), other.total() - sum(b for _, b in cells)))
    cells = [(a, b) for a, b in cells if a + b]
    n, m = one.total(), other.total()
    square = sum((a * math.sqrt(m / n) - b * math.sqrt(n / m)) ** 2 / (a + b) for a, b in cells)
    freedom = len(cells) - 1
    z = ((square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    return square, freedom, 0.5 * math.erfc(z / math.sqrt(2))


WRONG = """
import importlib.abc, os, random, sys
from importlib.machinery import PathFinder

NAME, SHARE = "llmrun.engine.child.slots", float(os.environ["WRONG_DRAFTS"])


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        spec = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (run(module), wrong())
        return spec


def wrong():
    from llmrun.engine.child import draft, sampler

    left, next_, sample = [], draft.LookupDrafts.next, sampler.Sampler.sample

    def guess(self, most):
        left[:] = next_(self, most)
        return [*left]

    def take(self, context, index):
        token = sample(self, context, index)
        if left:
            expected = left.pop(0)
            if token != expected and random.random() < SHARE:
                return expected
            if token != expected:
                left.clear()
        return token

    draft.LookupDrafts.next, sampler.Sampler.sample = guess, take


sys.meta_path.insert(0, Finder())
"""
"""A child's `sitecustomize`: guesses that are wrong are taken, so often."""


@contextmanager
def wrong_rule(share: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "WRONG_DRAFTS")}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(WRONG)
        os.environ |= {"PYTHONPATH": folder, "WRONG_DRAFTS": share}
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def chance(model: Path, args: argparse.Namespace) -> str:
    """Prompts end in what was seen before, so that there is something to guess."""
    prompt = "Once upon a time there was a little dog. Once upon a time there was a little cat. Once upon a time there"
    config = LoadConfig(draft="lookup", n_ctx=256, n_threads=1)
    rows = []

    def sampled(config: LoadConfig, seed: int) -> tuple[Counter[str], int]:
        with ChildEngine(model, open_header(model), config) as engine:
            return said(engine, prompt, args.n, seed)

    plain, _ = sampled(LoadConfig(draft="off", n_ctx=256, n_threads=1), 1)
    rows.append(("without, other seeds", *sampled(LoadConfig(draft="off", n_ctx=256, n_threads=1), 3_000_001)))
    rows.append(("with guesses", *sampled(config, 1_000_001)))
    for name, share in (("every guess is taken", "1"), ("one wrong guess in twenty is taken", "0.05")):
        with wrong_rule(share):
            rows.append((name, *sampled(config, 2_000_001)))
    lines = []
    for name, found, n_drafted in rows:
        square, freedom, probability = told_apart(plain, found)
        lines.append(
            f"| {model.stem} | {name} | {args.n} | {n_drafted} | {square:.0f} | {freedom} | {probability:.2g} |"
        )
    return "\n".join(lines)


# -- the same text ---


def equal(model: Path, args: argparse.Namespace) -> str:
    chance = random.Random(7)
    texts = [" ".join(chance.choices(WORDS, k=chance.randrange(4, 40))).capitalize() for _ in range(50)]
    texts += [*REPEATS.values()]
    found: dict[str, list[list[int]]] = {}
    for draft in other_than(args.model_draft or "lookup"):
        with ChildEngine(model, open_header(model), LoadConfig(draft=draft, repack=args.repack)) as engine:
            made = []
            for text in texts:
                generation = engine.generate(text, SamplingConfig(temperature=0, max_tokens=96))
                for _ in generation:
                    pass
                made.append(generation.token_ids)
            found[draft] = made
    one, other = found.values()
    differ = [i for i in range(len(texts)) if one[i] != other[i]]
    apart = ""
    if differ:
        logits, margins = Logits(model), []
        for i in differ:
            n = next((n for n, (a, b) in enumerate(zip(one[i], other[i], strict=False)) if a != b), None)
            if n is not None:
                behind = logits.behind(logits.vocab.tokenize(texts[i]) + one[i][:n])
                margins.append(abs(behind[one[i][n]] - behind[other[i][n]]))
        apart = f"{statistics.median(margins):.4f}, at most {max(margins):.4f}" if margins else ""
    return f"| {model.stem} | {len(texts)} | {len(differ)} | {apart} |"


# -- beginnings on disk ---


@contextmanager
def own_home() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        yield {**os.environ, "LLMRUN_HOME": folder}


def prefix(model: Path, args: argparse.Namespace) -> str:
    """`run` with the same long prompt and another question behind it, in three processes; TTFT of the engine."""
    with ChildEngine(model, open_header(model), LoadConfig(repack=args.repack)) as engine:
        long = Prompts(engine).text(4000)
    asked = ["--raw", "--json", "-q", "--temp", "0", "-n", "4", "--ignore-eos", "--no-tune", "--repack", args.repack]
    found: list[dict[str, float]] = []
    with own_home() as environment:
        for end in ("", "", " so"):
            command = [sys.executable, "-m", "llmrun", "run", str(model), *asked]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT, input=long + end
            )
            found.append(json.loads(done.stdout)["timing"])
            time.sleep(1)
        kept = sum(path.stat().st_size for path in Path(environment["LLMRUN_HOME"]).rglob("*.prefix"))
    first, second, third = (each["ttft_s"] for each in found)
    return (
        f"| {model.stem} | {found[0]['n_prompt']} | {kept / 2**20:.0f} MiB | {first:.1f} s | {second:.2f} s |"
        f" **{second / first:.3f}** | {third:.2f} s |"
    )


HEADS = {
    gain: "| model | text | without t/s | with | ratio | right |",
    chance: "| model | rule | answers | guessed | chi-square | degrees of freedom | so large by chance |",
    equal: "| model | prompts | differ | logits of the two tokens apart, median |",
    prefix: "| model | tokens | on disk | TTFT | next process | of the first | another end |",
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[each.__name__ for each in HEADS])
    parser.add_argument("models", nargs="+")
    parser.add_argument("-md", "--model-draft")
    parser.add_argument("--real", action="store_true", help="the model has learned something")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--repack", default="auto")
    parser.add_argument("-t", "--threads", type=int)
    args = parser.parse_args(arguments)
    kind = next(each for each in HEADS if each.__name__ == args.what)
    print(HEADS[kind])
    print("|---" * (HEADS[kind].count("|") - 1) + "|", flush=True)
    for name in args.models:
        print(kind(find_model(name).path, args), flush=True)


if __name__ == "__main__":
    main()
