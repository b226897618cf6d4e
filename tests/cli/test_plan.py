"""`llmrun plan --what-if`: the real command, on files and on a hub on loopback, with nothing downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from hub_server import Hub, tiny_gguf

from llmrun.engine.devices import find_devices
from llmrun.engine.jobs.roofline import key_of
from llmrun.gguf import synth
from llmrun.gguf.stub import stub
from llmrun.machine import profile
from llmrun.machine.profile import AttentionTime, Overhead, ProductTime, Profile
from llmrun.tuning import score
from llmrun.tuning.score import Compared

ROW = ["quant", "file_bytes", "fits", "n_gpu_layers", "n_ctx", "memory_bytes", "pp_tps", "ttft_s", "tg_tps"]
COSTS = ["download_bytes", "download_s", "joules_per_mtok", "price_per_mtok"]
LARGE = 4_000_000


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as served:
        files = {"pet-Q4_K_M.gguf": tiny_gguf(600_000), "pet-Q8_0.gguf": tiny_gguf(LARGE)}
        served.add("user/pet-GGUF", files)
        yield served


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    hub.forget()
    config = tmp_path / "config"
    config.mkdir()
    (config / "models.toml").write_text('[[model]]\nname = "pet:small"\nrepo = "user/pet-GGUF"\nquant = "Q8_0"\n')
    return {**hub.env(tmp_path), "LLMRUN_CONFIG_DIR": str(config), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}


@pytest.fixture(scope="module")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3 70 B at Q4_K_M, its header: 40 GiB of nothing that take no space."""
    begin, length = stub(synth.header_of(synth.SHAPES["llama-70b"]))
    path = tmp_path_factory.mktemp("models") / "llama-70b.gguf"
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(length)
    return path


def planned(llmrun: RunLlmrun, *arguments: str, env: dict[str, str] | None = None) -> Any:
    done = llmrun("plan", *arguments, "--json", env=env or {})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_document(llmrun: RunLlmrun, llama_70b: Path) -> None:
    """As it is documented; a range holds its middle, and the first token takes the prompt's time."""
    document = planned(llmrun, str(llama_70b), "--what-if", "2x RTX 3090", "-p", "1000", "-d", "0,2048")
    assert list(document) == ["model", "machine", "rows"]
    assert document["model"]["architecture"] == "llama" and document["model"]["quantization"] == "Q4_K_M"
    assert [gpu["name"] for gpu in document["machine"]["gpus"]] == ["RTX 3090", "RTX 3090"]
    (row,) = document["rows"]
    assert list(row) == ROW + COSTS
    assert row["fits"] is True and row["n_gpu_layers"] == 81 and list(row["tg_tps"]) == ["0", "2048"]
    assert row["file_bytes"] == llama_70b.stat().st_size
    for figure in (row["pp_tps"], row["ttft_s"], *row["tg_tps"].values()):
        assert figure["low"] < figure["mid"] < figure["high"]
    assert row["ttft_s"]["mid"] == pytest.approx(1000 / row["pp_tps"]["mid"])


def test_unknown_is_null(llmrun: RunLlmrun, llama_70b: Path) -> None:
    """What a GPU alone can't hold has no speed; several models are a list."""
    first, second = planned(llmrun, str(llama_70b), "tiny", "--what-if", "RTX 3090")
    assert first["rows"][0]["fits"] is False and first["rows"][0]["tg_tps"] == {"0": None, "4096": None}
    assert first["rows"][0]["ttft_s"] is None and second["model"]["name"] == "tiny" and second["rows"][0]["fits"]


def test_every_level_of_a_repository(llmrun: RunLlmrun, hub: Hub, env: dict[str, str]) -> None:
    """The smallest first, from headers alone; a level in the name is that one."""
    rows = planned(llmrun, "pet:small", "--what-if", "RTX 4090", env=env)["rows"]
    assert [(row["quant"], row["fits"]) for row in rows] == [("Q4_K_M", True), ("Q8_0", True)]
    assert rows[1]["file_bytes"] == len(tiny_gguf(LARGE)) and list(rows[0]["tg_tps"]) == ["0"]  # trained on 512
    (row,) = planned(llmrun, "user/pet-GGUF:Q4_K_M", "--what-if", "RTX 4090", env=env)["rows"]
    assert row["quant"] == "Q4_K_M"
    assert not list(Path(env["HF_HOME"]).rglob("*.gguf"))


