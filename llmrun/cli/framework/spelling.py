"""The core's errors in the words of the command line: a field as its option, a remedy as what to type."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llmrun.errors import Act, Change, LlmrunError, Remedy

_MENTION = re.compile(r"`([a-z_]+)`")

# Field → its options, the one for hints first.
_OPTIONS: Mapping[str, tuple[str, ...]] = {
    # LoadConfig
    "n_ctx": ("-c", "--ctx-size"),
    "n_batch": ("-b", "--batch-size"),
    "n_ubatch": ("-ub", "--ubatch-size"),
    "n_threads": ("-t", "--threads"),
    "n_threads_batch": ("-tb", "--threads-batch"),
    "flash_attn": ("-fa", "--flash-attn"),
    "repack": ("--repack",),
    "type_k": ("-ctk", "--cache-type-k"),
    "type_v": ("-ctv", "--cache-type-v"),
    "load_mode": ("-lm", "--load-mode"),
    "mlock": ("--mlock",),
    "numa": ("--numa",),
    "rpc": ("--rpc",),
    "n_gpu_layers": ("-ngl", "--n-gpu-layers"),
    "devices": ("-dev", "--device"),
    "tensor_split": ("-ts", "--tensor-split"),
    "split_mode": ("-sm", "--split-mode"),
    "main_gpu": ("-mg", "--main-gpu"),
    "override_tensor": ("-ot", "--override-tensor"),
    "n_cpu_moe": ("-ncmoe", "--n-cpu-moe"),
    "cpu_moe": ("-cmoe", "--cpu-moe"),
    "kv_offload": ("-nkvo", "--no-kv-offload"),
    "fit_target": ("-fitt", "--fit-target"),
    "lora": ("--lora",),
    "lora_scaled": ("--lora-scaled",),
    "rope_scaling": ("--rope-scaling",),
    "rope_scale": ("--rope-scale",),
    "rope_freq_base": ("--rope-freq-base",),
    "rope_freq_scale": ("--rope-freq-scale",),
    "yarn_orig_ctx": ("--yarn-orig-ctx",),
    "yarn_ext_factor": ("--yarn-ext-factor",),
    "yarn_attn_factor": ("--yarn-attn-factor",),
    "yarn_beta_slow": ("--yarn-beta-slow",),
    "yarn_beta_fast": ("--yarn-beta-fast",),
    "override_kv": ("--override-kv",),
    # SamplingConfig
    "max_tokens": ("-n", "--n-predict"),
    "temperature": ("--temp",),
    "stop": ("--stop",),
    "ignore_eos": ("--ignore-eos",),
    "seed": ("-s", "--seed"),
    "top_k": ("--top-k",),
    "top_p": ("--top-p",),
    "min_p": ("--min-p",),
    "typical_p": ("--typical",),
    "repeat_penalty": ("--repeat-penalty",),
    "repeat_last_n": ("--repeat-last-n",),
    "presence_penalty": ("--presence-penalty",),
    "frequency_penalty": ("--frequency-penalty",),
    "logit_bias": ("-l", "--logit-bias"),
    # of an answer
    "think": ("--think",),
    "think_budget": ("--think-budget",),
    "chat_template": ("--chat-template",),
    "json_schema": ("--json-schema",),
    "json_mode": ("--json-mode",),
    "grammar": ("--grammar",),
    "choice": ("--choice",),
    "file": ("-f", "--file"),
    "system": ("--system",),
    "template": ("--template",),
    "field": ("--field",),
    "raw": ("--raw",),
    "resume": ("--resume",),
    "ctx_overflow": ("--ctx-overflow",),
    # of a bench
    "n_prompt": ("-p", "--n-prompt"),
    "n_gen": ("-n", "--n-gen"),
    "pg": ("-pg",),
    "n_depth": ("-d", "--n-depth"),
    "n_parallel": ("-B", "--n-parallel"),
    "repetitions": ("-r", "--repetitions"),
    "delay_s": ("--delay",),
    "price_kwh": ("--price-kwh",),
    "price_hour": ("--price-hour",),
    "quality": ("--quality",),
    "reference": ("--reference",),
    "output_format": ("-o", "--output-format"),
    "output_file": ("--output",),
    "fail_under": ("--fail-under",),
    "live": ("--live",),
    "kind": ("--kind",),
    "x": ("--x",),
    # of other commands
    "quant": ("--quant",),
    "revision": ("--revision",),
    "offline": ("--offline",),
    "limit": ("-n", "--limit"),
    "name": ("--name",),
    "imatrix": ("--imatrix",),
    "output": ("-o", "--output"),
    "format": ("--format",),
    "force": ("--force",),
    "yes": ("-y", "--yes"),
    "host": ("--host",),
    "port": ("-p", "--port"),
    "memory": ("--memory",),
    "allow_remote": ("--allow-remote",),
    "seconds": ("--seconds",),
    "model": ("--model",),
}


def _listed(values: Iterable[object]) -> str:
    return ",".join(map(str, values)) or "none"


def _metadata(values: Mapping[str, object]) -> list[str]:
    names = {bool: "bool", int: "int", float: "float", str: "str"}
    return [
        f"{key}={names[type(value)]}:{str(value).lower() if isinstance(value, bool) else value}"
        for key, value in values.items()
    ]


# How a value is typed where that is not its `str`; a list is an option for each.
_VALUES: Mapping[str, Callable[[Any], str | list[str]]] = {
    "rpc": _listed,
    "devices": _listed,
    "tensor_split": _listed,
    "override_tensor": lambda pairs: [f"{pattern}={device}" for pattern, device in pairs],
    "fit_target": lambda n_bytes: str(n_bytes >> 20),
    "lora": lambda adapters: [str(each.path) for each in adapters],
    "lora_scaled": lambda adapters: [f"{each.path}:{each.scale:g}" for each in adapters],
    "override_kv": _metadata,
    "stop": list,
    "logit_bias": lambda biases: [f"{token}{bias:+g}" for token, bias in biases.items()],
}
# Flags that say the contrary of their field.
_NEGATED = {"kv_offload"}


def message(error: LlmrunError) -> str:
    """What happened, the option that it is about first."""
    text = _MENTION.sub(lambda match: short(match[1]) if match[1] in _OPTIONS else match[0], error.message)
    return f"{in_full(error.field)}: {text}" if error.field else text


def hint(error: LlmrunError) -> str | None:
    """What to type next."""
    return "  or  ".join(map(_typed, error.remedies)) or None


def in_full(field: str) -> str:
    """The option of a field in both its forms: "-c/--ctx-size". A field that is no option is itself."""
    return "/".join(_OPTIONS.get(field, (field,)))


def short(field: str) -> str:
    """The option of a field as one types it: "-c"."""
    return _OPTIONS.get(field, (field,))[0]


def options(fields: Mapping[str, object]) -> str:
    """Fields with their values as one types them: "-c 4096 -nkvo". None is to leave the option out."""
    return " ".join(_option(name, value) for name, value in fields.items())


def _option(field: str, value: object) -> str:
    if value is None:
        return f"leave {short(field)} out"
    if isinstance(value, bool):
        return short(field) if value is not (field in _NEGATED) else f"leave {short(field)} out"
    if field == "n_cpu_moe" and value == "all":
        return short("cpu_moe")
    typed = _VALUES.get(field, str)(value)
    return " ".join(f"{short(field)} {shlex.quote(each)}" for each in ([typed] if isinstance(typed, str) else typed))


def _typed(remedy: Remedy) -> str:
    match remedy:
        case Change(fields):
            return options(fields)
        case Act("help", target):
            return f"llmrun {target} --help" if target else "llmrun --help"
        case Act(action, target, fields):
            words = ["llmrun", action, *([target if target.isupper() else shlex.quote(target)] if target else [])]
            return " ".join([*words, *([options(fields)] if fields else [])])
        case _:
            return remedy
