"""quantize: llama.cpp's own quantizer in a child; the result is whole, named, and says where it came from."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal
from waiting import HANGS_S, children_of, until, until_gone

from llmrun.engine.jobs.quantize import FILE_TYPE_NUMBERS, Quantizer, Recipe, level_of
from llmrun.errors import BadModel, EngineCrashed, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.models import quants
from llmrun.models.resolve import open_whole

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro shape in F16: 2.8 MB."""
    path = tmp_path_factory.mktemp("source") / "micro-F16.gguf"
    synth.write(path, synth.SHAPES["micro"], "F16")
    return path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough to be interrupted: seconds at any K-quant with one thread."""
    path = tmp_path_factory.mktemp("source") / "slow.gguf"
    synth.write(path, synth.Shape(4, 1024, 4096, 16, 4, 512, n_ctx_train=512), "F16")
    return path


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    names = {"HF_HOME": "hf", "LLMRUN_HOME": "llmrun", "LLMRUN_CONFIG_DIR": "config"}
    return {**{name: str(tmp_path / folder) for name, folder in names.items()}, "HF_HUB_OFFLINE": "1"}


@pytest.fixture
def run(llmrun: Run, env: dict[str, str]) -> Run:
    def call(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        done = llmrun(*map(str, arguments), **{**options, "env": {**env, **options.get("env", {})}})
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


def quantizer(path: Path, level: str, **recipe: Any) -> Quantizer:
    first, header = open_whole(path)
    return Quantizer(first, header, Recipe(level, n_threads=1, **recipe))


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# -- the command ---


def test_the_new_file_is_a_model_like_any_other(run: Run, source: Path, tmp_path: Path) -> None:
    """It is listed, shown with its origin, verified, run, and removed by the name that was printed."""
    done = run("quantize", source, "q4_k_m", "-t", "1")
    assert (done.returncode, done.stdout) == (0, "local/micro-q4_k_m\n"), done.stderr
    (row,) = [row for row in json.loads(run("list", "--json").stdout) if row["name"] == "local/micro-q4_k_m"]
    assert (row["quant"], row["state"], Path(row["path"]).is_symlink()) == ("Q4_K_M", "complete", False)
    facts = json.loads(run("show", "local/micro-q4_k_m", "--json").stdout)
    assert facts["quantized_by"].startswith("llmrun ") and facts["quantized_from"] == source.name
    assert facts["quantized_from_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert run("verify", "local/micro-q4_k_m").stdout.splitlines()[1].startswith("ok ")
    said = run("run", "local/micro-q4_k_m", "hello", "-n", "2", "-t", "1", "--json")
    assert json.loads(said.stdout)["model"]["quantization"] == "Q4_K_M"
    again = run("quantize", source, "Q4_K_M")
    assert again.returncode == 2 and "exists already" in again.stderr
    assert run("rm", "-y", "local/micro-q4_k_m").returncode == 0
    assert left_in(tmp_path / "llmrun" / "models") == []


def test_into_a_file(run: Run, source: Path, tmp_path: Path) -> None:
    """--output writes there and nowhere else, never over something; JSON has the sizes."""
    target = tmp_path / "out.gguf"
    done = run("quantize", source, "Q8_0", "-o", target, "--json", "-t", "1")
    document = json.loads(done.stdout)
    assert document["bytes"] == target.stat().st_size and document["path"] == str(target)
    # Two 16-bit norms aside, 34 bytes hold 32 weights.
    assert 8.5 < document["bits_per_weight"] < 9.2
    assert open_header(target).quantization_label == "Q8_0"
    before = target.read_bytes()
    assert run("quantize", source, "Q4_0", "-o", target).returncode == 2
    assert target.read_bytes() == before
    assert run("quantize", source, "Q4_0", "-o", tmp_path / "no" / "x.gguf").returncode == 2
    assert left_in(tmp_path / "llmrun" / "models") == []


def test_dry_run_tells_the_size_exactly(run: Run, source: Path, tmp_path: Path) -> None:
    """llama.cpp's own plan: no further from the real file than the rounding and the room for our keys."""
    planned = json.loads(run("quantize", source, "Q5_K_S", "--dry-run", "--json").stdout)["bytes"]
    target = tmp_path / "out.gguf"
    assert run("quantize", source, "Q5_K_S", "-o", target, "-q").stderr == ""
    assert 0 <= planned - target.stat().st_size < 15_000


