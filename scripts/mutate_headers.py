"""Breaks a model's header in thousands of ways and asks: does the reader stop what would kill llama.cpp?

    scripts/mutate_headers.py             the reader alone: is every answer a Header or a BadModel, and quickly?
    scripts/mutate_headers.py --native    the same, and every mutation through the real llama.cpp as well

With --native each mutated file is loaded in a child process (10 s, 4 GiB of address space) that makes a context,
tokenizes a line and decodes two tokens. A mutation is a *killer* when that process does not come to its own end: an
abort, a segmentation fault, a hang. Printed are the outcomes, the share of killers that the reader stopped before
native code, and those it let through. Exit status 1: the share is below the target, the unmutated model fails, or the
reader raised anything but BadModel.

The mutations follow from --seed and the file alone, so a number printed here finds its mutation again (--only).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrun.errors import BadModel  # noqa: E402
from llmrun.gguf import rules  # noqa: E402
from llmrun.gguf.types import GGML_TYPES  # noqa: E402
from llmrun.text import printable  # noqa: E402

TARGET = 0.85
SLOW_S = 2.0
NATIVE_TIMEOUT_S = 10
NATIVE_ADDRESS_SPACE = 4 << 30

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
INTEGERS = (0, 1, 4, 5, 10, 11)
STRING, ARRAY = 8, 9


# -- a model file, taken apart and put together again --------------------------------------------------------------


@dataclass(frozen=True)
class Key:
    name: bytes
    type: int
    value: bytes  # as in the file, without the type
    element: int = -1  # of an array
    items: tuple[bytes, ...] = ()  # of an array: the strings, or the packed numbers


@dataclass(frozen=True)
class Tensor:
    name: bytes
    dims: tuple[int, ...]
    type: int
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Model:
    """`fields` are the places of all integers in the header: (offset, size). `raw` is the whole file."""

    raw: bytes = field(repr=False)
    header_bytes: int
    fields: tuple[tuple[int, int], ...]
    keys: tuple[Key, ...]
    tensors: tuple[Tensor, ...]


def take_apart(raw: bytes) -> Model:
    """Trusts the file: it is the unmutated one. Written without the reader's help, so that both can't err alike."""
    at = 4
    fields: list[tuple[int, int]] = []

    def integer(fmt: str) -> int:
        nonlocal at
        size = struct.calcsize(fmt)
        fields.append((at, size))
        at += size
        return int(struct.unpack_from("<" + fmt, raw, at - size)[0])

    def string() -> bytes:
        nonlocal at
        n = integer("Q")
        at += n
        return raw[at - n : at]

    integer("I")
    n_tensors, n_keys = integer("Q"), integer("Q")
    keys = []
    for _ in range(n_keys):
        name, type_ = string(), integer("I")
        start, element, items = at, -1, []
        if type_ == ARRAY:
            element, count = integer("I"), integer("Q")
            for i in range(count):
                before = at
                if element == STRING:
                    # One in a hundred lengths is enough: a vocabulary would drown all other fields.
                    n_fields = len(fields)
                    items.append(string())
                    if i % 100:
                        del fields[n_fields:]
                else:
                    at += SIZES[element]
                    items.append(raw[before:at])
        elif type_ == STRING:
            string()
        else:
            fields.append((at, SIZES[type_]))
            at += SIZES[type_]
        keys.append(Key(name, type_, raw[start:at], element, tuple(items)))
    infos = []
    for _ in range(n_tensors):
        name, n_dims = string(), integer("I")
        dims = tuple(integer("Q") for _ in range(n_dims))
        infos.append((name, dims, integer("I"), integer("Q")))
    data = -(-at // alignment_of(keys)) * alignment_of(keys)
    tensors = tuple(
        Tensor(name, dims, type_, raw[data + offset : data + offset + n_bytes(dims, type_)])
        for name, dims, type_, offset in infos
    )
    return Model(raw, at, tuple(fields), tuple(keys), tensors)


def alignment_of(keys: list[Key] | tuple[Key, ...]) -> int:
    for key in keys:
        if key.name == b"general.alignment" and len(key.value) == 4:
            value: int = struct.unpack("<I", key.value)[0]
            # A broken alignment is written as it is, and the data as if it were not.
            return value if 1 <= value <= 4096 else 32
    return 32


def n_bytes(dims: tuple[int, ...], type_: int) -> int:
    ggml_type, n = GGML_TYPES[type_], 1
    for dim in dims:
        n *= dim
    return n // ggml_type.block_size * ggml_type.type_size


def put_together(keys: tuple[Key, ...], tensors: tuple[Tensor, ...]) -> bytes:
    alignment = alignment_of(keys)
    head = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)))
    for key in keys:
        head += struct.pack("<Q", len(key.name)) + key.name + struct.pack("<I", key.type) + key.value
    data = bytearray()
    for tensor in tensors:
        head += struct.pack("<Q", len(tensor.name)) + tensor.name + struct.pack("<I", len(tensor.dims))
        head += struct.pack(f"<{len(tensor.dims)}QIQ", *tensor.dims, tensor.type, len(data))
        data += tensor.data + bytes(-len(tensor.data) % alignment)
    return bytes(head) + bytes(-len(head) % alignment) + bytes(data)


def array_key(key: Key, items: tuple[bytes, ...]) -> Key:
    packed = b"".join(struct.pack("<Q", len(i)) + i if key.element == STRING else i for i in items)
    return replace(key, items=items, value=struct.pack("<IQ", key.element, len(items)) + packed)


# -- mutations -----------------------------------------------------------------------------------------------------

Mutation = tuple[str, bytes]


def shown(raw: bytes) -> str:
    return printable(raw, 50)


def odd_integers(rng: random.Random, value: int, bits: int) -> int:
    """The values at which software breaks: the borders, the neighbours, a single changed bit."""
    choices = [0, 1, 2, 3, value - 1, value + 1, value * 2, value // 2, value ^ (1 << rng.randrange(bits))]
    choices += [(1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1, rng.randrange(1024), rng.randrange(1 << bits)]
    return rng.choice(choices) & ((1 << bits) - 1)


def flip_bit(model: Model, rng: random.Random) -> Mutation:
    at, bit = rng.randrange(model.header_bytes), rng.randrange(8)
    raw = bytearray(model.raw)
    raw[at] ^= 1 << bit
    return f"bit {bit} of byte {at} flipped", bytes(raw)


def set_byte(model: Model, rng: random.Random) -> Mutation:
    at, value = rng.randrange(model.header_bytes), rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    raw = bytearray(model.raw)
    raw[at] = value
    return f"byte {at} set to {value}", bytes(raw)


def edit_field(model: Model, rng: random.Random) -> Mutation:
    at, size = rng.choice(model.fields)
    old = int.from_bytes(model.raw[at : at + size], "little")
    new = odd_integers(rng, old, 8 * size)
    raw = bytearray(model.raw)
    raw[at : at + size] = new.to_bytes(size, "little")
    return f"integer at {at} changed from {old} to {new}", bytes(raw)


def truncate(model: Model, rng: random.Random) -> Mutation:
    end = rng.randrange(model.header_bytes if rng.random() < 0.5 else len(model.raw))
    return f"cut off after {end} bytes", model.raw[:end]


def edit_key(model: Model, rng: random.Random) -> Mutation:
    """A well-formed file whose keys say something else."""
    keys = list(model.keys)
    at = rng.randrange(len(keys))
    key = keys[at]
    name, action = shown(key.name), rng.random()
    if action < 0.15:
        del keys[at]
        what = f"key {name} removed"
    elif action < 0.2:
        keys.insert(rng.randrange(len(keys)), key)
        what = f"key {name} doubled"
    elif action < 0.35:
        what, keys[at] = retyped(key, rng)
    elif key.type == ARRAY:
        what, keys[at] = edited_array(key, rng)
    else:
        what, keys[at] = edited_scalar(key, rng)
    return what, put_together(tuple(keys), model.tensors)


def retyped(key: Key, rng: random.Random) -> tuple[str, Key]:
    type_ = rng.choice([t for t in (*FORMATS, STRING, ARRAY) if t != key.type])
    if type_ == STRING:
        value = struct.pack("<Q", 3) + b"abc"
    elif type_ == ARRAY:
        return f"key {shown(key.name)} made an array", array_key(
            replace(key, type=ARRAY, element=5), (b"\1\0\0\0",) * rng.choice((0, 1, 5, 600))
        )
    else:
        number = 1
        if key.type in INTEGERS:
            number = int.from_bytes(key.value, "little") & 0x7F
        value = struct.pack("<" + FORMATS[type_], number)
    return f"key {shown(key.name)} given type {type_}", Key(key.name, type_, value)


def edited_scalar(key: Key, rng: random.Random) -> tuple[str, Key]:
    if key.type == STRING:
        text = rng.choice(
            (b"", b"none", b"yarn", b"gpt2", b"bert", b"t5", b"qwen2", b"gemma", b"\xff\xfe", b"a" * 9999)
        )
        return f"key {shown(key.name)} set to {shown(text)}", replace(key, value=struct.pack("<Q", len(text)) + text)
    if key.type in (6, 12):
        number = rng.choice((0.0, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan"), 0.5))
        return f"key {shown(key.name)} set to {number}", replace(
            key, value=struct.pack("<" + FORMATS[key.type], number)
        )
    size = SIZES[key.type]
    value = odd_integers(rng, int.from_bytes(key.value, "little"), 8 * size)
    return f"key {shown(key.name)} set to {value}", replace(key, value=value.to_bytes(size, "little"))


def edited_array(key: Key, rng: random.Random) -> tuple[str, Key]:
    items = list(key.items)
    name = shown(key.name)
    action = rng.choice(("shorten", "lengthen", "empty", "copy", "swap", "item", "item"))
    if not items:
        action = "lengthen"
    at = rng.randrange(len(items)) if items else 0
    if action == "shorten":
        del items[rng.randrange(len(items)) :]
        what = f"array {name} shortened to {len(items)}"
    elif action == "lengthen":
        items += [items[-1] if items else bytes(SIZES.get(key.element, 3))] * rng.choice((1, 5, 1000))
        what = f"array {name} lengthened to {len(items)}"
    elif action == "empty":
        items = []
        what = f"array {name} emptied"
    elif action == "copy":
        other = rng.randrange(len(items))
        items[at] = items[other]
        what = f"array {name}: item {at} made equal to item {other}"
    elif action == "swap":
        other = rng.randrange(len(items))
        items[at], items[other] = items[other], items[at]
        what = f"array {name}: items {at} and {other} swapped"
    elif key.element == STRING:
        items[at] = rng.choice((b"", b"\xff", b"<0xZZ>", b"<0x0>", b"\0", b"a b", b" ", b"x" * 5000, items[at][:-1]))
        what = f"array {name}: item {at} made {shown(items[at])}"
    else:
        raw = rng.randbytes(len(items[at])) if rng.random() < 0.5 else rng.choice((b"\0", b"\xff")) * len(items[at])
        items[at] = raw
        what = f"array {name}: item {at} made {raw.hex()}"
    return what, array_key(key, tuple(items))


def edit_tensor(model: Model, rng: random.Random) -> Mutation:
    """A well-formed file whose tensors are others: their data and offsets fit what the header says."""
    tensors = list(model.tensors)
    at = rng.randrange(len(tensors))
    tensor = tensors[at]
    name, action = shown(tensor.name), rng.random()
    if action < 0.15:
        del tensors[at]
        what = f"tensor {name} removed"
    elif action < 0.25:
        new = rng.choice(
            (b"", b"x", tensor.name + b"x", tensors[0].name, b"blk.99.attn_q.weight", b"blk.0.attn_q.bias")
        )
        tensors[at] = replace(tensor, name=new)
        what = f"tensor {name} named {shown(new)}"
    elif action < 0.6:
        type_ = rng.choice([t for t in GGML_TYPES if t != tensor.type])
        tensors[at] = refilled(tensor, tensor.dims, type_)
        what = f"tensor {name} given type {GGML_TYPES[type_].name}"
    else:
        dims = list(tensor.dims)
        if action < 0.7:
            rng.shuffle(dims)
        elif action < 0.8:
            dims = dims[:-1] or [1]
        elif action < 0.9:
            dims.append(rng.choice((1, 2)))
        else:
            which = rng.randrange(len(dims))
            dims[which] = max(
                0, rng.choice((0, 1, dims[which] - 1, dims[which] + 1, dims[which] * 2, dims[which] // 2))
            )
        tensors[at] = refilled(tensor, tuple(dims), tensor.type)
        what = f"tensor {name} given the shape {dims}"
    return what, put_together(model.keys, tuple(tensors))


def refilled(tensor: Tensor, dims: tuple[int, ...], type_: int) -> Tensor:
    size = n_bytes(dims, type_)
    repeated = tensor.data * (size // max(1, len(tensor.data)) + 1)
    return Tensor(tensor.name, dims, type_, repeated[:size])


MUTATORS: tuple[tuple[int, Callable[[Model, random.Random], Mutation]], ...] = (
    (30, flip_bit),
    (8, set_byte),
    (20, edit_field),
    (4, truncate),
    (24, edit_key),
    (14, edit_tensor),
)


def mutation(model: Model, seed: int, number: int) -> Mutation:
    """Mutation `number` of a seed: what was done, and the mutated file."""
    rng = random.Random(f"{seed}/{number}")
    (mutate,) = rng.choices([m for _, m in MUTATORS], [w for w, _ in MUTATORS])
    return mutate(model, rng)


# -- the two judges ------------------------------------------------------------------------------------------------


def judged_by_reader(path: Path) -> tuple[str | None, float]:
    """The complaint, or None; and the seconds it took. What is not a BadModel is a bug, and goes on up."""
    start = time.perf_counter()
    try:
        rules.open_runnable(path)
    except BadModel as error:
        return error.message, time.perf_counter() - start
    return None, time.perf_counter() - start


class Native:
    """llama.cpp in a process that is forked anew for every file, from one that has already imported the binding."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, path: Path) -> tuple[str, str]:
        """How it ended ("runs", "clean error", "abort", "segfault", "hang"), and the last thing it said."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit("the native worker died: is llama_cpp installed for this Python?")
        outcome, _, said = answer.rstrip("\n").partition("\t")
        return outcome, said

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def worker() -> None:
    import llama_cpp.llama_cpp as lib  # the binding costs 0.3 s: once here, not once for every file

    for line in sys.stdin:
        with tempfile.TemporaryFile() as log:
            pid = os.fork()
            if pid == 0:
                in_child(lib, line.rstrip("\n"), log.fileno())
            _, status = os.waitpid(pid, 0)
            log.seek(0)
            said = [text for text in log.read()[-20_000:].decode("utf-8", "replace").splitlines() if text.strip()]
        print(outcome_of(status), last_words(said), sep="\t", flush=True)


def outcome_of(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGALRM:
            return "hang"
        return "abort" if number == signal.SIGABRT else "segfault"
    return "runs" if os.WEXITSTATUS(status) == 0 else "clean error"


def last_words(said: list[str]) -> str:
    """The line of an assert or uncaught exception, else the last line."""
    for line in said:
        if "GGML_ASSERT" in line or "what():" in line or ": fatal error" in line:
            return printable(re.sub(r"\S*/", "", line), 150)  # without the folder that llama.cpp was built in
    return printable(said[-1], 150) if said else ""


def in_child(lib, path: str, log: int) -> None:  # type: ignore[no-untyped-def]
    """Loads, makes a context, tokenizes and decodes; ends the process: 0 for all well, 3 for an orderly refusal."""
    resource.setrlimit(resource.RLIMIT_AS, (NATIVE_ADDRESS_SPACE, NATIVE_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Its default action ends the process, inside native code too; a Python handler would not.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(NATIVE_TIMEOUT_S)
    lib.llama_backend_init()
    params = lib.llama_model_default_params()
    model = lib.llama_model_load_from_file(path.encode(), params)
    if not model:
        os._exit(3)
    context_params = lib.llama_context_default_params()
    context_params.n_ctx, context_params.n_batch, context_params.n_ubatch = 256, 32, 32
    context_params.n_threads = context_params.n_threads_batch = 1
    context = lib.llama_init_from_model(model, context_params)
    if not context:
        os._exit(3)
    vocab = lib.llama_model_get_vocab(model)
    n_vocab = lib.llama_vocab_n_tokens(vocab)
    # Plain words, a line break, and characters that fall back to bytes.
    text = "Once upon\n\ta time, é 日本 \U0001f600 \x01".encode()
    tokens = (lib.llama_token * 128)()
    n = lib.llama_tokenize(vocab, text, len(text), tokens, 128, True, True)
    piece = (lib.ctypes.c_char * 64)()
    for i in range(max(0, n)):
        lib.llama_token_to_piece(vocab, tokens[i], piece, 64, 0, True)
    if lib.llama_vocab_bos(vocab) >= n_vocab or n_vocab < 1:
        os._exit(3)
    for _ in range(2):
        one = (lib.llama_token * 1)(min(n_vocab - 1, 5))
        if lib.llama_decode(context, lib.llama_batch_get_one(one, 1)):
            os._exit(3)
        logits = lib.llama_get_logits_ith(context, -1)
        if logits:
            max(logits[i] for i in range(n_vocab))
    os._exit(0)


# -- the report ----------------------------------------------------------------------------------------------------

KILLED = ("abort", "segfault", "hang")


@dataclass
class Tally:
    native: Counter[str] = field(default_factory=Counter)
    stopped: Counter[str] = field(default_factory=Counter)
    survivors: list[str] = field(default_factory=list)
    strict: Counter[str] = field(default_factory=Counter)
    bugs: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    n: int = 0
    n_stopped: int = 0

    @property
    def killers(self) -> int:
        return sum(self.native[k] for k in KILLED)

    @property
    def killers_stopped(self) -> int:
        return sum(self.stopped[k] for k in KILLED)

    @property
    def share(self) -> float | None:
        return self.killers_stopped / self.killers if self.killers else None


def model_to_mutate(given: str | None) -> Path:
    candidates = [Path(given)] if given else [ROOT / "llmrun/data/tiny.gguf", *sorted(ROOT.glob("**/*.gguf"))]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    sys.exit("no GGUF file to mutate: give one with --model")


def numbers(args: argparse.Namespace) -> Iterator[int]:
    yield from [args.only] if args.only is not None else range(args.count)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--count", type=int, default=4000, help="how many mutations (default 4000)")
    parser.add_argument("--model", help="a GGUF file (default: the embedded model)")
    parser.add_argument("--native", action="store_true", help="run each through llama.cpp as well")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, metavar="I", help="only mutation number I, and say what the reader says")
    parser.add_argument("--strict", action="store_true", help="list what the reader stops although llama.cpp runs it")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker()
        return 0

    model = take_apart(model_to_mutate(args.model).read_bytes())
    tally = Tally()
    native = Native() if args.native else None
    with tempfile.TemporaryDirectory(prefix="llmrun-mutations-") as folder:
        path = Path(folder) / "mutated.gguf"
        if not unmutated_passes(model, path, native):
            return 1
        for number in numbers(args):
            what, raw = mutation(model, args.seed, number)
            path.write_bytes(raw)
            tell = args.only is not None
            judge(f"{number}: {what}", path, native, tally, tell=tell)
            path.unlink()  # a new file, not new bytes in a file that a killed process may still have mapped
    if native:
        native.close()
    return report(tally, args)


def unmutated_passes(model: Model, path: Path, native: Native | None) -> bool:
    """Both as it is and put together again by this script: else every verdict below would be worthless."""
    for raw in (model.raw, put_together(model.keys, model.tensors)):
        path.write_bytes(raw)
        complaint, _ = judged_by_reader(path)
        outcome, said = native.run(path) if native else ("runs", "")
        path.unlink()
        if complaint or outcome != "runs":
            print(f"the unmutated model fails: reader: {complaint}; llama.cpp: {outcome} {said}")
            return False
    return True


def judge(label: str, path: Path, native: Native | None, tally: Tally, *, tell: bool) -> None:
    complaint: str | None = None
    try:
        complaint, seconds = judged_by_reader(path)
    except Exception as error:  # noqa: BLE001  # the point: nothing but BadModel may come out
        tally.bugs.append(f"{label}: {type(error).__name__}: {error}")
        seconds = 0.0
    tally.n += 1
    tally.n_stopped += complaint is not None
    tally.slowest_s = max(tally.slowest_s, seconds)
    outcome, said = native.run(path) if native else ("", "")
    tally.native[outcome] += 1
    tally.stopped[outcome] += complaint is not None
    if outcome in KILLED and complaint is None:
        tally.survivors.append(f"{label}\n      {outcome}: {said}")
    if outcome == "runs" and complaint is not None:
        tally.strict[complaint] += 1
    if tell:
        print(f"{label}\n  reader:    {complaint or 'passes'}\n  llama.cpp: {outcome or 'not asked'} {said}")


def report(tally: Tally, args: argparse.Namespace) -> int:
    print(
        f"{tally.n} mutations, {tally.n_stopped} stopped by the reader, slowest answer {tally.slowest_s * 1e3:.0f} ms"
    )
    failed = bool(tally.bugs) or tally.slowest_s > SLOW_S
    for bug in tally.bugs:
        print(f"  BUG in the reader: {bug}")
    if args.native:
        print(f"\n{'in llama.cpp':<14}{'files':>7}{'stopped before':>17}")
        for outcome in ("runs", "clean error", *KILLED):
            print(f"{outcome:<14}{tally.native[outcome]:>7}{tally.stopped[outcome]:>17}")
        if tally.share is not None:
            print(
                f"\n{tally.killers_stopped} of {tally.killers} killers stopped: {tally.share:.1%} (target {TARGET:.0%})"
            )
            failed |= tally.share < TARGET and args.only is None
        for survivor in tally.survivors:
            print(f"  let through: {survivor}")
        if args.strict:
            for complaint, count in tally.strict.most_common():
                print(f"  stopped although it runs, {count} ×: {complaint}")
    return 1 if failed else 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
