"""pull, list, show, rm, verify, import and search: the real command against a hub on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, tiny_gguf
from terminal import Terminal
from waiting import HANGS_S, until

from llmrun.cli.terminal import screen
from llmrun.cli.terminal.tables import lines
from llmrun.text import sanitize
from llmrun.units import ago, size

SMALL = tiny_gguf(600_000)
LARGE = tiny_gguf(4_000_000, seed=1)
CATALOG = """
[[model]]
name = "pet:small"
aliases = ["pet"]
repo = "user/pet-GGUF"
parameters = 0.15
n_ctx = 512
licence = "MIT"
summary = "Sits and fetches"
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def in_three(model: bytes, folder: Path) -> dict[str, bytes]:
    """The model as three files that llama.cpp can run."""
    import gguf

    (folder / "whole").write_bytes(model)
    reader = gguf.GGUFReader(folder / "whole")
    writer = gguf.GGUFWriter(folder / "big-Q4_K_M.gguf", "llama", split_max_tensors=-(-len(reader.tensors) // 3))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *rest = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=rest[-1] if rest else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf"))}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with Hub() as served:
        served.add("user/pet-GGUF", {"pet-Q4_K_M.gguf": SMALL, "pet-Q8_0.gguf": LARGE})
        served.add("user/odd", {"odd-Q6_K.gguf": SMALL})
        served.add("user/big", in_three(LARGE, tmp_path_factory.mktemp("split")))
        served.add("user/gated", {"gated-Q4_K_M.gguf": SMALL}, access="gated")
        yield served


@pytest.fixture
def env(hub: Hub, tmp_path: Path) -> dict[str, str]:
    hub.forget()
    config = tmp_path / "config"
    config.mkdir()
    (config / "models.toml").write_text(CATALOG)
    return {**hub.env(tmp_path), "LLMRUN_CONFIG_DIR": str(config), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ""}


@pytest.fixture
def run(llmrun: Run, env: dict[str, str]) -> Run:
    def call(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        done = llmrun(*arguments, **{**options, "env": {**env, **options.get("env", {})}})
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def listed(run: Run, *words: str) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(run("list", "--json", *words).stdout)}


def blobs(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "hf").rglob("blobs/*") if path.is_file()]


# -- pull ---


def test_pull_prints_the_path_and_says_why(run: Run) -> None:
    """stdout is the path alone; which level it is, and why, goes to stderr."""
    done = run("pull", "pet")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.rstrip("\n")).read_bytes() == SMALL
    assert "Q4_K_M (the default)" in done.stderr
    again = run("pull", "pet:small", "--offline", "-q")
    assert (again.stdout, again.stderr) == (done.stdout, "")


def test_pull_several_goes_on_after_a_failure(run: Run) -> None:
    """One name that does not exist does not keep the others; the exit code is its."""
    done = run("pull", "pet:q8_0", "user/none", "user/odd", "tiny", "--json")
    documents = json.loads(done.stdout)
    assert done.returncode == 4 and "error: " in done.stderr
    assert [Path(d["path"]).name if "path" in d else d["exit_code"] for d in documents] == [
        "pet-Q8_0.gguf",
        4,
        "odd-Q6_K.gguf",
        "tiny.gguf",
    ]
    assert documents[0]["fetched_bytes"] == len(LARGE)
    assert "nearest" in documents[2]["why"] or "all there is" in documents[2]["why"]


def test_pull_quant_and_revision(run: Run, hub: Hub) -> None:
    """The options say what the name may say, and must not contradict it."""
    commit = hub.repos["user/pet-GGUF"].commit
    done = run("pull", "pet", "--quant", "q8_0", "--revision", commit, "--json")
    (document,) = json.loads(done.stdout)
    assert (document["quant"], document["commit"]) == ("Q8_0", commit)
    for arguments in (("pet:Q4_K_M", "--quant", "Q8_0"), ("user/odd@x", "--revision", "y")):
        assert run("pull", *arguments).returncode == 2
    unknown = run("pull", "pet", "--quant", "Q5_K_M")
    assert unknown.returncode == 4 and "Q8_0 (" in unknown.stderr


def test_pull_of_a_file(run: Run, tmp_path: Path) -> None:
    """One that is here is no matter for the hub; one that is not may have been meant as a repository's."""
    file = tmp_path / "mine.gguf"
    file.write_bytes(SMALL)
    here = run("pull", str(file))
    assert here.returncode == 2 and "on this machine already" in here.stderr
    absent = run("pull", "./x.gguf")
    assert absent.returncode == 4 and "no such file: x.gguf" in absent.stderr and "try" not in absent.stderr
    meant = run("pull", "user/pet-GGUF/pet-Q4_K_M.gguf")
    assert meant.returncode == 4 and "try: llmrun pull hf://user/pet-GGUF/pet-Q4_K_M.gguf\n" in meant.stderr


