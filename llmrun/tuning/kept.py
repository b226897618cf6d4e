"""Choices that were measured on this machine, kept for the next command.

    <cache>/tuning/3f2a….json     one file per machine, build of llama.cpp and class of models: types and shapes

Two models of the same shapes and types share one: a fine-tune needs no measuring of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from llmrun import codec, fs, paths
from llmrun.clock import utc
from llmrun.errors import UsageError
from llmrun.gguf.reader import Header
from llmrun.machine import hardware
from llmrun.machine.proc import ROOT, text_of
from llmrun.options.load import LoadConfig
from llmrun.tuning.dials import Dials, class_of

SCHEMA = "llmrun.tuning/2"


@dataclass(frozen=True)
class Tried:
    """One candidate, as it was measured.

    Attributes:
        prefill_s, decode_s: seconds of a token of the prompt, and of the answer.
        many_s: of a token where `MANY` answers are made at once; None: not measured.
    """

    dials: Dials
    prefill_s: float
    decode_s: float
    many_s: float | None = None


@dataclass(frozen=True)
class Choice:
    """Settings for one class of workloads.

    Attributes:
        by: "first use", or the command that measured it.
        made: UTC.
        tried: what was measured, the chosen one among it.
        other_cores: that other processes kept busy meanwhile; None where the system does not tell.
    """

    dials: Dials
    by: Literal["first use", "tune"]
    made: str = field(default_factory=utc)
    tried: tuple[Tried, ...] = ()
    other_cores: float | None = None


@dataclass(frozen=True)
class Key:
    """What choices depend on: when any of it changes, they are made anew.

    Attributes:
        cpu, cores, cpus, quota: what this process may use.
        build: sizes and times of the libraries that compute.
        shape: the architecture's hyperparameters that say how large its matrices are.
        types: MiB of weights by ggml type.
        kv: types of keys and values.
        offload: layers on devices, as asked for.
    """

    cpu: str
    cores: int
    cpus: int
    quota: float | None
    build: str
    shape: str
    types: str
    kv: str
    offload: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(codec.encode(self)).hexdigest()[:16]


_SIZES = """block_count embedding_length feed_forward_length expert_count expert_used_count expert_feed_forward_length
attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.sliding_window
ssm.inner_size ssm.state_size""".split()


def key_of(header: Header, config: LoadConfig) -> Key:
    cpus = hardware.usable_cpus()
    types: Counter[str] = Counter()
    for tensor in header.tensors:
        types[tensor.type.name] += tensor.n_bytes
    sizes = ((name, header.hparam(name)) for name in _SIZES)
    shape = [f"{header.architecture}", *(f"{name}={_written(value)}" for name, value in sizes if value is not None)]
    return Key(
        cpu=cpu_name(),
        cores=hardware.physical_cores(cpus),
        cpus=len(cpus),
        quota=hardware.cpu_quota(),
        build=_build(),
        shape=" ".join([*shape, f"vocabulary={header.n_vocab}"]),
        types=" ".join(f"{name}={n >> 20}" for name, n in sorted(types.items())),
        kv=f"{config.type_k} {config.type_v}",
        offload=f"{config.offload.n_gpu_layers}",
    )


def _written(value: object) -> str:
    return str(value) if isinstance(value, int | float | str) else ",".join(map(str, value))  # type: ignore[call-overload]


def cpu_name(proc: Path = ROOT) -> str:
    """The product's name; "" where the system does not tell."""
    found = re.search(r"^(?:model name|Model|CPU part)\s*:\s*(.*)$", text_of(proc / "cpuinfo"), re.MULTILINE)
    return found[1] if found else ""


def _build() -> str:
    """Of llama.cpp's libraries: asked of the files, so that no library need be loaded."""
    spec = PathFinder.find_spec("llama_cpp")  # on the disk, whatever is imported under that name
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    found = sorted((each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in folder.glob("*ggml*"))
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


def folder() -> Path:
    """Where the files lie. LLMRUN_HOME moves them, as it does the store."""
    return paths.cache() / "tuning"


def read(key: Key) -> Mapping[str, Choice]:
    """By class of workloads, what is kept; nothing where the file is damaged."""
    return _read(folder() / f"{key.digest}.json").choices


def settings(header: Header, config: LoadConfig, n_prompt: int) -> LoadConfig:
    """The config with what is kept for such runs of this model; what it says itself stays."""
    choice = read(key_of(header, config)).get(class_of(n_prompt))
    if choice is None:
        return config
    usual = LoadConfig()
    given = {each.name for each in fields(LoadConfig) if getattr(config, each.name) != getattr(usual, each.name)}
    return choice.dials.applied(config, leave=given)


def keep(key: Key, model: str, choices: Mapping[str, Choice]) -> None:
    """Keep these, and of other classes what is kept already. `model`: a name to show. Raises `DiskError`."""
    path = folder() / f"{key.digest}.json"
    document = {
        "schema": SCHEMA,
        "model": model,
        "key": codec.plain(key),
        "choices": codec.plain({**_read(path).choices, **choices}),
    }
    with fs.disk_errors(f"writing {path}"):
        fs.write_atomically(path, json.dumps(document, indent=1) + "\n")


@dataclass(frozen=True)
class Entry:
    """A file, and what it says; a damaged one says nothing.

    Attributes:
        model: the name of the model that it was measured with.
    """

    path: Path
    model: str = ""
    key: Key | None = None
    choices: Mapping[str, Choice] = field(default_factory=dict)

    def is_of(self, header: Header) -> bool:
        """Whether a model takes these settings, with some options or others."""
        key = key_of(header, LoadConfig())
        return self.key is not None and (self.key.shape, self.key.types) == (key.shape, key.types)


def entries() -> Iterator[Entry]:
    """All that is kept, damaged files among it."""
    return (_read(path) for path in sorted(folder().glob("*.json")) if path.is_file())


def _read(path: Path) -> Entry:
    try:
        document = codec.decode(path.read_bytes(), dict[str, Any])
        if document["schema"] != SCHEMA:
            return Entry(path)
        key = codec.convert(document["key"], Key)
        choices = codec.convert(document["choices"], dict[str, Choice])
        for each in choices.values():
            each.dials.applied(LoadConfig())  # within what a config takes
            if max(each.dials.n_threads or 1, each.dials.n_threads_batch or 1) > key.cpus:
                return Entry(path)
        return Entry(path, str(document["model"]), key, choices)
    except (OSError, ValueError, KeyError, TypeError, UsageError):
        return Entry(path)