def test_a_repository_off_line(llmrun: RunLlmrun, env: dict[str, str]) -> None:
    """What is here is told of; what is not, is not guessed."""
    nothing = llmrun("plan", "pet:small", "--what-if", "RTX 4090", "--offline", env=env)
    assert nothing.returncode == 3
    assert llmrun("pull", "user/pet-GGUF:Q8_0", env=env).returncode == 0
    (row,) = planned(llmrun, "pet:small", "--what-if", "RTX 4090", "--offline", env=env)["rows"]
    assert row["quant"] == "Q8_0"


def test_the_table_and_the_target(llmrun: RunLlmrun, hub: Hub, env: dict[str, str], llama_70b: Path) -> None:
    done = llmrun("plan", "user/pet-GGUF", "--what-if", "RTX 4090", "--target-tps", "1", env=env)
    assert done.returncode == 0 and "Q8_0 is the best that reaches 1.00 t/s" in done.stdout
    none = llmrun("plan", str(llama_70b), "--what-if", "i9-14900 32gb", "--target-tps", "10")
    assert "none reaches 10.0 t/s" in none.stdout and "mapped from the disk" in none.stdout
    fast = llmrun("plan", str(llama_70b), "--what-if", "2x RTX 3090", "--target-tps", "16")
    assert "though not for certain" in fast.stdout


def test_a_context_that_has_no_room(llmrun: RunLlmrun) -> None:
    """Weights can be read from the disk at every token; keys and values have to be in memory: there is no speed."""
    (row,) = planned(llmrun, "tiny", "--what-if", "kind=cpu,bandwidth=50,memory=4", "-c", "4000000", "-d", "0")["rows"]
    assert row["fits"] is False and row["tg_tps"] == {"0": None} and row["pp_tps"] is None
    done = llmrun("plan", "tiny", "--what-if", "kind=cpu,bandwidth=50,memory=4", "-c", "4000000")
    assert "the context alone does not fit" in done.stdout and "mapped" not in done.stdout


def test_the_time_of_the_download(llmrun: RunLlmrun, hub: Hub, env: dict[str, str]) -> None:
    """What is missing at the rate of what came before; unknown where nothing did, none where it is here."""
    large = tiny_gguf(9_000_000)
    hub.add("user/large-GGUF", {"large-Q4_K_M.gguf": large, "large-Q8_0.gguf": tiny_gguf(12_000_000)})
    for row in planned(llmrun, "user/large-GGUF", "--what-if", "RTX 4090", env=env)["rows"]:
        assert row["download_bytes"] == row["file_bytes"] and row["download_s"] is None
    assert llmrun("pull", "user/large-GGUF:Q4_K_M", env=env).returncode == 0
    here, there = planned(llmrun, "user/large-GGUF", "--what-if", "RTX 4090", env=env)["rows"]
    assert here["download_bytes"] == 0 and here["download_s"] == 0
    assert there["download_bytes"] == there["file_bytes"] and there["download_s"] > 0
    table = llmrun("plan", "user/large-GGUF", "--what-if", "RTX 4090", env=env).stdout
    assert "DOWNLOAD" in table and "here" in table
    assert "DOWNLOAD" not in llmrun("plan", "tiny", "--what-if", "RTX 4090", env=env).stdout


def test_what_a_part_saves(llmrun: RunLlmrun, env: dict[str, str]) -> None:
    """A pull that was broken off has its bytes already."""
    (row,) = planned(llmrun, "user/pet-GGUF:Q8_0", "--what-if", "RTX 4090", env=env)["rows"]
    folder = Path(env["HF_HOME"]) / "hub" / "models--user--pet-GGUF" / "blobs"
    folder.mkdir(parents=True)
    content = tiny_gguf(LARGE)
    (folder / f"{hashlib.sha256(content).hexdigest()}.partial").write_bytes(content[:1_000_000])
    (rest,) = planned(llmrun, "user/pet-GGUF:Q8_0", "--what-if", "RTX 4090", env=env)["rows"]
    assert rest["download_bytes"] == row["download_bytes"] - 1_000_000


