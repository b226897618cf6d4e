"""What is on disk: a store built by hand, without a hub or a network."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from filelock import FileLock
from hub_server import split_gguf, tiny_gguf

from llmrun import paths
from llmrun.errors import BadModel, DiskError, NotFound, UsageError
from llmrun.models import reference
from llmrun.models.reference import HubFile
from llmrun.models.store import importing, listing, remove, state, verify
from llmrun.models.store.layout import RepoFolder
from llmrun.models.store.verify import VerifyProgress

MODEL = tiny_gguf(400_000)
OTHER = tiny_gguf(500_000, seed=1)
COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "llmrun"))
    return tmp_path


def put(repo: str, file: str, content: bytes, *, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A file in the cache, as huggingface_hub leaves it. Returns the snapshot's link."""
    folder = RepoFolder.of(repo)
    blob = folder.blob(hashlib.sha256(content).hexdigest())
    pointer = folder.pointer(commit, file)
    for path in (blob.parent, pointer.parent, folder.path / "refs"):
        path.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    if ref is not None:
        (folder.path / "refs" / ref).write_text(commit)
    return pointer


def ref(repo: str, quant: str | None = None, file: str | None = None, revision: str | None = None) -> HubFile:
    return HubFile(repo, quant, file, revision, repo)


def on_disk(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def names() -> list[str]:
    return [model.name for model in listing.list_models()]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"HF_HOME": "~/somewhere"},
        {"HF_HOME": "/a", "HF_HUB_CACHE": "$HOME/b"},
        {"HUGGINGFACE_HUB_CACHE": "/c"},
        {"XDG_CACHE_HOME": "/d"},
    ],
    ids=lambda env: "+".join(env) or "none",
)
def test_cache_is_where_huggingface_hub_has_it(env: dict[str, str]) -> None:
    """The same folder from the same environment, without importing huggingface_hub."""
    code = (
        "from llmrun import paths; from llmrun.models.store import listing; here = str(paths.hub_cache())\n"
        "from huggingface_hub import constants; assert here == constants.HF_HUB_CACHE, (here, constants.HF_HUB_CACHE)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_", "XDG_"))}
    subprocess.run([sys.executable, "-c", code], env={**clean, **env}, check=True)


# --- list


def test_list(home: Path) -> None:
    """Name, quantization, size, parameters, parts, commit, last use: from the folders and the headers."""
    pointer = put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/one", "README.md", b"not a model")
    put("user/one", "mmproj-one-F16.gguf", OTHER)
    (model,) = listing.list_models()
    assert model.name == "user/one:Q8_0"
    assert (model.size, model.n_parts, model.commit, model.path) == (len(MODEL), 1, COMMIT, pointer)
    assert model.complete and model.architecture == "llama"
    assert model.n_params is not None and abs(4 * model.n_params - len(MODEL)) < 20_000
    before = time.time()
    listing.mark_used(model)
    (again,) = listing.list_models()
    assert again.last_used_s is not None and again.last_used_s >= before


