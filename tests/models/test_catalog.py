"""Names of models, the catalog, the quantization levels, and the script that compares the catalog with the hub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT
from hub_server import Hub
from waiting import HANGS_S

from llmrun import paths
from llmrun.errors import Act, LlmrunError, NetworkError, NotFound, UsageError
from llmrun.models import catalog, quants
from llmrun.models.catalog import Catalog, CatalogEntry
from llmrun.models.reference import Embedded, HubFile, LocalFile, parse

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


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("qwen3:4b", qwen()),
        ("QWEN3:4B", qwen()),
        ("qwen3", qwen()),
        ("qwen3:latest", qwen()),
        ("qwen3:4b:latest", qwen()),
        ("qwen3:4b:Q5_K_M", qwen("Q5_K_M")),
        ("qwen3:4b:q5_k_m", qwen("Q5_K_M")),
        ("Qwen3:4b@Q5_K_M", qwen("Q5_K_M")),
        ("qwen3:4b-q5_K_M", qwen("Q5_K_M")),
        ("qwen3:4b-ud-q4_k_xl", qwen("UD-Q4_K_XL")),
        ("qwen3:q8_0", qwen("Q8_0")),
        ("qwen3@q8_0", qwen("Q8_0")),
        ("qwen3-q8_0", qwen("Q8_0")),
        ("qwen3:4b:Q9_Z", qwen("Q9_Z")),  # nobody has it: `choose` finds out, and says what there is
        ("qwen3:4b@v1.1", qwen(rev="v1.1")),
        ("qwen3:4b@main", qwen()),
        ("qwen3:4b@refs/pr/3", qwen(rev="refs/pr/3")),
        ("qwen3:4b:Q8_0@dev", qwen("Q8_0", rev="dev")),
        ("qwen3:4b@dev:Q8_0", qwen("Q8_0", rev="dev")),
        ("llama3.1:8b-instruct-q4_K_M", hub("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Q4_K_M", name="llama3.1:8b")),
        ("qwen3:4b-instruct", hub("unsloth/Qwen3-4B-Instruct-2507-GGUF", name="qwen3:4b-instruct")),
        ("qwen3:4b-instruct-q8_0", hub("unsloth/Qwen3-4B-Instruct-2507-GGUF", "Q8_0", name="qwen3:4b-instruct")),
        ("gpt-oss", hub("ggml-org/gpt-oss-20b-GGUF", "MXFP4", name="gpt-oss:20b")),
        ("gpt-oss:20b:F16", hub("ggml-org/gpt-oss-20b-GGUF", "F16", name="gpt-oss:20b")),
    ],
)
def test_catalog_names(text: str, meant: HubFile) -> None:
    """Any case, the family alone, and the level behind a colon, an @ or a dash."""
    assert parse(text, SHIPPED) == meant


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("User/Repo", hub("User/Repo")),
        ("user/repo:Q4_K_M", hub("user/repo", "Q4_K_M")),
        ("user/repo:q4_k_m", hub("user/repo", "Q4_K_M")),
        ("user/repo:fp16", hub("user/repo", "F16")),
        ("user/repo:latest", hub("user/repo")),
        ("user/repo:weird", hub("user/repo", "weird")),
        ("user/repo@Q8_0", hub("user/repo", "Q8_0")),
        ("user/repo@main", hub("user/repo")),
        ("user/repo@v1.0", hub("user/repo", rev="v1.0")),
        ("user/repo@" + "0a" * 20, hub("user/repo", rev="0a" * 20)),
        ("user/repo@refs/pr/12", hub("user/repo", rev="refs/pr/12")),
        ("user/repo:Q8_0@v1", hub("user/repo", "Q8_0", rev="v1")),
        ("user/repo@v1:Q8_0", hub("user/repo", "Q8_0", rev="v1")),
        ("mistralai/Devstral-Small-2507_gguf", hub("mistralai/Devstral-Small-2507_gguf")),
        ("hf.co/user/repo", hub("user/repo")),
        ("HF.co/user/repo:Q8_0", hub("user/repo", "Q8_0")),
        ("huggingface.co/user/repo:q8_0", hub("user/repo", "Q8_0")),
        ("huggingface.co/user/repo/resolve/main/x.gguf", hub("user/repo", file="x.gguf")),
        ("hf://user/repo", hub("user/repo")),
        ("hf://user/repo:Q8_0", hub("user/repo", "Q8_0")),
        ("hf://user/repo@v1", hub("user/repo", rev="v1")),
        ("hf://user/repo/x.gguf", hub("user/repo", file="x.gguf")),
        ("hf://user/repo@v1/Q8_0/x.gguf", hub("user/repo", file="Q8_0/x.gguf", rev="v1")),
        ("hf://user/repo@refs/pr/1/x.gguf", hub("user/repo", file="x.gguf", rev="refs/pr/1")),
        ("huggingface://user/repo/x.gguf", hub("user/repo", file="x.gguf")),
        ("https://huggingface.co/user/repo", hub("user/repo")),
        ("https://huggingface.co/user/repo/", hub("user/repo")),
        ("https://huggingface.co/user/repo/tree/v2", hub("user/repo", rev="v2")),
        ("https://huggingface.co/u/r/resolve/main/x.gguf?download=true", hub("u/r", file="x.gguf")),
        (
            "https://huggingface.co/u/r/blob/main/Q4_K_M/x-00002-of-00003.gguf",
            hub("u/r", file="Q4_K_M/x-00002-of-00003.gguf"),
        ),
        ("https://hf.co/u/r/resolve/refs/pr/7/x.gguf", hub("u/r", file="x.gguf", rev="refs/pr/7")),
        ("https://huggingface.co/u/r?show_file_info=Q8_0%2Fmy+x-Q8_0.gguf", hub("u/r", file="Q8_0/my x-Q8_0.gguf")),
        ("huggingface.co/u/r/tree/main?show_file_info=x.gguf", hub("u/r", file="x.gguf")),
        ("https://huggingface.co/u/r?library=transformers", hub("u/r")),
        ("https://huggingface.co/u/r/blob/main/a%20b.GGUF", hub("u/r", file="a b.GGUF")),
        ("hf.co/u/r/resolve/main/%E6%A8%A1%E5%9E%8B.gguf", hub("u/r", file="模型.gguf")),
        ("https://huggingface.co/u/r/tree/main/UD-Q4_K_XL", hub("u/r", "UD-Q4_K_XL")),
        ("user/repo/", hub("user/repo")),
        ("user/repo:Q8_0/", hub("user/repo", "Q8_0")),
    ],
)
def test_hub_names(text: str, meant: HubFile) -> None:
    """Repositories and files of the hub in all the ways that people copy them from somewhere; case is kept."""
    assert parse(text, SHIPPED) == meant


@pytest.mark.parametrize(
    "text", ["qwen3:4b:Q5_K_M", "user/repo@v1", "u/r:Q8_0@v1", "hf://u/r@refs/pr/1/a/x.gguf", "tiny", "qwen3"]
)
def test_shown_names_can_be_typed(text: str) -> None:
    """What is printed for a reference is read as the same reference."""
    meant = parse(text, SHIPPED)
    assert parse(str(meant), SHIPPED) == meant


def test_paths(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in front, a .gguf behind, or a file that exists; but a catalog name is never a file."""
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse("~/x.gguf") == LocalFile(Path("/home/someone/x.gguf"))
    for text in ("./x", "../x.gguf", "/a/b c.gguf", "x.gguf", "a/b/x.GGUF", "./tiny", "Modèle é.gguf", "."):
        assert parse(text) == LocalFile(Path(text))
    for name in ("weights", "qwen3"):
        Path(name).write_bytes(b"GGUF")
    Path("user").mkdir()
    Path("user/weights").write_bytes(b"GGUF")
    Path("user/repo").mkdir()
    assert parse("weights", SHIPPED) == LocalFile(Path("weights"))
    assert parse("user/weights", SHIPPED) == LocalFile(Path("user/weights"))
    assert parse("user/repo", SHIPPED) == hub("user/repo")
    assert parse("qwen3", SHIPPED) == qwen()
    assert parse(str(parse("./qwen3")), SHIPPED) == LocalFile(Path("qwen3"))


