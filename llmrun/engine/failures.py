"""What went wrong in a child, as an error that says what happened and what would help."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from llmrun.engine import devices
from llmrun.engine.process import Death
from llmrun.engine.protocol import Failed
from llmrun.errors import (
    Act,
    BadModel,
    Change,
    EngineCrashed,
    LlmrunError,
    OutOfMemory,
    PromptTooLong,
    Remedy,
    UsageError,
)
from llmrun.gguf.reader import Header
from llmrun.machine.hardware import available_memory
from llmrun.options.load import LoadConfig
from llmrun.planning.fit import CTX_STEP, smaller_n_ctx
from llmrun.planning.footprint import kv_bytes_per_token
from llmrun.planning.load_plan import LoadPlan
from llmrun.text import printable
from llmrun.units import size

_MOST_REMEDIES = 3


@dataclass(frozen=True)
class Situation:
    """What was being done. `plan`: None before there is one."""

    path: Path
    header: Header
    config: LoadConfig
    plan: LoadPlan | None = None

    def planned(self, plan: LoadPlan) -> Situation:
        return replace(self, plan=plan)


def of_failed(failed: Failed, situation: Situation) -> LlmrunError:
    """The error for what the child says went wrong."""
    message = printable(failed.message, limit=400)
    numbers, name = failed.numbers, situation.path.name
    match failed.kind:
        case "model" if re.search("in regular expression|shorter regex", message):
            return UsageError(f"no pattern for llama.cpp: {message.rpartition(': ')[2]}", field="override_tensor")
        case "model" if "does not support split buffers" in message:
            problem = f"row: {message.rpartition(': ')[2]}"
            return UsageError(problem, field="split_mode", value="row", hint=Change({"split_mode": "layer"}))
        case "model":
            return BadModel(f"{name}: {message}", hint=Act("show", os.fspath(situation.path)))
        case "memory":
            return out_of_memory(situation, numbers.get("n_ctx"))
        case "prompt":
            return PromptTooLong(message, remedies=_for_a_long_prompt(failed, situation))
        case "usage":
            return UsageError(message, field=failed.field, hint=Act("help", "run"))
        case _:
            return EngineCrashed(message)


def _for_a_long_prompt(failed: Failed, situation: Situation) -> list[Remedy]:
    n_prompt, n_ctx_train = failed.numbers.get("n_prompt", 0), failed.numbers.get("n_ctx_train", 0)
    if n_prompt > n_ctx_train:
        return [f"shorten it: the model was trained on {n_ctx_train} tokens"]
    longer: list[Remedy] = [Change({"n_ctx": -(-n_prompt // CTX_STEP) * CTX_STEP})]
    if situation.config.n_ctx:  # else it is memory that cut the context, for this layout
        longer.append(Change({"n_ctx": None}, note="then it is as long as the prompt needs"))
    return longer


def of_death(death: Death, situation: Situation) -> LlmrunError:
    """The error for a child that is gone."""
    config, plan = situation.config, situation.plan
    if death.out_of_memory:
        return out_of_memory(situation, config.n_ctx or None)
    if config.rpc and "RPC server" in death.reason:
        return devices.lost(config.rpc, death)
    hint: Remedy = "the same with LLMRUN_DEBUG=1, which shows its log"
    # Repacked weights run on code of their own, which compilers and virtual machines are known to break.
    if plan is not None and plan.repack and death.killer in (signal.SIGSEGV, signal.SIGILL):
        hint = Change({"repack": "off"})
    return EngineCrashed(f"the engine {death.reason}", hint=hint, log=death.log)


def out_of_memory(situation: Situation, n_ctx: int | None) -> OutOfMemory:
    """With what was to lie in memory, and smaller ones of it. `n_ctx`: of the context that was being made."""
    config, header, plan = situation.config, situation.header, situation.plan
    per_token = kv_bytes_per_token(header, config.type_k, config.type_v)
    available = available_memory()
    parts = [f"weights {size(header.weight_bytes)}"]
    ways: list[Remedy] = []
    if plan is not None and (n_layers := plan.layout.n_gpu_layers):
        parts.append(f"{n_layers} layers on {', '.join(plan.layout.devices)}")
        ways.append(Change({"n_gpu_layers": n_layers * 3 // 4}))
    if n_ctx is not None:
        if per_token:
            parts.append(f"KV cache of {n_ctx} tokens {size(per_token * n_ctx)}")
        ways.append(Change({"n_ctx": smaller_n_ctx(n_ctx, per_token, available)}))
        if config.type_k == config.type_v == "f16" and config.flash_attn != "off":
            ways.append(Change({"type_k": "q8_0", "type_v": "q8_0"}))
    ways.append("a smaller quantization of the model")
    return OutOfMemory(
        f"out of memory: {', '.join(parts)}; {size(available)} of RAM available", remedies=ways[:_MOST_REMEDIES]
    )
