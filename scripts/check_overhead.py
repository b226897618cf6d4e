"""What metering costs: decoding with a time stamp for every token and the sampler beside it, against decoding alone.

    .venv/bin/python scripts/check_overhead.py [--rounds 9] [--steps 400]

Two loops over the same `llama_decode` in this process, in turn: one that does nothing else, and that of
`engine/trial.py`, watched by `resources.Sampler` four times a second as a bench is. The model is synthetic, of a size
that decodes at about 1,000 tokens per second on two cores. On a machine that is shared the pairs differ by more than
what is looked for; so both loops run with a decode that does nothing as well, which leaves their own time. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from llmrun.engine.child import native, params
from llmrun.engine.child.batch import Batch
from llmrun.engine.child.raw_bench import RawBench
from llmrun.engine.loader import settings_of
from llmrun.engine.protocol import Trial
from llmrun.gguf import synth
from llmrun.machine.hardware import default_threads
from llmrun.machine.sampler import Sampler
from llmrun.options.load import LoadConfig
from llmrun.planning.layout import Layout

llama = native.llama
SHAPE = synth.Shape(8, 512, 1408, 8, 4, 8192)


def bare(context: object, n_vocab: int, n_steps: int) -> float:
    """Tokens per second of a loop that only decodes."""
    llama.llama_memory_clear(llama.llama_get_memory(context), False)
    batch = Batch(1)
    batch.add(0, [7 % n_vocab], 0, n_wanted=1)
    begin = time.perf_counter()
    for i in range(n_steps):
        batch.put(0, 7 % n_vocab, i)
        llama.llama_decode(context, batch.raw)
        llama.llama_synchronize(context)
    return n_steps / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    threads = default_threads()
    settings = settings_of(
        LoadConfig(), Layout(0), n_ctx=options.steps + 1, n_ctx_most=None, n_threads=threads, repack=False
    )
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as null:
        path = Path(folder) / "m.gguf"
        synth.write(path, SHAPE, "Q8_0")
        os.dup2(null.fileno(), 2)  # llama.cpp's log
        log = native.Log()
        llama.llama_backend_init()
        model = llama.llama_model_load_from_file(os.fsencode(path), params.model_params(settings))
        vocab = native.Vocab(model)
        context = llama.llama_init_from_model(model, params.context_params(settings, options.steps + 1))
        trials = RawBench(
            vocab,
            settings,
            lambda settings, n_ctx, n_seq, *, plain: llama.llama_init_from_model(
                model, params.context_params(settings, n_ctx)
            ),
        )
        alone, metered, ratios = [], [], []
        for i in range(options.rounds + 1):
            a = bare(context, vocab.n_tokens, options.steps)
            with Sampler(os.getpid()):
                _, step_s = trials.run(Trial(0, options.steps, 0, 1, 0))
            b = options.steps / sum(step_s)
            if i:  # the first round warms up
                alone.append(a)
                metered.append(b)
                ratios.append(b / a)
        decode, synchronize = llama.llama_decode, llama.llama_synchronize
        llama.llama_decode, llama.llama_synchronize = (lambda _context, _batch: 0), (lambda _context: None)
        own_s = []
        for _ in range(options.rounds):
            a = bare(context, vocab.n_tokens, 20_000)
            _, step_s = trials.run(Trial(0, 20_000))
            own_s.append(sum(step_s) / 20_000 - 1 / a)
        llama.llama_decode, llama.llama_synchronize = decode, synchronize
        del log
    print(f"{options.rounds} rounds of {options.steps} tokens, {threads} threads\n")
    print("| decoding alone | metered | ratio (median of pairs) | range |\n|---|---|---|---|")
    print(
        f"| {statistics.median(alone):.0f} t/s | {statistics.median(metered):.0f} t/s |"
        f" **{statistics.median(ratios):.4f}** | {min(ratios):.4f} to {max(ratios):.4f} |\n"
    )
    own_us = statistics.median(own_s) * 1e6
    print(f"Time stamp and next token take {own_us:.2f} µs of their own: {own_us / 10:.2f} % of a token at 1,000 t/s.")


if __name__ == "__main__":
    main()
