"""The meter's arithmetic against tables worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmrun.engine.meter import Meter, nearest_rank
from llmrun.engine.protocol import Done, Loaded, Prefilled, Started, Tokens
from llmrun.gguf import synth
from llmrun.gguf.reader import Header, open_header
from llmrun.planning.footprint import DecodeReads, KvReads, decode_reads, kv_bytes_per_token


def metered(token_s: list[float], *, n_prompt: int = 10, n_cached: int = 0, reads: DecodeReads | None = None) -> Meter:
    """Load 2 s, request at 100 s, prefill from 100.1 to 100.5 s, tokens at the times given."""
    meter = Meter(reads)
    meter.feed(Loaded(512, 512, 1000, "x", False, begin_s=90.0, end_s=92.0))
    meter.feed(Started(n_prompt, n_cached, 512, request_s=100.0, begin_s=100.1, buffers=[]))
    meter.feed(Prefilled(4, 100.3))
    meter.feed(Prefilled(n_prompt, 100.5))
    for at_s in token_s:
        meter.feed(Tokens([1], [at_s], "x"))
    meter.feed(Done("end", peak_rss_bytes=7, rss_bytes=6, anonymous_bytes=5))
    return meter


def test_rate_is_over_the_gaps() -> None:
    """Eight tokens 10 ms apart are 100 t/s, not 114."""
    timing = metered([100.6 + i / 100 for i in range(8)]).timing()
    assert timing.n_generated == 8 and len(timing.step_s) == 7
    assert timing.tg_tps == pytest.approx(100)
    assert timing.gap_s(0.5) == pytest.approx(0.01)


def test_prefill_and_ttft() -> None:
    """Prefill is from its begin to its end, TTFT from the request to the first token."""
    timing = metered([100.6, 100.7]).timing()
    assert timing.load_s == pytest.approx(2)
    assert timing.prefill_s == pytest.approx(0.4)
    assert timing.pp_tps == pytest.approx(25)
    assert timing.ttft_s == pytest.approx(0.6)
    assert timing.peak_rss_bytes == 7


def test_the_queue_is_part_of_ttft() -> None:
    """Received at 100 s, served at 103 s, first token at 105 s: 3 of the 5 s were waited for others."""
    meter = Meter()
    meter.feed(Started(10, 0, 512, request_s=100.0, begin_s=103.5, buffers=[], served_s=103.0))
    meter.feed(Tokens([1], [105.0], "x"))
    assert (meter.timing().queue_s, meter.timing().ttft_s) == (3.0, 5.0)
    assert metered([100.6]).timing().queue_s is None


def test_cached_tokens_are_not_computed() -> None:
    """Ten tokens of which four were cached, in 0.4 s, are 15 t/s."""
    assert metered([100.6], n_cached=4).timing().pp_tps == pytest.approx(15)


def test_one_token_has_no_rate() -> None:
    """Unknown is None, never 0 or infinite."""
    timing = metered([100.6]).timing()
    assert timing.tg_tps is None and timing.gap_s(0.95) is None and timing.read_bytes_per_s is None
    none_at_all = Meter().timing()
    assert none_at_all.pp_tps is None and none_at_all.ttft_s is None and none_at_all.load_s is None


def test_bytes_read() -> None:
    """Three gaps behind a prompt of 10 read the weights three times and 10, 11 and 12 tokens of KV."""
    timing = metered([100.6, 100.7, 100.8, 100.9], reads=DecodeReads(1000, (KvReads(8),))).timing()
    assert timing.read_bytes == 3 * 1000 + 8 * (10 + 11 + 12)
    assert timing.read_bytes_per_s == pytest.approx(3264 / 0.3)


@pytest.mark.parametrize(
    ("values", "quantile", "expected"),
    [([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([4.0, 1.0, 3.0, 2.0], 0.95, 4.0), ([5.0], 0.5, 5.0), ([], 0.5, None)],
)
def test_nearest_rank(values: list[float], quantile: float, expected: float | None) -> None:
    assert nearest_rank(values, quantile) == expected


def reads_of(folder: Path, shape: synth.Shape, level: str) -> DecodeReads:
    path = folder / "model.gguf"
    synth.write(path, shape, level)
    return decode_reads(open_header(path))


def test_reads_of_a_dense_model(tmp_path: Path) -> None:
    """Every matrix once, the embedding by one row: worked out for 1 layer of 256, F16, 4 heads of 64, 2 of them KV."""
    shape = synth.Shape(1, 256, 512, 4, 2, 512)
    attention = (256 * 256 * 2 + 256 * 128 * 2) * 2  # q and output, k and v, 2 bytes each
    feed_forward = 3 * 256 * 512 * 2
    norms = 3 * 256 * 4
    output = 256 * 512 * 2
    reads = reads_of(tmp_path, shape, "F16")
    assert reads.weight_bytes == attention + feed_forward + norms + output + 256 * 2
    assert reads.kv == (KvReads(1 * 2 * (64 + 64) * 2),)
    assert reads.at_depth(100) == reads.weight_bytes + 100 * 512


def test_reads_of_a_tied_model(tmp_path: Path) -> None:
    """The shared matrix is read whole as the output, and one row of it as the embedding."""
    tied = reads_of(tmp_path, synth.Shape(1, 256, 512, 4, 2, 512, tied=True), "F16")
    untied = reads_of(tmp_path, synth.Shape(1, 256, 512, 4, 2, 512), "F16")
    assert tied.weight_bytes == untied.weight_bytes


def test_reads_of_a_mixture(tmp_path: Path) -> None:
    """Of 8 experts 2 are read: a quarter of the expert matrices, all of the rest."""
    shape = synth.Shape(1, 256, 512, 4, 2, 512, arch="qwen3moe", n_expert=8, n_expert_used=2)
    experts = 3 * 256 * 512 * 8 * 2
    attention = (256 * 256 * 2 + 256 * 128 * 2) * 2
    f32 = (3 * 256 + 2 * 64 + 256 * 8) * 4  # norms, q and k norms, router
    output = 256 * 512 * 2 + 256 * 2
    assert reads_of(tmp_path, shape, "F16").weight_bytes == experts // 4 + attention + f32 + output


def header_with(folder: Path, arch: str, **hparams: Any) -> Header:
    """The micro shape's header under another architecture's name, with more hyperparameters."""
    path = folder / "m.gguf"
    synth.write(path, synth.Shape(6, 256, 512, 4, 2, 512), "F16")
    header = open_header(path)
    renamed = {key.replace("llama.", f"{arch}.", 1): value for key, value in header.metadata.items()}
    added = {f"{arch}.{key.replace('__', '.')}": value for key, value in hparams.items()}
    return replace(header, metadata={**renamed, "general.architecture": arch, **added})


KV_LAYER = 2 * (64 + 64) * 2


def test_kv_of_a_header(tmp_path: Path) -> None:
    """n_head_kv × (head_k + head_v) elements per layer, at 2 bytes in f16 and 34/32 in q8_0."""
    header = header_with(tmp_path, "llama")
    assert kv_bytes_per_token(header) == 6 * KV_LAYER
    assert kv_bytes_per_token(header, "q8_0", "q8_0") == 6 * 2 * 128 * 34 // 32


def test_kv_unknown_for_caches_of_their_own(tmp_path: Path) -> None:
    """Where the header can't tell what is kept, it is unknown and not guessed: so is the bandwidth."""
    reads = decode_reads(header_with(tmp_path, "deepseek4"))
    assert reads.kv is None and reads.at_depth(10) is None
    timing = metered([100.6, 100.7], reads=reads).timing()
    assert timing.read_bytes is None and timing.read_bytes_per_s is None