def test_pull_of_an_imported_model(run: Run, tmp_path: Path) -> None:
    """It is here: its path, and no hub is asked."""
    file = tmp_path / "mine.gguf"
    file.write_bytes(SMALL)
    run("import", str(file), "--copy")
    done = run("pull", "local/mine")
    assert done.returncode == 0 and Path(done.stdout.rstrip("\n")).read_bytes() == SMALL
    assert "here already" in done.stderr
    assert run("pull", "local/none").returncode == 3


def test_connections(run: Run, hub: Hub) -> None:
    """As many as somebody says, for what is large enough to be divided."""
    done = run("pull", "pet:Q8_0", "--connections", "4", "-q")
    assert done.returncode == 0 and Path(done.stdout.rstrip("\n")).read_bytes() == LARGE
    hub.add("user/large", {"large-Q8_0.gguf": tiny_gguf(12 << 20)})
    assert run("pull", "user/large", "--connections", "3", "-q").returncode == 0
    assert len(hub.seen["cdn"].ranges) >= 3
    for wrong in ("0", "17", "many", "-1"):
        assert run("pull", "pet", f"--connections={wrong}").returncode == 2


def test_the_projector_of_a_model(run: Run, hub: Hub) -> None:
    """With the model if asked for, F16 before others; listed with what it goes with, verified, removed by name."""
    projector = tiny_gguf(600_000, name="mmproj", seed=3).replace(b"general.name", b"general.type")
    files = {f"mmproj-{level}.gguf": projector for level in ("Q8_0", "F32", "F16", "BF16")}
    hub.add("user/sees", {"sees-Q4_K_M.gguf": SMALL, **files})
    name = "hf://user/sees/mmproj-F16.gguf"
    dry = json.loads(run("pull", "user/sees", "--mmproj", "--dry-run", "--json").stdout)[0]
    assert dry["mmproj"]["missing_bytes"] == len(projector) and dry["mmproj"]["memory"] is None
    assert "mmproj-F16.gguf" in run("pull", "user/sees", "--mmproj", "--dry-run").stdout
    done = run("pull", "user/sees", "--mmproj")
    model, beside = done.stdout.splitlines()
    assert Path(model).read_bytes() == SMALL and Path(beside).read_bytes() == projector
    assert Path(beside).parent == Path(model).parent
    assert "llmrun reads text only" in done.stderr
    assert listed(run)[name]["where"] == "hub cache, goes with user/sees"
    assert run("pull", "user/sees", "--mmproj", "--offline", "-q").stdout == done.stdout
    assert run("verify", "--all").stdout.count("ok") == 2
    assert run("run", name, "hello").returncode == 8
    removed = run("rm", "-y", "user/sees:Q4_K_M")
    assert f"llmrun rm {name}" in removed.stderr
    assert run("rm", "-y", name).returncode == 0 and list(listed(run)) == ["tiny"]
    none = run("pull", "pet", "--mmproj")
    assert none.returncode == 4 and "user/pet-GGUF has no projector" in none.stderr
    assert list(listed(run)) == ["tiny"]
    hub.add("user/says-so", {"m-Q4_K_M.gguf": SMALL, "mmproj-m-F16.gguf": LARGE})
    assert run("pull", "user/says-so", "--mmproj").returncode == 8


def test_the_draft_of_a_model(run: Run, hub: Hub, tmp_path: Path) -> None:
    """The smallest of its family, if it has the same vocabulary; else the next, else none, with the reason."""
    entry = '[[model]]\nname = "{}"\nrepo = "user/{}"\nparameters = {}\n'
    sizes = {"dog:big": 8, "dog:odd": 0.1, "dog:small": 0.5, "dog:half": 4, "cat:big": 8, "cat:odd": 1}
    text = "".join(entry.format(name, name.replace(":", "-"), n) for name, n in sizes.items())
    (tmp_path / "config" / "models.toml").write_text(text)
    for name in sizes:
        content = tiny_gguf(600_000, tokens=600 if "odd" in name else 300)
        hub.add(f"user/{name.replace(':', '-')}", {f"{name.replace(':', '-')}-Q4_K_M.gguf": content})
    done = run("pull", "dog:big", "--draft", "--json")
    (document,) = json.loads(done.stdout)
    assert document["draft"]["name"] == "dog:small" and "--draft dog:small" in done.stderr
    assert sorted(listed(run)) == ["dog:big:Q4_K_M", "dog:small:Q4_K_M", "tiny"]
    answer = run("run", "dog:big", "--draft", "dog:small", "hello", "-n", "4", "-t", "1")
    assert answer.returncode == 0, answer.stderr
    refused = run("pull", "cat:big", "--draft")
    assert refused.returncode == 4 and "cat:odd: it has another vocabulary" in refused.stderr
    none = run("pull", "dog:odd", "--draft")
    assert none.returncode == 4 and "no model that is small enough" in none.stderr
    assert not any("odd" in name for name in listed(run))


