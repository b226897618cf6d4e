"""How a model is loaded. Frozen, and checked when made.

llama.cpp takes many bad values without a word (`n_ctx` 1 becomes 256) and dies of others (`n_batch` -5, `n_threads`
100000), so nothing reaches it that has not passed here. Fields carry llama.cpp's names, options its spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from llmrun.errors import Act, Change, UsageError
from llmrun.options import parse
from llmrun.options.defaults import COMFORTABLE_CTX as COMFORTABLE_CTX
from llmrun.options.endpoints import listed, parse_endpoints
from llmrun.options.spec import (
    EMPTY,
    FIRST,
    MODEL,
    OFFLOAD,
    SPEED,
    Choice,
    Flag,
    Number,
    Option,
    Whole,
    Written,
    check,
    group,
    option,
)

AutoOnOff = Literal["auto", "on", "off"]
Repack = Literal["auto", "on", "off", "both"]
Draft = Literal["auto", "off", "lookup", "mtp"]
"""What `draft` may be beside a model."""
KvType = Literal["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
"""The types that llama.cpp takes for the KV cache (`kv_cache_types` in its common/arg.cpp)."""
SplitMode = Literal["none", "layer", "row"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
Numa = Literal["distribute", "isolate", "numactl"]
RopeScaling = Literal["none", "linear", "yarn"]

# GGML_MAX_N_THREADS: one more than this and ggml aborts.
MAX_THREADS = 512
MAX_CTX = 1 << 24
MAX_BATCH = 1 << 16
MAX_LAYERS = 512
MAX_DEVICES = 15  # and the CPU: GGML_SCHED_MAX_BACKENDS; with more ggml aborts
_GIB = 1 << 30

KvValue = parse.KvValue


@dataclass(frozen=True)
class Lora:
    """An adapter, and how strongly it counts: 1 as trained, 0 not at all."""

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        try:
            Number(-100, 100).check(self.scale)
        except ValueError as error:
            raise UsageError(str(error), field="lora_scaled", value=self.scale) from None


def is_quantized(kind: KvType) -> bool:
    """Whether keys and values of that type lie in blocks. Quantized values need flash attention."""
    return kind not in ("f32", "f16", "bf16")


def _adapter(text: str) -> tuple[Lora, ...]:
    return (Lora(parse.adapter_file(text)),)


def _scaled_adapter(text: str) -> tuple[Lora, ...]:
    path, scale = parse.scaled_file(text)
    return (Lora(path, scale),)


def _check_draft(value: Any) -> None:
    parse.draft(value)


def _check_layers(value: Any, most: int, *words: str) -> None:
    if value not in words:
        Whole(0, most).check(value)


def _check_shares(shares: tuple[float, ...]) -> None:
    if len(shares) > MAX_DEVICES:
        raise ValueError(f"{len(shares)} shares for at most {MAX_DEVICES} devices")
    for share in shares:
        Number(0, 1e9).check(share)
    # In llama.cpp's single precision they would be 0, and their sum is divided by.
    if shares and sum(shares) < 1e-30:
        raise ValueError("every share is 0")


def _check_devices(names: tuple[str, ...]) -> None:
    if len(names) > MAX_DEVICES:
        raise ValueError(f"{len(names)} devices, llama.cpp takes at most {MAX_DEVICES}")


def _positive(text: str) -> float:
    value: float = Number().parse(text)
    if not value > 0:
        raise ValueError(f"{value} is not above 0")
    return value


def _comma(values: tuple[object, ...]) -> str:
    return ",".join(map(str, values)) or "none"


@dataclass(frozen=True)
class Offload:
    """Where the layers lie.

    Attributes:
        n_gpu_layers: so many of the last layers go to the devices, the output counting as one more; "all" of them; or
            "auto": as many as fit (see `planning/placement.py`).
        devices: names of those to use, in this order; None: every GPU that llama.cpp sees; empty: none.
        tensor_split: shares of the layers by device; empty: what fits with "auto", else by their free memory.
        split_mode: "layer" puts whole layers on devices, "row" parts of each matrix where the backend can, "none" uses
            `main_gpu` alone.
        main_gpu: index among `devices`.
        n_cpu_moe: the experts of so many of the first layers stay in RAM; "all" of them.
        override_tensor: (pattern, device): tensors whose name the pattern is found in go to that device; the first that
            matches counts.
        kv: keys and values lie where their layer lies; False keeps them in RAM.
        fit_target: bytes that "auto" leaves free on each device.
    """

    PANEL: ClassVar[str] = OFFLOAD

    n_gpu_layers: int | Literal["auto", "all"] = option(
        "auto",
        "n-gpu-layers",
        Written(parse.n_gpu_layers, valid=lambda value: _check_layers(value, MAX_LAYERS + 1, "auto", "all")),
        short="ngl",
        panel=FIRST,
        aliases=("gpu-layers",),
        metavar="auto|all|N",
        help="Layers to put on GPUs; auto: as many as fit.",
    )
    devices: tuple[str, ...] | None = option(
        None,
        "device",
        Written(parse.devices, _comma, _check_devices),
        short="dev",
        example=Act("devices"),
        metavar="NAME,...",
        help="Devices to put layers on, or none; `do: devices` lists them.",
        without="every GPU",
    )
    tensor_split: tuple[float, ...] = option(
        (),
        "tensor-split",
        Written(parse.tensor_split, _comma, _check_shares),
        short="ts",
        example=Change({"tensor_split": (3, 1)}),
        metavar="N,...",
        help="Each device's share of the layers, as in 3,1.",
        without="by free memory",
    )
    split_mode: SplitMode = option(
        "layer",
        "split-mode",
        Choice(SplitMode),
        short="sm",
        help="none: one GPU only; layer: whole layers; row: rows of each matrix, where the backend can.",
    )
    main_gpu: int = option(
        0, "main-gpu", Whole(0, MAX_DEVICES - 1), short="mg", help="The one GPU of `split_mode` none, counted from 0."
    )
    n_cpu_moe: int | Literal["all"] = option(
        0,
        "n-cpu-moe",
        Written(parse.n_cpu_moe, valid=lambda value: _check_layers(value, MAX_LAYERS, "all")),
        short="ncmoe",
        metavar="N",
        help="Keep the experts of the first N layers in RAM.",
        also=[
            Option(
                "cpu-moe",
                Flag(),
                short="cmoe",
                help="Keep all experts in RAM.",
                means=lambda wanted: "all" if wanted else 0,
                agrees=(0, "all"),
            )
        ],
    )
    override_tensor: tuple[tuple[str, str], ...] = option(
        (),
        "override-tensor",
        Written(parse.override_tensor, "=".join, lambda pair: parse.check_pattern(pair[0])),
        short="ot",
        metavar="PATTERN=DEVICE",
        help="Put tensors whose name matches on this device. Repeatable; the first match counts.",
        example=Change({"override_tensor": ((r"blk\.[0-9]\.ffn_.*", "CPU"),)}),
        repeatable=True,
    )
    kv: bool = option(
        True, "no-kv-offload", Flag(), field="kv_offload", short="nkvo", negated=True, help="Keep the KV cache in RAM."
    )
    fit_target: int = option(
        _GIB,
        "fit-target",
        Written(parse.mebibytes, lambda n_bytes: str(n_bytes >> 20), Whole(0, 1 << 50).check),
        short="fitt",
        metavar="MiB",
        help="What `n_gpu_layers` auto leaves free on each device.",
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Rope:
    """Other positions than the model was trained with; None leaves what the model says.

    Attributes:
        scaling: how positions beyond the trained context are squeezed into it.
        freq_base: the base of the rotations' frequencies.
        freq_scale: what positions are multiplied by: 0.5 for twice the context.
        yarn_orig_ctx, yarn_ext_factor, yarn_attn_factor, yarn_beta_slow, yarn_beta_fast: of YaRN.
    """

    PANEL: ClassVar[str] = MODEL

    scaling: RopeScaling | None = option(
        None, "rope-scaling", Choice(RopeScaling), field="rope_scaling", help="Beyond the trained context."
    )
    freq_base: float | None = option(
        None, "rope-freq-base", Number(1, 1e12), field="rope_freq_base", help="Base of the rotations' frequencies."
    )
    freq_scale: float | None = option(
        None,
        "rope-freq-scale",
        Number(1e-6, 1e6),
        field="rope_freq_scale",
        help="What positions are multiplied by.",
        also=[
            Option(
                "rope-scale",
                Written(_positive, toml=float, wanted="a number"),
                metavar="<float>",
                help="Context longer by this factor: 1 / `rope_freq_scale`.",
                means=lambda factor: 1 / factor,
            )
        ],
    )
    yarn_orig_ctx: int | None = option(
        None, "yarn-orig-ctx", Whole(1, MAX_CTX), help="YaRN: the context that the model was trained on."
    )
    yarn_ext_factor: float | None = option(
        None, "yarn-ext-factor", Number(0, 1e3), help="YaRN: mix of extrapolation; 0: interpolation alone."
    )
    yarn_attn_factor: float | None = option(None, "yarn-attn-factor", Number(0, 1e3), help="YaRN: scale of attention.")
    yarn_beta_slow: float | None = option(None, "yarn-beta-slow", Number(0, 1e6), help="YaRN: high correction.")
    yarn_beta_fast: float | None = option(None, "yarn-beta-fast", Number(0, 1e6), help="YaRN: low correction.")

    def __post_init__(self) -> None:
        check(self)


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
        thread_guard: fewer threads decode while other processes want the cores; "auto": where `n_threads` is None.
        draft: what tokens are guessed ahead by: "lookup", what the text repeats, "mtp", the model's own head for that,
            or another model's name or file; "auto": "lookup", unless the same text is wanted again.
        draft_max: so many at once, at most.
        flash_attn: flash attention; "auto" leaves the choice to llama.cpp, which knows what the devices can do.
        repack: rearrange the weights at load for this CPU; "auto" chooses by the weights' type (see
            `planning/load_plan.py`). "both": they are there as in the file as well, and compute the prompts that are
            long enough for it; "on" where no memory is left for that, or layers lie on devices.
        type_k, type_v: types of the KV cache. A quantized `type_v` needs flash attention.
        load_mode: how the file is read; "auto" maps it where the devices can.
        numa: what to do about several memory nodes; None is nothing.
        rpc: "host:port" of workers whose devices count as this machine's.
        lora: adapters, all of them at once.
        override_kv: metadata of the model that are to count instead of its own.
    """

    PANEL: ClassVar[str] = SPEED

    n_ctx: int | None = option(
        None,
        "ctx-size",
        Whole(0, MAX_CTX),
        short="c",
        panel=FIRST,
        help="Context in tokens, prompt and answer together; 0: what the model was trained on, or as much of it as"
        " fits.",
        without="as much as they need",
    )
    n_batch: int = option(2048, "batch-size", Whole(1, MAX_BATCH), short="b", help="Prompt tokens handed over at once.")
    n_ubatch: int = option(512, "ubatch-size", Whole(1, MAX_BATCH), short="ub", help="Prompt tokens computed at once.")
    n_threads: int | None = option(
        None, "threads", Whole(1, MAX_THREADS), short="t", help="Threads for decoding.", without="physical cores"
    )
    n_threads_batch: int | None = option(
        None, "threads-batch", Whole(1, MAX_THREADS), short="tb", help="Threads for prefill.", without="as `n_threads`"
    )
    thread_guard: AutoOnOff = option(
        "auto",
        "thread-guard",
        Choice(AutoOnOff),
        help="Decode with fewer threads while others want the cores; auto: unless `n_threads` is given, and not in a"
        " bench.",
    )
    draft: str = option(
        "auto",
        "draft",
        Written(parse.draft, valid=_check_draft),
        metavar="auto|off|lookup|mtp|MODEL",
        help="Guess tokens ahead where that is faster: by what the text repeats, by the model's own head for it (mtp),"
        " by a smaller model of the same vocabulary; auto: by the text, unless the same one is wanted again"
        " (`temperature` 0, `seed`).",
        also=(
            Option(
                "model-draft",
                Written(parse.draft, valid=_check_draft),
                short="md",
                metavar="MODEL",
                help="The same, of a model.",
            ),
        ),
    )
    draft_max: int = option(15, "draft-max", Whole(1, 63), help="Tokens that are guessed at once, at most.")
    flash_attn: AutoOnOff = option("auto", "flash-attn", Choice(AutoOnOff), short="fa", help="Flash attention.")
    repack: Repack = option(
        "auto",
        "repack",
        Choice(Repack),
        help="Rearrange the weights for this CPU at load; both: twice in RAM, long prompts with those as in the file;"
        " auto: what pays.",
    )
    type_k: KvType = option(
        "f16",
        "cache-type-k",
        Choice(KvType),
        short="ctk",
        metavar="TYPE",
        help="Type of the cached keys: f16, q8_0, q4_0, ...",
    )
    type_v: KvType = option(
        "f16",
        "cache-type-v",
        Choice(KvType),
        short="ctv",
        metavar="TYPE",
        help="Of the cached values; a quantized one needs flash attention.",
    )
    load_mode: LoadMode = option(
        "auto",
        "load-mode",
        Choice(LoadMode),
        short="lm",
        metavar="MODE",
        help=f"How the file is read: {', '.join(get_args(LoadMode))}.",
        also=[
            Option(
                "mlock",
                Flag(),
                help="Keep the model in RAM: `load_mode` mmap+mlock.",
                means=lambda wanted: "mmap+mlock" if wanted else "auto",
                agrees=("auto", "mmap", "mmap+mlock"),
            )
        ],
    )
    numa: Numa | None = option(
        None, "numa", Choice(Numa), metavar="TYPE", help="With several memory nodes: distribute, isolate, numactl."
    )
    rpc: tuple[str, ...] = option(
        (),
        "rpc",
        Written(parse_endpoints, listed),
        panel=OFFLOAD,
        metavar="HOST:PORT,...",
        help="Workers (`do: worker`) whose devices to use as well.",
        swept="once",
    )
    offload: Offload = group(Offload)
    rope: Rope = group(Rope)
    lora: tuple[Lora, ...] = option(
        (),
        "lora",
        Written(_adapter, lambda adapter: str(adapter.path)),
        panel=MODEL,
        metavar="FILE",
        help="Apply a LoRA adapter. Repeatable.",
        repeatable=True,
        also=[
            Option(
                "lora-scaled",
                Written(_scaled_adapter, lambda adapter: f"{adapter.path}:{adapter.scale:g}"),
                panel=MODEL,
                metavar="FILE:SCALE",
                help="The same, at a strength. Repeatable.",
                repeatable=True,
            )
        ],
    )
    override_kv: Mapping[str, KvValue] = option(
        EMPTY,
        "override-kv",
        Written(parse.override_kv, parse.written_override, lambda pair: parse.check_override(*pair)),
        panel=MODEL,
        metavar="KEY=TYPE:VALUE",
        help="Metadata to count instead of the model's own; TYPE: int, float, bool, str. Repeatable.",
        example=Change({"override_kv": {"llama.expert_used_count": 4}}),
        repeatable=True,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.flash_attn == "off" and is_quantized(self.type_v):
            raise UsageError(
                f"{self.type_v}: quantized values need flash attention, and `flash_attn` is off",
                field="type_v",
                value=self.type_v,
                hint=Change({"flash_attn": "auto"}),
            )

    @property
    def guards_threads(self) -> bool:
        """Whether fewer threads may decode for a while. A number that somebody has set stays."""
        return self.thread_guard == "on" or (self.thread_guard == "auto" and self.n_threads is None)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        from llmrun import codec

        plain: dict[str, Any] = codec.plain(self)
        return plain
