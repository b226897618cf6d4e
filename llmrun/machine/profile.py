"""What the operations of a model take on this machine, as it was measured here, kept for predictions.

    <cache>/profile/3f2a….json      one file per machine and build, as of the ceilings (`peaks.Key`)

Seconds are stored, rates are derived. Between what was measured, the logarithm of the seconds is taken to be linear in
the logarithm of the columns or of the depth; beyond it, seconds grow in proportion. A machine that others use as well
drifts, by a factor of two within a day: whoever predicts times a product again (`tuning.sources.moment_of`). The read
ceiling is measured before, in the middle of and after the profile.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from llmrun import codec, fs, paths
from llmrun.clock import age_s
from llmrun.gguf.types import GGML_TYPES
from llmrun.machine.peaks import Key

SCHEMA = "llmrun.profile/3"
_UNEVEN = 0.15
"""Noise from which on ranges are much wider for it."""
_TYPES = {kind.name: kind for kind in GGML_TYPES.values()}

# What a file may say: most figures are divided by, or have a logarithm.
_Count = Annotated[int, codec.Meta(ge=1)]
_Figure = Annotated[float, codec.Meta(ge=1e-18, le=1e18)]
_Rest = Annotated[float, codec.Meta(ge=0, le=1e18)]
"""What is left of a difference, which may be nothing."""
_Kind = Annotated[str, codec.Meta(pattern=f"^({'|'.join(_TYPES)})$")]


@dataclass(frozen=True)
class ProductTime:
    """One product of a matrix that lay in memory.

    Attributes:
        device: by llama.cpp's name.
        kind: ggml type of the matrix.
        repack: whether it was rearranged for the CPU.
        n_columns: tokens that were computed at once.
        n_threads: None where the device has none of its own.
        n_weights: elements that a column was multiplied with: of all rows, or of the experts that a column uses.
        seconds: of one product, the lower quartile of some.
        n_experts, n_used: 0: a plain matrix.
    """

    device: str
    kind: _Kind
    repack: bool
    n_columns: _Count
    n_threads: _Count | None
    n_weights: _Count
    seconds: _Figure
    n_experts: int = 0
    n_used: int = 0

    @property
    def n_bytes(self) -> int:
        """Of the weights that one column needs."""
        kind = _TYPES[self.kind]
        return self.n_weights // kind.block_size * kind.type_size

    @property
    def bytes_per_s(self) -> float:
        return self.n_bytes / self.seconds

    @property
    def flops_per_s(self) -> float:
        """Two operations per multiply-add."""
        return 2 * self.n_weights * self.n_columns / self.seconds


@dataclass(frozen=True)
class AttentionTime:
    """Attention of one layer over keys and values in memory, every token over all of them.

    Attributes:
        kind: ggml type of keys and values.
        n_depth: tokens that they are of.
        n_tokens: that were computed at once.
        seconds: of one layer, the lower quartile of some.
        value_size: values are the first elements of keys, so many (latent attention); 0: they are of their own.
        flash: in one operation; else by two products and a softmax.
    """

    device: str
    kind: _Kind
    head_size: _Count
    n_head: _Count
    n_head_kv: _Count
    n_depth: _Count
    n_tokens: _Count
    n_threads: _Count | None
    seconds: _Figure
    flash: bool = True
    value_size: int = 0

    @property
    def n_bytes(self) -> int:
        """Of keys and values."""
        kind, kinds = _TYPES[self.kind], 1 if self.value_size else 2
        return kinds * self.n_head_kv * self.n_depth * self.head_size // kind.block_size * kind.type_size

    @property
    def flops_per_s(self) -> float:
        """Two operations per multiply-add, for keys and for values."""
        return 4 * self.n_head * self.head_size * self.n_depth * self.n_tokens / self.seconds


@dataclass(frozen=True)
class Overhead:
    """What a model's graph takes beside its products: norms, rotations, additions, starting and waiting.

    Attributes:
        n_tokens: computed at once.
        n_embd: width of the model that it was found with.
        layer_s, token_s: of one layer, and outside of the layers.
    """

    n_tokens: _Count
    n_threads: _Count
    n_embd: _Count
    layer_s: _Rest
    token_s: _Rest


@dataclass(frozen=True)
class StateTime:
    """What a recurrent layer takes beyond its products and what every layer takes: its scan and its convolution.

    Attributes:
        kind: of the layer (`kv_layout.recurrent_kind`).
        n_tokens: computed at once, of one sequence.
        n_state: elements of the layer's state.
        seconds: of one layer.
    """

    kind: str
    n_tokens: _Count
    n_threads: _Count
    n_state: _Count
    seconds: _Rest


@dataclass(frozen=True)
class Transfer:
    """Between this process and a device's memory.

    Attributes:
        latency_s: to write four bytes and to wait until they are there.
        n_bytes: what was sent for the rates.
        write_s, read_s: of so many bytes.
    """

    device: str
    latency_s: _Rest
    n_bytes: _Count
    write_s: _Figure
    read_s: _Figure


@dataclass(frozen=True)
class Reads:
    """The read ceiling beside the profile.

    Attributes:
        bytes_per_s: one figure each time that it was measured; before, in the middle and after, or of a bench.
        measured: when; UTC.
    """

    device: str
    n_threads: _Count | None
    bytes_per_s: tuple[_Figure, ...]
    measured: str


@dataclass(frozen=True)
class Seen:
    """What a bench has measured beside its samples, later than the profile.

    Attributes:
        kind, repack: of the weights that `flops_per_s` is of.
        flops_per_s: of a prompt's products; None: not known.
    """

    reads: Reads
    kind: str
    repack: bool
    flops_per_s: _Figure | None = None


@dataclass(frozen=True)
class Profile:
    """Attributes:
    measured: when it was finished; UTC, ISO 8601.
    devices: those that were measured, and what they are: of a worker, whose name the next one has too, its "host:port".
    took_s: seconds by part: "products", "attention", ...
    disk_bytes_per_s: None where it can't be had.
    seen: by benches since then, one of each device, number of threads, type and layout.
    other_cores: that other processes kept busy while it was measured; None where the system doesn't tell.
    later: how many times as long products took in moments of the seconds after they had been measured.
    """

    measured: str
    devices: Mapping[str, str] = field(default_factory=dict)
    products: tuple[ProductTime, ...] = ()
    attention: tuple[AttentionTime, ...] = ()
    overheads: tuple[Overhead, ...] = ()
    states: tuple[StateTime, ...] = ()
    transfers: tuple[Transfer, ...] = ()
    reads: tuple[Reads, ...] = ()
    disk_bytes_per_s: _Figure | None = None
    took_s: Mapping[str, float] = field(default_factory=dict)
    seen: tuple[Seen, ...] = ()
    other_cores: _Rest | None = None
    later: tuple[_Figure, ...] = ()

    @property
    def noise(self) -> float:
        """By how much a moment differs from what the profile says: the median of the logarithms, without their signs.
        0 where no moment was looked at."""
        return statistics.median(abs(math.log(each)) for each in self.later) if self.later else 0.0

    @property
    def is_uneven(self) -> bool:
        return self.noise > _UNEVEN

    def age_s(self, now: datetime | None = None) -> float | None:
        """Seconds since it was measured; None where that is not to be understood, or lies ahead."""
        return age_s(self.measured, now)

    # -- what something would take, on the machine as it was ---

    def product_s(
        self, kind: str, n_weights: float, n_columns: float, n_threads: int | None, *,
        repack: bool = False, device: str = "CPU", experts: bool = False,
    ) -> float | None:  # fmt: skip
        """Seconds of a product with so many weights; None where nothing of the kind was measured.

        A type that ggml does not rearrange takes as long with `repack` as without. With a number of threads that was
        not measured: what lies between the two next to it.
        """
        known = [
            each for each in self.products if (each.device, each.kind, bool(each.n_experts)) == (device, kind, experts)
        ]
        alike = [each for each in known if each.repack == repack] or [each for each in known if not each.repack]
        per_weight = _by_threads(
            n_threads, [(each.n_threads, each.n_columns, each.seconds / each.n_weights) for each in alike], n_columns
        )
        if per_weight is None:
            return None
        return max(per_weight * n_weights, self._read_s(kind, n_weights, device) if n_columns <= 1 else 0.0)

    def _read_s(self, kind: str, n_weights: float, device: str) -> float:
        """Seconds that weights take to be read from memory, at best: what was measured went round in matrices of which
        a part may have stayed in a cache."""
        rates = [rate for each in self.reads if each.device == device for rate in each.bytes_per_s]
        found = _TYPES[kind]
        return n_weights / found.block_size * found.type_size / max(rates) if rates else 0.0

    def experts_slower(
        self, kind: str, n_columns: float, n_threads: int | None, *, repack: bool = False, device: str = "CPU"
    ) -> float | None:
        """How many times as long a product takes where each of many experts has so many columns of its own than where
        one matrix has them; None where no experts of this type were measured.

        Once with many columns; between them and one column, where it is 1, in proportion to the logarithms.
        """
        alike = [e for e in self.products if (e.device, e.kind) == (device, kind) and e.n_experts and e.n_columns > 1]
        many = max((e for e in alike if e.repack == repack), key=lambda e: e.n_columns, default=None)
        if many is None and repack:  # a type that is not rearranged
            return self.experts_slower(kind, n_columns, n_threads, device=device)
        each = many.n_columns * many.n_used / many.n_experts if many else 0.0
        if many is None or each <= 1:
            return None
        n = many.n_columns
        apart_s = self.product_s(kind, 1, n, n_threads, repack=repack, device=device, experts=True)
        whole_s = self.product_s(kind, 1, each, n_threads, repack=repack, device=device)
        if apart_s is None or whole_s is None:
            return None
        slower = (apart_s / n) / (whole_s / each)
        share: float = min(1.0, math.log(max(1.0, n_columns)) / math.log(each))
        return float(slower**share)

    def attention_s(
        self, kind: str, head_size: int, n_head: int, n_head_kv: int, n_depth: float, n_tokens: int,
        n_threads: int | None, *, device: str = "CPU", flash: bool = True, latent: bool = False,
    ) -> float | None:  # fmt: skip
        """Seconds of one layer's attention; None where nothing of the kind was measured.

        `latent`: values are a part of the keys; taken for a usual one where that was not measured. The depth lies
        between what was measured. Many tokens: of the head size next to this one, in proportion to the heads of
        queries. One token: of the row of all heads that is next to this one's, as so far apart in memory lie a head's
        keys. On the CPU it takes so much for each head of queries, which goes through its keys by itself, and so much
        for each of keys and values, which are read, where two numbers of heads were measured; else, whichever grows
        more. On another device it takes as long as keys and values take to be read. Of fewer tokens before it than
        were measured: in proportion, as flash attention on the CPU leaves out what is masked.
        """
        alike = [e for e in self.attention if (e.device, e.kind, e.flash) == (device, kind, flash)]
        known = [each for each in alike if bool(each.value_size) == latent] or alike
        if not known or n_depth <= 0:
            return 0.0 if known else None

        tokens = min({each.n_tokens for each in known}, key=lambda n: abs(math.log(n / n_tokens)))

        def length(size: int, n_kv: int) -> int:
            return size * n_kv if tokens == 1 else size

        wanted = length(head_size, n_head_kv)
        near = min(
            (each for each in known if each.n_tokens == tokens),
            key=lambda each: abs(math.log(length(each.head_size, each.n_head_kv) / wanted)),
        )
        place = near.head_size, length(near.head_size, near.n_head_kv)
        points: dict[tuple[int, int], list[tuple[int | None, float, float]]] = {}
        for each in known:
            if each.n_tokens == tokens and (each.head_size, length(each.head_size, each.n_head_kv)) == place:
                point = each.n_threads, each.n_depth, each.seconds / (each.head_size * each.n_tokens)
                points.setdefault((each.n_head, each.n_head_kv), []).append(point)
        heads, *others = sorted(points)
        least = min(depth for _, depth, _ in points[heads])
        if n_depth < least and n_tokens == 1 and flash and device == "CPU":
            whole = self.attention_s(kind, head_size, n_head, n_head_kv, least, 1, n_threads, latent=latent)
            return None if whole is None else whole * n_depth / least
        unit_s = _by_threads(n_threads, points[heads], n_depth) or 0.0
        by_queries, by_reads = n_head / heads[0], n_head_kv / heads[1]
        if n_tokens > 1:
            times = by_queries
        elif device != "CPU":
            times = by_reads
        elif others:
            more_s = _by_threads(n_threads, points[others[-1]], n_depth) or 0.0
            growth = (more_s / unit_s - 1) / (others[-1][0] / heads[0] - 1)  # share of what queries take
            share = min(1.0, max(0.0, growth))
            times = share * by_queries + (1 - share) * by_reads
        else:
            times = max(by_reads, by_queries)
        return unit_s * times * head_size * n_tokens

    def overhead(self, n_tokens: int, n_threads: int, n_embd: int) -> Overhead | None:
        """What a model of this width has beside its products, by what was measured with a number of tokens and of
        threads next to these.

        One token's is a straight line over the widths that were measured: some of it is starting and waiting. That of
        many grows with tokens and width.
        """
        if not self.overheads:
            return None
        near = min(
            self.overheads,
            key=lambda each: (abs(math.log(each.n_tokens / n_tokens)), abs(each.n_threads - n_threads)),
        )
        if near.n_tokens > 1:
            growth = n_tokens / near.n_tokens * n_embd / near.n_embd
            return Overhead(n_tokens, n_threads, n_embd, near.layer_s * growth, near.token_s * growth)
        alike = [each for each in self.overheads if (each.n_tokens, each.n_threads) == (1, near.n_threads)]
        narrow, wide = min(alike, key=lambda each: each.n_embd), max(alike, key=lambda each: each.n_embd)
        share = (n_embd - narrow.n_embd) / (wide.n_embd - narrow.n_embd) if wide is not narrow else 0.0
        layer_s, token_s = (
            max(0.0, one + share * (other - one))
            for one, other in ((narrow.layer_s, wide.layer_s), (narrow.token_s, wide.token_s))
        )
        return Overhead(1, n_threads, n_embd, layer_s, token_s)

    def state_s(self, kind: str, n_state: int, n_tokens: int, n_threads: int) -> float | None:
        """Seconds that a recurrent layer takes for its state; None where nothing of the kind was measured.

        Each token goes through the whole state: in proportion to both, from what was measured with a number of tokens
        and of threads next to these."""
        known = [each for each in self.states if each.kind == kind]
        if not known:
            return None
        near = min(known, key=lambda each: (abs(math.log(each.n_tokens / n_tokens)), abs(each.n_threads - n_threads)))
        return near.seconds * n_state / near.n_state * n_tokens / near.n_tokens

    def with_seen(self, seen: Seen) -> Profile:
        """The same, and what a bench has measured, in place of what one before it has."""

        def what(each: Seen) -> tuple[object, ...]:
            return each.reads.device, each.reads.n_threads, each.kind, each.repack

        return replace(self, seen=(*(each for each in self.seen if what(each) != what(seen)), seen))

    def latest(self, n_threads: int | None, device: str = "CPU") -> Reads | None:
        """The newest read ceiling that is known: a bench's, or that of the profile."""
        found = [
            each
            for each in (*self.reads, *(seen.reads for seen in self.seen))
            if (each.device, each.n_threads) == (device, n_threads) and each.bytes_per_s
        ]
        return max(found, key=lambda each: each.measured, default=None)