def test_same_content_is_one_model() -> None:
    """The same blob in two snapshots is listed once, a changed one under the same name twice, a dangling link never."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/one", "one-Q8_0.gguf", MODEL, commit=OLDER, ref=None)
    put("user/one", "one-Q4_0.gguf", tiny_gguf(450_000)).resolve().unlink()
    (model,) = listing.list_models()
    assert (model.commit, len(model.links)) == (COMMIT, 2)
    assert listing.find(ref("user/one", revision=OLDER)) is not None
    put("user/one", "one-Q8_0.gguf", OTHER, commit="c" * 40, ref=None)
    assert len(listing.list_models()) == 2


def test_split_models_are_one_and_flagged_when_incomplete() -> None:
    """Parts are listed together; one that is missing makes the model incomplete, and `find` does not offer it."""
    parts = split_gguf(300_000, 3)
    for name, content in parts.items():
        put("user/big", name, content)
    (whole,) = listing.list_models()
    assert whole.complete and whole.size == sum(map(len, parts.values()))
    found = listing.find(ref("user/big", file=list(parts)[1]))
    assert found is not None and found.parts == whole.parts
    whole.parts[1].resolve().unlink()
    (cut,) = listing.list_models()
    assert not cut.complete and (len(cut.parts), cut.n_parts) == (2, 3)
    assert listing.find(ref("user/big")) is None


def test_leftovers_are_named() -> None:
    """Unfinished, set aside and nameless blobs are told apart."""
    pointer = put("user/one", "one-Q8_0.gguf", MODEL)
    folder = RepoFolder.of("user/one")
    for name in ("1" * 64 + ".partial", "2" * 64 + ".damaged", "3" * 64 + ".12ab.incomplete", "4" * 64):
        (folder.blobs / name).write_bytes(b"1234")
    state.pull_begins(folder.blob("1" * 64), "user/one", "one-Q4_0.gguf", 99)
    found = listing.list_leftovers()
    assert [item.kind for item in found] == ["partial", "damaged", "incomplete", "orphan"]
    assert (found[0].file, found[0].total, found[0].size) == ("one-Q4_0.gguf", 99, 4)
    with FileLock(str(folder.lock("1" * 64))):
        assert remove.remove_leftovers(found) == 12
    assert remove.remove_leftovers(listing.list_leftovers()) == 4
    assert names() == ["user/one:Q8_0"] and pointer.exists()


def test_headers_are_read_a_part_at_a_time(home: Path) -> None:
    """With no time at all some headers are read, others at the next call, until all are known. scripts/bench_list.py
    has how long a thousand take."""
    blob = home / "blob"
    blob.write_bytes(tiny_gguf(0))
    for i in range(40):
        folder = RepoFolder.of(f"user/model-{i:04}")
        name = f"{i:064x}"
        pointer = folder.pointer(COMMIT, "model-Q4_K_M.gguf")
        for path in (folder.blobs, pointer.parent):
            path.mkdir(parents=True)
        os.link(blob, folder.blob(name))
        pointer.symlink_to(f"../../blobs/{name}")
    known = [sum(model.n_params is not None for model in listing.list_models(header_budget_s=0)) for _ in range(4)]
    assert known == [16, 32, 40, 40]
    code = "import sys, llmrun.models.store.listing as s; s.list_models(); print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_state_is_only_a_memory(home: Path) -> None:
    """A damaged state file, or one that can't be written, costs nothing but what was remembered."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    assert listing.list_models()[0].n_params
    state.database().write_bytes(b"this is no database, but it is long enough to be taken for one" * 50)
    assert names() == ["user/one:Q8_0"]
    assert listing.list_models()[0].n_params
    state.database().unlink(missing_ok=True)
    state.database().mkdir()
    assert names() == ["user/one:Q8_0"]
    listing.mark_used(listing.list_models()[0])


# --- find


def test_find() -> None:
    """Nothing named: Q4_K_M, else the nearest that is here, in any case. One that was named: that or nothing."""
    put("User/Many", "many-Q8_0.gguf", tiny_gguf(700_000))
    put("User/Many", "many-Q5_K_M.gguf", OTHER)
    found = listing.find(ref("user/many"))
    assert found is not None and found.quant == "Q5_K_M"
    found = listing.find(ref("USER/MANY", "Q8_0"))
    assert found is not None and found.name == "User/Many:Q8_0"
    found = listing.find(ref("user/many", file="MANY-q8_0.gguf"))
    assert found is not None and found.quant == "Q8_0"
    assert listing.find(ref("user/many", "Q2_K")) is None
    assert listing.find(ref("user/none")) is None
    put("User/Many", "many-Q4_K_M.gguf", tiny_gguf(300_000))
    found = listing.find(ref("user/many"))
    assert found is not None and found.quant == "Q4_K_M"


def test_find_by_revision() -> None:
    """Without a revision the commit that a branch stands for; with one, that one or nothing."""
    put("user/one", "one-Q8_0.gguf", OTHER, commit=OLDER, ref="old")
    new = put("user/one", "one-Q8_0.gguf", MODEL)
    (RepoFolder.of("user/one").path / "refs" / "old").unlink()
    found = listing.find(ref("user/one"))
    assert found is not None and found.path == new
    found = listing.find(ref("user/one", revision=OLDER))
    assert found is not None and found.commit == OLDER
    found = listing.find(ref("user/one", revision="main"))
    assert found is not None and found.commit == COMMIT
    assert listing.find(ref("user/one", revision="gone")) is None


