"""Perplexity and divergence: the arithmetic by hand, the figures beside llama-perplexity's own, and how it ends."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import ENDLESS_PROMPT, ROOT, TINY
from waiting import HANGS_S, until_worked

from llmrun.bench.perplexity import Scorer, score
from llmrun.bench.quality import Quality, Tally, default_text, read_text
from llmrun.engine.child.score import NotFinite, compare, first_counted, n_counted, negative_log_likelihoods
from llmrun.engine.devices import find_devices
from llmrun.engine.engine import ChildEngine
from llmrun.engine.jobs.quantize import Quantizer, Recipe
from llmrun.errors import BadModel, EngineCrashed, NotFound, OutOfMemory, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.models.resolve import Model, find_model, open_whole
from llmrun.options.load import LoadConfig, Offload
from llmrun.planning.footprint import CPU

STORIES = ROOT / "tests" / "bench" / "data" / "quality-stories.txt"
GOLDEN = ROOT / "tests" / "bench" / "data" / "quality.json"
PLAIN = LoadConfig(repack="off", offload=Offload(n_gpu_layers=0))
BOS = "tokenizer.ggml.add_bos_token"
CAUSAL = "llama.attention.causal"


def compare_quality() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compare_quality", ROOT / "scripts" / "compare_quality.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compared = compare_quality()
PEER = compared.PEERS / "llama-perplexity"
needs_peer = pytest.mark.skipif(not os.access(PEER, os.X_OK), reason="llama-perplexity is not built here")


@pytest.fixture(scope="module")
def tiny() -> Model:
    return find_model("tiny")


@pytest.fixture(scope="module")
def coarse(tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """tiny in Q2_K."""
    path = tmp_path_factory.mktemp("coarse") / "tiny-Q2_K.gguf"
    with Quantizer(tiny.path, tiny.header, Recipe("Q2_K")) as quantizer:
        quantizer.run(path)
    return Model("tiny-Q2_K", *open_whole(path))


@pytest.fixture(scope="module")
def beside(tiny: Model, coarse: Model) -> Quality:
    """tiny in Q2_K beside tiny, on the stories."""
    return score(coarse, read_text(STORIES), config=PLAIN, max_chunks=5, reference=tiny)


@pytest.fixture
def alone() -> Iterator[None]:
    """No child is left when the test ends."""
    yield
    left = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    assert not left


def made(path: Path, shape: synth.Shape = synth.SHAPES["micro"], level: str = "Q8_0", **options: Any) -> Model:
    synth.write(path, shape, level, **options)
    return Model(path.stem, path, open_header(path))


def rows(*values: list[float]) -> Any:
    return np.array(values, dtype=np.float32)


# -- the arithmetic ---


def test_negative_log_likelihood() -> None:
    """Logits 0 and ln 3 are probabilities 1/4 and 3/4, wherever the zero lies."""
    logits = rows([0, math.log(3)], [0, math.log(3)], [2, 2 + math.log(3)])
    assert negative_log_likelihoods(logits, [0, 1, 0]) == pytest.approx([math.log(4), math.log(4 / 3), math.log(4)])


def test_large_logits_do_not_overflow() -> None:
    assert negative_log_likelihoods(rows([90_000, 0]), [0]) == [0.0]
    assert negative_log_likelihoods(rows([90_000, 0]), [1]) == [90_000.0]


def test_slices_change_nothing() -> None:
    """More rows than are looked at together give what each gives alone."""
    rng = np.random.default_rng(1)
    logits = (rng.standard_normal((7, 60_000)) * 5).astype(np.float32)
    other = logits + rng.standard_normal(logits.shape).astype(np.float32)
    targets = [int(token) for token in rng.integers(0, 60_000, 7)]
    alone = [negative_log_likelihoods(logits[i : i + 1], targets[i : i + 1])[0] for i in range(7)]
    assert negative_log_likelihoods(logits, targets) == pytest.approx(alone, rel=1e-14)
    found = compare(other, logits, targets)
    assert found.reference == pytest.approx(alone, rel=1e-14)
    assert found.kld == pytest.approx(
        [compare(other[i : i + 1], logits[i : i + 1], [0]).kld[0] for i in range(7)], rel=1e-12
    )


def test_divergence_by_hand() -> None:
    """p = (1/2, 1/2) from q = (1/4, 3/4) is ½ ln 2 + ½ ln ⅔; the same top is the first of equals."""
    found = compare(rows([0, math.log(3)]), rows([7, 7]), [1])
    assert found.kld == pytest.approx([0.5 * math.log(2) + 0.5 * math.log(2 / 3)], abs=1e-7)
    assert found.nll == pytest.approx([math.log(4 / 3)]) and found.reference == pytest.approx([math.log(2)])
    assert found.n_same_top == 0
    assert compare(rows([1, 2, 3]), rows([1, 2, 3]), [0]).kld == [0.0]


def test_what_is_not_finite() -> None:
    """A token that both exclude is of no harm; one that the model alone excludes is infinitely far; NaN is NaN."""
    never = -math.inf
    assert compare(rows([0, 0, never]), rows([0, 0, never]), [0]).kld == [0.0]
    with pytest.raises(NotFinite, match="infinity"):
        compare(rows([0, never]), rows([0, 0]), [0])
    with pytest.raises(NotFinite, match="infinity"):
        negative_log_likelihoods(rows([0, never]), [1])
    for bad in (rows([0, math.nan]), rows([math.inf, 0])):
        with pytest.raises(NotFinite, match="NaN"):
            negative_log_likelihoods(bad, [0])


def test_which_tokens_count() -> None:
    """Of 512 tokens the logits at 256 to 510 count, for tokens 257 to 511."""
    assert (first_counted(512), n_counted(512)) == (256, 255)
    assert (first_counted(17), n_counted(17)) == (8, 8)


def test_perplexity_by_hand() -> None:
    """nll of 1, 2, 3, 2: mean 2, variance 1/2, error √(1/2 / 3); a chunk's border changes nothing."""
    tally = Tally(16)
    tally.add([1, 2])
    first = tally.quality()
    assert (first.n_chunks, first.n_tokens, first.nll.value, first.nll.error) == (1, 2, 1.5, 0.5)
    tally.add([3, 2])
    found = tally.quality()
    assert found.nll.value == 2 and found.nll.error == pytest.approx(math.sqrt(0.5 / 3))
    assert found.ppl == pytest.approx(math.e**2)
    assert found.ppl_error == pytest.approx(math.e**2 * math.sqrt(0.5 / 3))
    assert found.kld is None


