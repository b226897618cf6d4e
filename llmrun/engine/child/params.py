"""`Settings` as llama.cpp's own structs. Child process only.

The structs hold pointers into memory that Python owns. An attribute `keep` on the struct keeps that memory alive as
long as the struct.
"""

from __future__ import annotations

import ctypes
from typing import Any

from llmrun.engine.child import ggml
from llmrun.engine.child.native import llama
from llmrun.engine.protocol import RequestFailed, Settings
from llmrun.gguf.types import GGML_TYPES

_FLASH_ATTN = {"auto": -1, "off": 0, "on": 1}  # enum llama_flash_attn_type
_SPLIT_MODES = {"none": 0, "layer": 1, "row": 2}  # enum llama_split_mode
_LOAD_MODES = {"auto": -1, "none": 0, "mmap": 1, "mlock": 2, "mmap+mlock": 3, "dio": 4}  # enum llama_load_mode
_ROPE_SCALING = {"none": 0, "linear": 1, "yarn": 2}  # enum llama_rope_scaling_type
_TYPE_IDS = {kind.name.lower(): kind.id for kind in GGML_TYPES.values()}
_KV_VALUES = {bool: ("BOOL", "val_bool"), int: ("INT", "val_i64"), float: ("FLOAT", "val_f64"), str: ("STR", "val_str")}


class _BufferTypeOverride(ctypes.Structure):
    """struct llama_model_tensor_buft_override, which the binding leaves out."""

    _fields_ = (("pattern", ctypes.c_char_p), ("buft", ctypes.c_void_p))


def model_params(settings: Settings) -> Any:
    """`llama_model_params`. Raises `RequestFailed` for a device that is not there."""
    params = llama.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    params.split_mode = _SPLIT_MODES[settings.split_mode]
    params.load_mode = _LOAD_MODES[settings.load_mode]
    params.main_gpu = settings.main_gpu
    params.use_extra_bufts = settings.repack
    params.load_mtp = settings.mtp
    # Always set, if only to an empty list: left to itself llama.cpp takes all devices that it finds.
    devices = (ctypes.c_void_p * (len(settings.devices) + 1))(*[_handle(name) for name in settings.devices], None)
    params.devices = ctypes.cast(devices, ctypes.c_void_p)
    split = (ctypes.c_float * max(1, llama.llama_max_devices()))(*settings.tensor_split)
    if any(settings.tensor_split):
        params.tensor_split = split
    overrides, kv_overrides = _overrides(settings.override_tensor), _kv_overrides(settings.override_kv)
    if settings.override_tensor:
        params.tensor_buft_overrides = ctypes.cast(overrides, ctypes.c_void_p)
    if settings.override_kv:
        params.kv_overrides = kv_overrides
    params.keep = (devices, split, overrides, kv_overrides)
    return params


def _handle(name: str) -> ctypes.c_void_p:
    handle = ggml.by_name(name)
    if handle is None:
        raise RequestFailed("usage", f"there is no device {name}")
    return handle


def _overrides(pairs: list[list[str]]) -> Any:
    """The array that llama.cpp wants, with a null pattern at its end."""
    made = [_BufferTypeOverride(pattern.encode(), ggml.buffer_type(_handle(device))) for pattern, device in pairs]
    return (_BufferTypeOverride * (len(made) + 1))(*made, _BufferTypeOverride(None, None))


def _kv_overrides(pairs: list[list[Any]]) -> Any:
    """The array that llama.cpp wants, with an empty key at its end."""
    array = (llama.llama_model_kv_override * (len(pairs) + 1))()
    for slot, (key, value) in zip(array, pairs, strict=False):
        tag, member = _KV_VALUES[type(value)]
        slot.key, slot.tag = key.encode(), getattr(llama, f"LLAMA_KV_OVERRIDE_TYPE_{tag}")
        setattr(slot.value, member, value.encode() if isinstance(value, str) else value)
    return array


def context_params(settings: Settings, n_ctx: int, n_outputs: int = 1, n_seq: int = 1) -> Any:
    """`llama_context_params`.

    `n_ctx` is for all sequences together. `n_outputs` is of how many tokens of a batch the logits can be read; there is
    one for each sequence in any case.
    """
    params = llama.llama_context_default_params()
    params.n_ctx = n_ctx
    params.n_batch = settings.n_batch
    params.n_ubatch = min(settings.n_ubatch, settings.n_batch)
    # To generate, only the last token's logits are asked for; room for a whole batch of them would be hundreds of MB.
    params.n_outputs_max = max(n_outputs, n_seq)
    params.n_seq_max = n_seq
    params.n_rs_seq = settings.n_draft if settings.mtp else 0  # states that guesses may be taken back to
    params.n_threads, params.n_threads_batch = settings.n_threads, settings.n_threads_batch
    params.flash_attn_type = _FLASH_ATTN[settings.flash_attn]
    params.type_k, params.type_v = _TYPE_IDS[settings.type_k], _TYPE_IDS[settings.type_v]
    params.offload_kqv = settings.offload_kv
    params.swa_full = False  # a sliding window gets the cells that it needs, as in all of llama.cpp's own tools
    params.no_perf = True
    for name, value in settings.rope.items():
        if name == "scaling":
            params.rope_scaling_type = _ROPE_SCALING[value]
        else:
            setattr(params, f"rope_{name}" if name.startswith("freq") else name, value)
    return params