def test_named() -> None:
    """All that a name can mean, incomplete models too; a revision finds a model under any of its commits and branches;
    a level in a file's name comes before the header's, and every listed name finds its model."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/one", "one-Q8_0.gguf", MODEL, commit=OLDER, ref="old")
    put("user/one", "plain.gguf", OTHER)
    for name, content in list(split_gguf(300_000, 3).items())[:2]:
        put("user/one", name, content)

    def files(**how: str) -> list[str]:
        return sorted(model.file for model in listing.find_all(ref("user/ONE", **how)))

    everything = ["big-Q4_K_M-00001-of-00003.gguf", "one-Q8_0.gguf", "plain.gguf"]
    assert files() == everything
    assert files(revision="old") == files(revision=OLDER) == ["one-Q8_0.gguf"]
    assert files(revision="main") == files(revision=COMMIT) == everything
    assert files(quant="q8_0") == ["one-Q8_0.gguf"]
    assert files(quant="Q4_K_M") == everything[:1]
    plain = next(model for model in listing.list_models() if model.file == "plain.gguf")
    assert plain.quant == "F32" and files(quant="F32") == ["plain.gguf"]
    found = listing.find(ref("user/one", "F32"))
    assert found is not None and found.name == "hf://user/one/plain.gguf"
    for model in listing.list_models():
        typed = reference.parse(model.name)
        assert isinstance(typed, HubFile) and listing.find_all(typed) == [model]


def test_choice_says_why() -> None:
    """A reason where nobody named a level and it isn't the default; none otherwise."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    for quant, why in ((None, "there is no Q4_K_M; Q8_0 is all there is here"), ("Q8_0", "")):
        found = listing.choose(ref("user/one", quant))
        assert found is not None and found[1] == why
    put("user/one", "one-Q4_K_M.gguf", OTHER)
    found = listing.choose(ref("user/one"))
    assert found is not None and found[1] == ""


# --- remove


def test_remove_frees_what_it_says(home: Path) -> None:
    """The bytes freed are those gone from the disk; refs and empty folders go, at last the repository's."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/one", "sub/one-Q4_0.gguf", OTHER)
    small, large = listing.list_models()
    before = on_disk(home / "hf")
    freed = remove.remove_models([small])
    assert freed == len(MODEL) == before - on_disk(home / "hf")
    assert names() == ["user/one:Q4_0"]
    assert remove.remove_models([large]) == len(OTHER)
    assert not RepoFolder.of("user/one").path.exists()


def test_remove_keeps_what_others_need() -> None:
    """A blob with another name stays, as do other tools' files; all names of the model itself go."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/one", "one-Q8_0.gguf", MODEL, commit=OLDER, ref="old")
    put("user/one", "copy-Q8_0.gguf", MODEL, commit=OLDER, ref="old")
    readme = put("user/one", "README.md", b"read me")
    copy, one = sorted(listing.list_models(), key=lambda model: model.file)
    assert remove.remove_models([one]) == 0
    assert readme.exists() and copy.path.exists()
    assert remove.remove_models([copy]) == len(MODEL)
    assert readme.exists()
    folder = RepoFolder.of("user/one")
    assert folder.refs() == {"main": COMMIT}


def test_remove_never_leaves_the_cache(home: Path) -> None:
    """Links that lead outside are unlinked; what they point to is not touched."""
    victim = home / "victim-Q8_0.gguf"
    victim.write_bytes(MODEL)
    folder = RepoFolder.of("user/evil")
    direct, relative, through = (folder.pointer(COMMIT, f"{name}-Q8_0.gguf") for name in ("a", "b", "c"))
    direct.parent.mkdir(parents=True)
    folder.blobs.mkdir()
    direct.symlink_to(victim)
    relative.symlink_to(os.path.relpath(victim, relative.parent))
    (folder.blobs / ("5" * 64)).symlink_to(victim)
    through.symlink_to(f"../../blobs/{'5' * 64}")
    (home / "elsewhere" / "blobs").mkdir(parents=True)
    outside = home / "elsewhere" / "blobs" / ("6" * 64)
    outside.write_bytes(MODEL)
    folder.pointer(COMMIT, "d-Q8_0.gguf").symlink_to(outside)
    assert len(listing.list_models()) == 4
    assert remove.remove_models(listing.list_models()) == 0
    assert victim.read_bytes() == outside.read_bytes() == MODEL
    assert listing.list_models() == []


