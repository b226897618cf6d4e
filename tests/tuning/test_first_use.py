"""What is chosen of what was measured, and how long it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmrun.errors import UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import Header, open_header
from llmrun.options.load import LoadConfig
from llmrun.tuning import first_use, kept
from llmrun.tuning.dials import WORKLOADS, Dials, Workload, class_of
from llmrun.tuning.kept import Choice, Tried

PLAIN, REPACKED = Dials("off", 2), Dials("on", 2)


@pytest.fixture
def header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Header:
    """Of a small model; what is kept of it lies in a folder of the test's."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    synth.write(tmp_path / "m.gguf", replace(synth.small(synth.SHAPES["llama-1.2b"]), n_layer=4), "Q4_K_M")
    return open_header(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("repacked", "short", "long"),
    [
        ((200, 20), True, False),  # as on an AVX-512 machine: prefill 1.5 x slower, decode 1.3 x faster
        ((300, 15.2), False, False),  # a gain below the noise is none
        ((400, 20), True, True),
        ((100, 10), False, False),
    ],
)
def test_layout_by_workload(repacked: tuple[float, float], short: bool, long: bool) -> None:
    """Plain weights prefill at 300 t/s and decode at 15."""
    tried = [Tried(PLAIN, 1 / 300, 1 / 15), Tried(REPACKED, 1 / repacked[0], 1 / repacked[1])]
    assert first_use.chosen(tried, Workload(64, 256), default="off").repack == ("on" if short else "off")
    assert first_use.chosen(tried, Workload(4096, 64), default="off").repack == ("on" if long else "off")


def test_both_layouts_for_what_they_take() -> None:
    """Twice the memory has to be worth it: prompts at 300 and 200 t/s, answers at 15 and 20."""
    both = Tried(Dials("both", 2), 1 / 295, 1 / 20)
    tried = [Tried(PLAIN, 1 / 300, 1 / 15), Tried(REPACKED, 1 / 200, 1 / 20), both]
    choices = [first_use.chosen(tried, Workload(*n), "off").repack for n in ((64, 256), (1024, 256), (4096, 16))]
    assert choices == ["on", "both", "off"]


def test_many_answers_are_a_workload_of_their_own() -> None:
    """One by one repacked weights are the faster ones, 16 at once they are not; and both at once are not to be had."""
    tried = [
        Tried(PLAIN, 1 / 643, 1 / 60, 1 / 255),
        Tried(REPACKED, 1 / 451, 1 / 75, 1 / 269),
        Tried(Dials("both", 2), 1 / 643, 1 / 75),
    ]
    assert first_use.chosen(tried, WORKLOADS["short"], "off").repack == "on"
    assert first_use.chosen(tried, WORKLOADS["many"], "off").repack == "off"
    assert first_use.chosen(tried, WORKLOADS["long"], "off").repack == "both"


def test_what_was_tuned_stays(header: Header) -> None:
    """A class that lacks is measured, and the others keep what was found for them."""
    key = kept.key_of(header, LoadConfig())
    kept.keep(key, "m", {"short": Choice(Dials("off", 1), "tune")})
    first_use.settled(header, LoadConfig(), 10, model="m", n_seq=16)
    found = kept.read(key)
    assert found["short"] == Choice(Dials("off", 1), "tune", found["short"].made) and set(found) == set(WORKLOADS)


def test_the_default_stays_where_nothing_is_gained() -> None:
    tried = [Tried(PLAIN, 1 / 300, 1 / 15), Tried(REPACKED, 1 / 301, 1 / 15)]
    assert first_use.chosen(tried, WORKLOADS["short"], default="on") == replace(REPACKED, n_threads=None)
    assert first_use.chosen(tried, WORKLOADS["short"], default="off") == replace(PLAIN, n_threads=None)


def test_fewer_threads_where_memory_is_the_limit() -> None:
    """Only where they are faster by more than noise; the usual number is left to follow the machine."""
    assert first_use.decode_threads(2) == [2] and first_use.decode_threads(16) == [16, 12, 8, 4]
    tried = [Tried(Dials("off", n), 1 / 300, s) for n, s in ((16, 0.10), (12, 0.098), (8, 0.08), (4, 0.081))]
    assert first_use.chosen(tried, WORKLOADS["short"], default="off") == Dials("off", 8)
    assert first_use.chosen(tried[:2], WORKLOADS["short"], default="off") == Dials("off", None)


def test_classes_of_prompts() -> None:
    assert [class_of(n) for n in (1, 255, 256, 1024, 1025)] == ["short", "short", "medium", "medium", "long"]