def test_tiny_needs_no_catalog(elsewhere: Path) -> None:
    """The embedded model has its name even with a broken models.toml; it comes in one size only."""
    (elsewhere / "config").mkdir()
    (elsewhere / "config/models.toml").write_text("?")
    assert parse("Tiny") == Embedded("tiny", catalog.EMBEDDED["tiny"])
    with pytest.raises(UsageError, match="one size"):
        parse("tiny:1b", SHIPPED)


@pytest.mark.parametrize(
    ("endpoint", "text", "repo"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/u/r/resolve/main/x.gguf", "u/r"),
        ("https://mirror.example/hub/", "https://mirror.example/hub/u/r/resolve/main/x.gguf", "u/r"),
        ("https://mirror.example", "https://MIRROR.example/u/r/blob/main/x.gguf", "u/r"),
        ("https://mirror.example", "https://huggingface.co/u/r/blob/main/x.gguf", "u/r"),
    ],
)
def test_urls_of_a_mirror(endpoint: str, text: str, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs of the hub that HF_ENDPOINT names are understood as well."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert parse(text) == hub(repo, file="x.gguf")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "\x1b[31mqwen3",
        "qwen3\n",
        "a\x00b",
        "./a\x9b.gguf",
        "qwen3\u202e:4b",
        "us\u200ber/repo",
        "qw en3",
        "q" * 513,
        "u/" + "r" * 97,
        "u/r" + "/x" * 300,
        "../../etc/passwd\x00.gguf",
        "hf://",
        "hf://user",
        "hf://../x/y.gguf",
        "hf://user/repo/../x.gguf",
        "hf://user/repo/a/./x.gguf",
        "hf://user/repo//x.gguf",
        "hf://user/repo/x.bin",
        "hf://user/repo/*.gguf",
        "hf://user/..%2f..%2fx.gguf",
        "https://huggingface.co/u/r?show_file_info=..%2Fx.gguf",
        "https://huggingface.co/u/r?show_file_info=x.bin",
        "https://huggingface.co/u/r/blob/main/x%0a.gguf",
        "https://huggingface.co/u/r/blob/main/x%2520.gguf",
        "qwen3:4b:Q4_K_M:Q8_0",
        "qwen3:4b-q5_K_M:Q8_0",
        "user/%2e%2e",
        "user/repo/more",
        "user/.repo",
        "user/re..po",
        "user/re--po",
        "user/repo.git",
        "user/",
        "/".join("ab"[:1]) + "//b",
        "user/repo:",
        "user/repo:Q4 K M",
        "user/repo:Q4_K_M:Q8_0",
        "user/repo@",
        "user/repo@../x",
        "user/repo@a b",
        "user/repo@Q8_0:Q4_0",
        "user/répo",
        "user\\repo/x",
        "qwen3:4b@",
        "qwen3:4b:Q4/0",
        "qwen3:4b:q8_0@q4_0",
        ":4b",
        "-rf",
        "http://example.com/u/r/resolve/main/x.gguf",
        "https://huggingface.co.example.com/u/r/resolve/main/x.gguf",
        "https://huggingface.co@example.com/u/r/resolve/main/x.gguf",
        "https://huggingface.co/datasets/u/r",
        "https://huggingface.co/u/r/resolve/main/x.safetensors",
        "https://huggingface.co/u/r/resolve/main/../x.gguf",
        "ollama://qwen3:4b",
        "file:///etc/passwd.gguf",
        "://x",
    ],
)
def test_malformed_names(text: str) -> None:
    """What can't be a name is a usage error of one clean line that quotes no more of it than is good."""
    with pytest.raises(UsageError) as caught:
        parse(text, SHIPPED)
    message = caught.value.message
    assert message.isprintable()
    assert len(message) < 200


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qwen3:5b", "qwen3 has no 5b; it has 0.6b, 1.7b, 4b"),
        ("qwem3:4b", "near are qwen3:4b"),
        ("gemma", "near are gemma"),
        ("lama3.2", "near are llama3.2:3b"),
        ("mistal", "near are mistral:7b"),
        ("deepseek", "near are deepseek-"),
        ("zzzz", "no model or file is called 'zzzz'"),
    ],
)
def test_unknown_names(text: str, said: str) -> None:
    """Exit 4 with the nearest names, or the family's sizes, and how to search the hub."""
    with pytest.raises(NotFound) as caught:
        parse(text, SHIPPED)
    assert said in caught.value.message
    assert caught.value.remedies == (Act("search", text.partition(":")[0]),)