@pytest.mark.parametrize(
    ("arch", "more", "sliding"),
    [
        ("gemma3", {}, 5),  # layers 0 to 4 of six slide
        ("gpt-oss", {}, 3),
        ("olmo2", {"attention__sliding_window_pattern": 3}, 4),
        ("gemma4", {"attention__sliding_window_pattern": [True, False, True, False, False, False]}, 2),
        ("llama", {}, 0),  # llama.cpp does not look at the key there
    ],
)
def test_kv_of_sliding_windows(tmp_path: Path, arch: str, more: dict[str, object], sliding: int) -> None:
    """Behind 1000 tokens a layer with a window of 100 reads 100 of them."""
    reads = decode_reads(header_with(tmp_path, arch, attention__sliding_window=100, **more))
    expected = reads.weight_bytes + KV_LAYER * ((6 - sliding) * 1000 + sliding * 100)
    assert reads.at_depth(1000) == expected


def test_kv_unknown_for_a_window_of_unknown_layers(tmp_path: Path) -> None:
    """An architecture that has windows where its header says, and one that says nothing."""
    assert decode_reads(header_with(tmp_path, "gemma4", attention__sliding_window=100)).at_depth(10) is None


def test_recurrent_state_is_read_for_every_token(tmp_path: Path) -> None:
    """A state of 128 × 512 and the convolution's last three inputs, in F32, whatever the depth."""
    shape = synth.small(synth.SHAPES["mamba2-2.7b"])
    path = tmp_path / "m.gguf"
    synth.write(path, shape, "F16")
    reads = decode_reads(open_header(path))
    assert reads.state_bytes == shape.n_layer * 4 * (128 * 512 + 3 * (512 + 2 * 128))
    assert reads.at_depth(0) == reads.at_depth(1000) == reads.weight_bytes + reads.state_bytes
