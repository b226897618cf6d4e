"""The door to llama.cpp. Child process only; what the binding does not wrap is in `ggml.py`.

`llama` is the binding's module of llama.h's functions and structs, through ctypes: `llama.llama_decode(…)`.
The package's own `__init__` is left out: it imports the high-level classes and with them numpy and jinja2, which takes
100 ms and is of no use here.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import re
import sys
import types
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from llmrun.engine.child.alignment import align_work_memory
from llmrun.engine.child.bootstrap import small_typing_extensions
from llmrun.engine.child.special_tokens import is_control
from llmrun.engine.protocol import Buffer


def _import_binding() -> Any:
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise ImportError("llama-cpp-python is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    with small_typing_extensions():
        binding = importlib.import_module("llama_cpp.llama_cpp")
    _load_backends()
    align_work_memory()
    return binding


# Of those that are no variant of the CPU's: ggml-base is what all of them are linked with.
_BACKEND = re.compile(r"(?:lib)?ggml-(?!base|cpu)\w+\.(?:so|dylib|dll)")


@cache
def library(stem: str) -> Any:
    """One of the binding's own libraries: "ggml-base", "ggml", "ggml-rpc". Raises `OSError` where the build has none.

    By its versioned name, as the loader knows it: under another one a second copy would be loaded.
    """
    names = [f"lib{stem}.so.0", f"lib{stem}.so", f"lib{stem}.0.dylib", f"lib{stem}.dylib", f"{stem}.dll"]
    path = next((path for path in (_folder() / name for name in names) if path.exists()), None)
    if path is None:
        raise OSError(f"this build of llama.cpp has no {stem}")
    return ctypes.CDLL(str(path))


def _folder() -> Path:
    return Path(sys.modules["llama_cpp"].__path__[0]) / "lib"


def _load_backends() -> None:
    """Of a build for every CPU (GGML_BACKEND_DL), load what fits this machine: the best CPU variant, RPC, GPUs.

    ggml itself looks beside the program, which is Python. In a build for one CPU they are linked, and nothing is done.
    LLMRUN_CPU_VARIANT names another variant than the best.
    """
    variants = [*_folder().glob("*ggml-cpu-*")]
    if not variants:
        return
    wanted = os.environ.get("LLMRUN_CPU_VARIANT")
    if not wanted:
        load = library("ggml").ggml_backend_load_all_from_path
        load.argtypes, load.restype = [ctypes.c_char_p], None
        load(os.fsencode(_folder()))
        return
    chosen = next((path for path in variants if path.name.partition(".")[0].endswith(f"ggml-cpu-{wanted}")), None)
    if chosen is None:
        raise OSError(f"this build of llama.cpp has no CPU variant {wanted[:40]}")
    if not ctypes.CDLL(str(chosen)).ggml_backend_score():  # it would die of an instruction that there is not
        raise OSError(f"this CPU can't run the variant {wanted[:40]}")
    load = library("ggml").ggml_backend_load
    load.argtypes, load.restype = [ctypes.c_char_p], ctypes.c_void_p
    others = (path for path in _folder().glob("*ggml-*") if _BACKEND.fullmatch(path.name))
    for path in (chosen, *others):
        load(os.fsencode(path))


llama: Any = _import_binding()

_kept: list[Any] = []  # ctypes callbacks must outlive the call that installs them


class Log:
    """llama.cpp's log: the last lines are kept, and all go to stderr, where the parent finds them after a crash.

    Attributes:
        lines: (level, line), debug lines left out.
        buffers: memory that llama.cpp said to have taken.
    """

    DEBUG = 1
    ERROR = 4  # enum ggml_log_level: 1 debug, 2 info, 3 warn, 4 error, 5 cont
    CONTINUED = 5

    def __init__(self, keep: int = 400) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=keep)
        self.buffers: list[Buffer] = []
        self._level = 0
        self._partial = ""
        callback = llama.llama_log_callback(self._write)
        _kept.append(callback)
        llama.llama_log_set(callback, None)

    def _write(self, level: int, text: bytes | None, _user: object) -> None:
        if level != self.CONTINUED:
            self._level = level
        if self._level == self.DEBUG:
            return  # hundreds of lines about every graph
        *whole, self._partial = (self._partial + (text or b"").decode(errors="replace")).split("\n")
        for line in whole:
            self.lines.append((self._level, line))
            if found := _BUFFER.search(line):  # "load_tensors: CPU_Mapped model buffer size = 762.81 MiB"
                self.buffers.append(Buffer(found[1], found[2], round(float(found[3]) * 1024 * 1024)))
            try:
                os.write(2, line.encode(errors="replace") + b"\n")
            except OSError:
                pass  # a full disk must not end a run that could go on

    def errors(self) -> list[str]:
        """The lines of level error, or the last five of any level if there are none."""
        errors = [line for level, line in self.lines if level == self.ERROR]
        return errors or [line for _, line in self.lines][-5:]


_BUFFER = re.compile(r":\s+(\S+)\s+(model|KV|RS|compute|output)\s+buffer size\s*=\s*([\d.]+) MiB")


class CancelFlag:
    """A flag that llama.cpp reads by itself between the nodes of a graph, without the GIL and without Python.

    `ggml_abort_callback` is `bool (*)(void *)`: C's own `strlen` has that signature, and returns true as soon as the
    text that it is given is no longer empty. A Python callback would be called thousands of times per token.
    """

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        strlen = ctypes.CDLL(None).strlen
        self.callback = ctypes.cast(strlen, llama.ggml_abort_callback)
        self.data = ctypes.cast(self._text, ctypes.c_void_p)

    def set(self) -> None:
        self._text[0] = b"x"

    def clear(self) -> None:
        self._text[0] = b"\0"

    def __bool__(self) -> bool:
        return self._text[0] != b"\0"


class Vocab:
    """Text to tokens and back. Tokens are ids, their pieces are bytes: one token may be half a character."""

    def __init__(self, model: object) -> None:
        self._vocab = self.handle = llama.llama_model_get_vocab(model)
        self.kind: int = llama.llama_vocab_type(self._vocab)
        self.n_tokens: int = llama.llama_vocab_n_tokens(self._vocab)
        bos: int = llama.llama_vocab_bos(self._vocab)
        without = (llama.LLAMA_VOCAB_TYPE_RWKV, llama.LLAMA_VOCAB_TYPE_PLAMO2)  # whatever their files say
        self.adds_bos: bool = llama.llama_vocab_get_add_bos(self._vocab) and bos >= 0 and self.kind not in without
        self._first = [bos] if self.adds_bos else []
        self.attributes: Callable[[int], int] = cache(partial(llama.llama_vocab_get_attr, self._vocab))
        """llama.h's `llama_token_attr` of a token, as bits."""
        self.piece: Callable[[int], bytes] = cache(partial(self.text_of, special=False))
        """The bytes of one token; empty for a control token."""
        self.is_end: Callable[[int], bool] = cache(partial(llama.llama_vocab_is_eog, self._vocab))
        """Whether a token ends an answer (EOS, EOT and their kin)."""

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids; with `parse_special` control tokens written out in `text` count as what they stand for.

        `add_special` puts BOS before them where the model has it so. llama.cpp's own would put EOS behind them too
        where a file has `add_eos_token`, and the model would begin something new: such a text is not at its end.
        """
        ids = self._ids(text, add_special=False, parse_special=parse_special)
        return [*self._first, *ids] if add_special else ids

    def whole_text(self, text: str) -> list[int]:
        """Token ids of a text that is at its end, with what the vocabulary puts before and behind every one."""
        return self._ids(text, add_special=True, parse_special=False)

    def _ids(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8", errors="replace")
        room = len(data) + 8
        while True:
            ids = (llama.llama_token * room)()
            n = llama.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if n >= 0:
                return list(ids[:n])
            room = -n

    def text_of(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token; with `special` a control token's are its name, "<|end|>"."""
        room = 32
        while True:  # longer ones exist: ask again with the size that is answered
            buffer = ctypes.create_string_buffer(room)
            n = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            room = -n

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of these, control tokens by their names; without the blank that a vocabulary puts before a text."""
        ids, room = (llama.llama_token * len(tokens))(*tokens), 16 * len(tokens) + 32
        while True:
            buffer = ctypes.create_string_buffer(room)
            n = llama.llama_detokenize(self._vocab, ids, len(tokens), buffer, room, False, True)
            if n >= 0:
                return buffer.raw[:n].decode(errors="replace")
            room = -n

    def for_llguidance(self) -> tuple[list[bytes], list[int], int, int]:
        """What `engine.grammar.of_llama` takes."""
        room = 256
        buffer = ctypes.create_string_buffer(room)
        pieces: list[bytes] = []
        for token in range(self.n_tokens):
            n = llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, False)
            piece = buffer.raw[:n] if n >= 0 else self.text_of(token, special=False)
            # Some have a text all the same: gpt-oss's channels. Cut with what follows, it may get a space behind it.
            is_text = piece and not (piece.startswith(b"<") and is_control(self, token, ""))
            pieces.append(piece if is_text else b"\xff<%d>" % token)
        ends = [*filter(partial(llama.llama_vocab_is_eog, self._vocab), range(self.n_tokens))]
        addresses = (ctypes.cast(pointer, ctypes.c_void_p) for pointer in (self._vocab, llama._lib.llama_tokenize))
        vocab, tokenize = (address.value or 0 for address in addresses)
        return pieces, ends, vocab, tokenize

    def special_texts(self, model: object) -> dict[str, str]:
        """BOS, EOS, and of their kin what there is, by what templates call them: {"bos_token": "<s>"}."""
        kin = ("bos", "eos", "sep", "pad", "mask")
        ids = {name: getattr(llama, f"llama_vocab_{name}")(self._vocab) for name in kin}
        number = ctypes.create_string_buffer(16)
        if llama.llama_model_meta_val_str(model, b"tokenizer.ggml.unknown_token_id", number, len(number)) > 0:
            ids["unk"] = int(number.value)
        known = {name: token for name, token in ids.items() if 0 <= token < self.n_tokens}
        texts = {name: self.text_of(token, special=True).decode(errors="replace") for name, token in known.items()}
        return {f"{name}_token": text for name, text in ({"bos": "", "eos": ""} | texts).items()}


def chat_template(model: object) -> str | None:
    """The one without a name; None where there is none, or a blank one."""
    own = llama.llama_model_chat_template(model, None)
    text = "" if own is None else own.decode(errors="replace")
    return text if text.strip() else None


def build_sampler(sampling: dict[str, Any], n_vocab: int, penalty_last_n: int) -> Any:
    """llama.cpp's sampler chain for the fields of `SamplingConfig`; to be freed by `llama_sampler_free`.

    `penalty_last_n`: tokens that penalties count; 0: there is none.
    """
    params = llama.llama_sampler_chain_default_params()
    params.no_perf = True
    chain = llama.llama_sampler_chain_init(params)

    def add(step: Any) -> None:
        llama.llama_sampler_chain_add(chain, step)

    bias = sampling["logit_bias"]
    if bias:
        array = (llama.llama_logit_bias * len(bias))(*[llama.llama_logit_bias(*pair) for pair in bias])
        add(llama.llama_sampler_init_logit_bias(n_vocab, len(bias), array))
    if penalty_last_n:
        penalties = (sampling["repeat_penalty"], sampling["frequency_penalty"], sampling["presence_penalty"])
        add(llama.llama_sampler_init_penalties(n_vocab, penalty_last_n, *penalties))
    if sampling["temperature"] == 0:
        add(llama.llama_sampler_init_greedy())
        return chain
    if sampling["top_k"]:
        add(llama.llama_sampler_init_top_k(sampling["top_k"]))
    if sampling["typical_p"] < 1:
        add(llama.llama_sampler_init_typical(sampling["typical_p"], 1))
    if sampling["top_p"] < 1:
        add(llama.llama_sampler_init_top_p(sampling["top_p"], 1))
    if sampling["min_p"] > 0:
        add(llama.llama_sampler_init_min_p(sampling["min_p"], 1))
    add(llama.llama_sampler_init_temp(sampling["temperature"]))
    add(llama.llama_sampler_init_dist(sampling["seed"]))
    return chain