# --- the catalog -----------------------------------------------------------------------------------------------------


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


# --- quantization levels ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filename", "quant"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-1.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("Q4_K_M/GLM-4.5-Air-Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
        ("Q4_K_M/Q4_K_M-00001-of-00001.gguf", "Q4_K_M"),
        ("UD-Q8_K_XL/GLM-4.5-Air-UD-Q8_K_XL-00001-of-00003.gguf", "UD-Q8_K_XL"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("BF16/model.gguf", "BF16"),
        ("mixtral-8x7b-instruct-v0.1.Q5_K_M.gguf", "Q5_K_M"),
        ("Meta-Llama-3.1-8B-Instruct.IQ4_XS.gguf", "IQ4_XS"),
        ("Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3.6-35B-A3B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("Model.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gemma-2-9b-it-Q6_K_L.gguf", "Q6_K_L"),
        ("gemma-3-4b-it-qat-Q4_0.gguf", "Q4_0"),
        ("gemma-3n-E2B-it-f16.gguf", "F16"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "F16"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("ggml-model-bf16.gguf", "BF16"),
        ("model_q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-120b-mxfp4-00001-of-00003.gguf", "MXFP4"),
        ("Qwen3-Coder-Next-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Llama-3.2-1B-Instruct-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("Llama-3.2-1B-Instruct-IQ4_NL.gguf", "IQ4_NL"),
        ("DeepSeek-V3.1-UD-TQ1_0.gguf", "UD-TQ1_0"),
        ("Bonsai-8B-Q1_0.gguf", "Q1_0"),
        ("mistral-7b-code-16k-qlora.Q4_K_M.gguf", "Q4_K_M"),
        ("Q8_0-donor-merge-Q4_K_S.gguf", "Q4_K_S"),
        ("Yi-1.5-9B-Chat-Q3_K_XL.gguf", "Q3_K_XL"),
        ("Kimi-Q4_K_M_imat.gguf", "Q4_K_M"),
        ("SmolLM3-Q4_K_M.GGUF", "Q4_K_M"),
        ("Qwen2.5-Q.gguf", None),
        ("Qwen2.5-QwQ-32B.gguf", None),
        ("Magnum-Q3-v2.gguf", None),
        ("EQ4_K_M2.gguf", None),
        ("model.gguf", None),
        ("F16x.gguf", None),
        ("NAME.f16.q5.gguf", "Q5"),
        ("m-Q4_K_M-q8.gguf", "Q8"),
        ("", None),
    ],
)
def test_quant_of(filename: str, quant: str | None) -> None:
    """The level in the names that quantizers of the hub really use; a model's own name is not taken for one."""
    assert quants.quant_of(filename) == quant


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("q4km", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("ud-q4_k_xl", "UD-Q4_K_XL"),
        ("fp16", "F16"),
        ("mxfp4_moe", "MXFP4_MOE"),
        ("q4", "Q4"),
        ("iq5_k", "IQ5_K"),
        ("latest", None),
        ("4b", None),
        ("main", None),
        ("v1", None),
        ("", None),
        ("UD-", None),
        ("Q4_K_M.gguf", None),
    ],
)
def test_normalize(text: str, name: str | None) -> None:
    """One spelling for each level; None for what is no level's name."""
    assert quants.normalize(text) == name


def test_levels() -> None:
    """Every level is there once, smallest first, under a name that is its own one spelling."""
    bits = [level.bits_per_weight for level in quants.LEVELS.values()]
    assert bits == sorted(bits)
    assert all(quants.normalize(name) == name for name in quants.LEVELS)
    assert quants.bits_per_weight("UD-Q4_K_M") == quants.bits_per_weight("Q4_K_M") == 4.8944
    assert quants.bits_per_weight("weird") is None


@pytest.mark.parametrize(
    ("filename", "is_model"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", True),
        ("sub/Qwen3-4B-Q4_K_M-00002-of-00002.gguf", True),
        ("Qwen3.6-27B-MTP-UD-Q4_K_XL.gguf", True),
        ("mmproj-model-f16.gguf", False),
        ("Ministral-3-3B-Instruct-2512-BF16-mmproj.gguf", False),
        ("imatrix_unsloth.gguf", False),
        ("Qwen3-4B.imatrix.gguf", False),
        ("Qwen3-4B.imatrix", False),
        ("imatrix.dat", False),
        ("mtp-gemma-4-31B-it.gguf", False),
        ("MTP/mtp-gemma-4-31B-it-Q8_0.gguf", False),
        ("ggml-vocab-qwen2.gguf", False),
        ("MTP/gem-31B-it-BF16-MTP.gguf", False),
        ("gem-Q8_0-MTP.gguf", False),
        ("gem-Q8_0-MTP-00001-of-00002.gguf", False),
        ("draft/gem-Q8_0.gguf", False),
        ("gem-Q8_0-lora.gguf", False),
        ("lora-gem-F16.gguf", False),
        ("DeepSeek-R1-DRAFT-0.6B-Q4_0.gguf", True),
        ("GLM-4.6V-Flash-heretic-imatrix-Q4_K_M.gguf", True),
        ("Qwen3-4B-Q8_0.imatrix.gguf", False),
        ("X.GGUF", True),
        ("README.md", False),
        ("model.safetensors", False),
    ],
)
def test_model_files(filename: str, is_model: bool) -> None:
    """Projectors, importance matrices and draft heads lie beside the models."""
    assert quants.is_model_file(filename) is is_model


def test_split_parts() -> None:
    """Any part names them all; what can't be a part is a model by itself."""
    parts = tuple(f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    assert all(quants.split_parts(part) == parts for part in parts)
    for single in (
        "m.gguf",
        "m-00004-of-00003.gguf",
        "m-00000-of-00003.gguf",
        "m-00001-of-99999.gguf",
        "m-1-of-2.gguf",
    ):
        assert quants.split_parts(single) == (single,)


@pytest.mark.parametrize(
    ("files", "wanted", "file", "why"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf", "the default"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf"], "q8_0", "m-Q8_0.gguf", ""),
        (["m-Q8_0.gguf", "m-Q4_K_S.gguf"], None, "m-Q4_K_S.gguf", "there is no Q4_K_M; Q4_K_S is the nearest in size"),
        (["m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q3_K_S.gguf"], None, "m-Q5_K_M.gguf", "nearest in size"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_S.gguf"], None, "m-UD-Q4_K_M.gguf", "nearest in size"),
        (["m-Q8_0.gguf"], None, "m-Q8_0.gguf", "there is no Q4_K_M; Q8_0 is all there is"),
        (["m-mxfp4.gguf", "m-f16.gguf"], None, "m-mxfp4.gguf", "MXFP4 is the nearest in size"),
        (["m-MXFP4_MOE.gguf"], "MXFP4", "m-MXFP4_MOE.gguf", "MXFP4_MOE stands for it"),
        (["m-q4.gguf", "m-fp16.gguf"], None, "m-q4.gguf", "nearest in size"),
        (["m-Q4_0.gguf", "m-Q4_K_M.gguf"], "q4", "m-Q4_K_M.gguf", "there is no Q4; Q4_K_M stands for it"),
        (["m-Q4_0.gguf", "m-UD-Q4_K_M.gguf"], "Q4_K_M", "m-UD-Q4_K_M.gguf", "UD-Q4_K_M stands for it"),
        (["m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M-00001-of-00002.gguf"], None, "m-Q4_K_M-00001-of-00002.gguf", ""),
        (["m-it-qat-Q4_K_M.gguf", "m-it-Q4_K_M.gguf"], None, "m-it-Q4_K_M.gguf", ""),
        (["mmproj-m-Q4_K_M.gguf", "m.gguf"], None, "m.gguf", "no file's name tells its level"),
    ],
)
def test_choose(files: list[str], wanted: str | None, file: str, why: str) -> None:
    """Q4_K_M when no level is named, else the nearest in size, and half a sentence on why."""
    chosen = quants.choose(files, wanted)
    assert chosen is not None
    assert chosen.file == file
    assert why in chosen.why


@pytest.mark.parametrize("wanted", ["Q5_K_M", "weird", "Q4_K_XL"])
def test_choose_nothing(wanted: str) -> None:
    """A level that is not there is never replaced by another one."""
    assert quants.choose(["m-Q4_K_M.gguf", "m-Q8_0.gguf"], wanted) is None
    assert quants.choose(["README.md", "mmproj-F16.gguf"]) is None


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["m-Q4_K_M.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["mmproj-m-Q8_0.gguf", "mmproj-m-Q4_0.gguf", "m-F16.gguf"], "mmproj-m-Q8_0.gguf"),
        (["other/mmproj-F16.gguf", "big/M-BF16-mmproj.gguf", "mmproj-F16.gguf"], "big/M-BF16-mmproj.gguf"),
        (["m-Q4_K_M.gguf", "mmproj.md"], None),
    ],
)
def test_choose_projector(files: list[str], chosen: str | None) -> None:
    """F16 before BF16 before F32 before what is quantized; one in the model's folder before all of them."""
    assert quants.choose_projector(files, "big/m-Q4_K_M.gguf") == chosen