def test_warns_of_a_source_that_is_quantized(run: Run) -> None:
    done = run("quantize", "tiny", "Q4_0", "--dry-run")
    assert done.returncode == 0 and "tiny is Q8_0 already" in done.stderr
    assert "tiny-q4_0" in done.stdout


@pytest.mark.parametrize("level", ["Q4KK", "42", "NVFP4", "Ω"])
def test_bad_level(run: Run, source: Path, level: str) -> None:
    """Exit 2, with levels that may have been meant."""
    done = run("quantize", source, level)
    assert done.returncode == 2 and "Q4_K_M" in done.stderr


def test_bad_name(run: Run, source: Path) -> None:
    """A name that would lead out of the store, or that no model can have, is refused before the work."""
    for name in ("../x", ".x", "a b", ""):
        assert run("quantize", source, "Q8_0", "--name", name or "/").returncode == 2


def test_levels_without_an_importance_matrix(run: Run, source: Path) -> None:
    done = run("quantize", source, "IQ2_XS")
    assert done.returncode == 2 and "importance matrix" in done.stderr


def test_what_is_no_model(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "page.gguf"
    page.write_text("<html>")
    assert run("quantize", page, "Q8_0").returncode == 8
    assert run("quantize", tmp_path / "none.gguf", "Q8_0").returncode == 4


def test_help_has_the_table(run: Run) -> None:
    """Every level with bits, size and use, one per line, at any width; without a level, the same for this model."""
    with Terminal("quantize", "--help", columns=60, lines=99) as terminal:
        assert terminal.wait() == 0
        lines = terminal.raw.decode().splitlines()
    (row,) = [line for line in lines if line.split()[:1] == ["Q4_K_M"]]
    assert row.split()[1:4] == ["4.89", "~4.58", "GiB"] and row.endswith(quants.LEVELS["Q4_K_M"].good_for)
    documents = json.loads(run("quantize", "tiny", "--json").stdout)
    assert {d["level"] for d in documents} == set(FILE_TYPE_NUMBERS)


def test_the_bar_and_ctrl_c(env: dict[str, str], slow: Path, tmp_path: Path) -> None:
    """On a terminal a bar; Ctrl-C ends it with 130, nothing left and the cursor back. How soon:
    scripts/fault_engine.py."""
    with Terminal("quantize", str(slow), "Q4_K_M", "-t", "1", env=env, columns=120) as terminal:
        terminal.wait_for("quantizing to Q4_K_M ")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert not terminal.cursor_hidden and "Traceback" not in terminal.text
    assert left_in(tmp_path / "llmrun" / "models") == []


def test_kill_leaves_what_rm_frees(run: Run, env: dict[str, str], slow: Path, tmp_path: Path) -> None:
    """kill -9 of the command: its child goes with it, no model appears, and `rm --partials` frees the rest."""
    command = [sys.executable, "-m", "llmrun", "quantize", str(slow), "Q4_K_M", "-t", "1", "-q"]
    store = tmp_path / "llmrun" / "models"
    with subprocess.Popen(command, env={**os.environ, **env}) as working:
        until(lambda: any(path.stat().st_size for path in store.rglob("*.partial")), "a byte")
        children = children_of(working.pid)
        assert children and working.poll() is None
        working.kill()
    until_gone(*children)
    assert left_in(store) != []
    rows = json.loads(run("list", "--json").stdout)
    assert [(row["name"], row["state"]) for row in rows] == [("tiny", "complete"), ("local/slow-q4_k_m", "partial")]
    assert json.loads(run("rm", "--partials", "-y", "--json").stdout)["freed_bytes"] > 0
    assert left_in(store) == []


def test_two_at_once(run: Run, env: dict[str, str], slow: Path, tmp_path: Path) -> None:
    """Of two that make the same model one has it, whole; the other ends with 2 and takes nothing away."""
    command = [sys.executable, "-m", "llmrun", "quantize", str(slow), "Q8_0", "-t", "1", "-q"]
    both = [subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = {working.communicate(timeout=HANGS_S)[1]: working.returncode for working in both}
    assert sorted(working.returncode for working in both) == [0, 2], said
    assert any("local/slow-q8_0" in text for text, code in said.items() if code == 2), said
    assert run("verify", "local/slow-q8_0").stdout.splitlines()[1].startswith("ok ")
    assert left_in(tmp_path / "llmrun" / "models") == [".import.json", "slow-q8_0.gguf"]


def test_another_comes_first(run: Run, env: dict[str, str], slow: Path, source: Path, tmp_path: Path) -> None:
    """A model that gets the name while the quantizer works keeps it, and a second quantizer does not even begin."""
    command = [sys.executable, "-m", "llmrun", "quantize", str(slow), "Q4_K_M", "-t", "1", "--name", "x", "-q"]
    store = tmp_path / "llmrun" / "models"
    with subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as working:
        until(lambda: [*store.rglob("*.partial")], "a beginning")
        (child,) = children_of(working.pid)
        os.kill(child, signal.SIGSTOP)  # until the others have had their turn
        second = run("quantize", source, "Q8_0", "--name", "x")
        assert second.returncode == 2 and f"another process ({working.pid}) is making local/x" in second.stderr
        assert run("import", source, "--copy", "--name", "x").returncode == 0
        assert working.poll() is None
        os.kill(child, signal.SIGCONT)
        assert "meanwhile" in working.communicate(timeout=HANGS_S)[1] and working.returncode == 2
    assert (store / "x" / source.name).read_bytes() == source.read_bytes()
    assert left_in(store) == [".import.json", source.name]


def test_what_was_killed_before_its_last_step(run: Run, source: Path, tmp_path: Path) -> None:
    """A finished file whose process is no more: listed, in nobody's way, and freed by its name."""
    with subprocess.Popen(["true"]) as gone:
        pass
    store = tmp_path / "llmrun" / "models"
    workshop = store / f".micro-q8_0.{gone.pid}.quantizing"
    workshop.mkdir(parents=True)
    (workshop / "micro-q8_0.gguf").write_bytes(b"x" * 1000)
    rows = {row["name"]: row for row in json.loads(run("list", "--json").stdout)}
    assert (rows["local/micro-q8_0"]["state"], rows["local/micro-q8_0"]["size"]) == ("partial", 1000)
    assert "of a quantizer that was killed" in run("list").stdout
    assert run("quantize", source, "Q8_0", "-t", "1", "-q").returncode == 0
    assert json.loads(run("rm", "--partials", "-y", "--json").stdout)["freed_bytes"] == 1000
    assert left_in(store) == [".import.json", "micro-q8_0.gguf"]
    workshop.mkdir()
    (workshop / "micro-q8_0.gguf").write_bytes(b"x" * 1000)
    assert json.loads(run("rm", "local/micro-q8_0", "-y", "--json").stdout)["removed"] == ["local/micro-q8_0"]
    assert json.loads(run("rm", "local/micro-q8_0", "-y", "--json").stdout)["freed_bytes"] == 1000
    assert left_in(store) == []


def test_says_which_file_of_the_hub_it_came_from(run: Run, source: Path, tmp_path: Path) -> None:
    """Repository and commit are in the metadata, and JSON has a name that means exactly the source."""
    sha256, commit = hashlib.sha256(source.read_bytes()).hexdigest(), "c" * 40
    folder = tmp_path / "hf" / "hub" / "models--user--micro"
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / sha256).write_bytes(source.read_bytes())
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "micro-F16.gguf").symlink_to(f"../../blobs/{sha256}")
    done = run("quantize", "user/micro", "Q8_0", "-t", "1", "--json")
    document = json.loads(done.stdout)
    assert document["source"] == "user/micro:F16" and "user/micro is F16: there is no Q4_K_M" in done.stderr
    assert (document["source_repo"], document["source_commit"]) == ("user/micro", commit)
    metadata = open_header(document["path"]).metadata
    assert metadata["llmrun.quantize.source_repo"] == "user/micro"
    assert metadata["llmrun.quantize.source_commit"] == commit
    assert metadata["llmrun.quantize.source_sha256"] == sha256
    facts = json.loads(run("show", document["name"], "--json").stdout)
    assert (facts["quantized_from_repository"], facts["quantized_from_commit"]) == ("user/micro", commit)