def test_measured_once(header: Header) -> None:
    """Both layouts are run; the next command takes what is kept, for prompts of any length; so does a model's twin."""
    asked: list[int] = []

    def settled(n_prompt: int, of: Header = header, **options: object) -> tuple[LoadConfig, Choice | None]:
        return first_use.settled(
            of,
            LoadConfig(),
            n_prompt,
            model="m",
            on_measure=lambda: asked.append(n_prompt),
            **options,  # type: ignore[arg-type]
        )

    config, choice = settled(10)
    assert choice is not None and "off" in {each.dials.repack for each in choice.tried}
    assert config.repack in ("on", "off", "both") and all(each.prefill_s > 0 < each.decode_s for each in choice.tried)
    assert settled(10) == (config, choice)
    settled(5000)
    twin = replace(header, metadata={**header.metadata, "general.name": "another"})
    settled(10, twin)
    assert asked == [10]
    many = settled(11, n_seq=16)[1]
    assert many is not None and all(each.many_s for each in many.tried if each.dials.repack != "both")
    assert asked == [10, 11]  # many answers are measured where they are wanted
    assert [(each.model, [*each.choices]) for each in kept.entries()] == [("m", ["short", "medium", "long", "many"])]
    assert settled(10, given={"repack", "n_threads"})[0] == LoadConfig()  # what somebody has set stays


def test_other_types_are_another_class(header: Header, tmp_path: Path) -> None:
    synth.write(tmp_path / "n.gguf", replace(synth.small(synth.SHAPES["llama-1.2b"]), n_layer=4), "Q8_0")
    keys = {
        kept.key_of(header, LoadConfig()),
        kept.key_of(header, LoadConfig(type_k="q8_0", type_v="q8_0")),
        kept.key_of(open_header(tmp_path / "n.gguf"), LoadConfig()),
    }
    assert len({key.digest for key in keys}) == 3


def test_the_build_is_that_on_the_disk(header: Header) -> None:
    """Also in a process that has loaded the libraries by another door, as the engine's child does."""
    before = kept.key_of(header, LoadConfig())
    from llmrun.engine.child import native

    assert native.llama and kept.key_of(header, LoadConfig()) == before and before.build


def test_a_damaged_file_is_no_choice(header: Header) -> None:
    key = kept.key_of(header, LoadConfig())
    kept.keep(key, "m", {"short": Choice(PLAIN, "first use")})
    assert kept.read(key)["short"].dials == PLAIN
    kept.keep(key, "m", {"long": Choice(REPACKED, "tune")})
    assert {name: each.by for name, each in kept.read(key).items()} == {"short": "first use", "long": "tune"}
    (path,) = kept.folder().iterdir()
    whole = path.read_text()
    for damage in (
        whole[:100],
        "[" * 100_000,
        whole.replace('"n_threads": 2', '"n_threads": 100000'),  # nothing that anybody has typed
        whole.replace('"n_threads": 2', f'"n_threads": {key.cpus + 1}'),  # more than there are here
        whole.replace('"n_ubatch": null', '"n_ubatch": 0'),
    ):
        assert damage != whole
        path.write_text(damage)
        assert kept.read(key) == {} and [(each.path, each.model) for each in kept.entries()] == [(path, "")]
    path.write_text(whole)
    assert len(kept.read(key)) == 2


def test_dials_that_somebody_has_ruled_out() -> None:
    """Quantized keys and values need flash attention: off by hand it counts, off by the dials themselves is a fault."""
    by_hand = LoadConfig(flash_attn="off")
    assert Dials(kv_type="q8_0").applied(by_hand, leave={"flash_attn"}) == by_hand
    assert Dials(kv_type="q8_0", flash_attn="on").applied(by_hand, leave={"flash_attn"}) == by_hand
    assert Dials(kv_type="f32").applied(by_hand).type_v == "f32"
    with pytest.raises(UsageError, match="quantized values need flash attention"):
        Dials(kv_type="q8_0", flash_attn="off").applied(LoadConfig())


def test_what_dials_change() -> None:
    assert Dials().applied(LoadConfig()) == LoadConfig()
    tuned = Dials("on", 4, 8, 128, "on").applied(LoadConfig())
    assert (tuned.repack, tuned.n_threads, tuned.n_threads_batch, tuned.n_ubatch) == ("on", 4, 8, 128)
    assert tuned.guards_threads and not LoadConfig(n_threads=4).guards_threads
    assert Dials("on", 4).applied(LoadConfig(n_threads=2), leave={"n_threads"}).n_threads == 2
    assert Dials("on", 4, 8, 128, "on").words() == "repacked, 4 threads, prefill 8, micro-batch 128, flash attention on"
