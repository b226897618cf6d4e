"""What a run took: one line, several with `--verbose`, all of it with `--json`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from llmrun import codec
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.footprint import CPU
from llmrun.text import sanitize
from llmrun.units import UNKNOWN, bandwidth, count, duration, fixed, percent, rate, size

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.engine.buffers import FootprintCheck
    from llmrun.engine.interface import Engine, Generation
    from llmrun.engine.meter import Timing
    from llmrun.machine.sampler import Usage
    from llmrun.models.resolve import Model
    from llmrun.tuning.kept import Choice


_FIGURES = (
    "load_s n_prompt n_cached prefill_s pp_tps ttft_s n_generated decode_s tg_tps read_bytes read_bytes_per_s"
    " n_drafted n_accepted".split()
)
"""Of the meter, as they stand in the `--json` document."""
_FEW = 32
"""Tokens of a prompt whose rate says nothing."""


@dataclass(frozen=True)
class Run:
    """One generation, its engine, and everything that is known of it. `usage`: not of a server's."""

    found: Model
    engine: Engine
    generation: Generation
    load: LoadConfig
    sampling: SamplingConfig
    answers: AnswerOptions
    usage: Usage | None = None
    tuned: Choice | None = None

    @cached_property
    def checks(self) -> list[FootprintCheck]:
        return self.engine.checks(self.generation)

    @property
    def device_bytes(self) -> dict[str, int]:
        """What llama.cpp took on each device but RAM."""
        from llmrun.engine.buffers import by_device

        taken = by_device(self.generation.buffers, self.engine.devices)
        return {device: sum(kinds.values()) for device, kinds in taken.items() if device != CPU}


_BUSY = 0.5
"""Cores that others took: from here on it is a part of why it was slow."""


def meter_line(run: Run) -> str:
    """prompt 8 tokens 214 t/s · TTFT 83 ms · 32 tokens 41.8 t/s · 33.1 GB/s read · peak RAM 927 MiB · CUDA0 1.20 GiB"""
    timing = run.generation.timing
    if run.engine.server:
        return _line_of_server(run.engine.server, timing)
    return " · ".join(
        [
            _prompt(timing),
            f"TTFT {duration(timing.ttft_s)}",
            f"{timing.n_generated} tokens {rate(timing.tg_tps)}",
            f"{bandwidth(timing.read_bytes_per_s)} read",
            f"peak RAM {size(timing.peak_rss_bytes)}",
            *[f"{device} {size(n_bytes)}" for device, n_bytes in run.device_bytes.items()],
            *([f"{timing.n_accepted} of {timing.n_drafted} guessed"] if timing.n_drafted else []),
            *([_chosen_layout(run.engine)] if run.tuned else []),
            *(
                [f"others {cores(others)}"]
                if (others := run.usage and run.usage.other_cores) and others >= _BUSY
                else []
            ),
        ]
    )


def _prompt(timing: Timing) -> str:
    """What of it was known is no part of its rate; of a few tokens there is none."""
    known = f", {timing.n_cached} of them known" if timing.n_cached else ""
    few = timing.n_cached and timing.n_prompt - timing.n_cached < _FEW
    return f"prompt {timing.n_prompt} tokens{known}{'' if few else f' {rate(timing.pp_tps)}'}"


def details(run: Run) -> list[str]:
    engine, generation, usage = run.engine, run.generation, run.usage
    timing, loaded = generation.timing, engine.loaded
    if engine.server:
        return _details_of_server(engine, generation)
    assert usage is not None
    private = f"{size(usage.peak_anonymous_bytes)} of its own, {size(usage.peak_file_bytes)} mapped"
    return [
        f"model     {sanitize(loaded.description)}, {count(loaded.n_params)} parameters,"
        f" {size(engine.header.weight_bytes)} of weights",
        f"load      {duration(timing.load_s)}, weights {layout(engine)}",
        f"context   {generation.n_ctx} tokens of {loaded.n_ctx_train} trained, {engine.n_threads} threads",
        f"layers    {layers(engine.plan.placement.layers)}",
        *_memory(run.checks),
        f"process   peak {size(timing.peak_rss_bytes)}: {private}; {count(usage.major_faults)} pages from disk",
        *_devices(run),
        *_gpus(usage),
        f"machine   engine {cores(usage.cores)}, others {cores(usage.other_cores)}, steal {cores(usage.steal_cores)}",
        f"prefill   {timing.n_prompt} tokens in {duration(timing.prefill_s)}, {rate(timing.pp_tps)}",
        f"decode    {timing.n_generated} tokens in {duration(timing.decode_s)}, {rate(timing.tg_tps)},"
        f" gaps median {duration(timing.gap_s(0.5))}, p95 {duration(timing.gap_s(0.95))}",
        f"read      {size(engine.reads.weight_bytes)} of weights per token, {bandwidth(timing.read_bytes_per_s)}",
        *([f"drafts    {timing.n_accepted} of {timing.n_drafted} tokens guessed right"] if timing.n_drafted else []),
        *_thread_changes(generation),
        f"stopped   {generation.stop_reason}, seed {generation.seed}",
    ]


