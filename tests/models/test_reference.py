"""What names of models mean."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from llmrun.errors import Act, LlmrunError, NotFound, UsageError
from llmrun.models import catalog
from llmrun.models.catalog import EMBEDDED
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
    assert parse("Tiny") == Embedded("tiny", EMBEDDED["tiny"])
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
        ("qwem3:4b", "similar names: qwen3:4b"),
        ("gemma", "similar names: gemma"),
        ("lama3.2", "similar names: llama3.2:3b"),
        ("mistal", "similar names: mistral:7b"),
        ("deepseek", "similar names: deepseek-"),
        ("zzzz", "no model or file is called 'zzzz'"),
    ],
)
def test_unknown_names(text: str, said: str) -> None:
    """Exit 4 with the nearest names, or the family's sizes, and how to search the hub."""
    with pytest.raises(NotFound) as caught:
        parse(text, SHIPPED)
    assert said in caught.value.message
    assert caught.value.remedies == (Act("search", text.partition(":")[0]),)


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
