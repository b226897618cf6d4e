"""What -ngl auto chooses, from a header and the free memory of devices that the test makes up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from llmrun import codec
from llmrun.errors import Change, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import Header, open_header
from llmrun.options.load import LoadConfig, Lora, Offload
from llmrun.planning.fit import DoesNotFit
from llmrun.planning.footprint import CPU
from llmrun.planning.layout import DeviceBudget, Layout, usable_devices
from llmrun.planning.load_plan import Expected, LoadPlan, Planner, wants_repack
from llmrun.planning.placement import fill

PATH = Path("model.gguf")
MIB = 1 << 20
GIB = 1 << 30
COMPUTE = 3 * MIB


def compute(_config: LoadConfig, layout: Layout, n_ctx: int) -> Mapping[str, int]:
    """3 MiB wherever there is anything, and 1 KiB for every token of context."""
    used = {CPU, *layout.devices} if layout.n_gpu_layers else {CPU}
    return dict.fromkeys(used, COMPUTE + 1024 * n_ctx)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Header:
    """Eight layers of 1.32 MiB and 0.5 KiB of memory a token each; embedding and output 0.25 MiB each, in F16."""
    return _header(tmp_path_factory, synth.Shape(8, 256, 512, 4, 2, 512, n_ctx_train=65_536))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Header:
    """Six layers whose experts are 6 MiB each, and the rest of them 0.4 MiB."""
    shape = synth.Shape(6, 256, 512, 4, 2, 512, arch="qwen3moe", n_expert=8, n_expert_used=2)
    return _header(tmp_path_factory, shape)


def _header(factory: pytest.TempPathFactory, shape: synth.Shape) -> Header:
    path = factory.mktemp("models") / "m.gguf"
    synth.write(path, shape, "F16")
    return open_header(path)


def plan(header: Header, free: list[int | None], *, ram: int | None = 20 * GIB, **config: Any) -> LoadPlan:
    """A plan for devices A, B, ... with so many bytes free; nothing is left over unless asked for."""
    offload = {"fit_target": 0, **config.pop("offload", {})}
    budgets = tuple(DeviceBudget(name, n_bytes) for name, n_bytes in zip("ABCD", free, strict=False))
    return Planner(PATH, header, budgets, ram, compute).plan(LoadConfig(offload=Offload(**offload), **config))


def test_all_layers_where_they_fit(dense: Header) -> None:
    made = plan(dense, [GIB])
    assert made.placement.layers == ("A",) * 9 and made.auto
    assert made.line() and "9 on A" in (made.line() or "")


def test_as_many_as_fit_and_never_more(dense: Header) -> None:
    """For every size of the device: what is placed fits, and one layer more would not."""
    for free in range(0, 40 * MIB, MIB):
        made = plan(dense, [free], n_ctx=4096)
        n = made.placement.layers.count("A")
        assert made.footprint.by_device.get("A") is None or made.footprint.by_device["A"].total <= free or n == 0
        if n < 9:
            more = plan(dense, [free], n_ctx=4096, offload={"n_gpu_layers": n + 1})
            assert more.footprint.by_device["A"].total > free, f"{n + 1} layers would fit into {free / MIB:.0f} MiB"


def test_what_is_left_free(dense: Header) -> None:
    """fit_target is left on the device, 1 GiB by default."""
    whole = plan(dense, [GIB]).footprint.by_device["A"].total
    assert plan(dense, [whole + 5 * MIB], offload={"fit_target": 5 * MIB}).layout.n_gpu_layers == 9
    assert plan(dense, [whole + 5 * MIB - 1], offload={"fit_target": 5 * MIB}).layout.n_gpu_layers < 9
    by_default = Planner(PATH, dense, (DeviceBudget("A", GIB),), GIB, compute).plan(LoadConfig())
    assert by_default.placement.layers == (CPU,) * 9


def test_devices_are_filled_alike(dense: Header) -> None:
    """Two devices that have the same get half each; one that has three times as much, about three quarters."""
    equal = plan(dense, [GIB, GIB]).placement.layers
    assert abs(equal.count("A") - equal.count("B")) <= 1
    uneven = plan(dense, [30 * MIB, 15 * MIB], n_ctx=256).placement.layers
    assert uneven.count("A") > uneven.count("B") > 0
    assert list(uneven) == sorted(uneven)  # contiguous


def test_experts_stay_in_ram_before_layers_do(mixture: Header) -> None:
    """Two thirds of the mixture's bytes are experts of four layers: they go to RAM, all layers stay on the device."""
    whole = plan(mixture, [GIB]).footprint.by_device["A"].total
    made = plan(mixture, [whole - 10 * MIB])
    assert made.placement.layers == ("A",) * 7
    assert made.layout.n_cpu_moe == 2  # 6 MiB each, and 10 are missing
    assert made.footprint.by_device["A"].total <= whole - 10 * MIB
    assert "experts of 2 layers in RAM" in (made.line() or "")