def test_comparison_by_hand() -> None:
    """Figures of four tokens, two of them twice as likely as in the reference and two half as likely."""
    half, quarter = math.log(2), math.log(4)
    tally = Tally(16)
    tally.add_compared([half, half], [quarter, quarter], [0.1, 0.3], 1)
    tally.add_compared([quarter, quarter], [half, half], [0.2, 0.2], 2)
    found = tally.quality().kld
    assert found
    assert found.kld.value == pytest.approx(0.2) and found.kld.error == pytest.approx(math.sqrt(0.005 / 3))
    assert (found.kld_quantiles[0], found.kld_quantiles[1]) == (0.1, 0.3)
    assert found.kld_quantiles[0.5] == pytest.approx(0.2)
    assert found.dp.value == pytest.approx(0) and found.dp_rms.value == pytest.approx(0.25)
    assert found.dp_quantiles[0] == pytest.approx(-0.25) and found.dp_quantiles[1] == pytest.approx(0.25)
    assert found.same_top.value == 0.75 and found.same_top.error == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    # The differences are ±ln 2: their variance is ln² 2, and the two move against each other.
    assert found.ln_ratio.value == pytest.approx(0)
    assert found.ln_ratio.error == pytest.approx(math.log(2) / math.sqrt(3))
    assert found.correlation == pytest.approx(-1) and found.ppl_ratio == pytest.approx(1)
    json.dumps(tally.quality().as_dict(), allow_nan=False)


