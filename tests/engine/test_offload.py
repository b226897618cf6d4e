"""Offload for real: RPC devices on loopback, llama.cpp's own buffers by device, one answer wherever the layers lie."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS, TOO_LONG
from waiting import HANGS_S

from llmrun.cli.loading.fit_hints import with_smaller_quantization
from llmrun.engine.buffers import total_error
from llmrun.engine.engine import ChildEngine, plan_load
from llmrun.engine.generation import ChildGeneration
from llmrun.errors import BadModel, Change, EngineCrashed, NetworkError, OutOfMemory, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig, Lora, Offload, Rope
from llmrun.options.sampling import SamplingConfig
from llmrun.planning.fit import DoesNotFit
from llmrun.planning.footprint import CPU, Footprint, Need
from llmrun.planning.kv_layout import kv_type_problem

MIB = 1 << 20
PROMPT = "Once upon a time there was a machine that could count."
ROUNDING = 3 * MIB // 100
"""llama.cpp's log rounds each buffer to 0.01 MiB."""

Worker = Callable[..., str]


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of 3 MiB: enough that weights are most of what it takes, as with a real model."""
    path = tmp_path_factory.mktemp("models") / "eight.gguf"
    synth.write(path, synth.Shape(8, 512, 1408, 8, 4, 512), "Q8_0")
    return path


@contextmanager
def opened(path: Path, **fields: Any) -> Iterator[ChildEngine]:
    offload = Offload(**{"n_gpu_layers": "all", "fit_target": 0, **fields.pop("offload", {})})
    # A small micro-batch: what a model this small computes in would be more than all of its weights.
    usual = {"n_ctx": 256, "n_ubatch": 32, "n_threads": 1, "repack": "off", "offload": offload}
    config = LoadConfig(**{**usual, **fields})
    model = find_model(str(path))
    with ChildEngine(model.path, model.header, config) as engine:
        yield engine


def answer(engine: ChildEngine, n: int = 8) -> ChildGeneration:
    generation = engine.generate(PROMPT, SamplingConfig(temperature=0, max_tokens=n))
    assert "".join(generation) == generation.text
    return generation


def check_footprint(engine: ChildEngine, generation: ChildGeneration) -> None:
    """Weights and memory to the log's rounding, all of it within 3 %."""
    found = engine.checks(generation)
    for check in found:
        if check.kind != "compute":
            assert check.computed is not None and abs(check.computed - check.taken) <= ROUNDING, check
    error = total_error(found)
    assert error is not None and abs(error) < 0.03, found