def test_choose_by_real_sizes() -> None:
    """Where sizes are known they decide: here a level of unknown width is the nearest to what Q4_K_M would take."""
    sizes = {"m-Q8_0.gguf": 8_500, "m-Q3_K_S.gguf": 3_640, "m-IQ5_K.gguf": 5_000, "m-Q2_K.gguf": 3_160}
    chosen = quants.choose(sizes)
    assert chosen is not None
    assert chosen.quant == "IQ5_K"


# --- scripts/check_catalog.py ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    name: str
    size: int


@dataclass(frozen=True)
class Info:
    files: tuple[File, ...]
    gated: bool = False
    licence: str | None = "mit"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_catalog", ROOT / "scripts/check_catalog.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


ENTRY = CatalogEntry("m:4b", "u/m", parameters=4_000_000_000, licence="MIT")
GOOD = (File("m-Q4_K_M.gguf", 2_450_000_000), File("m-Q8_0.gguf", 4_250_000_000))


@pytest.mark.parametrize(
    ("entry", "info", "wrong"),
    [
        (ENTRY, Info(GOOD), ""),
        (ENTRY, Info(GOOD[:1]), ""),
        (ENTRY, Info(GOOD[1:]), ""),
        (ENTRY, Info((File("README.md", 1),)), "no GGUF model"),
        (ENTRY, Info(GOOD, gated=True), "gated, and the entry does not say so"),
        (CatalogEntry("m:4b", "u/m", gated=True), Info(GOOD), "not gated, and the entry says so"),
        (CatalogEntry("m:4b", "u/m", quant="Q5_K_M"), Info(GOOD), "no Q5_K_M; it has Q4_K_M, Q8_0"),
        (CatalogEntry("m:4b", "u/m", file="m-Q6_K.gguf"), Info(GOOD), "no file m-Q6_K.gguf"),
        (CatalogEntry("m:8b", "u/m", parameters=8_000_000_000), Info(GOOD), "8.00 B parameters, but files for 4.00 B"),
        (ENTRY, Info((File("m-Q4_K_M-00001-of-00002.gguf", 9),)), "1 of 2 parts missing"),
        (ENTRY, Info(tuple(File(f"m-Q8_0-0000{i}-of-00002.gguf", 2_125_000_000) for i in (1, 2))), ""),
    ],
)
def test_check(script: ModuleType, entry: CatalogEntry, info: Info, wrong: str) -> None:
    """Each thing that can be wrong with an entry is found, and nothing else."""
    assert "; ".join(script.check(entry, info).wrong) == wrong