def test_remove_while_it_is_pulled() -> None:
    """Somebody holds the blob's lock: refused, and nothing is gone."""
    pointer = put("user/one", "one-Q8_0.gguf", MODEL)
    lock = RepoFolder.of("user/one").lock(pointer.resolve().name)
    lock.parent.mkdir(parents=True)
    with FileLock(str(lock)), pytest.raises(UsageError, match="being pulled"):
        remove.remove_models(listing.list_models())
    assert pointer.exists()


def test_blobs_shared_among_repositories(home: Path) -> None:
    """Where another tool shares a blob among repositories, its bytes go with the last of them."""
    payload = paths.hub_cache() / "blobs" / "ab" / ("ab" * 32)
    payload.parent.mkdir(parents=True)
    payload.write_bytes(MODEL)
    for repo in ("user/one", "user/two"):
        blob = put(repo, "m-Q8_0.gguf", MODEL).resolve()
        blob.unlink()
        blob.symlink_to(os.path.relpath(payload, blob.parent))
    one, two = listing.list_models()
    assert verify.verify_models([one])[0].ok
    assert remove.remove_models([one]) == 0
    assert payload.exists()
    assert remove.remove_models([two]) == len(MODEL)
    assert not payload.exists()


# --- verify


def test_verify_finds_every_flipped_byte() -> None:
    """One byte flipped in every stored blob: each is named and set aside, unseen from then on; sound ones stay."""
    sound = put("user/sound", "sound-Q8_0.gguf", MODEL)
    for i in range(10):
        blob = put(f"user/m{i}", "m-Q8_0.gguf", tiny_gguf(200_000, seed=i)).resolve()
        content = bytearray(blob.read_bytes())
        content[(i * 7919) % len(content)] ^= 1 << (i % 8)
        blob.write_bytes(content)
    events: list[VerifyProgress] = []
    verdicts = verify.verify_models(listing.list_models(), events.append)
    assert sum(verdict.ok is False for verdict in verdicts) == 10
    assert [verdict.model.repo for verdict in verdicts if verdict.ok] == ["user/sound"]
    assert all(verdict.set_aside and verdict.set_aside.exists() for verdict in verdicts if not verdict.ok)
    assert all("sha256" in verdict.reason for verdict in verdicts if not verdict.ok)
    assert names() == ["user/sound:Q8_0"] and sound.exists()
    assert {item.kind for item in listing.list_leftovers()} == {"damaged"}
    assert events[-1].done == events[-1].total
    assert listing.find(ref("user/m3")) is None


def test_verify_sets_aside_a_shared_payload() -> None:
    """A damaged blob that repositories share goes aside itself: no other tool can link to it again."""
    payload = paths.hub_cache() / "blobs" / "ab" / ("ab" * 32)
    payload.parent.mkdir(parents=True)
    blob = put("user/one", "m-Q8_0.gguf", MODEL).resolve()
    blob.unlink()
    blob.symlink_to(os.path.relpath(payload, blob.parent))
    payload.write_bytes(MODEL[:-1] + b"x")
    (verdict,) = verify.verify_models(listing.list_models())
    assert verdict.ok is False and verdict.set_aside is not None
    assert not payload.exists() and not blob.is_symlink()
    assert verdict.set_aside.read_bytes()[-1:] == b"x"


# --- import


@pytest.mark.parametrize("copy", [True, False])
def test_import(home: Path, copy: bool) -> None:
    """A local file becomes a model, found and listed like any other; removing a link leaves the user's file alone."""
    source = home / "My Model Q8_0.gguf"
    source.write_bytes(MODEL)
    model = importing.import_file(source, copy=copy)
    assert model.name == "local/my-model-q8_0"
    assert model.path.is_symlink() is not copy
    assert listing.list_models() == [listing.find(ref("local/My-Model-q8_0"))]
    assert [v.ok for v in verify.verify_models([model])] == [True if copy else None]
    assert [v.ok for v in verify.verify_models([model])] == [True]
    with pytest.raises(UsageError, match="exists already"):
        importing.import_file(source, copy=copy)
    assert remove.remove_models([model]) == (len(MODEL) if copy else 0)
    assert source.read_bytes() == MODEL
    assert listing.list_models() == [] and not list(paths.imported_models().iterdir())