def test_unknown_is_none() -> None:
    """One token has no error, and a perplexity that no float holds is none."""
    tally = Tally(16)
    tally.add_compared([1000.0], [1000.0], [0.0], 1)
    found = tally.quality()
    assert found.nll.error is found.ppl is found.ppl_error is None
    assert found.kld and found.kld.same_top.error is found.kld.correlation is None


def test_quantiles() -> None:
    """Of 1, 2 and 4, in whatever order and chunks, what lies between two is in proportion; of one value it is that."""
    tally = Tally(16)
    tally.add_compared([1.0], [1.0], [4.0], 1)
    found = tally.quality().kld
    assert found and found.kld_quantiles[0.999] == 4
    tally.add_compared([1.0, 1.0], [1.0, 1.0], [1.0, 2.0], 2)
    found = tally.quality().kld
    assert found and [found.kld_quantiles[at] for at in (0, 0.25, 0.5, 0.75, 1)] == [1, 1.5, 2, 3, 4]


# -- beside llama-perplexity ---


@pytest.fixture(scope="module")
def printed() -> float:
    """By how many times its printed digits llama-perplexity's perplexity may be off: by none, on the same libraries.
    Those of a build for another CPU's instructions round otherwise."""
    theirs = compared.Peer(PEER, STORIES, 101, 2).arithmetic(TINY)
    return 1.0 if theirs == find_devices().system_info.strip() else 20.0


@needs_peer
@pytest.mark.parametrize("n_ctx", [512, 101])
def test_equals_llama_perplexity(tiny: Model, printed: float, n_ctx: int) -> None:
    """To the last printed digit, error included, on the same libraries and at any length of a chunk."""
    theirs = compared.Peer(PEER, STORIES, n_ctx, 5).perplexity(TINY)
    mine = score(tiny, read_text(STORIES), config=PLAIN, n_ctx=n_ctx, max_chunks=5)
    assert (mine.n_chunks, mine.n_tokens) == (5, 5 * n_counted(n_ctx))
    assert mine.ppl == pytest.approx(theirs["ppl"], abs=0.000051 * printed)
    assert mine.ppl_error == pytest.approx(theirs["ppl_error"], abs=0.0000051 * printed * printed)


@needs_peer
def test_equals_llama_perplexity_on_noise(micro: Path, printed: float) -> None:
    """A synthetic model: perplexity beyond its vocabulary of 512, and chunks of several batches, the last shorter."""
    theirs = compared.Peer(PEER, STORIES, 128, 6).perplexity(micro, "-b", "48")
    model = Model("micro", micro, open_header(micro))
    found = score(model, read_text(STORIES), config=LoadConfig(repack="off", n_batch=48), n_ctx=128, max_chunks=6)
    share = 2e-8 if printed == 1 else 1e-3
    assert found.ppl == pytest.approx(theirs["ppl"], abs=0.000051 + share * theirs["ppl"])


def test_golden_figures(beside: Quality) -> None:
    """llama-perplexity's own, from another machine perhaps: those of a CPU with other instructions round otherwise."""
    golden = json.loads(GOLDEN.read_text())
    theirs, mine = golden["models"]["tiny-Q2_K"], compared.ours(beside)
    assert (beside.n_ctx, beside.n_chunks) == (golden["n_ctx"], golden["n_chunks"])
    # A mean over all tokens moves little; how much single tokens scatter, more; and a tail is a dozen tokens, or one.
    # What the next level has is far from all of it: Q4_K_M a twelfth of the divergence, a tenth at the tail.
    for names, share in (
        (("ppl",), 0.002),
        (("ppl_error", "dp_rms", "same_top"), 0.02),
        (("kld", "kld_error", "dp_rms_error"), 0.05),
        (("kld_99", "kld_max"), 0.15),
    ):
        for name in names:
            assert mine[name] == pytest.approx(theirs[name], rel=share), name
    assert mine["correlation"] == pytest.approx(theirs["correlation"], abs=0.005)
    # Theirs lacks what the reference finds less likely than e^-16 of its favourite, and is lower for it.
    assert 1 < mine["ppl_reference"] / theirs["ppl_reference"] < 1.02