def test_dry_run_fetches_nothing(run: Run, tmp_path: Path) -> None:
    """What it would fetch, and whether that fits on the disk and in memory: weights and KV cache."""
    done = run("pull", "pet", "--dry-run", "--json")
    (document,) = json.loads(done.stdout)
    assert document["missing_bytes"] == document["size"] == len(SMALL)
    assert document["fits_on_disk"] and document["memory"]["fits"]
    # One layer, 4 heads of 16 for keys and values each, 2 bytes: 256 a token, and the model was trained on 512.
    assert document["memory"]["kv_bytes"] == 256 * 512
    assert not blobs(tmp_path)
    assert "to fetch" in run("pull", "pet", "--dry-run").stdout
    run("pull", "pet")
    (document,) = json.loads(run("pull", "pet", "--dry-run", "--offline", "--json").stdout)
    assert document["missing_bytes"] == 0


def test_offline_never_asks(run: Run, hub: Hub) -> None:
    """What is not here is exit 3, and no request leaves."""
    for arguments, env in ((("--offline",), {}), ((), {"HF_HUB_OFFLINE": "1"})):
        done = run("pull", "pet", *arguments, env=env)
        assert done.returncode == 3, done.stderr
    assert run("search", "pet", env={"HF_HUB_OFFLINE": "1"}).returncode == 3
    assert not hub.seen["hub"].requests


def test_split_models_are_pulled_whole_and_run_by_any_part(run: Run) -> None:
    """All parts come, list shows one model, show counts all tensors, and llama.cpp runs it."""
    done = run("pull", "hf://user/big/big-Q4_K_M-00002-of-00003.gguf")
    first = Path(done.stdout.strip())
    assert first.name.endswith("00001-of-00003.gguf") and len(list(first.parent.iterdir())) == 3
    assert listed(run)["user/big:Q4_K_M"]["state"] == "complete"
    document = json.loads(run("show", "user/big", "--json").stdout)
    assert document["files"] == 3
    assert document["parameters"] == listed(run)["user/big:Q4_K_M"]["parameters"]
    for name in (
        "hf://user/big/big-Q4_K_M-00003-of-00003.gguf",
        str(first.with_name("big-Q4_K_M-00002-of-00003.gguf")),
    ):
        said = run("run", name, "hello", "-n", "2", "-t", "1", "--json")
        assert said.returncode == 0, said.stderr
        assert json.loads(said.stdout)["model"]["path"] == str(first)


def test_gated_needs_a_token(run: Run, hub: Hub) -> None:
    refused = run("pull", "user/gated")
    assert refused.returncode == 4 and "HF_TOKEN" in refused.stderr
    assert run("pull", "user/gated", "-q", env={"HF_TOKEN": TOKEN}).returncode == 0
    assert not hub.seen["cdn"].authorizations