def test_import_split(home: Path) -> None:
    """All parts come along, whichever is named; a missing one is refused."""
    parts = split_gguf(300_000, 2)
    for name, content in parts.items():
        (home / name).write_bytes(content)
    model = importing.import_file(home / list(parts)[1], copy=True, name="local/Big")
    assert model.name == "local/big" and model.n_parts == 2 and model.complete
    (home / next(iter(parts))).unlink()
    with pytest.raises(NotFound):
        importing.import_file(home / list(parts)[1], copy=True, name="other")


def test_import_refuses(home: Path) -> None:
    """No model, a name that leads elsewhere, a source that is not there: refused, and nothing is left behind."""
    page = home / "page.gguf"
    page.write_text("<html>sign in</html>")
    good = home / "good.gguf"
    good.write_bytes(MODEL)
    with pytest.raises(BadModel, match="HTML"):
        importing.import_file(page, copy=True)
    with pytest.raises(NotFound):
        importing.import_file(home / "none.gguf", copy=True)
    for name in ("../x", "a/b", "", ".hidden", "x" * 200):
        if name:
            with pytest.raises(UsageError):
                importing.import_file(good, copy=True, name=name)
    assert listing.list_models() == []


def test_verify_imported(home: Path) -> None:
    """A damaged copy is set aside; a damaged file behind a link is the user's: only our name for it goes."""
    source = home / "good.gguf"
    source.write_bytes(MODEL)
    copied = importing.import_file(source, copy=True, name="copied")
    linked = importing.import_file(source, copy=False, name="linked")
    assert verify.verify_models([linked])[0].ok is None
    assert json.loads((linked.path.parent / ".import.json").read_text())["from"] == [str(source)]
    source.write_bytes(MODEL[:-1] + b"x")
    copied.path.write_bytes(MODEL[:-1] + b"x")
    assert [verdict.ok for verdict in verify.verify_models([copied, linked])] == [False, False]
    assert source.exists()
    assert listing.list_models() == []
    (left,) = listing.list_leftovers()
    assert (left.kind, left.repo, left.size) == ("damaged", "local/copied", len(MODEL))
    source.write_bytes(MODEL)
    importing.import_file(source, copy=True, name="copied")
    importing.import_file(source, copy=False, name="linked")
    assert names() == ["local/copied", "local/linked"] and listing.list_leftovers() == []


def test_rest_of_an_import(home: Path) -> None:
    """A dangling link, a damaged part, a killed copy: listed, freed by `remove_leftovers`, replaced by an import; and
    removing a model takes its damaged parts along. What is not ours keeps its folder."""
    parts = split_gguf(300_000, 2)
    for name, content in parts.items():
        (home / name).write_bytes(content)
    source = home / "good.gguf"
    source.write_bytes(MODEL)
    linked = importing.import_file(source, copy=False, name="linked")
    source.unlink()
    split = importing.import_file(home / next(iter(parts)), copy=True, name="split")
    split.parts[1].write_bytes(b"x")
    assert [verdict.ok for verdict in verify.verify_models([split])] == [True, False]
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid, file in ((gone.pid, "a"), (os.getpid(), "b")):
        (paths.imported_models() / f".killed.{pid}").mkdir()
        (paths.imported_models() / f".killed.{pid}" / file).write_bytes(b"12345")
    found = {item.repo: (item.kind, item.size) for item in listing.list_leftovers()}
    assert found == {"local/killed": ("orphan", 5), "local/linked": ("damaged", 0), "local/split": ("damaged", 1)}
    (cut,) = listing.find_all(ref("local/split"))
    assert not cut.complete and [v.missing for v in verify.verify_models([cut])] == [False, True]
    importing.import_file(home / next(iter(parts)), copy=True, name="split")
    assert remove.remove_leftovers(listing.list_leftovers()) == 5
    assert not linked.path.parent.exists() and names() == ["local/split"]
    verify.verify_models(listing.list_models())
    split.parts[0].write_bytes(b"x")
    verify.verify_models(listing.list_models())
    assert remove.remove_models(listing.find_all(ref("local/split"))) == len(parts[split.parts[1].name]) + 1
    assert [path.name for path in paths.imported_models().iterdir()] == [f".killed.{os.getpid()}"]
    (paths.imported_models() / "mine").mkdir()
    (paths.imported_models() / "mine" / "thesis.txt").write_text("my thesis")
    source.write_bytes(MODEL)
    with pytest.raises(UsageError, match="exists already"):
        importing.import_file(source, copy=True, name="mine")


