"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun.cli import options, screen
from llmrun.cli.options import LOAD, SAMPLING
from llmrun.cli.pull import fetch_with_progress
from llmrun.config import LoadConfig, SamplingConfig, parse_logit_bias
from llmrun.errors import NotFound, UsageError
from llmrun.units import bandwidth, count, duration, rate, size

if TYPE_CHECKING:
    from llmrun.engine.client import Engine, Generation
    from llmrun.models import Model


def run(
    model: options.ModelName,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What to answer or to continue.")] = None,
    file: options.Files = None,
    system: options.System = None,
    raw: options.Raw = False,
    max_tokens: options.MaxTokens = SAMPLING.max_tokens,
    stop: options.Stop = None,
    temp: options.Temperature = SAMPLING.temperature,
    top_k: options.TopK = SAMPLING.top_k,
    top_p: options.TopP = SAMPLING.top_p,
    min_p: options.MinP = SAMPLING.min_p,
    typical: options.TypicalP = SAMPLING.typical_p,
    repeat_penalty: options.RepeatPenalty = SAMPLING.repeat_penalty,
    repeat_last_n: options.RepeatLastN = SAMPLING.repeat_last_n,
    presence_penalty: options.PresencePenalty = SAMPLING.presence_penalty,
    frequency_penalty: options.FrequencyPenalty = SAMPLING.frequency_penalty,
    logit_bias: options.LogitBias = None,
    seed: options.Seed = None,
    ctx_size: options.NCtx = LOAD.n_ctx,
    threads: options.NThreads = None,
    threads_batch: options.NThreadsBatch = None,
    batch_size: options.NBatch = LOAD.n_batch,
    ubatch_size: options.NUbatch = LOAD.n_ubatch,
    flash_attn: options.FlashAttn = LOAD.flash_attn,
    repack: options.Repack = LOAD.repack,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
) -> None:
    """Answer one prompt and exit.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    load = LoadConfig(
        n_ctx=ctx_size,
        n_batch=batch_size,
        n_ubatch=ubatch_size,
        n_threads=threads,
        n_threads_batch=threads_batch,
        flash_attn=flash_attn,  # type: ignore[arg-type]  # checked by LoadConfig
        repack=repack,  # type: ignore[arg-type]
    )
    sampling = SamplingConfig(
        logit_bias=dict(parse_logit_bias(text) for text in logit_bias or []),
        repeat_last_n=repeat_last_n,
        repeat_penalty=repeat_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        top_k=top_k,
        typical_p=typical,
        top_p=top_p,
        min_p=min_p,
        temperature=temp,
        seed=None if seed == -1 else seed,  # llama.cpp's word for "random"
        max_tokens=max_tokens,
        stop=tuple(stop or ()),
    )
    text = gather_prompt(prompt, file or [])

    from llmrun.engine.client import Engine, started_early
    from llmrun.models import find_model

    with started_early() as child:
        found = find_model(model, fetch=fetch_with_progress(quiet))
        if found.note and not quiet:
            screen.note(found.note)
        asked = as_asked(found, text, system, raw=raw)
        with screen.bar(f"loading {found.name}", shown=not quiet) as bar:
            engine = Engine(found.path, found.header, load, on_progress=bar.update if bar else None, child=child)
        with screen.bar("reading the prompt", shown=not quiet) as bar:
            generation = engine.generate(
                asked, sampling, on_prefill=(lambda done, of: bar.update(done / of)) if bar else None
            )
            shown = iter(generation)
            first = next(shown, "")
        if as_json:
            for _ in shown:
                pass
            screen.out_json(as_document(found, engine, generation, load, sampling))
        else:
            show(generation, chain([first], shown))
        if not quiet and not as_json:
            screen.note(meter_line(generation))
            if verbose:
                for line in details(engine, generation):
                    screen.note(line)


def show(generation: Generation, pieces: Iterable[str]) -> None:
    """Stream the answer to stdout."""
    try:
        for piece in whole_line_ends(pieces):
            screen.out(piece)
    finally:
        # Whatever comes next, an error or the shell's prompt, begins on a line of its own.
        if screen.is_terminal(sys.stdout) and generation.text and not generation.text.endswith("\n"):
            screen.out("\n")


# -- the prompt ---


def gather_prompt(argument: str | None, files: list[Path]) -> str:
    """Standard input, then the files, then the argument, a blank line between them. Raises `UsageError`, `NotFound`.

    A file called "-" is standard input too, which is read first in any case.
    """
    parts = [_from_stdin(), *(_from_file(path) for path in files if str(path) != "-"), argument or ""]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise UsageError(
            "there is no prompt: give it as an argument, in a file, or on standard input",
            hint='llmrun run tiny "Once upon a time"',
        )
    return text


def _from_stdin() -> str:
    """What was piped or redirected into us; a terminal or a device has nothing to say."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    # An open pipe that nobody writes to keeps us for ever, as it does every filter. To go on without would drop what a
    # slow writer sends late; so it is only said, also to those who want quiet.
    if not select.select([0], [], [], 2.0)[0]:
        screen.note("waiting for standard input; leave it out with: </dev/null")
    with os.fdopen(os.dup(0), "rb") as stream:
        return _text(stream.read())


