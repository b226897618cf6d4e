"""What a record says of a model: its files by name and hash, its size, its types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llmrun import fs
from llmrun.gguf.reader import Header
from llmrun.models.quants import split_parts
from llmrun.models.store.state import sha256_of


@dataclass(frozen=True)
class ModelFile:
    """One file of the model.

    Attributes:
        name: without its folder.
        size_bytes: of the whole file.
        sha256: 64 hex digits.
    """

    name: str
    size_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What was run.

    Attributes:
        name: as llmrun calls it: "qwen3:4b", "user/repo:Q4_K_M", a file's name.
        files: one, or the parts of a split model in their order.
        description: in llama.cpp's words: "llama 1B Q4_K - Medium".
        architecture: "llama", "qwen3".
        quantization: "Q4_K_M".
        n_params: parameters.
        weight_bytes: bytes of all tensors.
        n_layer: layers.
        tensor_types: bytes of weights by type: {"Q4_K": …, "F32": …}.
    """

    name: str
    files: tuple[ModelFile, ...] = ()
    description: str | None = None
    architecture: str | None = None
    quantization: str | None = None
    n_params: int | None = None
    weight_bytes: int | None = None
    n_layer: int | None = None
    tensor_types: Mapping[str, int] = field(default_factory=dict)


def describe_model(
    name: str,
    path: Path,
    header: Header,
    *,
    description: str | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
) -> ModelInfo:
    """The model in the file `path` (the first of a split one) with its whole `header`; hashes what was not yet.

    `description` is llama.cpp's (`Loaded.description`). `on_bytes` gets the bytes hashed so far, and all of them.
    """
    paths = [path.with_name(part) for part in split_parts(path.name)]
    sizes = [_size(part) for part in paths]
    total, before, files = sum(size or 0 for size in sizes), 0, []
    for part, size in zip(paths, sizes, strict=True):

        def told(done: int, before: int = before) -> None:
            if on_bytes is not None:
                on_bytes(before + done, total)

        files.append(ModelFile(part.name, size, _sha256(part, told)))
        before += size or 0
    return ModelInfo(
        name=name,
        files=tuple(files),
        description=description,
        architecture=header.architecture,
        quantization=header.quantization_label,
        n_params=header.n_params,
        weight_bytes=header.weight_bytes,
        n_layer=header.n_layer,
        tensor_types=header.bytes_by_type,
    )


def _sha256(path: Path, on_bytes: fs.OnBytes) -> str | None:
    with suppress(OSError):
        return sha256_of(path, on_bytes)
    return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
