"""The profile of a machine: what is looked up in one, and what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from llmrun.errors import DiskError
from llmrun.machine import disk, profile
from llmrun.machine.peaks import Key
from llmrun.machine.profile import (
    AttentionTime,
    Overhead,
    ProductTime,
    Profile,
    Reads,
    Seen,
    StateTime,
    Transfer,
    interpolated,
)

KEY = Key("Some CPU", 8, 16, None, 8, (("CPU", "Some CPU", 32),), "1.2 abc")
NOW = datetime(2026, 11, 28, 12, tzinfo=timezone.utc)
MILLION = 1_000_000


def product(
    n_columns: int, seconds: float, *, n_threads: int | None = 2, repack: bool = False, kind: str = "Q8_0"
) -> ProductTime:
    """Of a million weights."""
    return ProductTime("CPU", kind, repack, n_columns, n_threads, MILLION, seconds)


READ = Reads("CPU", 2, (40e9, 30e9, 44e9), "2026-11-28T10:00:00Z")
MADE = Profile(
    "2026-11-28T10:00:00Z",
    {"CPU": "Some CPU", "GPU0": "A card"},
    products=(
        product(1, 1e-4),
        product(8, 4e-4),
        product(512, 256e-4),
        product(1, 2e-4, n_threads=1),
        product(1, 5e-5, repack=True),
        ProductTime("CPU", "Q4_K", False, 1, 2, 4 * MILLION, 1e-4),
        ProductTime("CPU", "Q4_K", False, 1, 2, MILLION, 3e-4, n_experts=32, n_used=4),
        ProductTime("GPU0", "Q8_0", False, 1, None, MILLION, 1e-5),
    ),
    attention=(
        *(AttentionTime("CPU", "F16", 128, 8, 2, depth, 1, 2, depth * 1e-6) for depth in (256, 1024)),
        *(AttentionTime("CPU", "F16", 128, 8, 2, depth, 512, 2, depth * 1e-4) for depth in (256, 1024)),
    ),
    overheads=(Overhead(1, 1, 64, 1e-5, 1e-5), Overhead(1, 2, 64, 2e-5, 1e-5), Overhead(64, 2, 512, 1e-4, 0.0)),
    transfers=(Transfer("GPU0", 1e-5, 1 << 20, 1e-4, 2e-4),),
    reads=(READ,),
    disk_bytes_per_s=1e9,
    took_s={"products": 12.0},
)


def test_noise() -> None:
    """How far moments are from what is kept, in either direction; nothing is known where none was looked at."""
    assert MADE.noise == 0 and not MADE.is_uneven
    assert replace(MADE, later=(1.0, 1.25, 0.8, 1.25, 4.0)).noise == pytest.approx(math.log(1.25))
    assert replace(MADE, later=(0.8, 1.25)).is_uneven and not replace(MADE, later=(0.95, 1.05, 2.0)).is_uneven


# -- what is looked up ---


def test_between_what_was_measured() -> None:
    """A line in the logarithms: 8 times the columns, 4 times the seconds, so 2 for the geometric mean of the columns.
    Beyond, in proportion; below, as the first."""
    points = [(8.0, 4.0), (1.0, 1.0)]
    assert interpolated(points, 8**0.5) == pytest.approx(2.0)
    assert interpolated(points, 1) == 1.0 and interpolated(points, 8) == 4.0
    assert interpolated(points, 16) == 8.0 and interpolated(points, 0.5) == 1.0
    assert interpolated([(4.0, 2.0)], 2) == 2.0


def test_product() -> None:
    """By weights, columns, threads, layout and device; a type that nobody measured is not known."""
    assert MADE.product_s("Q8_0", 3 * MILLION, 1, 2) == pytest.approx(3e-4)
    assert MADE.product_s("Q8_0", MILLION, 8**0.5, 2) == pytest.approx(2e-4)
    assert MADE.product_s("Q8_0", MILLION, 1024, 2) == pytest.approx(512e-4)
    assert MADE.product_s("Q8_0", MILLION, 1, 1) == pytest.approx(2e-4)
    assert MADE.product_s("Q8_0", MILLION, 1, 16) == pytest.approx(1e-4)  # no better than the most that was measured
    assert MADE.product_s("Q8_0", MILLION, 1, 2, repack=True) == pytest.approx(5e-5)
    assert MADE.product_s("Q8_0", MILLION, 1, None, device="GPU0") == pytest.approx(1e-5)
    assert MADE.product_s("Q2_K", MILLION, 1, 2) is None
    assert MADE.product_s("Q8_0", MILLION, 1, None, device="GPU1") is None


def test_a_type_that_is_not_rearranged() -> None:
    """With repacking on it stays plain; experts are of their own."""
    assert MADE.product_s("Q4_K", MILLION, 1, 2, repack=True) == pytest.approx(0.25e-4)
    assert MADE.product_s("Q4_K", MILLION, 1, 2, experts=True) == pytest.approx(3e-4)
    assert MADE.product_s("Q8_0", MILLION, 1, 2, experts=True) is None


def test_threads_between() -> None:
    """2 of 1 and 4: the geometric mean, where the curve is one."""
    made = replace(MADE, products=(product(1, 4e-4, n_threads=1), product(1, 1e-4, n_threads=4)))
    assert made.product_s("Q8_0", MILLION, 1, 2) == pytest.approx(2e-4)


def test_no_faster_than_memory() -> None:
    """One column of Q8_0 at 1.0625 bytes a weight, read at 2e9 B/s at best; many columns are computed."""
    made = replace(MADE, reads=(Reads("CPU", 1, (1e9,), ""), Reads("CPU", 2, (2e9, 1.5e9), "")))
    assert made.product_s("Q8_0", MILLION, 1, 2) == pytest.approx(1.0625e6 / 2e9)
    assert made.product_s("Q8_0", MILLION, 512, 2) == MADE.product_s("Q8_0", MILLION, 512, 2)
    assert made.product_s("Q8_0", MILLION, 1, None, device="GPU0") == MADE.product_s(
        "Q8_0", MILLION, 1, None, device="GPU0"
    )


def test_attention() -> None:
    """By heads of queries, on a GPU one token by those of keys; twice the depth, twice the seconds; no depth, none."""
    assert MADE.attention_s("F16", 128, 8, 2, 512, 1, 2) == pytest.approx(512e-6)
    assert MADE.attention_s("F16", 128, 16, 2, 512, 1, 2) == pytest.approx(1024e-6)
    assert MADE.attention_s("F16", 128, 16, 4, 512, 512, 2) == pytest.approx(1024e-4)
    assert MADE.attention_s("F16", 64, 8, 2, 512, 1, 2) == pytest.approx(256e-6)  # heads half as long
    assert MADE.attention_s("F16", 128, 8, 2, 512, 256, 2) == pytest.approx(256e-4)
    assert MADE.attention_s("F16", 128, 8, 2, 64, 1, 2) == pytest.approx(64e-6)  # what is masked is left out
    assert MADE.attention_s("F16", 128, 8, 2, 0, 1, 2) == 0.0
    assert MADE.attention_s("Q8_0", 128, 8, 2, 512, 1, 2) is None
    assert MADE.attention_s("F16", 128, 8, 2, 512, 1, 2, flash=False) is None
    of_gpu = replace(MADE, attention=tuple(replace(e, device="GPU0", n_threads=None) for e in MADE.attention))
    assert of_gpu.attention_s("F16", 128, 32, 4, 512, 1, None, device="GPU0") == pytest.approx(1024e-6)


def test_attention_of_two_numbers_of_heads() -> None:
    """100 µs to read eight heads of keys, 200 for sixteen of queries: what any number of both takes."""
    heads = ((16, 300e-6), (32, 500e-6))
    made = replace(
        MADE, attention=tuple(AttentionTime("CPU", "F16", 128, n, 8, 512, 1, 2, seconds) for n, seconds in heads)
    )
    for n_head, n_head_kv, expected in ((16, 8, 300e-6), (32, 8, 500e-6), (8, 4, 150e-6), (16, 16, 400e-6)):
        assert made.attention_s("F16", 128, n_head, n_head_kv, 512, 1, 2) == pytest.approx(expected)


def test_attention_by_how_far_keys_lie_apart() -> None:
    """One token of 4 heads of 128: its rows are those of 8 heads of 64, twice the length and half as many of them. Many
    tokens are computed, by heads of a length. Latent attention is neither."""
    rows = (AttentionTime("CPU", "F16", size, 8, 8, 512, 1, 2, size * each) for size, each in ((64, 8e-6), (128, 3e-5)))
    many = (AttentionTime("CPU", "F16", size, 8, 8, 512, 512, 2, size * 1e-3) for size in (64, 128))
    latent = AttentionTime("CPU", "F16", 500, 8, 1, 512, 1, 2, 1.0, value_size=400)
    made = replace(MADE, attention=(*rows, *many, latent))
    assert made.attention_s("F16", 128, 4, 4, 512, 1, 2) == pytest.approx(128 * 8e-6 / 2)
    assert made.attention_s("F16", 128, 8, 8, 512, 1, 2) == pytest.approx(128 * 3e-5)
    assert made.attention_s("F16", 128, 4, 4, 512, 512, 2) == pytest.approx(64e-3)
    assert made.attention_s("F16", 500, 8, 1, 512, 1, 2) == pytest.approx(500 * 8e-6)
    assert made.attention_s("F16", 500, 8, 1, 512, 1, 2, latent=True) == pytest.approx(1.0)


def test_rates_are_derived() -> None:
    """A million Q8_0 weights are 1.0625 MB; 512 columns of them 1.024 GFLOP. K and V of 256 tokens: 256 KiB."""
    assert product(1, 1e-4).bytes_per_s == pytest.approx(1.0625e10)
    assert product(512, 0.01).flops_per_s == pytest.approx(1.024e11)
    attention = MADE.attention[0]
    assert attention.n_bytes == 2 * 2 * 256 * 128 * 2
    assert attention.flops_per_s == pytest.approx(4 * 8 * 128 / 1e-6)


def test_overhead_of_the_nearest() -> None:
    assert MADE.overhead(1, 8, 64) == replace(MADE.overheads[1], n_threads=8)
    prompt = MADE.overhead(128, 1, 1024)  # twice the tokens, twice the width
    assert prompt is not None and prompt.layer_s == pytest.approx(4e-4)
    wider = replace(MADE, overheads=(*MADE.overheads, Overhead(1, 2, 164, 4e-5, 1e-5)))
    between, beyond = wider.overhead(1, 2, 114), wider.overhead(1, 2, 264)
    assert between is not None and between.layer_s == pytest.approx(3e-5)
    assert beyond is not None and beyond.layer_s == pytest.approx(6e-5) and beyond.token_s == pytest.approx(1e-5)
    assert replace(MADE, overheads=()).overhead(1, 1, 64) is None


# -- what is kept ---


def test_kept_and_found_again(tmp_path: Path) -> None:
    """All of it, by the same key; by another one nothing."""
    profile.save(KEY, MADE, where=tmp_path)
    assert profile.load(KEY, where=tmp_path) == MADE
    assert MADE.age_s(NOW) == 2 * 3600
    assert profile.load(replace(KEY, threads=4), where=tmp_path) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.parametrize("damage", ["", "[]", "[" * 100_000, '{"schema": "llmrun.profile/9"}', "half", "wrong"])
def test_a_damaged_file_is_none(tmp_path: Path, damage: str) -> None:
    profile.save(KEY, MADE, where=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    damage = {"half": whole[: len(whole) // 2], "wrong": whole.replace('"repack": false', '"repack": "no"')}.get(
        damage, damage
    )
    assert damage != whole
    path.write_text(damage)
    assert profile.load(KEY, where=tmp_path) is None


_PRODUCT, _SEEN = MADE.products[0], Seen(READ, "Q8_0", True, 1e11)


@pytest.mark.parametrize(
    "damaged",
    [
        *(replace(MADE, products=(replace(_PRODUCT, seconds=seconds),)) for seconds in (0.0, -1e-4, 1e308)),
        replace(MADE, products=(replace(_PRODUCT, n_weights=0),)),
        replace(MADE, products=(replace(_PRODUCT, n_threads=0),)),
        replace(MADE, products=(replace(_PRODUCT, kind="Q9"),)),
        replace(MADE, attention=(replace(MADE.attention[0], n_depth=0),)),
        replace(MADE, overheads=(Overhead(1, 1, 0, 1e-5, 1e-5),)),
        replace(MADE, states=(StateTime("mamba2", 1, 2, 0, 1e-5),)),
        replace(MADE, transfers=(replace(MADE.transfers[0], write_s=0.0),)),
        replace(MADE, reads=(replace(READ, bytes_per_s=(0.0,)),)),
        replace(MADE, seen=(replace(_SEEN, flops_per_s=0.0),)),
        replace(MADE, disk_bytes_per_s=0.0),
    ],
)
def test_what_can_not_have_been_measured_is_none(tmp_path: Path, damaged: Profile) -> None:
    """Figures of a damaged file would be divided by, or have logarithms."""
    profile.save(KEY, damaged, where=tmp_path)
    assert profile.load(KEY, where=tmp_path) is None


def test_what_takes_no_time_is_kept(tmp_path: Path) -> None:
    """Differences are written as nothing where they come out below: such a profile is not measured again."""
    made = replace(
        MADE,
        overheads=(Overhead(1, 2, 64, 0.0, 0.0),),
        states=(StateTime("mamba2", 1, 2, 4096, 0.0),),
        transfers=(Transfer("GPU0", 0.0, 1 << 20, 1e-4, 2e-4),),
        reads=(replace(READ, bytes_per_s=()),),
        disk_bytes_per_s=None,
        seen=(_SEEN, replace(_SEEN, flops_per_s=None)),
    )
    profile.save(KEY, made, where=tmp_path)
    assert profile.load(KEY, where=tmp_path) == made
    assert made.state_s("mamba2", 4096, 1, 2) == 0.0


def test_nowhere_to_keep_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="writing"):
        profile.save(KEY, MADE, where=tmp_path / "file" / "profile")


def test_what_a_bench_has_seen(tmp_path: Path) -> None:
    """It is added where a profile is kept, in place of the bench before; without one nothing is made."""
    first = Seen(Reads("CPU", 2, (35e9,), "2026-11-28T11:00:00Z"), "Q8_0", False, 1e11)
    again = replace(first, reads=Reads("CPU", 2, (36e9,), "2026-11-28T11:30:00Z"))
    other = replace(first, repack=True)
    profile.saw(KEY, [first], where=tmp_path)
    assert profile.load(KEY, where=tmp_path) is None
    profile.save(KEY, MADE, where=tmp_path)
    profile.saw(KEY, [first, other], where=tmp_path)
    profile.saw(KEY, [again], where=tmp_path)
    kept = profile.load(KEY, where=tmp_path)
    assert kept == replace(MADE, seen=(other, again))
    assert kept.latest(2) == again.reads and MADE.latest(2) == READ and kept.latest(4) is None


def test_old_is_not_lost() -> None:
    """Age is for those who use it: a profile of a year ago is still one."""
    assert MADE.age_s(NOW + timedelta(days=365)) == pytest.approx(365 * 86_400 + 7200)
    assert MADE.age_s(NOW - timedelta(days=1)) is None


# -- the disk ---


def mounts(where: Path, *lines: str) -> Path:
    path = where / "mounts"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_the_disk_is_read(tmp_path: Path) -> None:
    """Of the largest model that there is, else of a file that is gone afterwards; past the cache, or not at all."""
    there = tmp_path / "models"
    there.mkdir()
    listed = mounts(tmp_path, f"dev {tmp_path} ext4 rw 0 0")
    made = disk.read_bytes_per_s([tmp_path / "none", there], seconds=0.01, least_bytes=8 << 20, mounts=listed)
    assert made is None or made > 0
    assert not [*there.iterdir()]
    (there / "m.gguf").write_bytes(bytes(9 << 20))
    again = disk.read_bytes_per_s([there], seconds=0.01, least_bytes=8 << 20, mounts=listed)
    assert (again is None) == (made is None)
    assert [each.name for each in there.iterdir()] == ["m.gguf"]


def test_memory_is_no_disk(tmp_path: Path) -> None:
    """A folder in memory has none, by the mount that is nearest, the last one of those; nor have folders that are not
    there."""
    (tmp_path / "a b").mkdir()
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    listed = mounts(tmp_path, f"dev {escaped} ext4 rw 0 0", f"dev {escaped} tmpfs rw 0 0", "dev / ext4 rw 0 0")
    assert disk.read_bytes_per_s([tmp_path / "a b"], seconds=0.01, least_bytes=1 << 20, mounts=listed) is None
    assert disk.read_bytes_per_s([tmp_path / "none"], mounts=listed) is None