def _chosen_layout(engine: Engine) -> str:
    """plain, repacked, both layouts"""
    from llmrun.tuning.dials import LAYOUTS

    return LAYOUTS["both" if engine.plain_prefill else "on" if engine.repack else "off"]


def layout(engine: Engine) -> str:
    """How the weights lie in RAM."""
    if engine.plain_prefill:
        return "repacked, and as in the file for long prompts"
    return "repacked" if engine.repack else "as in the file"


def _thread_changes(generation: Generation) -> list[str]:
    """threads   1 from token 17, 2 from token 90: others wanted the cores"""
    changes = generation.done.threads if generation.done else []
    shown = [f"{n} from token {token}" for token, n in changes[:6]]
    more = f" and {len(changes) - len(shown)} more changes" if len(changes) > len(shown) else ""
    return [f"threads   {', '.join(shown)}{more}: others wanted the cores"] if shown else []


def cores(n: float | None) -> str:
    return UNKNOWN if n is None else f"{fixed(n, 2)} cores"


def layers(devices: Sequence[str]) -> str:
    """0-6 in RAM, 7-15 and the output on CUDA0"""
    last = len(devices) - 1
    named_parts = []
    for device, run in groupby(range(len(devices)), devices.__getitem__):
        numbers = [*run]
        inner = [i for i in numbers if i < last]
        named = [f"{inner[0]}-{inner[-1]}" if len(inner) > 1 else f"{inner[0]}"] if inner else []
        named += ["the output"] if last in numbers else []
        named_parts.append(f"{' and '.join(named)} {'in RAM' if device == CPU else f'on {device}'}")
    return ", ".join(named_parts)


def _memory(checks: Sequence[FootprintCheck]) -> list[str]:
    """What llama.cpp took, by device, and the error of the footprint that was computed before."""
    from llmrun.engine.buffers import total_error

    lines = []
    for device in dict.fromkeys(check.device for check in checks):
        parts = [
            f"{'KV' if check.kind == 'kv' else check.kind} {size(check.taken)} ({percent(check.error, signed=True)})"
            for check in checks
            if check.device == device
        ]
        lines.append(f"memory    {'RAM' if device == CPU else device}: {', '.join(parts)}")
    lines.append(f"computed  {percent(total_error(checks), signed=True)} off what llama.cpp took in all")
    return lines


def _devices(run: Run) -> list[str]:
    """What is in use on each device as it says itself, by all programs together."""
    after = run.generation.done.devices if run.generation.done else []
    return [
        f"device    {device.name}: {size(_less(device.total_bytes, device.free_bytes))} of {size(device.total_bytes)}"
        f" in use, {size(run.device_bytes.get(device.name))} of it the engine's"
        for device in after
    ]


def _less(total: int | None, free: int | None) -> int | None:
    return None if total is None or free is None else total - free


def _gpus(usage: Usage) -> list[str]:
    if usage.gpus is None:
        return []
    return [
        f"gpu       {gpu.name or gpu.index}: VRAM {size(gpu.peak_used_bytes)} of {size(gpu.total_bytes)}"
        f" ({size(gpu.peak_process_bytes)} the engine's), busy {percent(gpu.mean_utilization)}"
        for gpu in usage.gpus
    ]


def _figures(generation: Generation) -> dict[str, Any]:
    timing = generation.timing
    return {
        **{name: getattr(timing, name) for name in _FIGURES},
        "n_thinking": generation.n_thinking,
        "gap_median_s": timing.gap_s(0.5),
        "gap_p95_s": timing.gap_s(0.95),
    }


def _sampled(sampling: SamplingConfig) -> dict[str, Any]:
    biases = {str(token): str(bias) for token, bias in sampling.logit_bias.items()}
    return {**asdict(replace(sampling, logit_bias={})), "logit_bias": biases}