def test_energy_and_money(llmrun: RunLlmrun, llama_70b: Path) -> None:
    """Both cards at 350 W, or what the user says; a kWh is 3.6 MJ. Unknown where nobody knows the watts."""
    (row,) = planned(llmrun, str(llama_70b), "--what-if", "2x RTX 3090", "--price-kwh", "0.36")["rows"]
    joules, price, rate = row["joules_per_mtok"], row["price_per_mtok"], row["tg_tps"]["0"]
    assert joules["mid"] == pytest.approx(700e6 / rate["mid"]) and joules["low"] == pytest.approx(700e6 / rate["high"])
    assert price["high"] == pytest.approx(joules["high"] / 1e7)
    (stated,) = planned(llmrun, str(llama_70b), "--what-if", "2x RTX 3090", "--watts", "70")["rows"]
    assert stated["joules_per_mtok"]["mid"] == pytest.approx(joules["mid"] / 10) and stated["price_per_mtok"] is None
    unknown = llmrun("plan", "tiny", "--what-if", "DDR5-5600 x2 32gb", "--price-kwh", "0.36")
    assert "J/TOKEN" not in unknown.stdout and "COST" not in unknown.stdout and "--watts" in unknown.stderr
    shown = llmrun("plan", "tiny", "--what-if", "DDR5-5600 x2 32gb", "--price-kwh", "0.36", "--watts", "65")
    assert "J/TOKEN" in shown.stdout and "COST/M" in shown.stdout


def test_what_it_refuses(llmrun: RunLlmrun) -> None:
    """Before anything is read: unknown machines, depths that are none, what can't be measured."""
    both = llmrun("plan", "tiny", "--probe", "--what-if", "RTX 4090")
    assert both.returncode == 2 and "can't be measured" in both.stderr
    unknown = llmrun("plan", "tiny", "--what-if", "RTX 4099")
    assert unknown.returncode == 2 and "RTX 4090" in unknown.stderr and "kind=gpu" in unknown.stderr
    assert llmrun("plan", "tiny", "--what-if", "RTX 4090", "-d", "deep").returncode == 2
    for option in ("-p", "-n", "-d"):
        long = llmrun("plan", "tiny", "--what-if", "RTX 4090", option, "100000")
        assert long.returncode == 2 and "trained on" in long.stderr and "try: " in long.stderr
        long = llmrun("plan", "tiny", "--what-if", "RTX 4090", "-c", "520", option, "600")
        assert long.returncode == 2 and "a context of 520 holds" in long.stderr and f"try: {option} 520" in long.stderr


def test_depths_within_the_context(llmrun: RunLlmrun, llama_70b: Path) -> None:
    """Those that nobody asked for are left out where they would not fit."""
    (row,) = planned(llmrun, str(llama_70b), "--what-if", "2x RTX 3090", "-c", "1024")["rows"]
    assert list(row["tg_tps"]) == ["0"]
    (row,) = planned(llmrun, str(llama_70b), "--what-if", "2x RTX 3090", "-c", "64")["rows"]
    assert row["ttft_s"]["mid"] == pytest.approx(64 / row["pp_tps"]["mid"])  # as with the usual prompt and answer


def test_a_speed_that_is_not_known(llmrun: RunLlmrun, llama_70b: Path) -> None:
    done = llmrun("plan", str(llama_70b), "--what-if", "RTX 4090", "--target-tps", "10")
    assert done.returncode == 0 and "none is known to reach 10.0 t/s" in done.stdout


# -- this machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A profile of this machine is kept, made up: nothing need be measured for half a minute."""
    home = tmp_path / "home"
    monkeypatch.setenv("LLMRUN_HOME", str(home))
    products = [
        ProductTime("CPU", kind, False, n, threads, 1000, 1e-7 * n**0.5, 0, 0)
        for kind in ("Q8_0", "F16")
        for threads in (1, 2)
        for n in (1, 8, 64, 512)
    ]
    attention = [
        AttentionTime("CPU", "F16", 64, 8, 2, depth, n, 1, 1e-7 * n * depth) for depth in (16, 1024) for n in (1, 512)
    ]
    made = Profile(
        "2026-11-28T10:00:00Z", {"CPU": "a CPU"}, (*products,), (*attention,), (Overhead(1, 1, 64, 1e-5, 1e-5),)
    )
    profile.save(key_of(find_devices()), replace(made, disk_bytes_per_s=1e9))
    return {"LLMRUN_HOME": str(home)}