def test_itself_is_no_distance(tiny: Model) -> None:
    """The same model on both sides: nothing differs, exactly."""
    found = score(tiny, read_text(STORIES), max_chunks=2, reference=tiny).kld
    assert found
    assert (found.kld.value, found.kld_quantiles[1], found.dp_rms.value, found.ln_ratio.value) == (0, 0, 0, 0)
    assert (found.same_top.value, found.ppl_ratio) == (1, 1)
    assert found.correlation == pytest.approx(1)


def test_coarser_is_further(tiny: Model, beside: Quality) -> None:
    """Q2_K of Q8_0: some tokens in a hundred get another favourite, and perplexity is the same as without reference."""
    assert beside.kld
    assert 0.01 < beside.kld.kld.value < 0.1
    assert 0.9 < beside.kld.same_top.value < 0.99
    plain = score(tiny, read_text(STORIES), config=PLAIN, max_chunks=5)
    assert beside.kld.ppl_reference == pytest.approx(plain.ppl, rel=1e-12)


# -- how a text is read ---


def test_batches_and_order_change_nothing(tiny: Model) -> None:
    """A chunk stands for itself: backwards, every token is what it was. In batches of 100 tokens nearly: llama.cpp
    computes them by other kernels."""
    text = read_text(STORIES)
    config = LoadConfig(n_ctx=256, n_batch=256, repack="off")
    with Scorer(tiny.path, tiny.header, config) as scorer:
        n = scorer.read(text).n_tokens // 256
        forwards = [scorer.chunk(i).nll for i in range(n)]
        assert [scorer.chunk(i).nll for i in reversed(range(n))] == forwards[::-1]
    small = score(tiny, text, config=LoadConfig(n_batch=100, repack="off"), n_ctx=256)
    tally = Tally(256)
    for nll in reversed(forwards):
        tally.add(nll)
    assert small.nll.value == pytest.approx(tally.quality().nll.value, rel=1e-3)
    assert small.n_tokens == tally.quality().n_tokens == n * 127


def test_progress_is_the_figures_so_far(tiny: Model) -> None:
    seen: list[tuple[Quality, int]] = []
    loaded: list[tuple[str, float]] = []
    found = score(
        tiny,
        read_text(STORIES),
        n_ctx=128,
        max_chunks=4,
        on_progress=lambda quality, n: seen.append((quality, n)),
        on_load=lambda name, share: loaded.append((name, share)),
    )
    assert [(quality.n_chunks, quality.n_tokens, n) for quality, n in seen] == [(i, i * 63, 4) for i in range(1, 5)]
    assert seen[-1][0] == found
    assert loaded[-1] == ("tiny", 1.0)


def test_logits_are_planned_for(tiny: Model) -> None:
    """The plan counts the logits of half a chunk: 256 rows of 2048 numbers."""
    config = LoadConfig(n_ctx=512, n_batch=512)
    with ChildEngine(tiny.path, tiny.header, config) as engine, Scorer(tiny.path, tiny.header, config) as scorer:
        usual, wide = (which.plan.footprint.by_device[CPU].compute for which in (engine, scorer))
        assert usual is not None and wide is not None
        assert wide - usual >= 256 * 2048 * 4


def test_control_tokens_in_a_text_are_text(tiny: Model) -> None:
    """As in llama-perplexity: "</s>" written out is four characters, and no end."""
    with Scorer(tiny.path, tiny.header, LoadConfig(n_ctx=16, n_batch=16)) as scorer:
        assert scorer.read("</s>" * 40).n_tokens >= 80


def test_default_text() -> None:
    """Enough of it, all of it plain."""
    text = default_text()
    assert len(text) > 30_000 and text.isprintable() is False and not text.endswith("\n")
    assert not [char for char in text if ord(char) < 32 and char != "\n"]


def test_read_text(tmp_path: Path) -> None:
    """One line end at the end does not count; what is no text is said to be none."""
    path = tmp_path / "text"
    path.write_text("a\n\n")
    assert read_text(path) == "a\n"
    path.write_bytes(b"ab\xff")
    with pytest.raises(UsageError, match="byte 2 is 0xff"):
        read_text(path)
    with pytest.raises(NotFound, match="nothing"):
        read_text(tmp_path / "nothing")
    with pytest.raises(NotFound, match="directory"):
        read_text(tmp_path)