def as_document(run: Run) -> dict[str, Any]:
    """The `--json` document. Seconds, bytes and tokens per second; null is unknown."""
    from importlib.metadata import version

    from llmrun import __version__
    from llmrun.engine.buffers import total_error

    found, engine, generation = run.found, run.engine, run.generation
    timing, done, plan = generation.timing, generation.done, engine.plan
    if engine.server:
        return _document_of_server(run)
    assert run.usage is not None
    return {
        "answer": generation.text,
        "thinking": generation.thinking,
        "stop_reason": generation.stop_reason,
        "choices": run.answers.choice_probabilities(done),
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
            **_figures(generation),
            "thread_changes": [{"token": token, "n_threads": n} for token, n in (done.threads if done else ())],
        },
        "memory": {
            "peak_rss_bytes": timing.peak_rss_bytes,
            "rss_bytes": done.rss_bytes if done else None,
            "anonymous_bytes": done.anonymous_bytes if done else None,
            "buffers": codec.plain(generation.buffers),
            "footprint": [{**asdict(check), "error": check.error} for check in run.checks],
            "footprint_error": total_error(run.checks),
        },
        "plan": {
            "layers": list(plan.placement.layers),
            "n_gpu_layers": plan.layout.n_gpu_layers,
            "n_cpu_moe": plan.layout.n_cpu_moe,
            "devices": list(plan.layout.devices),
            "shares": list(plan.layout.shares),
            "n_ctx_most": plan.n_ctx_most,
            "notes": engine.notes,
        },
        "devices": codec.plain(engine.devices),
        "devices_after": codec.plain(done.devices if done else []),
        "usage": asdict(run.usage),
        "settings": {
            **run.load.as_dict(),
            **_sampled(run.sampling),
            "n_ctx": generation.n_ctx,
            "n_ubatch": min(run.load.n_ubatch, run.load.n_batch),
            "n_threads": engine.n_threads,
            "repack": engine.repack,
            "plain_prefill": engine.plain_prefill,
            "seed": generation.seed,
        },
        "tuning": run.tuned and {name: codec.plain(run.tuned)[name] for name in ("by", "made", "dials")},
        "versions": {
            "llmrun": __version__,
            "llama-cpp-python": version("llama-cpp-python"),
            "system_info": engine.system_info,
        },
    }


# -- of a server: its own figures, and what was seen from here ---


def _line_of_server(server: str, timing: Timing) -> str:
    """prompt 8 tokens 214 t/s · 32 tokens 41.8 t/s, says http://127.0.0.1:8080 · TTFT 83 ms, seen from here"""
    parts = [_prompt(timing), f"{timing.n_generated} tokens {rate(timing.tg_tps)}, says {server}"]
    parts += [f"{timing.n_accepted} of {timing.n_drafted} guessed"] if timing.n_drafted else []
    return " · ".join([*parts, f"TTFT {duration(timing.ttft_s)}, seen from here"])


def _details_of_server(engine: Engine, generation: Generation) -> list[str]:
    timing = generation.timing
    n_cached = f", {timing.n_cached} of them known" if timing.n_cached else ""
    return [
        f"server    {engine.server}, by whose clock the figures are; TTFT {duration(timing.ttft_s)}, seen from here",
        f"context   {generation.n_ctx or UNKNOWN} tokens of {engine.loaded.n_ctx_train or UNKNOWN} trained",
        f"prefill   {timing.n_prompt} tokens{n_cached} in {duration(timing.prefill_s)}, {rate(timing.pp_tps)}",
        f"decode    {timing.n_generated} tokens in {duration(timing.decode_s or None)}, {rate(timing.tg_tps)}",
        f"stopped   {generation.stop_reason}, seed {UNKNOWN if generation.seed is None else generation.seed}",
    ]


def _document_of_server(run: Run) -> dict[str, Any]:
    """The same fields; null is what a server does not tell."""
    from llmrun import __version__

    engine, generation, header = run.engine, run.generation, run.found.header
    untold = dict.fromkeys(("memory", "plan", "devices", "devices_after", "usage", "tuning"))
    return {
        "answer": generation.text,
        "thinking": generation.thinking,
        "stop_reason": generation.stop_reason,
        "choices": None,
        "model": {
            "name": run.found.name,
            "path": None,
            "architecture": header.architecture,
            "quantization": header.quantization_label,
            "n_params": engine.loaded.n_params or None,
            "weight_bytes": header.file_size,
        },
        "server": engine.server,
        "tokens": None,
        "timing": _figures(generation),
        **untold,
        "settings": {**_sampled(run.sampling), "n_ctx": generation.n_ctx, "seed": generation.seed},
        "versions": {"llmrun": __version__, **engine.versions},
    }