def _by_threads(n_threads: int | None, points: Sequence[tuple[int | None, float, float]], at: float) -> float | None:
    """Of points (threads, x, seconds), the seconds at x with so many threads."""
    by_threads: dict[int, list[tuple[float, float]]] = {}
    for threads, x, seconds in points:
        by_threads.setdefault(threads or 0, []).append((x, seconds))
    if not by_threads:
        return None
    curve = [(float(threads), interpolated(found, at)) for threads, found in sorted(by_threads.items())]
    wanted = float(n_threads or 0)
    if len(curve) == 1 or wanted <= curve[0][0]:
        return curve[0][1]
    return curve[-1][1] if wanted >= curve[-1][0] else interpolated(curve, wanted)


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """y at x by points (x, y) that are positive: linear in the logarithms; beyond the last, y grows as x does, below
    the first it stays: one column of a product, or the first tokens of a context, have their costs all the same."""
    known = sorted(points)
    (first_x, first_y), (last_x, last_y) = known[0], known[-1]
    if at <= first_x:
        return first_y
    if at >= last_x:
        return last_y * at / last_x
    (x0, y0), (x1, y1) = next(pair for pair in pairwise(known) if pair[0][0] <= at <= pair[1][0])
    share = math.log(at / x0) / math.log(x1 / x0)
    return math.exp(math.log(y0) + share * math.log(y1 / y0))


# -- kept --------------------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where the files lie. LLMRUN_HOME moves them, as it does the store."""
    return paths.cache() / "profile"


def load(key: Key, *, where: Path | None = None) -> Profile | None:
    """What is kept for this machine, however old; None where there is nothing, or the file is damaged."""
    try:
        document = codec.decode(((where or folder()) / f"{key.digest}.json").read_bytes(), dict[str, Any])
        if document["schema"] != SCHEMA:
            return None
        return codec.convert(document["profile"], Profile)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save(key: Key, profile: Profile, *, where: Path | None = None) -> None:
    """In place of what is kept for this machine. Raises `DiskError`."""
    document = {"schema": SCHEMA, "key": asdict(key), "profile": codec.plain(profile)}
    path = (where or folder()) / f"{key.digest}.json"
    with fs.disk_errors(f"writing {path}"):
        fs.write_atomically(path, json.dumps(document, indent=1) + "\n")


def saw(key: Key, seen: Iterable[Seen], *, where: Path | None = None) -> None:
    """Add what a bench has measured to the profile, where one is kept. Raises `DiskError`."""
    kept = load(key, where=where)
    if kept is not None:
        for each in seen:
            kept = kept.with_seen(each)
        save(key, kept, where=where)
