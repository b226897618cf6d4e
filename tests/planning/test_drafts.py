"""Which smaller model may guess for another."""

from __future__ import annotations

from llmrun.models import catalog
from llmrun.planning.drafts import candidates


def named(name: str) -> list[str]:
    entry = catalog.load().find(name)
    assert entry is not None
    return [each.name for each in candidates(entry.repo, catalog.load())]


def test_the_family_from_small_to_large() -> None:
    """Not more than a quarter of the weights that a token takes: of a mixture, of those that are used."""
    assert named("qwen3:8b")[:2] == ["qwen3:0.6b", "qwen3:1.7b"]
    assert named("qwen3:30b-a3b")[0] == "qwen3:0.6b" and "qwen3:4b" not in named("qwen3:30b-a3b")
    assert named("qwen3:0.6b") == []


def test_then_those_of_the_same_stem() -> None:
    """Llama 3.1 has no small one; 3.2 has."""
    assert named("llama3.1:8b") == ["llama3.2:1b"]
    assert named("qwen2.5-coder:7b")[0] == "qwen2.5-coder:0.5b"


def test_what_the_catalog_does_not_know() -> None:
    assert candidates("user/some-GGUF", catalog.load()) == ()