def test_a_mixture_that_still_does_not_fit(mixture: Header) -> None:
    """With all experts in RAM and still too large, layers go as well."""
    made = plan(mixture, [9 * MIB])
    assert 0 < made.placement.layers.count("A") < 7
    assert made.layout.n_cpu_moe == 6


def test_unknown_memory_is_not_filled_unasked(dense: Header) -> None:
    assert plan(dense, [None]).placement.layers == (CPU,) * 9
    assert plan(dense, [None], offload={"n_gpu_layers": "all"}).placement.layers == ("A",) * 9


def test_layers_by_number_are_not_argued_with(dense: Header) -> None:
    """Who asks for so many layers gets them planned, whatever the device says: llama.cpp will tell."""
    made = plan(dense, [MIB], offload={"n_gpu_layers": 5})
    assert made.placement.layers == (CPU,) * 4 + ("A",) * 5 and not made.auto and made.line() is None


def test_shares_of_the_user(dense: Header) -> None:
    made = plan(dense, [GIB, GIB], offload={"tensor_split": (2.0, 1.0)})
    assert made.placement.layers == ("A",) * 6 + ("B",) * 3
    with pytest.raises(UsageError, match="3 shares for 2 devices"):
        plan(dense, [GIB, GIB], offload={"tensor_split": (1.0, 1.0, 1.0)})


def test_a_full_device_gets_no_share(dense: Header) -> None:
    """No byte free is not the same as unknown; where all are full, somebody asked for it by number."""
    assert plan(dense, [0, GIB], offload={"n_gpu_layers": "all"}).placement.layers == ("B",) * 9
    assert set(plan(dense, [0, 0], offload={"n_gpu_layers": "all"}).placement.layers) == {"A", "B"}


def test_tensors_by_name_are_not_argued_with(dense: Header) -> None:
    """-ot onto a device where auto would put nothing, since 1 GiB is to stay free there."""
    made = plan(dense, [100 * MIB], offload={"fit_target": GIB, "override_tensor": (("ffn", "A"),)})
    assert made.placement.layers == (CPU,) * 9 and made.footprint.by_device["A"].weights > 0


def test_one_device_only(dense: Header) -> None:
    made = plan(dense, [GIB, GIB], offload={"split_mode": "none", "main_gpu": 1})
    assert made.layout.devices == ("B",) and made.placement.layers == ("B",) * 9
    with pytest.raises(UsageError, match="main_gpu: 2: there are 2 devices"):
        plan(dense, [GIB, GIB], offload={"split_mode": "none", "main_gpu": 2})


# -- the context ---


def test_context_of_the_model_is_cut_to_what_fits(dense: Header) -> None:
    """-c 0 with RAM for half of it: as long as fits, in steps of 256, and it says so."""
    whole = plan(dense, [], n_ctx=0, ram=GIB)
    assert whole.n_ctx == 65_536 and whole.line() is None
    need = whole.footprint.by_device[CPU]
    ram = need.total - (need.kv or 0) // 2
    made = plan(dense, [], n_ctx=0, ram=ram)
    assert made.n_ctx % 256 == 0 and 256 < made.n_ctx < 65_536 and made.cut_from == 65_536
    assert made.footprint.by_device[CPU].total <= ram
    assert plan(dense, [], n_ctx=made.n_ctx + 512, ram=GIB).footprint.by_device[CPU].total > ram
    assert f"context {made.n_ctx} of 65536" in (made.line() or "")