def test_every_number_of_layers(rpc_worker: Worker, eight: Path) -> None:
    """With two workers, from none of the layers to all: each lies where it was planned, and the answer is the same."""
    rpc = (rpc_worker(), rpc_worker())
    with opened(eight, offload={"n_gpu_layers": 0}) as engine:
        expected = answer(engine).token_ids
    n_layers = len(engine.plan.placement.layers)
    for n in range(n_layers + 1):
        with opened(eight, rpc=rpc, offload={"n_gpu_layers": n, "tensor_split": (1.0, 2.0)}) as engine:
            generation = answer(engine)
            assert generation.token_ids == expected
            assert sum(device != CPU for device in engine.plan.placement.layers) == n
            check_footprint(engine, generation)


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-30b-a3b",
        "gemma3-1b",
        "phi3-mini",
        "mixtral-8x7b",
        "gpt-oss-20b",
        "granite-4-h-tiny",
        "deepseek-v2-lite",
        "mamba2-2.7b",
        "lfm2-1.2b",
    ],
)
def test_architectures(rpc_worker: Worker, tmp_path: Path, name: str) -> None:
    """Half of the layers on a device: windows, mixtures, latent attention and recurrent states are as computed."""
    path = tmp_path / f"{name}.gguf"
    shape = synth.small(synth.SHAPES[name])
    synth.write(path, shape, "MXFP4_MOE" if name.startswith("gpt-oss") else "Q8_0")
    with opened(path, offload={"n_gpu_layers": 0}) as engine:
        expected = answer(engine)
        check_footprint(engine, expected)
    with opened(path, rpc=(rpc_worker(),), offload={"n_gpu_layers": shape.n_layer // 2 + 1}) as engine:
        generation = answer(engine)
        assert generation.token_ids == expected.token_ids
        check_footprint(engine, generation)


@pytest.mark.parametrize(
    ("fields", "on_device", "in_ram"),
    [
        ({"offload": {"kv": False}}, {"weights", "compute"}, {"weights", "kv", "compute"}),
        ({"offload": {"override_tensor": (("blk", CPU),)}}, {"weights", "kv", "compute"}, {"weights", "compute"}),
        ({"offload": {"devices": ()}}, set(), {"weights", "kv", "compute"}),
        ({"load_mode": "none"}, {"weights", "kv", "compute"}, {"weights", "compute"}),
        ({"type_k": "q8_0", "type_v": "q4_0"}, {"weights", "kv", "compute"}, {"weights", "compute"}),
        ({"flash_attn": "off"}, {"weights", "kv", "compute"}, {"weights", "compute"}),
    ],
)
def test_what_lies_where(
    rpc_worker: Worker, micro: Path, fields: dict[str, Any], on_device: set[str], in_ram: set[str]
) -> None:
    """KV in RAM, tensors by pattern, no device at all, other types: each as asked, and as computed."""
    if fields == {"offload": {"devices": ()}}:
        fields = {"offload": {"devices": (), "n_gpu_layers": "auto"}}
    with opened(micro, rpc=(rpc_worker(),), **fields) as engine:
        generation = answer(engine)
        found = engine.checks(generation)
        check_footprint(engine, generation)
    assert {check.kind for check in found if check.device == "RPC0" and check.taken} == on_device
    assert {check.kind for check in found if check.device == CPU and check.taken} == in_ram


def test_auto_takes_as_many_layers_as_fit(rpc_worker: Worker, eight: Path) -> None:
    """A worker that offers less and less gets fewer and fewer layers, never more than it has room for."""
    with opened(eight, rpc=(rpc_worker(),)) as engine:
        expected = answer(engine).token_ids
        whole = engine.plan.footprint.by_device["RPC0"].total
    tried = []
    for share in (1.01, 0.85, 0.65):  # a worker lends 16 MiB at least
        endpoint = rpc_worker(memory=whole * share / 2**30)
        with opened(eight, rpc=(endpoint,), offload={"n_gpu_layers": "auto"}) as engine:
            generation = answer(engine)
            taken = sum(check.taken for check in engine.checks(generation) if check.device == "RPC0")
            n = engine.plan.placement.layers.count("RPC0")
            assert generation.token_ids == expected and taken <= whole * share + ROUNDING
            assert engine.notes == [engine.plan.line()]
            tried.append(n)
    assert tried[0] == 9 > tried[1] > tried[2] >= 0


def test_auto_leaves_a_gibibyte(rpc_worker: Worker, micro: Path) -> None:
    """By default 1 GiB stays free: a worker that offers no more than that gets nothing."""
    with opened(
        micro, rpc=(rpc_worker(memory=1.0),), offload={"n_gpu_layers": "auto", "fit_target": 1 << 30}
    ) as engine:
        assert engine.plan.layout.n_gpu_layers == 0
        assert "none fits on RPC0 (1.00 GiB free)" in engine.notes[0]


def test_too_many_layers_by_number(rpc_worker: Worker, eight: Path) -> None:
    """What does not fit on the worker is exit 10, with the worker's memory and the most layers that it has room for;
    the worker lives on."""
    endpoint = rpc_worker(memory=0.02)
    where = "9 layers on RPC0; needs .* MiB of RPC0, 20.5 MiB free$"
    with pytest.raises(OutOfMemory, match=where) as caught, opened(eight, rpc=(endpoint,)):
        pass
    fewer = caught.value.remedies[0]
    assert isinstance(fewer, Change)
    with opened(eight, rpc=(endpoint,), offload=dict(fewer.fields)) as engine:
        assert answer(engine).token_ids
    with opened(eight, rpc=(endpoint,), offload={"n_gpu_layers": "auto"}) as engine:
        assert engine.plan.layout.n_gpu_layers == fewer.fields["n_gpu_layers"]


def test_auto_tries_again_with_less(rpc_worker: Worker, micro: Path) -> None:
    """Memory that somebody else took between the plan and the load: once more, with fewer layers, and it is said."""
    with opened(micro, rpc=(rpc_worker(memory=0.25),), offload={"n_gpu_layers": "auto"}) as engine:
        before = engine.plan.layout.n_gpu_layers
        expected = answer(engine).token_ids
        assert engine.try_smaller()
        assert engine.plan.layout.n_gpu_layers < before
        assert len(engine.notes) == 2 and f"out of memory with {before} layers on RPC0" in engine.notes[1]
        assert answer(engine).token_ids == expected
        assert not engine.try_smaller()  # once


def test_a_prompt_longer_than_planned(rpc_worker: Worker, eight: Path) -> None:
    """A device filled for a short prompt has no room for a long one: planned again with what it really has."""
    with opened(eight, n_ctx=None, rpc=(rpc_worker(),)) as engine:
        prompt = "b " * 300
        generation = engine.generate(prompt, SamplingConfig(temperature=0, max_tokens=4))
        list(generation)
        n_prompt, expected = generation.timing.n_prompt, generation.token_ids
    model = find_model(str(eight))
    offload = Offload(fit_target=0)
    config = LoadConfig(n_ubatch=32, n_threads=1, repack="off", offload=offload, rpc=(rpc_worker(),))
    with ChildEngine(model.path, model.header, config, expected_tokens=64) as engine:
        short = engine.plan.footprint.by_device["RPC0"].total
    limited = replace(config, rpc=(rpc_worker(memory=(short + MIB // 2) / 2**30),))
    with ChildEngine(model.path, model.header, limited, expected_tokens=64) as engine:
        assert engine.plan.layout.n_gpu_layers == 9 and (engine.plan.n_ctx_most or 0) < n_prompt
        generation = engine.generate(prompt, SamplingConfig(temperature=0, max_tokens=4))
        list(generation)
        assert generation.token_ids == expected
        assert engine.plan.layout.n_gpu_layers < 9
        assert f"the prompt has {n_prompt} tokens" in engine.notes[-1]


def test_nothing_fits(wide: Path) -> None:
    """Exit 10 before loading."""
    model = find_model(str(wide))
    with pytest.raises(DoesNotFit) as caught:
        ChildEngine(model.path, model.header, LoadConfig(n_ctx=TOO_LONG))
    assert caught.value.exit_code == 10 and "n_ctx=" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"offload": {"n_gpu_layers": 3}}, "n_gpu_layers: 3 layers, and there is no device"),
        ({"offload": {"n_gpu_layers": "all"}}, "n_gpu_layers: all layers, and there is no device"),
        ({"offload": {"devices": ("CUDA7",)}}, "devices: there is no device 'CUDA7' among none at all"),
        (
            {"offload": {"n_gpu_layers": 0, "override_tensor": (("ffn", "Vulkan3"),)}},
            "override_tensor: there is no device 'Vulkan3'",
        ),
        ({"offload": {"n_gpu_layers": 0, "split_mode": "none", "main_gpu": 3}}, None),
    ],
)
def test_devices_that_are_not_there(micro: Path, fields: dict[str, Any], message: str | None) -> None:
    """A build without an offload device would take any number without a word. It is exit 2 here."""
    if message is None:
        with opened(micro, **fields) as engine:
            assert answer(engine).token_ids
        return
    with pytest.raises(UsageError, match=re.escape(message)), opened(micro, **fields):
        pass


def test_row_split_needs_a_backend_that_can(rpc_worker: Worker, micro: Path) -> None:
    with (
        pytest.raises(UsageError, match="split_mode: row: "),
        opened(micro, rpc=(rpc_worker(),), offload={"split_mode": "row"}),
    ):
        pass


# -- workers that fail ---


def test_no_worker(micro: Path) -> None:
    with pytest.raises(NetworkError, match="no worker answers at 127.0.0.1:9"), opened(micro, rpc=("127.0.0.1:9",)):
        pass


def test_a_worker_that_dies(busy: Path) -> None:
    """Killed while it computes: exit 9 with its address. How soon: scripts/fault_engine.py."""
    worker = subprocess.Popen(
        [sys.executable, "-m", "llmrun", "worker", "--json", "--port", "0", "-t", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdout
    ready = json.loads(worker.stdout.readline())
    endpoint = f"127.0.0.1:{ready['port']}"
    try:
        with opened(busy, n_ctx=None, rpc=(endpoint,)) as engine:
            generation = engine.generate(PROMPT, ENDLESS)
            next(iter(generation))
            os.kill(ready["pid"], signal.SIGKILL)
            with pytest.raises(EngineCrashed, match=f"worker at {re.escape(endpoint)}") as caught:
                for _ in generation:
                    pass
            assert caught.value.exit_code == 5
    finally:
        worker.terminate()
        worker.wait(HANGS_S)
        worker.stdout.close()


# -- what else changes a model ---


def write_adapter(
    path: Path, arch: str = "llama", *, kind: str = "adapter", type_name: str = "float32", dims: tuple[int, ...] = ()
) -> None:
    """A LoRA adapter of rank 4 for the first layer's attn_q of the micro model; `dims` are more than it should have."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), arch)
    writer.add_type(kind)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    rng = np.random.default_rng(0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", rng.standard_normal((*dims, 4, 256)).astype(type_name))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", rng.standard_normal((*dims, 256, 4)).astype(type_name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_lora(tmp_path: Path, micro: Path) -> None:
    """An adapter changes the answer, at scale 0 it does not; its bytes are in the footprint."""
    path = tmp_path / "adapter.gguf"
    write_adapter(path)
    answers = []
    for lora in ((), (Lora(path),), (Lora(path, 0.0),)):
        with opened(micro, offload={"n_gpu_layers": 0}, lora=lora) as engine:
            generation = answer(engine)
            check_footprint(engine, generation)
            answers.append(generation.token_ids)
    assert answers[0] == answers[2] != answers[1]


def test_lora_that_does_not_go_with_the_model(tmp_path: Path, micro: Path) -> None:
    path = tmp_path / "adapter.gguf"
    for arch, kind, message in (
        ("qwen3", "adapter", "for qwen3, the model is llama"),
        ("llama", "model", "not an adapter"),
    ):
        write_adapter(path, arch, kind=kind)
        with pytest.raises(BadModel, match=message), opened(micro, offload={"n_gpu_layers": 0}, lora=(Lora(path),)):
            pass


@pytest.mark.parametrize(
    ("dims", "type_name", "message"),
    [((), "int32", "type I32"), ((), "float64", "type F64"), ((2,), "float32", "3 dim")],
)
def test_lora_of_what_can_not_be_multiplied(
    tmp_path: Path, micro: Path, dims: tuple[int, ...], type_name: str, message: str
) -> None:
    """llama.cpp loads it and dies at the first token: said before."""
    path = tmp_path / "adapter.gguf"
    write_adapter(path, type_name=type_name, dims=dims)
    with pytest.raises(BadModel, match=message), opened(micro, offload={"n_gpu_layers": 0}, lora=(Lora(path),)):
        pass


def test_rope_and_metadata_overrides_reach_llama_cpp() -> None:
    """Other positions, other answers; metadata given by hand count instead of the model's own."""
    tiny, ram = find_model("tiny").path, {"offload": {"n_gpu_layers": 0}}
    with opened(tiny, **ram) as engine:
        plain = answer(engine).token_ids
    with opened(tiny, **ram, rope=Rope(freq_base=100.0, freq_scale=0.25)) as engine:
        assert answer(engine).token_ids != plain
    with opened(tiny, **ram, override_kv={"llama.context_length": 4096, "llama.rope.freq_base": 100.0}) as engine:
        assert answer(engine).token_ids != plain
        assert engine.loaded.n_ctx_train == 4096


def test_the_plan_knows_metadata_overrides() -> None:
    """A context that the model's own metadata would not grant."""
    ram = {"offload": {"n_gpu_layers": 0}}
    with opened(find_model("tiny").path, n_ctx=None, override_kv={"llama.context_length": 4096}, **ram) as engine:
        assert engine.plan.n_ctx_most == 4096
        generation = engine.generate("a " * 1500, SamplingConfig(temperature=0, max_tokens=2))
        assert len("".join(generation)) and (generation.n_ctx or 0) > find_model("tiny").header.n_ctx_train  # type: ignore[operator]


def test_what_can_not_be_laid_out_may_still_run(micro: Path) -> None:
    """llama.cpp aborts while it is measured: then compute buffers are unknown, and the model is loaded all the same."""
    header = open_header(micro)
    killer = {"llama.rope.scaling.type": "cubic"}
    broken = replace(
        header, metadata={**header.metadata, **killer}, types={**header.types, "llama.rope.scaling.type": "str"}
    )
    with ChildEngine(micro, broken, LoadConfig(n_ctx=256, n_threads=1)) as engine:
        assert engine.plan.footprint.by_device[CPU].compute is None
        assert answer(engine).token_ids
        assert engine.footprint(512).by_device[CPU].compute is None
        assert answer(engine).token_ids


def test_the_footprint_is_not_asked_in_the_middle_of_an_answer(micro: Path) -> None:
    """The child does one thing at a time; the answer goes on unharmed."""
    with opened(micro, offload={"n_gpu_layers": 0}) as engine:
        expected = answer(engine).token_ids
        generation = engine.generate(PROMPT, SamplingConfig(temperature=0, max_tokens=8))
        next(iter(generation))
        with pytest.raises(UsageError, match="another generation"):
            engine.footprint(4096)
        assert "".join(generation) is not None and generation.token_ids == expected
        assert engine.footprint(4096).by_device[CPU].compute


# -- ways out ---


@pytest.mark.parametrize("types", [("q8_0", "f16"), ("f16", "q8_0"), ("q8_0", "q8_0"), ("bf16", "f16")], ids="-".join)
@pytest.mark.parametrize("name", ["llama-3b", "micro", "deepseek-v2-lite"])
def test_types_of_the_kv_cache_are_refused_as_llama_cpp_does(tmp_path: Path, name: str, types: Any) -> None:
    """What the header says of them, and what llama.cpp says when it is asked to make the context all the same."""
    path = tmp_path / "model.gguf"
    shape = synth.small(synth.SHAPES[name])
    synth.write(path, replace(shape, head_dim=80) if name == "micro" else shape, "Q8_0")
    header = open_header(path)
    plan = plan_load(path, header, LoadConfig(n_ctx=256, n_threads=1))
    plan = replace(plan, config=replace(plan.config, type_k=types[0], type_v=types[1]))
    with ChildEngine.open(plan, header) as engine:
        if kv_type_problem(header, *types) is None:
            assert answer(engine).token_ids
        else:
            with pytest.raises(EngineCrashed, match="can't make a context"):
                answer(engine)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (0.3, "llmrun quantize tiny Q5_K_M"),  # Q8_0 is 8.5 bits, Q6_K saves a quarter, Q5_K_M a third
        (0.99, "-c 256"),  # no level would be enough
    ],
)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_smaller_level_is_a_way_out(missing: float, expected: str, share: float) -> None:
    """The largest level that fits comes first, whatever share of the weights lies where the room ends."""
    found = find_model("tiny")
    weights = round(found.header.weight_bytes * share)
    footprint = Footprint({"RPC0": Need(weights=weights)})
    error = DoesNotFit("too large", device="RPC0", footprint=footprint, free=round(weights * (1 - missing)))
    said = with_smaller_quantization(error.with_ways([("-c 256", 1)]), "tiny", found)
    assert said.ways[0][0] == expected and said.hint and said.hint.startswith(expected)


# -- as a user sees it ---


def test_run_says_what_it_chose(llmrun: Any, rpc_worker: Worker) -> None:
    """stderr has the line of auto and what lies where; JSON has plan, devices, footprint and usage."""
    endpoint = rpc_worker()
    done = llmrun("run", "tiny", "What do GPU layers do?", "--temp", "0", "-v", "--rpc", endpoint, "-ngl", "auto")
    assert done.returncode == 0
    assert "auto: of 7 layers 7 on RPC0" in done.stderr
    assert "0-5 and the output on RPC0" in done.stderr and "off what llama.cpp took" in done.stderr
    done = llmrun("run", "tiny", "Hello", "-n", "4", "--json", "--rpc", endpoint, "-ngl", "3")
    document = json.loads(done.stdout)
    assert document["plan"]["layers"] == ["CPU"] * 4 + ["RPC0"] * 3
    assert abs(document["memory"]["footprint_error"]) < 0.03
    assert {device["name"] for device in document["devices"]} >= {"CPU", "RPC0"}
    assert document["usage"]["peak_rss_bytes"] > MIB and document["usage"]["cost_s"] >= 0
    assert document["settings"]["rpc"] == [endpoint]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-ngl", "-5"],
        ["-ngl", "many"],
        ["-ngl", "100000"],
        ["--device", "CUDA0,CUDA0"],
        ["--device", ",,"],
        ["-ts", "a,b"],
        ["-ts", "0,0"],
        ["-ts", "-1,2"],
        ["-ts", "nan"],
        ["-ts", "1e-50"],
        ["-sm", "diagonal"],
        ["-mg", "-1"],
        ["-mg", "99"],
        ["-ncmoe", "-1"],
        ["-ncmoe", "x"],
        ["-cmoe", "-ncmoe", "3"],
        ["-ot", "no-equals-sign"],
        ["-ot", "[=CPU"],
        ["-ot", "(?P<x>a)=CPU"],
        ["-ot", "ffn=Nowhere"],
        ["-ot", "(.+)+X=CPU"],
        ["-ot", "(a|aa){9,}X=CPU"],
        ["-ot", ".*.*.*.*.*.*.*.*X=CPU"],
        ["-ot", "a{,3}=CPU"],
        ["-ot", "\udcff=CPU"],
        ["-fitt", "-1"],
        ["-fitt", "much"],
        ["-ctk", "q9_9"],
        ["-ctv", "F16"],
        ["-ctv", "q8_0", "-fa", "off"],
        ["-lm", "fast"],
        ["--mlock", "-lm", "none"],
        ["--numa", "yes"],
        ["--rpc", "nowhere"],
        ["--rpc", "127.0.0.1:0"],
        ["--rpc", "127.0.0.1:99999"],
        ["--lora-scaled", "a.gguf:x"],
        ["--lora-scaled", "a.gguf"],
        ["--rope-scaling", "cubic"],
        ["--rope-scale", "0"],
        ["--rope-scale", "2", "--rope-freq-scale", "0.5"],
        ["--rope-freq-base", "0"],
        ["--rope-freq-base", "nan"],
        ["--yarn-orig-ctx", "-1"],
        ["--yarn-beta-fast", "inf"],
        ["--override-kv", "nonsense"],
        ["--override-kv", "a=int:x"],
        ["--override-kv", "a=int:99999999999999999999999"],
        ["--override-kv", "a=float:inf"],
        ["--override-kv", "\udcff=int:1"],
        ["--override-kv", "a=str:\udcff"],
        ["--override-kv", "a=float:1e300"],
        ["--override-kv", "a=int:4294967296"],
        ["--override-kv", "llama.block_count=int:0"],
        ["--override-kv", "llama.block_count=float:6"],
        ["--override-kv", "llama.context_length=int:-1"],
        ["--override-kv", "llama.expert_count=int:8"],
        ["--override-kv", "llama.rope.scaling.type=str:cubic"],
        ["--override-kv", "general.architecture=str:qwen3"],
        ["--override-kv", "tokenizer.ggml.tokens=str:a"],
        ["--override-kv", f"{'k' * 128}=int:1"],
        ["--override-kv", f"a=str:{'v' * 128}"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_bad_values_end_with_2(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Every option's bad values are a sentence with the option's name, and never reach native code."""
    from llmrun.cli.app import run

    assert run(["run", "tiny", "hello", "-n", "1", *arguments]) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said and arguments[0].lstrip("-") in said


def test_a_lora_that_is_not_there(llmrun: Any) -> None:
    done = llmrun("run", "tiny", "hello", "--lora", "nowhere.gguf")
    assert done.returncode == 4 and "there is no file 'nowhere.gguf'" in done.stderr


def test_help_is_short_and_help_all_is_whole(llmrun: Any) -> None:
    """A newcomer sees ten options; the rest is one word away, in groups."""
    short, whole = (llmrun("run", word).stdout for word in ("--help", "--help-all"))
    options = re.findall(r"^  (-[\w-]+)", short, re.MULTILINE)
    assert len(options) <= 12 and "-ngl" in options and "--help-all lists" in short
    for group in ("Sampling:", "Where the layers lie:", "Memory and speed:", "The model:"):
        assert group not in short and group in whole
    assert len(re.findall(r"^  (-[\w-]+)", whole, re.MULTILINE)) > 50