def test_here_by_the_profile(llmrun: RunLlmrun, profiled: dict[str, str], micro: Path) -> None:
    """What was measured of the machine is enough."""
    document = planned(llmrun, str(micro), "-d", "0,100", env=profiled)
    (row,) = document["rows"]
    assert row["fits"] and document["machine"]["devices"][0]["name"] == "CPU" and row["memory_bytes"]["RAM"] > 0
    shallow, deep = row["tg_tps"]["0"], row["tg_tps"]["100"]
    assert shallow["low"] < shallow["mid"] < shallow["high"] and deep["mid"] < shallow["mid"]


def test_an_uneven_machine(llmrun: RunLlmrun, profiled: dict[str, str], micro: Path) -> None:
    """The same middle within wider ranges, and a word about it."""
    quiet = planned(llmrun, str(micro), "-d", "0", env=profiled)["rows"][0]
    key = key_of(find_devices())
    known = profile.load(key)
    assert known is not None
    profile.save(key, replace(known, later=(1.4, 0.7, 1.5, 1.4)))
    done = llmrun("plan", str(micro), "-d", "0", "--json", env=profiled)
    assert "0.70 to 1.50 times as long" in done.stderr
    noisy = json.loads(done.stdout)["rows"][0]
    for before, now in ((quiet["pp_tps"], noisy["pp_tps"]), (quiet["tg_tps"]["0"], noisy["tg_tps"]["0"])):
        assert now["high"] / now["low"] > 1.5 * before["high"] / before["low"]


def test_larger_than_memory(llmrun: RunLlmrun, profiled: dict[str, str], llama_70b: Path) -> None:
    """By what is read from the disk at every token."""
    known = profile.load(key_of(find_devices()))
    assert known is not None
    more = [replace(each, kind=kind) for each in known.products if each.kind == "Q8_0" for kind in ("Q4_K", "Q6_K")]
    profile.save(key_of(find_devices()), replace(known, products=(*known.products, *more)))
    (row,) = planned(llmrun, str(llama_70b), "-c", "4096", env=profiled)["rows"]
    assert row["file_bytes"] > 40e9
    if row["fits"] is False:  # on this machine; one with more memory has nothing to read
        assert row["tg_tps"]["0"]["high"] < 1.0  # tens of GB at 1 GB/s