# -- the engine's part ---


def test_levels_and_their_aliases() -> None:
    assert level_of("q4_k_m") == level_of("Q4_K") == level_of("q4km") == "Q4_K_M"
    assert level_of("f16") == "F16" and level_of("Q8") == "Q8_0"
    with pytest.raises(UsageError, match="Q5_K_M"):
        level_of("Q5_K_X_M")


def test_pure_and_leave_output_tensor(source: Path, tmp_path: Path) -> None:
    """The options are llama-quantize's: one type for all, or an output matrix that stays as it is."""

    def types(**recipe: Any) -> dict[str, str]:
        target = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        with quantizer(source, "Q4_K_M", **recipe) as q:
            return {tensor.name: tensor.type.name for tensor in q.run(target).tensors}

    mixed, pure, kept = types(), types(pure=True), types(keep_output=True)
    assert mixed["output.weight"] == "Q6_K" and mixed["blk.0.attn_q.weight"] == "Q4_K"
    assert {kind for name, kind in pure.items() if "norm" not in name} == {"Q4_K"}
    assert kept["output.weight"] == "F16"


def test_importance_matrix(source: Path, tmp_path: Path) -> None:
    """One in llama-imatrix's form is used: it makes a low level possible and changes the bytes of a higher one."""
    import gguf
    import numpy as np

    matrix = tmp_path / "imatrix.gguf"
    writer = gguf.GGUFWriter(matrix, "imatrix")
    rng = np.random.default_rng(0)
    for tensor in open_header(source).tensors:
        if len(tensor.shape) == 2:
            sums = rng.random(tensor.shape[0], dtype=np.float32) * 100
            writer.add_tensor(f"{tensor.name}.in_sum2", sums.reshape(1, -1))
            writer.add_tensor(f"{tensor.name}.counts", np.full((1, 1), 10, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with quantizer(source, "IQ2_XS", imatrix=matrix) as q:
        assert q.run(tmp_path / "low.gguf").quantization_label == "IQ2_XS"
    made = []
    for name, recipe in (("plain", {}), ("weighted", {"imatrix": matrix})):
        with quantizer(source, "Q4_0", **recipe) as q:
            q.run(tmp_path / f"{name}.gguf")
        made.append((tmp_path / f"{name}.gguf").read_bytes())
    assert len(made[0]) == len(made[1]) and made[0] != made[1]
    with pytest.raises(UsageError, match="importance matrix"), quantizer(source, "Q4_0", imatrix=source) as q:
        q.run(tmp_path / "never.gguf")


def test_progress_counts_to_the_end(source: Path, tmp_path: Path) -> None:
    """Bytes of the source, from nothing to all, never backwards."""
    seen: list[tuple[int, int]] = []
    with quantizer(source, "Q8_0") as q:
        q.run(tmp_path / "out.gguf", on_progress=lambda done, total: seen.append((done, total)))
    total = open_header(source).weight_bytes
    assert seen[0] == (0, total) and seen[-1] == (total, total) and seen == sorted(seen)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV])