def test_context_is_cut_before_layers_are(dense: Header) -> None:
    """-c 0 on a device with room for all layers, but not for all of the context."""
    everything = plan(dense, [8 * GIB], n_ctx=0).footprint.by_device["A"]
    made = plan(dense, [everything.total - (everything.kv or 0) // 2], n_ctx=0)
    assert made.placement.layers == ("A",) * 9 and 4096 <= made.n_ctx < 65_536


def test_context_is_not_cut_for_a_device_that_holds_nothing(dense: Header) -> None:
    """-c 0 on a device with no room at all: the whole context, in RAM."""
    made = plan(dense, [MIB], n_ctx=0)
    assert made.placement.layers == (CPU,) * 9
    assert made.n_ctx == 65_536 and made.cut_from is None


def test_a_prompt_gets_what_it_needs(dense: Header) -> None:
    config = LoadConfig()
    made = Planner(PATH, dense, (), 20 * GIB, compute, Expected(10_000)).plan(config)
    assert made.n_ctx == 10_000 and made.n_ctx_most == 65_536
    assert Planner(PATH, dense, (), 20 * GIB, compute, Expected(10)).plan(config).n_ctx == 256
    assert Planner(PATH, dense, (), 20 * GIB, compute).plan(config).n_ctx == 4096


def test_too_large_for_anything(dense: Header) -> None:
    """Exit 10 before anything is loaded: what is needed, what is free, and ways out with their sizes."""
    weights = dense.weight_bytes
    with pytest.raises(DoesNotFit) as caught:
        plan(dense, [], n_ctx=16_384, ram=weights + 60 * MIB)
    error = caught.value
    assert error.exit_code == 10 and error.needed > error.free == weights + 60 * MIB
    assert "RAM" in error.message and "KV cache of 16384 tokens 64.0 MiB" in error.message
    ways = [Change({"type_k": "q8_0", "type_v": "q8_0"}), Change({"n_ctx": 8192})]
    assert [way for way, _ in error.ways] == ways and all(n < error.free for _, n in error.ways)
    assert error.hint and "n_ctx=8192 (" in error.hint


def test_ways_out_are_tried(tmp_path_factory: pytest.TempPathFactory, dense: Header) -> None:
    """No types that the model can't have, or that llama.cpp refuses; nothing that leaves another device too small."""
    odd = _header(tmp_path_factory, synth.Shape(8, 256, 512, 4, 2, 512, n_ctx_train=65_536, head_dim=80))

    def refuses(config: LoadConfig, layout: Layout, n_ctx: int) -> Mapping[str, int] | None:
        return compute(config, layout, n_ctx) if config.type_k == "f16" else None

    for header, measure in ((odd, compute), (dense, refuses)):
        budgets = (DeviceBudget("A", 30 * MIB),)
        config = LoadConfig(n_ctx=65_536, offload=Offload(n_gpu_layers=1))
        with pytest.raises(DoesNotFit) as caught:
            Planner(PATH, header, budgets, header.weight_bytes + 60 * MIB, measure).plan(config)
        # 16384 tokens would do for RAM, and take 16 MiB for computing and 8 MiB for one layer's keys and values on A.
        assert [way for way, _ in caught.value.ways] == [Change({"n_ctx": 8192})]


@pytest.mark.parametrize(
    ("shape", "types", "flash_attn", "remedy"),
    [
        ({"head_dim": 80}, ("q8_0", "f16"), "auto", {"type_k": "f16"}),
        ({"head_dim": 80}, ("q8_0", "q4_0"), "on", {"type_k": "f16", "type_v": "f16"}),
        ({"head_dim": 80}, ("bf16", "q4_0"), "auto", {"type_k": "bf16", "type_v": "bf16"}),
        ({"head_dim": 80}, ("q8_0", "f16"), "off", {"type_k": "f16"}),
        ("deepseek-v2-lite", ("q8_0", "f16"), "auto", {"type_k": "q8_0", "type_v": "q8_0"}),
        ("deepseek-v2-lite", ("f16", "q4_0"), "auto", {"type_k": "q4_0", "type_v": "q4_0"}),
        ("deepseek-v2-lite", ("q8_0", "f16"), "off", {"type_k": "f16"}),
        ({"head_dim": 64}, ("q8_0", "q4_0"), "auto", None),
        ("deepseek-v2-lite", ("q8_0", "q8_0"), "auto", None),
        ("gemma3-1b", ("q4_0", "q4_0"), "auto", None),
    ],
)
def test_types_that_the_kv_cache_can_not_have(
    tmp_path_factory: pytest.TempPathFactory, shape: Any, types: Any, flash_attn: Any, remedy: dict[str, str] | None
) -> None:
    """Exit 2 before anything is loaded, with types that would do."""
    named = isinstance(shape, str)
    made = synth.small(synth.SHAPES[shape]) if named else synth.Shape(2, 256, 512, 4, 2, 512, **shape)
    header = _header(tmp_path_factory, made)
    asked = {"type_k": types[0], "type_v": types[1], "flash_attn": flash_attn}
    if remedy is None:
        plan(header, [], **asked)
        return
    with pytest.raises(UsageError) as caught:
        plan(header, [], **asked)
    assert caught.value.field in asked and caught.value.remedies == (Change(remedy),)
    plan(header, [], **{**asked, **remedy})


def test_a_context_that_nobody_asked_for_is_no_reason_to_refuse(dense: Header) -> None:
    """Without -c the comfortable context shrinks to what prompt and answer need."""
    need = plan(dense, []).footprint.by_device[CPU]
    free = need.total - 8 * MIB
    made = Planner(PATH, dense, (), free, compute, Expected(4096, 300)).plan(LoadConfig())
    assert 300 <= made.n_ctx < 4096
    with pytest.raises(DoesNotFit):
        Planner(PATH, dense, (), MIB, compute, Expected(300)).plan(LoadConfig())


def test_mapped_weights_may_be_larger_than_ram_if_asked(dense: Header) -> None:
    """--load-mode mmap by name: pages come and go, however slowly."""
    ram = 15 * MIB + 1024 * 256
    with pytest.raises(DoesNotFit):
        plan(dense, [], n_ctx=256, ram=dense.weight_bytes // 2)
    assert plan(dense, [], n_ctx=256, ram=ram // 2, load_mode="mmap").n_ctx == 256


def test_unmeasured_plans_are_made_too(dense: Header) -> None:
    made = Planner(PATH, dense, (), None, lambda *_: None).plan(LoadConfig())
    assert made.footprint.by_device[CPU].compute is None


@pytest.mark.parametrize(
    ("costs", "budgets", "counts"),
    [
        ([1, 1, 1, 1], [10, 10], [2, 2]),
        ([1, 1, 1, 1], [30, 10], [3, 1]),
        ([4, 1, 1], [4, 2], [1, 2]),
        ([4, 4], [4, 3], None),
        ([], [5], [0]),
        ([1], [], None),
        ([2, 2, 2], [0, 6], [0, 3]),
    ],
)
def test_fill(costs: list[int], budgets: list[int], counts: list[int] | None) -> None:
    assert fill(costs, budgets) == counts


def test_repack_follows_the_type(dense: Header, tmp_path: Path) -> None:
    assert not wants_repack(dense)
    synth.write(tmp_path / "q.gguf", synth.SHAPES["micro"], "Q4_0")
    assert wants_repack(open_header(tmp_path / "q.gguf"))


def test_a_plan_can_be_stored_and_compared(mixture: Header) -> None:
    """As JSON and back, with everything that was asked for; another plan is not the same."""
    config: dict[str, Any] = {
        "lora": (Lora(Path("adapter.gguf"), 0.5),),
        "override_kv": {"a.b": 1.0},
        "rpc": ("box:1",),
    }
    made = plan(mixture, [9 * MIB, None], **config)
    stored = codec.decode(codec.encode(made), LoadPlan)
    assert stored == made and stored.line() == made.line()
    assert stored != plan(mixture, [GIB, None], **config)


def test_layers_without_a_device() -> None:
    """They are refused with why there is none, where that is known; none, or as many as fit, are right."""
    for n_layers in ("auto", 0):
        assert usable_devices(LoadConfig(offload=Offload(n_gpu_layers=n_layers)), []) == ()
    config = LoadConfig(offload=Offload(n_gpu_layers=99))
    with pytest.raises(UsageError, match="99 layers, and there is no device to put them on: RAM alone"):
        usable_devices(config, [])
    with pytest.raises(UsageError, match="to put them on: the driver is not here"):
        usable_devices(config, [], "the driver is not here")