def test_import_link_leads_straight_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source named through a linked folder and ".." keeps its place when those change; its own name stays."""
    for name in ("real/sub", "here"):
        (home / name).mkdir(parents=True)
    (home / "here" / "way").symlink_to(home / "real" / "sub")
    (home / "real" / "good.gguf").write_bytes(MODEL)
    monkeypatch.chdir(home / "here")
    model = importing.import_file(Path("way/../good.gguf"), copy=False)
    assert model.path.readlink() == home / "real" / "good.gguf"


def test_verify_says_what_is_missing() -> None:
    """A part that is not here has a verdict of its own."""
    for name, content in list(split_gguf(300_000, 3).items())[::2]:
        put("user/big", name, content)
    verdicts = verify.verify_models(listing.list_models())
    assert [(verdict.ok, verdict.missing) for verdict in verdicts] == [(True, False), (False, True), (True, False)]
    assert verdicts[1].file == "big-Q4_K_M-00002-of-00003.gguf"


def test_verify_where_nothing_can_be_moved(home: Path) -> None:
    """A damaged file that can't be set aside is damaged all the same; one that can't be opened is not damaged."""
    source = home / "good.gguf"
    source.write_bytes(MODEL)
    model = importing.import_file(source, copy=True)
    model.path.write_bytes(MODEL[:-1] + b"x")
    (model.path.with_name(model.path.name + ".damaged") / "in-the-way").mkdir(parents=True)
    (verdict,) = verify.verify_models([model])
    assert verdict.ok is False and verdict.set_aside is None and "can't be set aside" in verdict.reason
    model.path.unlink()
    model.path.mkdir()
    with pytest.raises(DiskError, match="verifying local/good"):
        verify.verify_models([model])


def test_files_of_the_hub_are_named_by_their_hash(tmp_path: Path) -> None:
    """Nothing is read: the cache's name of the bytes is their sha256."""
    for blob in (tmp_path / "blobs" / ("a" * 64), tmp_path / "blobs" / "aa" / ("a" * 64)):
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(b"x")
        link = tmp_path / f"{len(blob.parts)}.gguf"
        link.symlink_to(blob)
        assert state.sha256_of(link) == "a" * 64
    with pytest.raises(FileNotFoundError):
        state.sha256_of(tmp_path / "none")


@pytest.mark.parametrize("facts", [None, "{", "[]", '{"n_params": "many"}', '{"n_params": 1, "label": 4}'])
def test_damaged_facts_are_read_again(facts: str | None) -> None:
    """What was not written by llmrun is not believed, and hides nothing of other models."""
    put("user/one", "one-Q8_0.gguf", MODEL)
    put("user/two", "two-Q8_0.gguf", OTHER)
    before = listing.list_models()
    with closing(sqlite3.connect(state.database())) as db, db:
        assert db.execute("update files set facts = ? where path like '%user--one%'", (facts,)).rowcount == 1
    assert sorted(each is None for _, _, each in state.files().values()) == [False, True]
    assert listing.list_models() == before
    assert None not in [each for _, _, each in state.files().values()]


def test_facts_of_before_are_read() -> None:
    """A row as 0.1 wrote it."""
    path = put("user/one", "one-Q8_0.gguf", MODEL)
    state.files()
    written = '{"n_params": 7, "architecture": "old", "label": "Q8_0", "n_ctx_train": 64}'
    with closing(sqlite3.connect(state.database())) as db, db:
        row = (os.path.realpath(path), state.stamp(path), None, written)
        db.execute("insert into files values (?, ?, ?, ?)", row)
    (model,) = listing.list_models()
    assert (model.n_params, model.architecture) == (7, "old")


def test_the_rate_of_downloads() -> None:
    """The median of the last ten files; small ones say little. A database of before learns to remember them."""
    state.files()
    with closing(sqlite3.connect(state.database())) as db, db:
        db.execute("drop table rates")
    state.note_rate(1 << 20, 1.0)
    assert state.download_rate() is None
    for seconds in (1.0, *[2.0] * 5, *[4.0] * 4, 8.0):
        state.note_rate(80_000_000, seconds)
    assert state.download_rate() == (40_000_000 + 20_000_000) / 2
