"""The catalog: the shipped one, and the user's over it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from llmrun import paths
from llmrun.errors import UsageError
from llmrun.models import catalog, quants
from llmrun.models.catalog import Catalog, CatalogEntry
from llmrun.models.reference import HubFile, parse

SHIPPED = catalog.read(ROOT / "models.toml")


def hub(
    repo: str, quant: str | None = None, *, file: str | None = None, rev: str | None = None, name: str = ""
) -> HubFile:
    return HubFile(repo, quant, file, rev, name or repo)


def qwen(quant: str | None = None, rev: str | None = None) -> HubFile:
    return hub("Qwen/Qwen3-4B-GGUF", quant, rev=rev, name="qwen3:4b")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and an empty config folder."""
    monkeypatch.setenv("LLMRUN_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def test_shipped_catalog() -> None:
    """At least 40 entries, dense and sparse, 0.1 B to 120 B; each says what, how large, how free, and where seen."""
    assert len(SHIPPED.entries) >= 40
    sizes = [entry.parameters or 0 for entry in SHIPPED.entries]
    assert min(sizes) < 0.2e9
    assert max(sizes) > 100e9
    assert sum(entry.active_parameters is not None for entry in SHIPPED.entries) >= 8


@pytest.mark.parametrize("entry", SHIPPED.entries, ids=lambda entry: entry.name)
def test_shipped_entry(entry: CatalogEntry) -> None:
    """Nothing that is optional for users is missing; sizes in a name agree with the numbers; the name finds it."""
    assert entry.parameters
    assert entry.n_ctx in range(2048, 1 << 24)
    assert entry.licence
    assert entry.seen
    assert entry.summary
    assert len(entry.summary) <= 90
    assert parse(entry.name, SHIPPED) == HubFile(entry.repo, entry.quant, entry.file, None, entry.name)
    size = entry.tag.split("-")[0]
    if size.endswith("b") and size[:-1].replace(".", "").isdigit() and "x" not in size:
        # Makers round as they like: Falcon3 1B has 1.67, Command R 35B 32.3.
        assert float(size[:-1]) == pytest.approx(entry.parameters / 1e9, rel=0.2, abs=0.7)


def test_shipped_names() -> None:
    """No name or alias is there twice, and every family's own name is one."""
    names = [name for entry in SHIPPED.entries for name in (entry.name, *entry.aliases)]
    assert len(names) == len(set(names))
    assert all(SHIPPED.find(family) for family in SHIPPED.families())
    assert not {name for name in names if quants.normalize(name)}


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again, the catalog is the one that is there; a file that changed, came or went is seen at once."""
    monkeypatch.setenv("LLMRUN_CONFIG_DIR", str(tmp_path / "config"))
    first = catalog.load()
    assert catalog.load() is first and first.find("mine:7b") is None
    file = write_config(tmp_path, '[[model]]\nname = "mine:7b"\nrepo = "me/one"\n')
    assert catalog.load().find("mine:7b") == CatalogEntry("mine:7b", "me/one")
    write_config(tmp_path, '[[model]]\nname = "mine:7b"\nrepo = "me/other"\n')
    assert catalog.load().find("mine:7b") == CatalogEntry("mine:7b", "me/other")
    file.unlink()
    assert catalog.load().find("mine:7b") is None


def test_recommended_settings_are_read_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options by name; an entry with some can still be a member of a set, and is home in its own file."""
    monkeypatch.setenv("LLMRUN_CONFIG_DIR", str(tmp_path / "config"))
    file = write_config(
        tmp_path, '[[model]]\nname = "mine:7b"\nrepo = "me/one"\nsettings = { temp = 0.6, stop = ["a"] }\n'
    )
    entry = catalog.load().find("mine:7b")
    assert entry is not None and entry.settings == {"temp": 0.6, "stop": ["a"]} and entry in {entry}
    assert catalog.home(entry) == file
    shipped = catalog.load().find("qwen3:4b")
    assert shipped is not None and catalog.home(shipped) == ROOT / "models.toml"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere platformdirs is asked")
def test_the_config_folder_is_where_platformdirs_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said without it, to save its import; with XDG_CONFIG_HOME, without, and with an empty one."""
    import platformdirs

    monkeypatch.delenv("LLMRUN_CONFIG_DIR", raising=False)
    for folder in ("/some/where", "", " ", None):
        if folder is None:
            monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        else:
            monkeypatch.setenv("XDG_CONFIG_HOME", folder)
        assert paths.config() == platformdirs.user_config_path("llmrun")


def test_import_is_light() -> None:
    """Importing the grammar brings in nothing that costs time: that comes when it is needed."""
    heavy = {"tomllib", "difflib", "platformdirs", "huggingface_hub", "llmrun.gguf.reader", "numpy"}
    code = f"import llmrun.models.catalog, sys; print(sorted({heavy!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def write_config(folder: Path, text: str | bytes) -> Path:
    file = folder / "config/models.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


MINE = """
[[model]]
name = "mine:7b"
repo = "me/mine-GGUF"
file = "mine-v2-Q6_K.gguf"

[[model]]
name = "qwen3:4b"
aliases = ["small"]
repo = "me/other-GGUF"
quant = "q5_k_m"
"""


def test_users_catalog(elsewhere: Path) -> None:
    """It adds entries, with no more than name and repository, and replaces shipped ones of the same name."""
    before = catalog.load()
    write_config(elsewhere, MINE)
    after = catalog.load()
    assert len(after.entries) == len(before.entries) + 1
    assert parse("mine") == hub("me/mine-GGUF", file="mine-v2-Q6_K.gguf", name="mine:7b")
    assert parse("mine:7b:Q8_0") == hub("me/mine-GGUF", "Q8_0", name="mine:7b")
    assert parse("small") == hub("me/other-GGUF", "Q5_K_M", name="qwen3:4b")
    assert after.find("qwen3:8b") == before.find("qwen3:8b")
    mine = after.find("mine:7b")
    assert mine is not None
    assert mine.parameters is None


def test_users_alias_wins(elsewhere: Path) -> None:
    """An alias in the user's file is no longer the shipped model's."""
    write_config(elsewhere, '[[model]]\nname = "mine:7b"\naliases = ["qwen3", "gemma3:4b"]\nrepo = "me/mine"\n')
    assert parse("qwen3") == hub("me/mine", name="mine:7b")
    assert parse("gemma3:4b") == hub("me/mine", name="mine:7b")
    assert parse("qwen3:4b") == qwen()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[model]]\nname = "a:1b"\nrepo = "u/r', [":3: not valid TOML: "]),
        ('[[model]]\nname = "a:1b"\n', [":1: ", "a:1b: repo: is missing"]),
        ('[[model]]\nrepo = "u/r"\n', [":1: name: is missing"]),
        ('[[model]]\nrepo = "u/r"\nname = "a"\n', [":3: a: name: must be family:tag"]),
        ('[[model]]\nrepo = "u/r"\nname = "a:Q4_K_M"\n', [":3: ", "name: must be family:tag"]),
        ('[[model]]\nname = "a:1b"\nrepo = "../x"\n', [":3: a:1b: repo: must be a repository"]),
        ('[[model]]\nname = "a:1b"\nrepo = 7\n', [":3: a:1b: repo: must be a line of text"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nparameters = "4"\n', [":4: a:1b: parameters: must be a number"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nparameters = true\n', [":4: ", "parameters"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nparameters = nan\n', [":4: ", "parameters"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nparameters = 1\n\nactive_parameters = 2\n', [":6: ", "more than"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nn_ctx = 4096.0\n', [":4: ", "n_ctx: must be a number of tokens"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nquant = "best"\n', [":4: ", "quant: must be a quantization level"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nfile = "../x.gguf"\n', [":4: ", "file: must be a .gguf"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\naliases = "b"\n', [":4: ", "aliases: must be a list"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\ngated = 1\n', [":4: ", "gated: must be true or false"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nlicense = "MIT"\n', [":4: ", "license: must be one of name, repo"]),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\nsummary = "a\\u001b[31m"\n', [":4: ", "summary"]),
        (
            '[[model]]\nname = "a:1b"\nrepo = "u/r"\n\n[[model]]\nrepo = "u/r"\nname = "a:1b"\n',
            [":7: ", "taken already"],
        ),
        ('[[model]]\nname = "a:1b"\nrepo = "u/r"\naliases = ["tiny"]\n', [":4: ", "'tiny' is taken already"]),
        ('[[modell]]\nname = "a:1b"\n', [":1: modell: unknown"]),
        ('model = "x"\n', [":1: model: must be [[model]] tables"]),
        (b'[[model]]\nname = "a:1b"\n\xff\n', [":3: not UTF-8"]),
        ("#" * (1 << 20) + "\n", ["more than 1 MiB"]),
        ("a = " + "[" * 100_000, ["not valid TOML"]),
    ],
)
def test_malformed_users_catalog(text: str | bytes, said: list[str], elsewhere: Path) -> None:
    """The message names the file, the line, the entry and the field."""
    file = write_config(elsewhere, text)
    with pytest.raises(UsageError) as caught:
        catalog.load()
    assert caught.value.message.startswith(str(file))
    assert all(part in caught.value.message for part in said), caught.value.message
    assert caught.value.message.isprintable()


def test_unreadable_users_catalog(elsewhere: Path) -> None:
    """A folder in its place is a usage error, not a traceback."""
    (elsewhere / "config/models.toml").mkdir(parents=True)
    with pytest.raises(UsageError, match="can't be read"):
        catalog.load()


def test_suggestions() -> None:
    """Each suggestion is an entry's name, and there are not many."""
    small = Catalog(
        (CatalogEntry("qwen3:4b", "u/a", ("qwen3",)), CatalogEntry("qwen3:8b", "u/b"), CatalogEntry("phi4:14b", "u/c"))
    )
    assert small.suggest("qwen3:9b") == ("qwen3:8b", "qwen3:4b")
    assert small.suggest("fhi4") == ("phi4:14b",)
    assert small.suggest("qwen") == ("qwen3:4b", "qwen3:8b")
    assert small.suggest("something else") == ()
    assert len(SHIPPED.suggest("qwen")) == 5