def test_log_has_lines_and_resume_is_mentioned(run: Run, env: dict[str, str], hub: Hub) -> None:
    """Without a terminal: a line at the start, lines on the way, a line at the end; Ctrl-C leaves what goes on."""
    hub.faults.throttle_bps = 200_000  # twenty seconds in all: more than it takes to notice a line
    command = [sys.executable, "-m", "llmrun", "pull", "pet:Q8_0"]
    with subprocess.Popen(
        command, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as pulling:
        assert pulling.stderr
        while "%" not in pulling.stderr.readline():
            assert pulling.poll() is None
        pulling.send_signal(signal.SIGINT)
        assert pulling.wait(HANGS_S) == 130
        assert "Traceback" not in pulling.stderr.read()
    row = listed(run)["pet:small:Q8_0"]
    assert run("rm", "pet:small:Q4_K_M", "-y").returncode == 3
    assert row["state"] == "partial" and row["size"] > 0 and row["total"] == len(LARGE)
    shown = run("list").stdout
    assert "unfinished" in shown and "% of" in shown
    hub.faults.throttle_bps = 2_000_000  # a line every half second, of which there are two at least
    done = run("pull", "pet:Q8_0", "--json")
    assert "going on from there" in done.stderr and " %, " in done.stderr
    (document,) = json.loads(done.stdout)
    assert 0 < document["fetched_bytes"] < len(LARGE)


@pytest.mark.parametrize("name", ["pet:small:Q8_0", "pet", "user/pet-GGUF:q8_0", "hf://user/pet-GGUF/pet-Q8_0.gguf"])
def test_rm_of_an_unfinished_pull(run: Run, env: dict[str, str], hub: Hub, tmp_path: Path, name: str) -> None:
    """It goes by its name, as a model does."""
    hub.faults.throttle_bps = 200_000
    command = [sys.executable, "-m", "llmrun", "pull", "pet:Q8_0", "-q"]
    with subprocess.Popen(command, env={**os.environ, **env}) as pulling:
        until(lambda: any(path.stat().st_size for path in (tmp_path / "hf").rglob("*.partial")), "a byte")
        assert pulling.poll() is None
        pulling.kill()
    done = run("rm", "-y", name)
    assert done.returncode == 0 and done.stdout == "pet:small:Q8_0\n", done.stderr
    assert not blobs(tmp_path)


def test_the_bar(env: dict[str, str], hub: Hub) -> None:
    """On a terminal: file, bar, bytes, rate and time left, gone at the end, and the cursor is back."""
    hub.faults.throttle_bps = 200_000
    with Terminal("pull", "pet:Q8_0", env=env, columns=120) as terminal:
        text = terminal.wait_for(" left")
        assert "pulling pet" in text and "━" in text and f" of {size(len(LARGE))} · " in text and "/s · " in text
        hub.faults.throttle_bps = 0
        assert terminal.wait() == 0
        assert "━" not in terminal.text and not terminal.cursor_hidden
        assert "is here and verified" in terminal.text


def test_waiting_for_another_process(run: Run, env: dict[str, str], hub: Hub) -> None:
    """The second of two pulls says that it waits, and fetches nothing."""
    hub.faults.throttle_bps = 200_000
    command = [sys.executable, "-m", "llmrun", "pull", "pet:Q8_0"]
    environment = {**os.environ, **env}
    with subprocess.Popen([*command, "-q"], env=environment, stdout=subprocess.DEVNULL) as first:
        until(lambda: hub.seen["cdn"].bytes >= 100_000, "a part of the file")
        with subprocess.Popen(
            [*command, "--json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as second:
            assert second.stderr and second.stdout
            while "another process is pulling pet-Q8_0.gguf" not in second.stderr.readline():
                assert second.poll() is None
            hub.faults.throttle_bps = 0
            assert first.wait(HANGS_S) == 0
            assert json.loads(second.stdout.read())[0]["fetched_bytes"] == 0


def test_broken_pipe(env: dict[str, str]) -> None:
    """`llmrun list | head -c 1` ends with 141 and without a word."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llmrun", "list", "--catalog"]
    done = subprocess.run(command, env={**os.environ, **env}, stdout=write, stderr=subprocess.PIPE, timeout=HANGS_S)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


# -- list and show ---


def test_list_has_what_there_is(run: Run) -> None:
    """The short name with the level, which is what to type; tiny is always there."""
    run("pull", "pet", "-q")
    rows = listed(run)
    assert list(rows) == ["tiny", "pet:small:Q4_K_M"]
    row = rows["pet:small:Q4_K_M"]
    assert (row["quant"], row["size"], row["repo"]) == ("Q4_K_M", len(SMALL), "user/pet-GGUF")
    assert row["last_used"] is None
    assert run("run", "pet", "hello", "-n", "1", "-t", "1").returncode == 0
    used = listed(run)["pet:small:Q4_K_M"]["last_used"]
    assert used.startswith("20") and used.endswith("Z")
    assert run("ls", "-q", "PET").stdout == "pet:small:Q4_K_M\n"
    human = run("list").stdout.splitlines()
    assert human[0].split() == ["NAME", "QUANT", "SIZE", "PARAMETERS", "USED", "WHERE"]
    assert "just now" in human[2] and "hub cache" in human[2]


def test_a_listed_name_is_a_name(run: Run, hub: Hub) -> None:
    """A file whose name tells no level is called by its file: the level in its header no other command would find."""
    hub.add("user/nameless", {"model.gguf": SMALL})
    assert run("pull", "user/nameless", "-q").returncode == 0
    name = run("list", "nameless", "-q").stdout.rstrip("\n")
    assert name == "hf://user/nameless/model.gguf"
    assert listed(run)[name]["quant"] is not None
    for command in (("pull", "--offline"), ("show",), ("verify",), ("rm", "-y")):
        done = run(*command, name)
        assert done.returncode == 0, done.stderr


def test_another_level_than_usual_is_mentioned(run: Run) -> None:
    """Without a level, what is here is used, and it is said which it is and why; on stderr."""
    run("pull", "user/odd", "-q")
    done = run("show", "user/odd", "--json")
    assert "user/odd is Q6_K: there is no Q4_K_M" in done.stderr and json.loads(done.stdout)
    assert run("show", "user/odd:Q6_K").stderr == ""


def test_a_repository_that_changed(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Both contents of one file are listed, the old one with its commit, and each name removes its own only."""
    old = hub.add("user/new", {"new-Q4_K_M.gguf": SMALL}).commit
    run("pull", "user/new", "-q")
    new = hub.add("user/new", {"new-Q4_K_M.gguf": LARGE}).commit
    assert old != new and run("pull", "user/new", "-q").returncode == 0
    name, old_name = "user/new:Q4_K_M", f"user/new:Q4_K_M@{old[:12]}"
    rows = listed(run, "user/new")
    assert {row["name"]: row["commit"] for row in rows.values()} == {name: new, old_name: old}
    assert json.loads(run("show", old_name, "--json").stdout)["commit"] == old
    vague = run("rm", "-y", "user/new")
    assert vague.returncode == 2 and old_name in vague.stderr
    assert [row["name"] for row in json.loads(run("verify", old_name, "--json").stdout)] == [old_name]
    assert json.loads(run("rm", "-y", old_name, "--json").stdout) == {
        "removed": [old_name],
        "leftovers": [],
        "freed_bytes": len(SMALL),
    }
    run("pull", old_name.replace(old[:12], old), "-q")
    assert json.loads(run("rm", "-y", name, "--json").stdout)["freed_bytes"] == len(LARGE)
    assert [path.read_bytes() for path in blobs(tmp_path)] == [SMALL]


def test_catalog_is_listed_with_filter(run: Run) -> None:
    rows = json.loads(run("list", "--catalog", "--json").stdout)
    assert len(rows) > 40 and all(row["name"] and row["repo"] for row in rows)
    only = run("list", "--catalog", "pet", "fetches").stdout.splitlines()
    assert len(only) == 2 and only[1].startswith("pet:small") and only[1].endswith("Sits and fetches")


def test_show_reads_remote_headers(run: Run, hub: Hub) -> None:
    """Of what is not here, only the header comes; the levels that there are are listed."""
    one, two = json.loads(run("show", "pet:Q8_0", "user/odd", "--json").stdout)
    assert one["path"] is None and one["levels"] == {"Q4_K_M": len(SMALL), "Q8_0": len(LARGE)}
    assert one["licence"] == "mit" and two["name"] == "user/odd"
    assert hub.seen["cdn"].bytes <= (1 << 20) + len(SMALL)
    assert "not on this machine" in run("show", "pet").stdout
    assert run("show", "user/none").returncode == 4


# -- rm ---


def test_rm_frees_and_says_how_much(run: Run, tmp_path: Path) -> None:
    run("pull", "pet", "pet:Q8_0", "-q")
    vague = run("rm", "pet", "-y")
    assert vague.returncode == 2 and "Q4_K_M or" in vague.stderr
    refused = run("rm", "pet:Q8_0")
    assert refused.returncode == 2 and "-y" in refused.stderr
    done = run("rm", "pet:Q8_0", "-y")
    assert done.returncode == 0 and f"{size(len(LARGE))} freed" in done.stderr
    assert [path.read_bytes() for path in blobs(tmp_path)] == [SMALL]
    assert json.loads(run("rm", "-y", "pet", "--json").stdout)["freed_bytes"] == len(SMALL)
    assert run("rm", "-y", "pet").returncode == 3
    for name in ("tiny", "./x.gguf"):
        assert run("rm", "-y", name).returncode == 2


def test_two_files_of_one_level_are_told_apart(run: Run, hub: Hub) -> None:
    """Where a level is not enough to say which, the file is the name, and rm does not guess."""
    hub.add("user/twins", {"a-Q4_K_M.gguf": SMALL, "longer-Q4_K_M.gguf": LARGE})
    names = [f"hf://user/twins/{file}" for file in hub.repos["user/twins"].files]
    assert run("pull", *names, "-q").returncode == 0
    assert run("list", "twins", "-q").stdout.split() == names
    vague = run("rm", "user/twins:Q4_K_M", "-y")
    assert vague.returncode == 2 and names[0] in vague.stderr
    assert run("rm", names[0], "-y").returncode == 0
    assert run("list", "twins", "-q").stdout == f"{names[1]}\n"
    for name in ("user/twins:Q4_K_M", "user/twins"):  # not silently the other one
        assert run("pull", name, "--offline").returncode == run("rm", name, "-y").returncode == 3
    assert run("pull", "user/twins:Q4_K_M").stdout.endswith("/a-Q4_K_M.gguf\n")
    assert run("list", "twins", "-q").stdout.split() == ["user/twins:Q4_K_M", names[1]]
    assert run("rm", names[1], "-y").returncode == 0
    assert run("list", "twins", "-q").stdout == "user/twins:Q4_K_M\n"


def test_rm_asks_on_a_terminal(run: Run, env: dict[str, str]) -> None:
    """Nothing but y or yes removes."""
    run("pull", "pet", "-q")
    for answer, there in (("\n", True), ("y\n", False)):
        with Terminal("rm", "pet", env=env) as terminal:
            assert f"pet:small:Q4_K_M  {size(len(SMALL))}" in terminal.wait_for("Remove? [y/N]")
            terminal.type(answer)
            assert terminal.wait() == 0
        assert ("pet:small:Q4_K_M" in listed(run)) is there


def test_rm_partials(run: Run, tmp_path: Path) -> None:
    run("pull", "pet", "-q")
    (blob,) = blobs(tmp_path)
    blob.with_name("1" * 64 + ".partial").write_bytes(b"x" * 1000)
    done = run("rm", "--partials", "-y", "--json")
    assert json.loads(done.stdout)["freed_bytes"] == 1000
    assert blobs(tmp_path) == [blob]
    assert run("rm").returncode == 2


# -- verify and import ---


def test_verify_finds_what_is_damaged(run: Run, tmp_path: Path) -> None:
    """One bit: exit 6, the file is named and set aside, and a pull brings it anew."""
    run("pull", "pet", "user/odd", "-q")
    good = run("verify", "--all")
    assert good.returncode == 0 and [line.split()[0] for line in good.stdout.splitlines()[1:]] == ["ok", "ok"]
    run("pull", "pet:Q8_0", "-q")
    blob = Path(listed(run)["pet:small:Q8_0"]["path"]).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    bad = run("verify", "pet")
    assert bad.returncode == 6 and "llmrun pull pet:small:Q8_0" in bad.stderr
    assert "damaged  pet:small:Q8_0" in bad.stdout and "ok       pet:small:Q4_K_M" in bad.stdout
    assert [row["state"] for row in listed(run).values()].count("damaged") == 1
    assert run("pull", "pet:Q8_0", "-q").returncode == 0
    (row,) = json.loads(run("verify", "pet:Q8_0", "--json").stdout)
    assert row["verdict"] == "ok"
    assert run("verify").returncode == run("verify", "pet", "--all").returncode == 2


def test_verify_misses_a_part(run: Run) -> None:
    """A split model without one of its parts is not whole: exit 6, and the part is named."""
    first = Path(run("pull", "user/big", "-q").stdout.rstrip("\n"))
    gone = first.with_name("big-Q4_K_M-00002-of-00003.gguf")
    gone.unlink()
    done = run("verify", "user/big")
    assert done.returncode == 6, done.stdout
    assert "1 of 3 files is missing" in done.stderr and "try: llmrun pull user/big:Q4_K_M" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["VERDICT", "ok", "missing", "ok"]


def test_import_links_and_copies(run: Run, tmp_path: Path) -> None:
    """A link leads to the file and removing it leaves the file; a copy stands by itself and can be verified."""
    file = tmp_path / "mine.gguf"
    file.write_bytes(SMALL)
    assert run("import", str(file)).stdout == "local/mine\n"
    assert f"link to {file}" in run("list").stdout
    copied = json.loads(run("import", str(file), "--copy", "--name", "Twin", "--json").stdout)
    assert copied["name"] == "local/twin"
    assert run("import", str(file)).returncode == 2
    assert run("rm", "-y", "local/mine", "local/twin").returncode == 0
    assert file.exists()
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    page = run("import", str(tmp_path / "page.gguf"))
    assert page.returncode == 8 and "HTML" in page.stderr
    assert run("import", str(tmp_path / "none.gguf")).returncode == 4
    missing = run("show", "local/none")
    assert missing.returncode == 3 and "no imported model" in missing.stderr


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("GLM-imatrix-Q4_K_M.gguf", "local/glm-imatrix-q4_k_m"),
        ("mtp-mine.gguf", "local/mtp-mine"),
        ("X.GGUF", "local/x"),
        ("sha256-0a1b", "local/sha256-0a1b"),
        ("模型.gguf", "local/model-c98e118e"),
        ("模型-Q8_0.gguf", "local/model-e7b739df-q8_0"),
    ],
)
def test_import_takes_what_run_takes(run: Run, tmp_path: Path, file: str, name: str) -> None:
    """No guess is made of a file that was named; the name that it gets is one that can be typed."""
    (tmp_path / file).write_bytes(SMALL)
    assert run("import", f"./{file}", "--copy", cwd=tmp_path).stdout == f"{name}\n"
    assert list(listed(run)) == ["tiny", name]
    assert run("verify", name).returncode == run("show", name).returncode == 0
    assert run("import", f"./{file}", "--copy", cwd=tmp_path).returncode == 2
    assert run("rm", "-y", name).returncode == 0
    assert list(listed(run)) == ["tiny"]


def test_splits_are_checked_as_a_whole(run: Run, hub: Hub, tmp_path: Path) -> None:
    """At import and at pull: a part under another name, parts that are swapped, cut, or of another model."""
    parts = in_three(LARGE, tmp_path)
    names, (first, second, third) = list(parts), parts.values()
    (tmp_path / "other").mkdir()
    other = in_three(tiny_gguf(5_000_000, seed=9), tmp_path / "other")
    wrong = {
        "swapped": ([first, third, second], "says that it is part 3 of 3, its name says 2 of 3"),
        "cut": ([first, second, third[:500]], "cut short"),
        "twice": ([first, second, other[names[1]]], "says that it is part 2 of 3"),
        "mixed": ([first, second, other[names[2]]], "must be"),
    }
    for where, (contents, said) in wrong.items():
        (tmp_path / where).mkdir()
        for name, content in zip(names, contents, strict=True):
            (tmp_path / where / name).write_bytes(content)
        done = run("import", str(tmp_path / where / names[1]), "--name", where)
        assert (done.returncode, said in done.stderr) == (8, True), (where, done.stderr)
        hub.add(f"user/{where}", dict(zip(names, contents, strict=True)))
        done = run("pull", f"user/{where}")
        assert (done.returncode, said in done.stderr) == (8, True), (where, done.stderr)
    (tmp_path / "renamed.part1of3.gguf").write_bytes(first)
    hub.add("user/renamed", {"M-Q4_K_M.part1of3.gguf": first, "M-Q4_K_M.part2of3.gguf": second})
    for done in (
        run("import", str(tmp_path / "renamed.part1of3.gguf"), "--copy"),
        run("run", str(tmp_path / "renamed.part1of3.gguf"), "hello"),
        run("pull", "user/renamed"),
    ):
        assert done.returncode == 8 and "is part 1 of 3 of a split model" in done.stderr
        assert "-00001-of-00003.gguf" in done.stderr
    assert list(listed(run)) == ["tiny"]


def test_two_folders_of_one_repository(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Another tool's folder in another case does not hide the model, whichever of the two was typed."""
    hub.add("Acme/Story-GGUF", {"S-Q8_0.gguf": SMALL})
    assert run("pull", "Acme/Story-GGUF").returncode == 0
    config = tmp_path / "hf" / "hub" / "models--acme--story-gguf" / "snapshots" / ("a" * 40) / "config.json"
    config.parent.mkdir(parents=True)
    config.write_text("{}")
    offline = {"HF_HUB_OFFLINE": "1"}
    for name in ("acme/story-gguf", "Acme/Story-GGUF:Q8_0", "ACME/STORY-GGUF"):
        assert run("verify", name, env=offline).returncode == 0
        assert run("pull", name, "-q", env=offline).returncode == 0
    assert run("rm", "-y", "acme/story-gguf:q8_0").stdout == "Acme/Story-GGUF:Q8_0\n"
    assert config.exists()


def test_models_that_write_no_text(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Refused before they are loaded, with what they are; embedding models are pulled, and it is said."""
    embedding = tiny_gguf(600_000, extra={"llama.pooling_type": 3})
    (tmp_path / "e.gguf").write_bytes(embedding)
    for words in (("run", "e.gguf", "hello"), ("chat", "e.gguf"), ("bench", "e.gguf", "-n", "4", "-p", "4")):
        done = run(*words, cwd=tmp_path, input="")
        assert done.returncode == 8 and "is an embedding model: it writes no text" in done.stderr
    assert run("bench", "e.gguf", "-n", "0", "-p", "4", "-r", "1", cwd=tmp_path).returncode == 0  # prefill it can do
    hub.add("u/kinds", {"m-Q8_0.gguf": embedding, "m-Q6_K.gguf": tiny_gguf(600_000, extra={"llama.pooling_type": 4})})
    done = run("pull", "u/kinds:Q8_0")
    assert done.returncode == 0 and "u/kinds:Q8_0 is an embedding model" in done.stderr
    done = run("pull", "u/kinds:Q6_K")
    assert done.returncode == 8 and "this is a reranker or classifier: it writes no text" in done.stderr
    assert list(listed(run)) == ["tiny", "u/kinds:Q8_0"]


def test_what_goes_with_a_model_is_taken_only_by_its_file(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Draft heads by path; an adapter whose name tells nothing by its header, read by range."""
    adapter = tiny_gguf(600_000, name="adapter").replace(b"general.name", b"general.type")
    hub.add("u/adapted", {"a-Q8_0.gguf": adapter, "model-Q8_0.gguf": LARGE})
    assert run("pull", "u/adapted").stdout.endswith("/model-Q8_0.gguf\n")
    refused = run("pull", "hf://u/adapted/a-Q8_0.gguf")
    assert refused.returncode == 8 and "this is a LoRA adapter" in refused.stderr
    assert run("rm", "-y", "u/adapted").returncode == 0
    split = {f"BF16/{name.replace('Q4_K_M', 'BF16')}": part for name, part in in_three(LARGE, tmp_path).items()}
    hub.add("u/gem", {**split, "MTP/g-F16-MTP.gguf": SMALL, "MTP/g-BF16-MTP.gguf": SMALL, "mmproj-F16.gguf": SMALL})
    done = run("pull", "u/gem:BF16", "--dry-run", "--json")
    assert len(json.loads(done.stdout)[0]["files"]) == 3
    done = run("pull", "u/gem:F16")
    assert done.returncode == 4 and "no F16; it has BF16 (" in done.stderr and ", F16" not in done.stderr
    named = "hf://u/gem/MTP/g-F16-MTP.gguf"
    assert run("pull", named, "-q").returncode == 0
    assert list(listed(run)) == ["tiny", named]
    assert run("pull", "u/gem:F16", "--offline").returncode == 3
    assert run("rm", "-y", named).returncode == 0


# -- search ---


def test_search(run: Run) -> None:
    done = run("search", "pet")
    assert done.stdout.splitlines()[1].split()[0] == "user/pet-GGUF"
    assert f"Q4_K_M {size(len(SMALL))}, Q8_0 {size(len(LARGE))}" in done.stdout
    (hit,) = json.loads(run("search", "user", "--limit", "1", "--json").stdout)
    assert hit["offers"]
    none = run("search", "nothing-like-it")
    assert (none.returncode, none.stdout) == (0, "") and "nothing-like-it" in none.stderr


def test_hub_away(run: Run) -> None:
    """A hub that does not answer is exit 5, in one line."""
    for command in (("pull", "pet"), ("show", "pet"), ("search", "pet")):
        done = run(*command, env={"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_ETAG_TIMEOUT": "1"})
        assert done.returncode == 5, done.stderr


# -- small parts ---


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"),
        (61, "1 minute ago"),
        (7200, "2 hours ago"),
        (90_000, "yesterday"),
        (20 * 86_400, "2 weeks ago"),
        (200 * 86_400, "6 months ago"),
        (900 * 86_400, "2 years ago"),
    ],
)
def test_ago(seconds: float, words: str) -> None:
    assert ago(seconds) == words


def test_tables_align_and_fit() -> None:
    """Numbers to the right; a flexible column goes on below itself; no control character gets out."""
    columns = ("A", ">N", "TEXT…")
    rows = [["x", "1", "one two three four five six seven"], ["漢字", "100", "a\x1b[31mb\nc"]]
    made = lines(columns, rows, width=35)
    assert made == [
        "A       N  TEXT",
        "x       1  one two three four five",
        "           six seven",
        "漢字  100  a␛[31mb c",
    ]
    assert lines(columns, rows[:1], width=24)[1:] == ["x  1", "    one two three four five", "    six seven"]
    assert len(lines(columns, rows)) == 3
    assert lines(columns, []) == []


def test_tables_on_a_narrow_terminal() -> None:
    """Where the columns don't fit beside each other, a value has a line, and no word is cut."""
    columns = ("NAME", ">SIZE", "WHERE…")
    rows = [["a-name-of-twenty-two-1", "1,000 MiB", "in the hub cache"], ["b", "2 GiB", ""]]
    assert lines(columns, rows, width=33)[0].startswith("NAME    ")
    assert lines(columns, rows, width=32) == [
        "NAME   a-name-of-twenty-two-1",
        "SIZE   1,000 MiB",
        "WHERE  in the hub cache",
        "",
        "NAME   b",
        "SIZE   2 GiB",
    ]


def test_json_is_harmless_and_whole(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """What a terminal would obey is an escape in every document, so that nothing has to be replaced."""
    text = "".join(map(chr, [*range(0xA1), 0x61C, 0x200E, 0x2028, 0x2029, 0x202E, 0x2066, 0xD800, 0x4E00, 0x1F600]))
    screen.out_json({text: [text]})
    shown = capfdbinary.readouterr().out.decode()
    assert sanitize(shown) == shown and "\u4e00\U0001f600" in shown
    assert json.loads(shown) == {text: [text]}


def test_copy_needs_room(run: Run, tmp_path: Path) -> None:
    """A folder that can't be written is exit 7."""
    file = tmp_path / "mine.gguf"
    shutil.copyfile(Path(__file__), tmp_path / "home-is-a-file")
    file.write_bytes(SMALL)
    done = run("import", str(file), env={"LLMRUN_HOME": str(tmp_path / "home-is-a-file")})
    assert done.returncode == 7, done.stderr


# -- outdated, update ---


def test_newer_on_the_hub(run: Run, hub: Hub) -> None:
    """By the file and not by the commit: one that only another file changed for is up to date."""
    hub.add("user/fresh", {"a-Q4_K_M.gguf": SMALL, "b-Q8_0.gguf": LARGE})
    hub.add("user/lost", {"a-Q4_K_M.gguf": SMALL})
    for name in ("user/fresh:Q4_K_M", "user/fresh:Q8_0", "user/lost:Q4_K_M"):
        assert run("pull", name, "-q").returncode == 0
    hub.add("user/fresh", {"a-Q4_K_M.gguf": tiny_gguf(600_000, seed=3), "b-Q8_0.gguf": LARGE}, commit="b" * 40)
    hub.add("user/lost", {"other-Q4_K_M.gguf": SMALL}, commit="c" * 40)
    rows = {row["name"]: row for row in json.loads(run("outdated", "--json").stdout)}
    states = {name: (row["state"], row["fetch_bytes"] > 0) for name, row in rows.items()}
    assert states == {
        "user/fresh:Q4_K_M": ("changed", True),
        "user/fresh:Q8_0": ("current", False),
        "user/lost:Q4_K_M": ("gone", False),
    }
    shown = run("outdated").stdout
    assert "newer: " in shown and "up to date" in shown and "gone from the hub" in shown and "bbbbbbbb" in shown
    done = run("update")
    assert done.returncode == 0 and "user/fresh:Q4_K_M is that of bbbbbbbb now" in done.stderr
    assert Path(done.stdout.rstrip("\n")).read_bytes() == tiny_gguf(600_000, seed=3)
    again = run("update", "user/fresh:Q4_K_M")
    assert again.returncode == 0 and again.stdout == "" and "every model is as the hub has it" in again.stderr


def test_outdated_without_a_hub(run: Run) -> None:
    run("pull", "user/odd", "-q")
    done = run("outdated", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.returncode == 5 and "127.0.0.1" in done.stderr
    assert run("outdated", "--json", env={"HF_HOME": "/nowhere-at-all", "HF_HUB_CACHE": ""}).stdout.strip() == "[]"