def _text(data: bytes) -> str:
    """UTF-8 without the mark that some editors begin with, and without the line end that all end with."""
    return data.decode("utf-8-sig", errors="replace").rstrip("\n")


def _from_file(path: Path) -> str:
    try:
        return _text(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"there is no file '{path}'", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise UsageError(f"can't read '{path}': {error.strerror}") from None


def as_asked(found: Model, text: str, system: str | None, *, raw: bool) -> str | list[dict[str, str]]:
    """The text as it is, or as a conversation where the model has a chat template."""
    if raw or found.header.chat_template is None:
        if system:
            why = "--raw leaves the chat template out" if raw else "this model has no chat template"
            raise UsageError(f"--system has no place: {why}", hint="put it at the beginning of the prompt")
        return text
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, no piece ending between a carriage return and the line feed that may follow."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r") if held else text
    yield held


# -- what it took ---


def meter_line(generation: Generation) -> str:
    """prompt 8 tokens 214 t/s · TTFT 83 ms · 32 tokens 41.8 t/s · 33.1 GB/s read · peak RAM 927 MiB"""
    timing = generation.timing
    return " · ".join(
        [
            f"prompt {timing.n_prompt} tokens {rate(timing.pp_tps)}",
            f"TTFT {duration(timing.ttft_s)}",
            f"{timing.n_generated} tokens {rate(timing.tg_tps)}",
            f"{bandwidth(timing.read_bytes_per_s)} read",
            f"peak RAM {size(timing.peak_rss_bytes)}",
        ]
    )


def details(engine: Engine, generation: Generation) -> list[str]:
    timing, loaded = generation.timing, engine.loaded
    buffers = ", ".join(f"{b.device} {b.kind} {size(b.n_bytes)}" for b in generation.buffers if b.n_bytes)
    return [
        f"model     {screen.harmless(loaded.description)}, {count(loaded.n_params)} parameters,"
        f" {size(engine.header.weight_bytes)} of weights",
        f"load      {duration(timing.load_s)}, weights {'repacked' if engine.repack else 'as in the file'}",
        f"context   {generation.n_ctx} tokens of {loaded.n_ctx_train} trained, {engine.n_threads} threads",
        f"memory    {buffers}",
        f"prefill   {timing.n_prompt} tokens in {duration(timing.prefill_s)}, {rate(timing.pp_tps)}",
        f"decode    {timing.n_generated} tokens in {duration(timing.decode_s)}, {rate(timing.tg_tps)},"
        f" gaps median {duration(timing.gap_s(0.5))}, p95 {duration(timing.gap_s(0.95))}",
        f"read      {size(engine.reads.weight_bytes)} of weights per token, {bandwidth(timing.read_bytes_per_s)}",
        f"stopped   {generation.stop_reason}, seed {generation.seed}",
    ]


def as_document(
    found: Model, engine: Engine, generation: Generation, load: LoadConfig, sampling: SamplingConfig
) -> dict[str, Any]:
    """The `--json` document. Seconds, bytes and tokens per second; null is unknown."""
    from dataclasses import asdict, replace
    from importlib.metadata import version

    from llmrun import __version__

    timing = generation.timing
    done = generation.done
    return {
        "answer": generation.text,
        "stop_reason": generation.stop_reason,
        "model": {
            "name": found.name,
            "path": os.fspath(found.path),
            "architecture": found.header.architecture,
            "quantization": found.header.quantization_label,
            "n_params": engine.loaded.n_params,
            "weight_bytes": found.header.weight_bytes,
        },
        "tokens": generation.token_ids,
        "timing": {
            "load_s": timing.load_s,
            "n_prompt": timing.n_prompt,
            "n_cached": timing.n_cached,
            "prefill_s": timing.prefill_s,
            "pp_tps": timing.pp_tps,
            "ttft_s": timing.ttft_s,
            "n_generated": timing.n_generated,
            "decode_s": timing.decode_s,
            "tg_tps": timing.tg_tps,
            "gap_median_s": timing.gap_s(0.5),
            "gap_p95_s": timing.gap_s(0.95),
            "read_bytes": timing.read_bytes,
            "read_bytes_per_s": timing.read_bytes_per_s,
        },
        "memory": {
            "peak_rss_bytes": timing.peak_rss_bytes,
            "rss_bytes": done.rss_bytes if done else None,
            "anonymous_bytes": done.anonymous_bytes if done else None,
            "buffers": [vars(buffer) for buffer in generation.buffers],
        },
        "settings": {
            **asdict(load),
            **asdict(replace(sampling, logit_bias={})),
            "logit_bias": {str(token): str(bias) for token, bias in sampling.logit_bias.items()},
            "n_ctx": generation.n_ctx,
            "n_ubatch": min(load.n_ubatch, load.n_batch),
            "n_threads": engine.n_threads,
            "repack": engine.repack,
            "seed": generation.seed,
        },
        "versions": {
            "llmrun": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "system_info": engine.system_info,
        },
    }
