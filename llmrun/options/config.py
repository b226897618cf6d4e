"""What a user can set: how a model is loaded, how its tokens are sampled. Frozen, and checked when made.

llama.cpp takes many bad values without a word (`n_ctx` 1 becomes 256) and dies of others (`n_batch` -5, `n_threads`
100000), so nothing reaches it that has not passed here. Fields carry llama.cpp's names; messages name the option that
a user types.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from llmrun.errors import UsageError
from llmrun.options.defaults import COMFORTABLE_CTX as COMFORTABLE_CTX

OnOff = Literal["on", "off"]
AutoOnOff = Literal["auto", "on", "off"]

# GGML_MAX_N_THREADS: one more than this and ggml aborts.
MAX_THREADS = 512
MAX_CTX = 1 << 24
MAX_BATCH = 1 << 16
MAX_SEED = (1 << 32) - 2  # 2^32 - 1 is llama.cpp's word for "pick one"


def _within(option: str, value: float, low: float, high: float) -> None:
    """Raise `UsageError` unless low <= value <= high; NaN is in no range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{option}: {value!r} is no number", hint="llmrun run --help")
    if not low <= value <= high:
        shown = "a number of that size" if isinstance(value, int) and abs(value) > 1e15 else value
        raise UsageError(f"{option}: {shown} is outside {low} to {high}", hint="llmrun run --help")


def _whole_within(option: str, value: float, low: int, high: int) -> None:
    """The same for a whole number: 2.5 tokens are never reached, and ctypes would refuse them too late."""
    if not isinstance(value, int):
        raise UsageError(f"{option}: {value!r} is no whole number", hint="llmrun run --help")
    _within(option, value, low, high)