# -- what can't be scored ---


@pytest.mark.usefixtures("alone")
def test_too_short_a_text(tiny: Model) -> None:
    with pytest.raises(UsageError, match=r"the text has \d+ tokens; 1024 are needed, for two chunks of 512") as caught:
        score(tiny, "Once upon a time")
    assert caught.value.hint
    with pytest.raises(UsageError, match="empty"):
        score(tiny, "")


@pytest.mark.parametrize(("n_ctx", "max_chunks"), [(15, None), (0, None), (-1, None), (1 << 30, None), (512, 0)])
def test_ranges(tiny: Model, n_ctx: int, max_chunks: int | None) -> None:
    with pytest.raises(UsageError):
        score(tiny, "text", n_ctx=n_ctx, max_chunks=max_chunks)


def test_longer_chunks_than_trained(tmp_path: Path) -> None:
    """Possible, and said."""
    shape = synth.Shape(1, 64, 128, 2, 2, 512, n_ctx_train=64)
    found = score(made(tmp_path / "short.gguf", shape), read_text(STORIES), n_ctx=128, max_chunks=1)
    (note,) = found.notes
    assert "128 tokens is longer than the 64 that the model was trained on" in note


def test_other_vocabularies(tiny: Model, tmp_path: Path) -> None:
    """Another size, or another text of one token: said before anything is loaded, with both names."""
    one = made(tmp_path / "one.gguf")
    with pytest.raises(UsageError, match="tiny has a vocabulary of 2048 tokens, the reference one one of 512"):
        score(tiny, "text", reference=one)
    texts, scores, types = synth.vocabulary(512)
    other = made(tmp_path / "other.gguf", vocab=([*texts[:-1], b"zebra"], scores, types))
    with pytest.raises(UsageError, match=r"1 of 512 tokens, the first is 511: .* and 'zebra'"):
        score(one, "text", reference=other)


@pytest.mark.usefixtures("alone")
def test_other_tokens_of_one_vocabulary(tmp_path: Path) -> None:
    """A reference that begins with BOS and a model that doesn't read two texts; each alone is scored."""
    model, text = made(tmp_path / "one.gguf"), read_text(STORIES)
    without = LoadConfig(override_kv={BOS: False})
    with pytest.raises(UsageError, match="different tokens"):
        score(model, text, config=without, reference=model, reference_config=LoadConfig(), n_ctx=64)
    with_bos, no_bos = (score(model, text, config=how, n_ctx=64, max_chunks=2) for how in (LoadConfig(), without))
    assert with_bos.ppl != no_bos.ppl and no_bos.n_chunks == 2


def test_model_that_ends_every_text(tmp_path: Path) -> None:
    """The text is cut into chunks that go on, so its end token is left out: the figures are those without."""
    model, text = made(tmp_path / "one.gguf"), read_text(STORIES)
    config = LoadConfig(override_kv={"tokenizer.ggml.add_eos_token": True})
    ends, plain = (score(model, text, config=each, n_ctx=64, max_chunks=2) for each in (config, LoadConfig()))
    assert ends.ppl == plain.ppl


def test_model_that_predicts_nothing(tiny: Model) -> None:
    """An encoder, or a model of diffusion: said before it is loaded."""
    for changed in ({"general.architecture": "nomic-bert"}, {CAUSAL: False}):
        model = replace(tiny, header=replace(tiny.header, metadata={**tiny.header.metadata, **changed}))
        with pytest.raises(BadModel, match="predicts no next token"):
            score(model, "text")
        with pytest.raises(BadModel, match="predicts no next token"):
            score(tiny, "text", reference=model)


def test_workers_serve_one_model(tiny: Model) -> None:
    with pytest.raises(UsageError, match="one model at a time"):
        score(tiny, "text", config=LoadConfig(rpc=("127.0.0.1:1",)), reference=tiny)


