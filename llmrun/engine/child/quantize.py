"""The child that quantizes: llama.cpp's own quantizer, its log read for how far it is, one JSON object a line.

stdin brings `Quantize`s, stdout (moved away from descriptor 1 first, as in `main`) takes what comes of them.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmrun.engine import protocol
from llmrun.engine.child import bootstrap, ggml
from llmrun.engine.child.inbox import Outbox
from llmrun.engine.child.native import Log, llama
from llmrun.engine.protocol import Failed, Message, Quantize, Quantized, QuantizingTensor

MAX_VALUE_BYTES = 127
"""Of a text that llama.cpp's quantizer can add to the metadata."""

_TENSOR = re.compile(r"^\[ *\d+/ *\d+\] (\S+)")
_SIZE = re.compile(r"quant size *= *([\d.]+) MiB")
_FALLBACK = re.compile(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback")
_NEEDS_IMATRIX = "will require an imatrix"
_MAX_BUFFER_BYTES = 1 << 30
"""Rows are converted in slabs of this size. llama.cpp's default of 8 GiB is too much for the machines this is for."""


def _quantize(log: Log, job: Quantize) -> Message:
    params = llama.llama_model_quantize_default_params()
    params.nthread = job.n_threads
    params.ftype = job.file_type
    params.allow_requantize = True  # the parent has warned
    params.quantize_output_tensor = not job.keep_output
    params.pure = job.pure
    params.dry_run = job.dry_run
    params.max_buf_size = _MAX_BUFFER_BYTES
    overrides = (llama.llama_model_kv_override * (len(job.metadata) + 1))()  # the last one stays empty: the end
    for override, (key, text) in zip(overrides, job.metadata.items(), strict=False):
        override.tag = llama.LLAMA_KV_OVERRIDE_TYPE_STR
        override.key = key.encode()
        override.value.val_str = text.encode(errors="replace")[:MAX_VALUE_BYTES].decode(errors="ignore").encode()
    params.kv_overrides = ctypes.cast(overrides, type(params.kv_overrides))
    if job.imatrix is not None:
        matrix = _read_imatrix(Path(job.imatrix))
        params.imatrix = ctypes.cast(matrix, type(params.imatrix))
    log.lines.clear()
    failed = llama.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(params))
    text = "\n".join(line for _, line in log.lines)
    size = _SIZE.search(text)
    if failed or size is None:
        reason = re.sub(r"^\w+: (failed to quantize: )?", "", log.errors()[-1]) if log.errors() else ""
        return Failed("engine", reason or "it gives no reason")
    fallback = _FALLBACK.search(text)
    return Quantized(float(size[1]), _NEEDS_IMATRIX in text, int(fallback[1]) if fallback else 0)


def _read_imatrix(path: Path) -> Any:
    """An importance matrix as llama-imatrix writes it (GGUF): an array of `llama_model_imatrix_data`.

    For every weight the file has the sums of squared activations per column and how many tokens they are of; the
    quantizer wants the mean. An expert that no token ever reached counts as 1, as in llama-quantize.
    """
    import gguf
    import numpy as np

    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    sums = {name.removesuffix(".in_sum2"): data for name, data in tensors.items() if name.endswith(".in_sum2")}
    if not sums:
        raise ValueError("there are no sums in it")
    entries = (llama.llama_model_imatrix_data * (len(sums) + 1))()
    for entry, (name, data) in zip(entries, sums.items(), strict=False):
        counts = np.asarray(tensors[f"{name}.counts"], dtype=np.float32).reshape(-1, 1)
        per_expert = np.asarray(data, dtype=np.float32).reshape(len(counts), -1)
        means = np.where(counts > 0, per_expert / np.maximum(counts, 1), np.float32(1)).astype(np.float32).reshape(-1)
        entry.name = name.encode()
        entry.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = means.size
        _kept.append(means)
    return entries


_kept: list[Any] = []  # what llama.cpp was given a pointer to


class _ReadLog(Log):
    """The log, read while it is written: the line of a tensor begins when the work on it does."""

    def __init__(self, send: Callable[[Message], None] | None) -> None:
        self._send = send
        super().__init__()

    def _write(self, level: int, text: bytes | None, user: object) -> None:
        if self._send and (found := _TENSOR.match((text or b"").decode(errors="replace"))):
            self._send(QuantizingTensor(found[1]))
        super()._write(level, text, user)


def main() -> None:
    inbox, descriptor = bootstrap.begin()
    outbox = Outbox(descriptor)
    ggml.on_abort(bootstrap.last_words)
    llama.llama_backend_init()
    for line in inbox:
        request, job = protocol.decode(line)
        assert isinstance(job, Quantize)
        try:
            message = _quantize(_ReadLog(None if job.dry_run else partial(outbox.send, request)), job)
        except (OSError, ValueError, KeyError, IndexError) as error:  # from reading the importance matrix
            message = Failed("usage", f"imatrix: {error}")
        outbox.send(request, message)