def test_death_of_the_child(slow: Path, tmp_path: Path, sent: signal.Signals) -> None:
    """Exit 9, the signal's name, and no file."""
    with quantizer(slow, "Q4_K_M") as q:

        def kill(done: int, _total: int) -> None:
            if done:
                os.kill(q.pid, sent)

        with pytest.raises(EngineCrashed, match=sent.name):
            q.run(tmp_path / "out.gguf", on_progress=kill)
    assert left_in(tmp_path) == []


def test_file_size_limit(source: Path, tmp_path: Path) -> None:
    """A disk that takes no more: exit 7 and no file, although llama.cpp itself would not say."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)); "
        "from llmrun.__main__ import main; sys.argv[0] = 'llmrun'; main()"
    )
    command = [sys.executable, "-c", code, "quantize", str(source), "Q8_0", "-t", "1", "-o", str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 7, done.stderr
    assert "Traceback" not in done.stderr and left_in(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 400_000


def test_no_space_is_seen_before(source: Path, tmp_path: Path) -> None:
    """On a disk of 600 KiB: exit 7 before anything is written, because the size is known."""
    mount = f"mount -t tmpfs -o size=600k none {tmp_path} &&"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} true"], capture_output=True).returncode:
        pytest.skip("no file systems may be mounted here")
    command = (
        f"{mount} {shlex.quote(sys.executable)} -m llmrun quantize {source} Q8_0 -q -o {tmp_path}/x.gguf; code=$?; "
    )
    whole = ["unshare", "-rm", "sh", "-c", f"{command} ls -A {tmp_path}; exit $code"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=HANGS_S)
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    assert "x.gguf needs 1.49 MiB, 600 KiB are free" in done.stderr


def test_rows_that_fit_no_block(tmp_path: Path) -> None:
    """Rows of 320 elements are no whole blocks of 256: those tensors get another type, and it is said how many."""
    path = tmp_path / "odd.gguf"
    synth.write(path, synth.Shape(1, 320, 640, 5, 5, 512, n_ctx_train=512), "F16")
    with quantizer(path, "Q4_K_M") as q:
        assert q.plan().n_fallback > 0
        kinds = {tensor.type.name for tensor in q.run(tmp_path / "out.gguf").tensors}
    assert "Q5_0" in kinds


def test_a_split_source_becomes_one_file(run: Run, source: Path, tmp_path: Path) -> None:
    """Named by any of its parts, it gives the same tensors as the whole, and no part keys are left."""
    import gguf

    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(tmp_path / "micro.gguf", "llama", split_max_tensors=8)
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
    parts = sorted(tmp_path.glob("micro-*.gguf"))
    assert len(parts) == 3 and json.loads(run("show", parts[1], "--json").stdout)["files"] == 3
    made = []
    for number, path in enumerate((source, parts[1])):
        target = tmp_path / f"made-{number}.gguf"
        done = run("quantize", path, "Q4_0", "-t", "1", "-o", target, "-q")
        assert done.returncode == 0, done.stderr
        header = open_header(target)
        assert header.split_count == 1
        made.append(target.read_bytes()[header.data_offset :])
    assert made[0] == made[1]


def test_broken_weights_are_refused(source: Path, tmp_path: Path) -> None:
    """NaN in the source is no model to make another of."""
    path = tmp_path / "nan.gguf"
    header = open_header(source)
    tensor = header.tensor("blk.0.attn_q.weight")
    assert tensor is not None
    content = bytearray(source.read_bytes())
    at = header.data_offset + tensor.offset
    content[at : at + 2] = b"\xff\x7f"
    path.write_bytes(content)
    with quantizer(path, "Q8_0") as q, pytest.raises(BadModel):
        q.run(tmp_path / "out.gguf")
    assert left_in(tmp_path) == ["nan.gguf"]