def test_probe(llmrun: RunLlmrun, micro: Path, tmp_path: Path) -> None:
    """Measured by its slices; the same as `plan --probe`."""
    for command in (("probe",), ("plan", "--probe")):
        done = llmrun(*command, str(micro), "-p", "32", "-d", "0,16", "--json", env={"LLMRUN_HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["rows"]
        assert row["fits"] and row["pp_tps"]["low"] < row["pp_tps"]["high"] and list(row["tg_tps"]) == ["0", "16"]


def test_a_curve(llmrun: RunLlmrun, rpc_worker: Callable[..., str], micro: Path, tmp_path: Path) -> None:
    """Every number of layers, with what to type for the best; as a document and as a table with bars."""
    arguments = (str(micro), "--curve", "-p", "16", "-n", "8", "-d", "0", "-t", "1", "--fit-target", "0")
    env = {"LLMRUN_HOME": str(tmp_path)}
    worker = ("--rpc", rpc_worker())
    document = planned(llmrun, *arguments, *worker, env=env)
    assert list(document) == ["model", "machine", "devices", "points", "best", "crosses_cpu_at"]
    points, n_layer = document["points"], 2
    assert [point["n_gpu_layers"] for point in points] == [*range(n_layer + 2)] and document["devices"] == ["RPC0"]
    assert list(points[0]) == ["n_gpu_layers", "n_cpu_moe", "split", "pp_tps", "tg_tps", "measured_tg_tps"]
    assert points[-1]["split"] == [n_layer + 1] and points[-1]["measured_tg_tps"] and document["best"] in points
    assert document["machine"]["devices"][-1]["name"] == "RPC0"
    done = llmrun("plan", *arguments, *worker, env=env)
    assert done.returncode == 0, done.stderr
    assert "LAYERS" in done.stdout and "█" in done.stdout and "CPU alone" in done.stdout
    best = next(line for line in done.stdout.splitlines() if line.startswith("best: "))
    assert f"llmrun run {micro} -ngl " in best and "-ts" not in best


def test_curves_that_there_are_none_of(llmrun: RunLlmrun) -> None:
    """Of no device, of a machine that is not here, of several models or depths."""
    none = llmrun("plan", "tiny", "--curve", "-d", "0", "-dev", "none")
    assert none.returncode == 2 and "no device" in none.stderr
    for arguments in (("--what-if", "RTX 4090"), ("tiny",), ("-d", "0,8")):
        done = llmrun("plan", "tiny", "--curve", *arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr
    undrawn = llmrun("plan", "tiny", "-o", "x.svg")
    assert undrawn.returncode == 2 and "--curve" in undrawn.stderr


def test_the_catalog(llmrun: RunLlmrun, hub: Hub, env: dict[str, str]) -> None:
    """Without a model: what there is a header of, the others are told of; what is fast enough, first."""
    done = llmrun("plan", "--what-if", "RTX 4090", env=env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(("tiny", "pet:small"))]
    assert any(line.startswith("pet:small") for line in lines) and "qwen3:0.6b: " in done.stderr


def test_the_catalog_off_line(llmrun: RunLlmrun, env: dict[str, str], tmp_path: Path) -> None:
    """One line for all that are missing for the same reason, and its exit code where nothing is here."""
    done = llmrun("plan", "--what-if", "RTX 4090", "--offline", env=env)
    assert done.returncode == 3 and "can be looked at; qwen3:0.6b: " in done.stderr
    assert llmrun("pull", "user/pet-GGUF:Q8_0", env=env).returncode == 0
    done = llmrun("plan", "--what-if", "RTX 4090", "--offline", env=env)
    assert done.returncode == 0 and "pet:small" in done.stdout
    (said,) = done.stderr.splitlines()
    assert said.startswith("qwen3:0.6b: ") and said.endswith(" others alike")


def test_the_catalog_without_a_network(llmrun: RunLlmrun, env: dict[str, str]) -> None:
    """The second that gets no answer is the last that is asked."""
    done = llmrun("plan", "--what-if", "RTX 4090", env={**env, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 5 and "qwen3:0.6b: " in done.stderr


def test_how_right_it_was(llmrun: RunLlmrun, profiled: dict[str, str], tmp_path: Path) -> None:
    """A run of a model of some size is compared with its prediction, one of a small model is not; all of it is shown,
    and forgotten."""
    assert llmrun("plan", "--accuracy", env=profiled).returncode == 4
    for option in ("--accuracy", "--forget"):
        done = llmrun("plan", "tiny", option, env=profiled)
        assert done.returncode == 2 and f"try: llmrun plan {option}" in done.stderr
    shape = replace(synth.small(synth.SHAPES["llama-1.2b"]), n_layer=4, n_embd=1024, n_ff=4096, n_vocab=24576)
    path = tmp_path / "some.gguf"
    synth.write(path, replace(shape, n_head=8, n_head_kv=8), "Q8_0")
    for model in ("tiny", str(path)):
        done = llmrun(
            "run", model, "a b c " * 20, "-n", "20", "--raw", "--ignore-eos", "--thread-guard", "off", env=profiled
        )
        assert done.returncode == 0, done.stderr
    found = [*score.kept()]  # none where others were at work meanwhile
    assert {each.kind for each in found} <= {"prefill", "decode"} and all(each.model == str(path) for each in found)
    score.keep(found or [Compared("here", "m", "decode", "plain", 1, 20, 0, 10.0, 11.0)])
    shown = llmrun("plan", "--accuracy", env=profiled)
    assert shown.returncode == 0 and "decode" in shown.stdout and "MEDIAN ERROR" in shown.stdout
    assert llmrun("plan", "--forget", env=profiled).returncode == 0 and [*score.kept()] == []
