"""What is tuned, and for what: settings that change how fast a model runs, and never what it is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal

from llmrun.options.load import AutoOnOff, KvType, LoadConfig, LoadMode, is_quantized

Layout = Literal["off", "on", "both"]
"""How weights lie in RAM, as `LoadConfig.repack` says it: as in the file, rearranged for this CPU, or both."""
LAYOUTS: dict[Layout, str] = {"off": "plain", "on": "repacked", "both": "both layouts"}

UBATCH_WITHOUT_FLASH = 128
"""Without flash attention the scores of a whole micro-batch lie in memory, micro-batch x context x heads: 512 tokens
are slower than with it and 128 are faster, so that neither dial alone would be turned."""
_CLASSES = ((256, "short"), (1025, "medium"))


@dataclass(frozen=True)
class Workload:
    """Tokens of prompt and of answer that a run has, or each of `n_seq` answers that are made at once."""

    n_prompt: int
    n_gen: int
    n_seq: int = 1

    def seconds(self, prefill_tps: float, decode_tps: float) -> float:
        """P / prefill + N / decode."""
        return self.n_prompt / prefill_tps + self.n_gen / decode_tps


MANY = 16
WORKLOADS = {
    "short": Workload(64, 256),
    "medium": Workload(512, 256),
    "long": Workload(2048, 256),
    "many": Workload(128, 64, MANY),
}
"""What stands for the runs of a class. A class follows from the length of the prompt alone, never from the bound on the
answer: the same command gives the same text, whatever that bound is. "many": answers side by side."""


def class_of(n_prompt: int) -> str:
    """ "short" for prompts below 256 tokens, "medium" to 1,024, "long" above."""
    return next((name for below, name in _CLASSES if n_prompt < below), "long")


@dataclass(frozen=True)
class Dials:
    """The settings themselves; None leaves one as it is.

    Attributes:
        repack: how weights lie in RAM.
        n_threads, n_threads_batch: threads for decoding and for prefill.
        n_ubatch: tokens of a prompt that are computed at once.
        flash_attn, load_mode: as in `LoadConfig`.
        kv_type: of keys and values alike.
    """

    repack: Layout | None = None
    n_threads: int | None = None
    n_threads_batch: int | None = None
    n_ubatch: int | None = None
    flash_attn: AutoOnOff | None = None
    kv_type: KvType | None = None
    load_mode: LoadMode | None = None

    def applied(self, config: LoadConfig, *, leave: Collection[str] = ()) -> LoadConfig:
        """The config with these, where it leaves things open and none of the fields is among `leave`.

        Quantized keys and values are left out where somebody has set flash attention off, as they need it. Raises
        `UsageError` where two of the dials don't go together.
        """
        changes: dict[str, object] = {
            each.name: value
            for each in fields(self)
            if (value := getattr(self, each.name)) is not None and each.name not in leave
        }
        if "n_threads" in changes and config.thread_guard == "auto":  # nobody has set them
            changes["thread_guard"] = "on"
        if self.flash_attn == "off" and "flash_attn" in leave:
            changes.pop("n_ubatch", None)  # it is as small as it is for want of flash attention
        kind: KvType | None = changes.pop("kv_type", None)  # type: ignore[assignment]
        is_ruled_out = config.flash_attn == "off" and "flash_attn" not in changes and kind and is_quantized(kind)
        if kind and not is_ruled_out and not {"type_k", "type_v"} & {*leave}:
            changes["type_k"] = changes["type_v"] = kind
        return replace(config, **changes) if changes else config  # type: ignore[arg-type]

    def words(self) -> str:
        """ "repacked, 2 threads, prefill 4" """
        said = []
        if self.repack is not None:
            said.append(LAYOUTS[self.repack])
        if self.n_threads is not None:
            said.append(f"{self.n_threads} thread{'s' if self.n_threads > 1 else ''}")
        if self.n_threads_batch not in (None, self.n_threads):
            said.append(f"prefill {self.n_threads_batch}")
        if self.n_ubatch is not None:
            said.append(f"micro-batch {self.n_ubatch}")
        if self.flash_attn is not None:
            said.append(f"flash attention {self.flash_attn}")
        if self.kv_type is not None:
            said.append(f"KV {self.kv_type}")
        if self.load_mode is not None:
            said.append(f"load mode {self.load_mode}")
        return ", ".join(said) or "as they are"