def _one_of(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{option}: '{value}' is none of {', '.join(choices)}", hint="llmrun run --help")


KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
"""The types that llama.cpp takes for the KV cache (`kv_cache_types` in its common/arg.cpp)."""
SplitMode = Literal["none", "layer", "row"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
Numa = Literal["distribute", "isolate", "numactl"]
RopeScaling = Literal["none", "linear", "yarn"]
MAX_LAYERS = 512
MAX_DEVICES = 15  # and the CPU: GGML_SCHED_MAX_BACKENDS; with more ggml aborts
_GIB = 1 << 30


@dataclass(frozen=True)
class Offload:
    """Where the layers lie.

    Attributes:
        n_gpu_layers: so many of the last layers go to the devices, the output counting as one more; "all" of them; or
            "auto": as many as fit (see `planner.py`).
        devices: names of those to use, in this order; None: every GPU that llama.cpp sees; empty: none.
        tensor_split: shares of the layers by device; empty: what fits with "auto", else by their free memory.
        split_mode: "layer" puts whole layers on devices, "row" parts of each matrix where the backend can, "none" uses
            `main_gpu` alone.
        main_gpu: index among `devices`.
        override_tensor: (pattern, device): tensors whose name the pattern is found in go to that device; the first that
            matches counts.
        n_cpu_moe: the experts of so many of the first layers stay in RAM; "all" of them.
        kv: keys and values lie where their layer lies; False keeps them in RAM.
        fit_target: bytes that "auto" leaves free on each device.
    """

    n_gpu_layers: int | Literal["auto", "all"] = "auto"
    devices: tuple[str, ...] | None = None
    tensor_split: tuple[float, ...] = ()
    split_mode: SplitMode = "layer"
    main_gpu: int = 0
    override_tensor: tuple[tuple[str, str], ...] = ()
    n_cpu_moe: int | Literal["all"] = 0
    kv: bool = True
    fit_target: int = _GIB

    def __post_init__(self) -> None:
        if self.n_gpu_layers not in ("auto", "all"):
            _whole_within("-ngl/--n-gpu-layers", self.n_gpu_layers, 0, MAX_LAYERS + 1)  # type: ignore[arg-type]
        if self.devices is not None and len(self.devices) > MAX_DEVICES:
            raise UsageError(f"--device: {len(self.devices)} devices, llama.cpp takes at most {MAX_DEVICES}")
        if len(self.tensor_split) > MAX_DEVICES:
            raise UsageError(f"-ts/--tensor-split: {len(self.tensor_split)} shares for at most {MAX_DEVICES} devices")
        for share in self.tensor_split:
            _within("-ts/--tensor-split", share, 0, 1e9)
        # In llama.cpp's single precision they would be 0, and their sum is divided by.
        if self.tensor_split and sum(self.tensor_split) < 1e-30:
            raise UsageError("-ts/--tensor-split: every share is 0", hint="-ts 3,1")
        _one_of("-sm/--split-mode", self.split_mode, get_args(SplitMode))
        _whole_within("-mg/--main-gpu", self.main_gpu, 0, MAX_DEVICES - 1)
        for pattern, _ in self.override_tensor:
            _check_pattern(pattern)
        if self.n_cpu_moe != "all":
            _whole_within("-ncmoe/--n-cpu-moe", self.n_cpu_moe, 0, MAX_LAYERS)
        _whole_within("-fitt/--fit-target", self.fit_target, 0, 1 << 50)


@dataclass(frozen=True)
class Rope:
    """Other positions than the model was trained with; None leaves what the model says.

    Attributes:
        scaling: how positions beyond the trained context are squeezed into it.
        freq_base: the base of the rotations' frequencies.
        freq_scale: what positions are multiplied by: 0.5 for twice the context.
        yarn_orig_ctx, yarn_ext_factor, yarn_attn_factor, yarn_beta_slow, yarn_beta_fast: of YaRN.
    """

    scaling: RopeScaling | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None

    def __post_init__(self) -> None:
        if self.scaling is not None:
            _one_of("--rope-scaling", self.scaling, get_args(RopeScaling))
        for option, value, low, high in (
            ("--rope-freq-base", self.freq_base, 1, 1e12),
            ("--rope-freq-scale", self.freq_scale, 1e-6, 1e6),
            ("--yarn-ext-factor", self.yarn_ext_factor, 0, 1e3),
            ("--yarn-attn-factor", self.yarn_attn_factor, 0, 1e3),
            ("--yarn-beta-slow", self.yarn_beta_slow, 0, 1e6),
            ("--yarn-beta-fast", self.yarn_beta_fast, 0, 1e6),
        ):
            if value is not None:
                _within(option, value, low, high)
        if self.yarn_orig_ctx is not None:
            _whole_within("--yarn-orig-ctx", self.yarn_orig_ctx, 1, MAX_CTX)


@dataclass(frozen=True)
class Lora:
    """An adapter, and how strongly it counts: 1 as trained, 0 not at all."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        _within("--lora-scaled", self.scale, -100, 100)


KvValue = int | float | bool | str


@dataclass(frozen=True)
class LoadConfig:
    """How a model is loaded.

    Attributes:
        n_ctx: context length in tokens, prompt and answer together. 0: what the model was trained on, or as much of it
            as fits. None: as long as the prompt and `max_tokens` need, without such a bound at least 4096.
        n_batch: tokens of the prompt that are handed to llama.cpp at once (logical batch).
        n_ubatch: tokens that are computed at once (physical batch); values above `n_batch` are cut to it.
        n_threads: threads for decoding. None: one per physical core within the CPU quota.
        n_threads_batch: threads for prefill. None: the same as `n_threads`.
        flash_attn: flash attention; "auto" leaves the choice to llama.cpp, which knows what the devices can do.
        repack: rearrange the weights at load for this CPU; "auto" chooses by the weights' type (see `planner.py`).
        type_k, type_v: types of the KV cache. A quantized `type_v` needs flash attention.
        load_mode: how the file is read; "auto" maps it where the devices can.
        numa: what to do about several memory nodes; None is nothing.
        rpc: "host:port" of workers whose devices count as this machine's.
        lora: adapters, all of them at once.
        override_kv: metadata of the model that are to count instead of its own.
    """

    n_ctx: int | None = None
    n_batch: int = 2048
    n_ubatch: int = 512
    n_threads: int | None = None
    n_threads_batch: int | None = None
    flash_attn: AutoOnOff = "auto"
    repack: AutoOnOff = "auto"
    type_k: KvType = "f16"
    type_v: KvType = "f16"
    load_mode: LoadMode = "auto"
    numa: Numa | None = None
    rpc: tuple[str, ...] = ()
    offload: Offload = field(default_factory=Offload)
    rope: Rope = field(default_factory=Rope)
    lora: tuple[Lora, ...] = ()
    override_kv: Mapping[str, KvValue] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.n_ctx is not None:
            _whole_within("-c/--ctx-size", self.n_ctx, 0, MAX_CTX)
        _whole_within("-b/--batch-size", self.n_batch, 1, MAX_BATCH)
        _whole_within("-ub/--ubatch-size", self.n_ubatch, 1, MAX_BATCH)
        if self.n_threads is not None:
            _whole_within("-t/--threads", self.n_threads, 1, MAX_THREADS)
        if self.n_threads_batch is not None:
            _whole_within("-tb/--threads-batch", self.n_threads_batch, 1, MAX_THREADS)
        _one_of("-fa/--flash-attn", self.flash_attn, get_args(AutoOnOff))
        _one_of("--repack", self.repack, get_args(AutoOnOff))
        _one_of("-ctk/--cache-type-k", self.type_k, get_args(KvType))
        _one_of("-ctv/--cache-type-v", self.type_v, get_args(KvType))
        if self.flash_attn == "off" and self.type_v not in ("f32", "f16", "bf16"):
            raise UsageError(
                f"-ctv {self.type_v}: quantized values need flash attention, which -fa off turns off", hint="-fa auto"
            )
        _one_of("-lm/--load-mode", self.load_mode, get_args(LoadMode))
        if self.numa is not None:
            _one_of("--numa", self.numa, get_args(Numa))
        for key, value in self.override_kv.items():
            _check_override(key, value)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            **vars(self),
            "rpc": list(self.rpc),
            "offload": asdict(self.offload),
            "rope": asdict(self.rope),
            "lora": [{"path": str(adapter.path), "scale": adapter.scale} for adapter in self.lora],
            "override_kv": dict(self.override_kv),
        }


def _check_pattern(pattern: str) -> None:
    """Raise unless Python and C++ (ECMAScript) read the pattern alike: both will."""
    _n_bytes("-ot", pattern)
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"-ot: '{pattern[:60]}' is no regular expression: {error}", hint=_OVERRIDE_EXAMPLE) from None
    plain = re.sub(r"\\.|\[\^?\]?[^]]*\]", "x", pattern)
    if re.search(r"\)[*+{]", plain) or len(re.findall(r"[*+{]", plain)) > _MOST_REPEATS:
        raise UsageError(
            f"-ot: '{pattern[:60]}' could take for ever: none of * + {{}} behind a group, and at most {_MOST_REPEATS}",
            hint=_OVERRIDE_EXAMPLE,
        )
    if not pattern or len(pattern) > 500 or re.search(r"\(\?(?![:=!])|\\[AZ]|\[\[|[*+?}]\+", pattern):
        raise UsageError(
            f"-ot: '{pattern[:60]}' is no pattern that llama.cpp reads as well (ECMAScript)", hint=_OVERRIDE_EXAMPLE
        )


# A name that does not match is taken apart in every way there is: with a repeated group these double with each letter,
# with repetitions behind each other they are multiplied by its length.
_MOST_REPEATS = 4
_OVERRIDE_EXAMPLE = r"-ot 'blk\.[0-9]\.ffn_.*=CPU'"


def _n_bytes(option: str, text: str) -> int:
    """Of its UTF-8. A command line can hold bytes that are none."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"{option}: '{text[:40]}' is not UTF-8", hint="llmrun run --help-all") from None


def _check_override(key: str, value: KvValue) -> None:
    # Of the size of `key` and `val_str` in llama_model_kv_override, which are copied without a look.
    n_bytes = _n_bytes("--override-kv", key)
    if not 0 < n_bytes < 128:
        raise UsageError(f"--override-kv: a key has 1 to 127 bytes, '{key[:40]}' has {n_bytes}")
    if isinstance(value, str) and (n_bytes := _n_bytes("--override-kv", value)) > 127:
        raise UsageError(f"--override-kv {key}: a text has at most 127 bytes, this has {n_bytes}")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise UsageError(f"--override-kv {key}: the number does not fit into 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"--override-kv {key}: {value} is no finite number")


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen, and when to stop. The steps run in this order, llama.cpp's own.

    Attributes:
        logit_bias: token id -> what is added to its logit; -inf forbids the token.
        repeat_last_n: how many tokens back the three penalties look; 0 turns them off, -1 is the whole context.
        repeat_penalty: divides the logits of tokens seen; 1 is off.
        presence_penalty: taken off the logit of every token seen; 0 is off.
        frequency_penalty: taken off the logit of a token seen, once for each time; 0 is off.
        top_k: keep the k likeliest tokens; 0 is off.
        typical_p: keep tokens of typical information up to this probability; 1 is off.
        top_p: keep the likeliest tokens up to this probability; 1 is off.
        min_p: keep tokens with at least this share of the likeliest token's probability; 0 is off.
        temperature: flattens (> 1) or sharpens (< 1) the choice; 0 is greedy: always the likeliest token.
        seed: of the random choice; None picks one, which the result reports.
        max_tokens: at most so many tokens are generated; -1: until the model ends or the context is full.
        stop: texts that end the answer and are not part of it.
        ignore_eos: go on when the model would end.
    """

    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    repeat_last_n: int = 64
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_k: int = 40
    typical_p: float = 1.0
    top_p: float = 0.95
    min_p: float = 0.05
    temperature: float = 0.8
    seed: int | None = None
    max_tokens: int = -1
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for token, bias in self.logit_bias.items():
            _whole_within("--logit-bias (token)", token, 0, (1 << 31) - 1)
            if bias != -math.inf:
                _within("--logit-bias (bias)", bias, -1e6, 1e6)
        _whole_within("--repeat-last-n", self.repeat_last_n, -1, MAX_CTX)
        _within("--repeat-penalty", self.repeat_penalty, 0.01, 100)
        _within("--presence-penalty", self.presence_penalty, -100, 100)
        _within("--frequency-penalty", self.frequency_penalty, -100, 100)
        _whole_within("--top-k", self.top_k, 0, 1 << 24)
        _within("--typical", self.typical_p, 0.0, 1)
        _within("--top-p", self.top_p, 0.0, 1)
        _within("--min-p", self.min_p, 0.0, 1)
        _within("--temp", self.temperature, 0, 100)
        if self.seed is not None:
            _whole_within("--seed", self.seed, 0, MAX_SEED)
        _whole_within("-n/--n-predict", self.max_tokens, -1, MAX_CTX)
        if isinstance(self.stop, str):  # type: ignore[unreachable]  # a str is a sequence of str, one letter each
            raise UsageError(f"stop: a tuple of texts is wanted, such as ({self.stop!r},)")
        if any(not text for text in self.stop):
            raise UsageError("--stop: an empty text would end every answer at once", hint="llmrun run --help")
