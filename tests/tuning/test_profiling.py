"""The profile, measured for real, of shapes so small that it takes a second."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun

from llmrun.engine.child.op_times import in_turn
from llmrun.engine.jobs.roofline import Prober, key_of
from llmrun.engine.protocol import TimeAttention, TimeProducts, TimeTransfers
from llmrun.errors import EngineCrashed
from llmrun.gguf.reader import open_header
from llmrun.gguf.shapes import SHAPES, small
from llmrun.gguf.synth import header_of, write
from llmrun.machine import hardware, profile
from llmrun.machine.energy import Joules
from llmrun.machine.nvml import NoGpus
from llmrun.machine.profile import AttentionTime
from llmrun.planning.kv_layout import RECURRENT_KINDS
from llmrun.tuning.profiling import Extent, measure, slowed, threads
from llmrun.tuning.sources import lasting, moment_of

MIB = 1 << 20
SMALL = Extent(
    seconds=0.001,
    n_bytes=2 * MIB,
    read_bytes=8 * MIB,
    n_row=256,
    kinds=("Q4_0", "Q8_0"),
    n_usual=1,
    expert_kinds=("Q8_0",),
    n_columns=(1, 8),
    n_experts=8,
    n_used=2,
    kv_kinds=("F16",),
    head_sizes=(64,),
    n_depths=(64, 256),
    n_tokens=16,
    overheads=((1, 64, (1, 3)),),
    waits=(64, (1, 3)),
    transfer_bytes=MIB,
    state_tokens=(1, 8),
)


@pytest.fixture
def prober() -> Iterator[Prober]:
    with Prober(spins=False) as one:
        yield one


def products(kind: str, *, repack: bool = False, n_experts: int = 0, n_bytes: int = MIB) -> TimeProducts:
    return TimeProducts("CPU", kind, 256, 256, n_bytes, [1, 8], [1], 0.001, repack, n_experts, 2 if n_experts else 0)


class Timed:
    """An operation whose looks take so long, one after the other; the first as it is made."""

    def __init__(self, name: str, told: list[str], *seconds: float) -> None:
        self.name, self._told, (self.seconds, *self._left) = name, told, seconds

    def is_short(self, seconds: float) -> bool:
        return self.seconds < seconds

    def look(self, seconds: float) -> None:
        self._told.append(self.name)
        self.seconds = min(self.seconds, self._left.pop(0))


def test_looks_lie_apart() -> None:
    """So that what disturbs one of them is over at the next; what takes long has had its first one."""
    told: list[str] = []
    operations: list[Any] = [
        Timed("a", told, 9e-3, 9e-3, 1e-3),
        Timed("b", told, 0.5, 0.3),
        Timed("c", told, 2e-3, 1e-3, 3e-3),
    ]
    found = in_turn(operations, 0.02)
    assert told == ["a", "c", "a", "b", "c"]
    assert found == [1e-3, 0.3, 1e-3]


def test_a_small_profile(prober: Prober) -> None:
    """Every combination once, all of them positive; the read ceiling before, in the middle and after."""
    parts: list[str] = []
    made = measure(prober, SMALL, on_part=parts.append)
    n_threads = threads()
    plain = [(e.kind, e.n_columns, e.n_threads) for e in made.products if not e.repack and not e.n_experts]
    assert plain == [(kind, n, t) for kind in SMALL.kinds for n in (1, 8) for t in n_threads]
    experts = [e for e in made.products if e.n_experts and not e.repack]
    assert {(e.n_experts, e.n_used, e.n_weights) for e in experts} == {(8, 2, 256 * 256)}
    of_their_own = [e for e in made.attention if e.n_threads == 1 and not e.value_size]
    attended = [(e.n_depth, e.n_tokens, e.n_head, e.flash) for e in of_their_own]
    ways = ((64, 1, 16), (64, 1, 32), (64, 1, 32), (256, 1, 16), (256, 1, 32), (256, 1, 32), (64, 16, 16))
    assert sorted(attended) == sorted((*way, flash) for way in ways for flash in (False, True))
    assert {(e.n_head, e.n_head_kv) for e in of_their_own} == {(16, 8), (32, 8), (32, 32)}
    latent = [(e.n_depth, e.n_tokens, e.head_size, e.n_bytes) for e in made.attention if e.value_size]
    asked = ((64, 1), (256, 1), (64, 16))
    assert latent == [(depth, n, 576, depth * 576 * 2) for depth, n in asked for _ in n_threads]
    assert [(e.n_tokens, e.n_threads, e.n_embd) for e in made.overheads] == [(1, n, 64) for n in n_threads]
    assert all(e.layer_s >= 0 and e.token_s >= 0 for e in made.overheads)
    states = [(e.kind, e.n_tokens, e.n_threads) for e in made.states]
    assert states == [(kind, n, t) for kind in RECURRENT_KINDS for n in (1, 8) for t in n_threads]
    n_looks = len(SMALL.overheads) + len(RECURRENT_KINDS)  # with one token: Q4_K, of which many are, was not measured
    assert len(made.later) == n_looks * len(n_threads) and min(made.later) > 0
    figures = [*(e.seconds for e in made.products), *(e.seconds for e in made.attention)]
    assert all(math.isfinite(each) and each > 0 for each in figures)
    assert [(e.device, e.n_threads, len(e.bytes_per_s)) for e in made.reads] == [("CPU", n, 3) for n in n_threads]
    assert made.product_s("Q8_0", 1e6, 4, 1) and made.age_s() is not None
    assert made.other_cores is not None and made.other_cores >= 0
    assert set(made.took_s) == {"reads", "disk", "attention", "products", "experts", "overheads", "states"}
    assert parts[0] == "reads" and "products Q8_0" in parts and made.devices["CPU"]


def test_watts_of_the_moment(prober: Prober, tmp_path: Path) -> None:
    """A package that counts a joule from one look to the next; where nothing counts, nothing is known."""
    made = measure(prober, SMALL)
    looks = iter(range(0, 1_000_000_000, 1_000_000))
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    (zone / "max_energy_range_uj").write_text(str(1 << 60))

    def read(path: Path) -> str:
        return str(next(looks)) if path.name == "energy_uj" else path.read_text()

    joules = Joules.open(NoGpus("none here"), powercap=tmp_path, read=read)
    metered, plain = moment_of(made, prober, joules), moment_of(made, prober, Joules())
    assert metered.watts is not None and 0 < metered.watts <= 4  # one joule in a quarter of a second and more
    assert plain.watts is None and min(plain.decode, plain.prefill, metered.decode) > 0


def test_time_is_up(prober: Prober) -> None:
    """What most models need is measured on however slow a machine: a profile without it would predict nothing. The rest
    is not begun."""
    made = measure(prober, Extent(**{**vars(SMALL), "budget_s": 0.0}))
    assert {each.kind for each in made.products} == set(SMALL.kinds[: SMALL.n_usual])
    assert made.attention and all(each.n_head == 16 and not each.value_size for each in made.attention)
    assert made.overheads and made.reads


@pytest.mark.parametrize("kind", Extent().kinds)
def test_every_type(prober: Prober, kind: str) -> None:
    """ggml has a product for all types that real files have."""
    assert len(prober.seconds_of(products(kind))) == 2
    assert len(prober.seconds_of(products(kind, n_experts=4))) == 2


def test_what_there_is_not(prober: Prober) -> None:
    """No figures for a layout that ggml does not have, an unknown type and too little memory; a sentence for a device
    that is not there. And the child goes on."""
    assert prober.seconds_of(products("F32", repack=True)) == []
    assert prober.seconds_of(products("Q9_K")) == []
    huge = TimeProducts("CPU", "F16", 1 << 20, 1 << 40, MIB, [1], [1], 0.001)
    assert prober.seconds_of(huge) == []
    assert prober.seconds_of(TimeAttention("CPU", "Q8_0", 64, 2, 1, MIB, [64], [1], [1], 0.001, flash=False)) == []
    assert prober.seconds_of(TimeAttention("CPU", "Q9_K", 64, 2, 1, MIB, [64], [1], [1], 0.001)) == []
    with pytest.raises(EngineCrashed, match="no device CUDA99"):
        prober.seconds_of(TimeTransfers("CUDA99", [4], 0.001))
    assert prober.seconds_of(products("F16"))


def test_attention_of_quantized_keys(prober: Prober) -> None:
    """Each depth with each number of tokens, in the order of the lists."""
    asked = TimeAttention("CPU", "Q8_0", 128, 4, 2, MIB, [32, 512], [1, 4], [1], 0.001)
    found = prober.seconds_of(asked)
    assert len(found) == 4 and all(each > 0 for each in found)


def test_transfers(prober: Prober) -> None:
    """Written and read, for each size; a tensor of 4 MiB is not there for nothing."""
    found = prober.seconds_of(TimeTransfers("CPU", [4, 4 * MIB], 0.001))
    assert len(found) == 4 and all(each > 0 for each in found)


def test_a_worker(rpc_worker: Callable[..., str]) -> None:
    """Its products, attention and transfers, over the loopback; no threads of its own."""
    with Prober([rpc_worker()], spins=False) as prober:
        made = measure(prober, SMALL)
    mine = [each for each in made.products if each.device == "RPC0"]
    assert {each.kind for each in mine} == set(SMALL.kinds) and {each.n_threads for each in mine} == {None}
    assert not any(each.repack for each in mine)
    assert made.product_s("Q8_0", 1e6, 1, None, device="RPC0")
    assert made.attention_s("F16", 64, 8, 2, 128, 1, None, device="RPC0")
    (sent,) = made.transfers
    assert sent.device == "RPC0" and min(sent.latency_s, sent.write_s, sent.read_s) > 0
    assert ":" in made.devices["RPC0"] and "transfers" in made.took_s


def test_a_header_without_a_file(tmp_path: Path) -> None:
    """Names, shapes, types and keys are those of the file that would be written."""
    shape = small(SHAPES["llama-1.2b"])
    write(tmp_path / "m.gguf", shape, "Q4_0")
    made, read = header_of(shape, "Q4_0"), open_header(tmp_path / "m.gguf")
    assert [(e.name, e.shape, e.type) for e in made.tensors] == [(e.name, e.shape, e.type) for e in read.tensors]
    ours = {name: value for name, value in made.metadata.items() if name.startswith("llama.")}
    assert ours == pytest.approx({name: read.metadata[name] for name in ours})
    assert made.n_vocab == read.n_vocab and made.types["llama.block_count"] == "u32"


def test_its_age_is_shown(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Nothing is kept: null, and no line. Once it is, `llmrun devices` says how old, and JSON has all of it."""
    environment = {"LLMRUN_HOME": str(tmp_path)}
    assert json.loads(llmrun("devices", "--json", env=environment).stdout)["profile"] is None
    with Prober(spins=False) as prober:
        made = measure(prober, SMALL)
        profile.save(key_of(prober.found), made, where=tmp_path / "cache" / "profile")
    shown = json.loads(llmrun("devices", "--json", env=environment).stdout)["profile"]
    assert shown["age_s"] >= 0 and len(shown["products"]) == len(made.products)
    lines = llmrun("devices", env=environment).stdout.splitlines()
    assert any(line.startswith("profile") and "measured" in line for line in lines)
    assert hardware.default_threads() in {each["n_threads"] for each in shown["products"]}


