"""What went wrong in a child, as an error that says what happened and what would help."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from llmrun.engine import devices
from llmrun.engine.process import Death
from llmrun.engine.protocol import Failed
from llmrun.errors import Act, BadModel, Change, EngineCrashed, LlmrunError, OutOfMemory, PromptTooLong, UsageError
from llmrun.gguf.reader import Header
from llmrun.machine.hardware import available_memory
from llmrun.options.load import LoadConfig
from llmrun.planning.fit import CTX_STEP
from llmrun.planning.footprint import CPU, Need, kv_bytes_per_token
from llmrun.planning.load_plan import RETRY_WITH, LoadPlan
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
            return out_of_memory(situation, numbers.get("n_ctx"), message)
        case "prompt":
            n_prompt, n_ctx_train = numbers.get("n_prompt", 0), numbers.get("n_ctx_train", 0)
            if n_prompt > n_ctx_train:
                return PromptTooLong(message, hint=f"shorten it: the model was trained on {n_ctx_train} tokens")
            longer = [Change({"n_ctx": -(-n_prompt // CTX_STEP) * CTX_STEP})]
            if situation.config.n_ctx:  # else it is memory that cut the context, for this layout
                longer.append(Change({"n_ctx": None}, note="then it is as long as the prompt needs"))
            return PromptTooLong(message, remedies=longer)
        case "usage":
            return UsageError(message, field=failed.field, hint=Act("help", "run"))
        case _:
            return EngineCrashed(message)


def of_death(death: Death, situation: Situation) -> LlmrunError:
    """The error for a child that is gone."""
    config, plan = situation.config, situation.plan
    if death.out_of_memory:
        return out_of_memory(situation, config.n_ctx or None, death.reason)
    if config.rpc and "RPC server" in death.reason:
        return devices.lost(config.rpc, death)
    # Repacked weights run on code of their own, which compilers and virtual machines are known to break.
    may_be_repack = plan is not None and plan.repack and death.killer in (signal.SIGSEGV, signal.SIGILL)
    hint = Change({"repack": "off"}) if may_be_repack else "the same with LLMRUN_DEBUG=1, which shows its log"
    return EngineCrashed(f"the engine {death.reason}", hint=hint, log=death.log)


def out_of_memory(situation: Situation, n_ctx: int | None, message: str = "") -> OutOfMemory:
    """Where memory ran out, with what was to lie there, and less of it that would fit.

    `n_ctx`: of the context that was being made; `message`: llama.cpp's own.
    """
    config, header, plan = situation.config, situation.header, situation.plan
    parts = [f"weights {size(header.weight_bytes)}"]
    if plan is not None and plan.layout.n_gpu_layers:
        parts.append(f"{plan.layout.n_gpu_layers} layers on {', '.join(plan.layout.devices)}")
    if n_ctx is not None and (per_token := kv_bytes_per_token(header, config.type_k, config.type_v)):
        parts.append(f"KV cache of {n_ctx} tokens {size(per_token * n_ctx)}")
    available = available_memory()
    where, ways = f"{size(available)} of RAM available", []
    if plan is not None:
        device = _where_it_ended(plan, message)
        need = plan.footprint.by_device.get(device, Need()).total
        free = {CPU: available, **{budget.name: budget.free_bytes for budget in plan.budgets}}
        if device != CPU:
            where = f"needs {size(need)} of {device}, {size(free[device])} free"
        free[device] = min(free[device] or need, round(RETRY_WITH * need))
        ways = plan.again(header, free).ways_out(config, plan.footprint, device, plan.layout.n_gpu_layers)
    remedies = [*(way for way, _ in ways), "a smaller quantization of the model"][:_MOST_REMEDIES]
    return OutOfMemory(f"out of memory: {', '.join(parts)}; {where}", remedies=remedies)


def _where_it_ended(plan: LoadPlan, message: str) -> str:
    """The device that is too small by its own word, or that llama.cpp names; else RAM."""
    for budget in plan.budgets:
        need = plan.footprint.by_device.get(budget.name)
        if need and budget.free_bytes is not None and need.total > budget.free_bytes:
            return budget.name
    return next((budget.name for budget in plan.budgets if budget.name in message), CPU)