@pytest.mark.usefixtures("alone")
def test_damaged_weights(tmp_path: Path) -> None:
    """NaN in one norm: said with the chunk, and of which of the two.

    In a quantized matrix's product it may not survive: the rounding of activations makes some number of it.
    """
    good, bad = (made(tmp_path / name, level="F16") for name in ("good.gguf", "bad.gguf"))
    norm = next(tensor for tensor in bad.header.tensors if tensor.name == "output_norm.weight")
    with bad.path.open("r+b") as file:
        file.seek(bad.header.data_offset + norm.offset)
        file.write(struct.pack("<f", math.nan))
    text = read_text(STORIES)
    with pytest.raises(BadModel, match=r"^bad\.gguf: it computes NaN at chunk 1"):
        score(bad, text, n_ctx=64)
    with pytest.raises(BadModel, match=r"^the reference: bad\.gguf: it computes NaN"):
        score(good, text, n_ctx=64, reference=bad)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no limit can be set from outside")
@pytest.mark.usefixtures("alone")
def test_out_of_memory_names_a_smaller_batch(tmp_path: Path) -> None:
    """Room in the plan and then none in truth, for logits of 2048 tokens over 128,000: their size, and a way out."""
    shape = synth.Shape(1, 64, 128, 2, 2, 128_000, n_ctx_train=8192)
    model = made(tmp_path / "wide.gguf", shape)
    with Scorer(model.path, model.header, LoadConfig(n_ctx=4096)) as scorer:
        assert scorer.read("word " * 10_000).n_tokens >= 2 * 4096
        now = psutil.Process(scorer.pid).memory_info().vms
        resource.prlimit(scorer.pid, resource.RLIMIT_AS, (now + (500 << 20), now + (500 << 20)))
        with pytest.raises(OutOfMemory, match=r"logits of 2048 tokens 0\.977 GiB") as caught:
            scorer.chunk(0)
        assert "n_batch=512" in (caught.value.hint or "")


def test_too_large_is_said_before(tmp_path: Path) -> None:
    """The same under a limit that is known: nothing is loaded."""
    model = made(tmp_path / "wide.gguf", synth.Shape(1, 64, 128, 2, 2, 128_000, n_ctx_train=8192))
    code = (
        "import sys, resource; from llmrun.bench.perplexity import score; from llmrun.errors import OutOfMemory; "
        "from llmrun.models.resolve import find_model; "
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))\n"
        "try: score(find_model(sys.argv[1]), 'word ' * 10000, n_ctx=4096)\n"
        "except OutOfMemory as error: sys.exit(f'{error.message} | {error.hint}')"
    )
    command = [sys.executable, "-c", code, str(model.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)
    assert "900 MiB free" in done.stderr and "n_batch=512" in done.stderr, done.stderr


# -- how it ends ---


@pytest.mark.usefixtures("alone")
def test_ctrl_c_leaves_no_process(busy: Path) -> None:
    """In the middle of a chunk, with two children: KeyboardInterrupt, and both are gone."""
    model = Model("busy", busy, open_header(busy))
    partial: list[Quality] = []

    def interrupt(child: int, cpu_s: float) -> None:
        until_worked(child, cpu_s)
        os.kill(os.getpid(), signal.SIGINT)

    def progress(quality: Quality, _n: int) -> None:
        partial.append(quality)
        if len(partial) == 1:
            child = psutil.Process().children()[0]
            threading.Thread(target=interrupt, args=(child.pid, child.cpu_times().user + 0.1)).start()

    with pytest.raises(KeyboardInterrupt):
        score(model, ENDLESS_PROMPT, n_ctx=2048, reference=model, on_progress=progress)
    assert partial[-1].ppl and partial[-1].kld and partial[-1].n_chunks < 14


@pytest.mark.usefixtures("alone")
def test_killed_reference_is_said(tiny: Model) -> None:
    """SIGKILL of the reference's child: which of the two it was, and the other is ended."""

    def kill(_quality: Quality, _n: int) -> None:
        first, *_ = sorted(psutil.Process().children(), key=lambda child: child.create_time())
        first.kill()

    with pytest.raises(EngineCrashed, match="the reference: the engine was ended by SIGKILL"):
        score(tiny, read_text(STORIES), n_ctx=64, reference=tiny, on_progress=kill)