@pytest.mark.parametrize(
    ("looks", "factors", "n"),
    [
        ([(1.2, 0.9)], [1, 1], 1),
        ([(1.6, 1.0), (1.1, 1.0)], [1, 1], 2),
        ([(1.6, 1.0), (1.3, 2.0), (1.8, 2.0)], [1.3, 1], 3),
        ([(1.6, 1.5), (1.0, 1.4), (1.6, 1.6)], [1, 1.4], 3),
        ([(0.5, 1.0), (0.6, 1.0), (0.55, 1.0)], [0.6, 1], 3),
    ],
)
def test_only_what_lasts_is_drift(looks: list[tuple[float, float]], factors: list[float], n: int) -> None:
    """One disturbed look says nothing; what all of them find counts, as little as any of them found."""
    asked, pauses = iter(looks), list[float]()
    assert lasting(lambda: next(asked), pause=pauses.append) == factors
    assert len(pauses) == n - 1


def test_what_is_measured_again() -> None:
    """Two threads gain 1.9 in one place and 1.1 at one depth of another: that one, with what it was asked with."""

    def timed(size: int, n_depth: int, gain: float) -> list[AttentionTime]:
        return [AttentionTime("CPU", "F16", size, 16, 8, n_depth, 1, n, 1 if n == 1 else 1 / gain) for n in (1, 2)]

    times = [*timed(64, 256, 1.9), *timed(64, 1024, 1.8), *timed(128, 256, 1.7), *timed(128, 1024, 1.1)]
    assert slowed(times, "CPU") == [("F16", 128, (16, 8), (1024,), 1, True, 0)]
    assert slowed(times[:6], "CPU") == [] and slowed(times, "GPU0") == []
    assert slowed([each for each in times if each.n_threads == 1], "CPU") == []
