"""`llmrun plan --what-if`: the real command, on files and on a hub on loopback, with nothing downloaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from hub_server import Hub, tiny_gguf

from llmrun.gguf import synth
from llmrun.gguf.stub import stub

ROW = ["quant", "file_bytes", "fits", "n_gpu_layers", "n_ctx", "memory_bytes", "pp_tps", "ttft_s", "tg_tps"]
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
    assert list(row) == ROW
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


def test_what_it_refuses(llmrun: RunLlmrun) -> None:
    """Before anything is read: this machine, unknown machines, depths that are none."""
    here = llmrun("plan", "tiny")
    assert here.returncode == 2 and "profile" in here.stderr and "--what-if" in here.stderr
    unknown = llmrun("plan", "tiny", "--what-if", "RTX 4099")
    assert unknown.returncode == 2 and "RTX 4090" in unknown.stderr and "kind=gpu" in unknown.stderr
    assert llmrun("plan", "tiny", "--what-if", "RTX 4090", "-d", "deep").returncode == 2
