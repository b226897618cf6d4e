"""The child that quantizes: llama.cpp's own quantizer, its log read for how far it is, one JSON object a line.

stdin brings `Job`s, stdout (moved away from descriptor 1 first, as in `worker`) takes what comes of them. Importing
this imports no native code: the parent's side takes the messages from here.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmrun.engine.wire import Wire

MAX_VALUE_BYTES = 127
"""Of a text that llama.cpp's quantizer can add to the metadata."""


@dataclass(frozen=True)
class Job:
    """Parent → child: quantize `source` (the first part of a split model) into `target`.

    Attributes:
        file_type: number of the level in `enum llama_ftype`.
        pure: every matrix in the level's own type, without the mix that makes Q4_K_M better than plain Q4_K.
        keep_output: the output matrix stays as it is.
        metadata: texts to add to the file, at most `MAX_VALUE_BYTES` each.
        dry_run: write nothing, tell the size only.
    """

    source: str
    target: str
    file_type: int
    n_threads: int
    pure: bool
    keep_output: bool
    imatrix: str | None
    metadata: dict[str, str]
    dry_run: bool


@dataclass(frozen=True)
class Tensor:
    """Child → parent: llama.cpp begins with this tensor, number `index` of `n_tensors`."""

    name: str
    index: int
    n_tensors: int


@dataclass(frozen=True)
class Finished:
    """Child → parent: the job is done.

    Attributes:
        mib: size of all tensors, in MiB, as the log has it: rounded to 0.01.
        needs_imatrix: of a dry run: the level can't be had without an importance matrix.
        n_fallback: tensors whose rows don't fit the level's type, so that they got another.
    """

    mib: float
    needs_imatrix: bool
    n_fallback: int


@dataclass(frozen=True)
class Refused:
    """Child → parent: it can't be done, in llama.cpp's words; the child lives on."""

    reason: str


Message = Job | Tensor | Finished | Refused
WIRE: Wire[Message] = Wire((Job, Tensor, Finished, Refused))

_TENSOR = re.compile(r"^\[ *(\d+)/ *(\d+)\] (\S+)")
_SIZE = re.compile(r"quant size *= *([\d.]+) MiB")
_FALLBACK = re.compile(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback")
_NEEDS_IMATRIX = "will require an imatrix"
_MAX_BUFFER_BYTES = 1 << 30
"""Rows are converted in slabs of this size. llama.cpp's default of 8 GiB is too much for the machines this is for."""


def _quantize(llama: Any, log: Any, job: Job) -> Message:
    import ctypes

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
        matrix = _read_imatrix(llama, Path(job.imatrix))
        params.imatrix = ctypes.cast(matrix, type(params.imatrix))
    log.lines.clear()
    failed = llama.llama_model_quantize(os.fsencode(job.source), os.fsencode(job.target), ctypes.byref(params))
    text = "\n".join(line for _, line in log.lines)
    size = _SIZE.search(text)
    if failed or size is None:
        reason = re.sub(r"^\w+: (failed to quantize: )?", "", log.errors()[-1]) if log.errors() else ""
        return Refused(reason or "it gives no reason")
    fallback = _FALLBACK.search(text)
    return Finished(float(size[1]), _NEEDS_IMATRIX in text, int(fallback[1]) if fallback else 0)


def _read_imatrix(llama: Any, path: Path) -> Any:
    """An importance matrix as llama-imatrix writes it (GGUF): an array of `llama_model_imatrix_data`.

    For every weight the file has the sums of squared activations per column and how many tokens they are of; the
    quantizer wants the mean. An expert that no token ever reached counts as 1, as in llama-quantize.
    """
    import ctypes

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


def _serve(outbox: BinaryIO, request: int, job: Job) -> Message:
    from llmrun.engine.child import native

    class ReadLog(native.Log):
        """The log, read while it is written: the line of a tensor begins when the work on it does."""

        def _write(self, level: int, text: bytes | None, user: object) -> None:
            found = _TENSOR.match((text or b"").decode(errors="replace"))
            if found and not job.dry_run:
                outbox.write(WIRE.encode(request, Tensor(found[3], int(found[1]), int(found[2]))))
                outbox.flush()
            super()._write(level, text, user)

    log = ReadLog()
    try:
        return _quantize(native.llama, log, job)
    except (OSError, ValueError, KeyError, IndexError) as error:  # from reading the importance matrix
        return Refused(f"imatrix: {error}")


def main() -> None:
    from llmrun.engine.child import bootstrap, ggml, native

    inbox, descriptor = bootstrap.begin()
    outbox = os.fdopen(descriptor, "wb")
    ggml.on_abort(bootstrap.last_words)
    native.llama.llama_backend_init()
    for line in inbox:
        request, job = WIRE.decode(line)
        assert isinstance(job, Job)
        outbox.write(WIRE.encode(request, _serve(outbox, request, job)))
        outbox.flush()