def test_check_notes(script: ModuleType) -> None:
    """A level other than the default and another licence are worth a note, not wrong."""
    checked = script.check(ENTRY, Info(GOOD[1:], licence="llama3.1"))
    assert checked.wrong == ()
    assert checked.notes == ("the hub says licence llama3.1", "there is no Q4_K_M; Q8_0 is all there is")


def test_check_run(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per entry; 1 if any is wrong, 5 when the hub is away, 2 for a name that is not in the catalog."""
    file = tmp_path / "models.toml"
    file.write_text('[[model]]\nname = "m:4b"\nrepo = "u/m"\nparameters = 4\n[[model]]\nname = "x:1b"\nrepo = "u/x"\n')

    def answer(repo: str) -> Info:
        if repo == "u/m":
            return Info(GOOD)
        raise NotFound(f"no repository {repo}")

    def away(repo: str) -> Info:
        raise NetworkError(f"no way to {repo}")

    run = [f"--catalog={file}"]
    assert script.main([*run, "m"], model_info=answer) == 0
    assert script.main(run, model_info=answer) == 1
    out = capsys.readouterr().out
    assert "no repository u/x" in out
    assert "2 entries, 1 wrong" in out
    assert script.main(run, model_info=away) == 5
    assert script.main([*run, "y"], model_info=answer) == 2


def test_check_against_a_hub(tmp_path: Path) -> None:
    """The script as it is run, with the real client, against a hub on loopback."""
    file = tmp_path / "models.toml"
    file.write_text(
        '[[model]]\nname = "good:1m"\nrepo = "u/good"\nparameters = 0.001\n'
        '[[model]]\nname = "heavy:9m"\nrepo = "u/good"\nparameters = 0.009\n'
        '[[model]]\nname = "gone:1m"\nrepo = "u/gone"\n'
        '[[model]]\nname = "locked:1m"\nrepo = "u/locked"\ngated = true\n'
    )
    with Hub() as served:
        served.add("u/good", {"m-Q4_K_M.gguf": bytes(612_000), "m-Q8_0.gguf": bytes(1_062_600), "README.md": b"#"})
        served.add("u/locked", {"m-Q4_K_M.gguf": bytes(600_000)}, access="gated")
        done = subprocess.run(
            [sys.executable, str(ROOT / "scripts/check_catalog.py"), f"--catalog={file}"],
            env={**os.environ, **served.env(tmp_path)},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
    lines = {line.split()[1]: line for line in done.stdout.splitlines()[:-1]}
    assert done.returncode == 1, done.stderr
    assert lines["good:1m"].startswith("ok")
    assert "Q4_K_M" in lines["good:1m"]
    assert "9.00 M parameters, but files for 1.00 M" in lines["heavy:9m"]
    assert lines["gone:1m"].startswith("WRONG")
    assert lines["locked:1m"].startswith("ok")
    assert "(gated)" in lines["locked:1m"]
    assert done.stdout.splitlines()[-1] == "4 entries, 2 wrong"


def test_errors_are_ours() -> None:
    """Whatever bytes a name has, the answer is a reference or one of our errors."""
    words = [
        "qwen3",
        ":",
        "@",
        "/",
        "-",
        "q4_k_m",
        "..",
        "%",
        "hf://",
        "https://huggingface.co/",
        ".gguf",
        "\x1b",
        "é",
        "u",
        " ",
    ]
    for i in range(4_000):
        text = "".join(words[(i * 7919 + j * j * 104_729) % len(words)] for j in range(i % 9))
        try:
            parse(text, SHIPPED)
        except LlmrunError as error:
            assert error.message.isprintable()
