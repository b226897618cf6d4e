"""Which smaller model of the catalog may guess tokens for another (`LoadConfig.draft`)."""

from __future__ import annotations

import re

from llmrun.gguf.reader import Header, StringArray
from llmrun.models.catalog import Catalog, CatalogEntry
from llmrun.planning.kv_layout import layer_memories

_MOST_SHARE = 0.25
"""Of the weights that a token takes: a guess that costs more gains little, however often it is right."""
_MOST_DIFFERENCE = 128
"""Tokens that one vocabulary may have more than the other (`engine/child/draft_model.py` demands the same)."""
_COMPARED = 4096


def candidates(repo: str, catalog: Catalog) -> tuple[CatalogEntry, ...]:
    """Models that may guess for the one in this repository, the likeliest first: its family's, then those of the same
    stem ("llama3.2" for "llama3.1"), from small to large. None where the catalog does not know it."""
    entry = next((each for each in catalog.entries if each.repo.lower() == repo.lower()), None)
    if entry is None or entry.parameters is None:
        return ()
    most = _MOST_SHARE * (entry.active_parameters or entry.parameters)
    small = [each for each in catalog.entries if each.parameters and each.parameters <= most]
    related = [each for each in small if _stem(each.family) == _stem(entry.family)]
    return tuple(sorted(related, key=lambda each: (each.family != entry.family, each.parameters or 0)))


def problem(header: Header, guessing: Header) -> str | None:
    """Why the second can't guess for the first; None: it can, as far as headers tell."""
    kind, its_kind = (each.metadata.get("tokenizer.ggml.model") for each in (header, guessing))
    tokens, its_tokens = (each.metadata.get("tokenizer.ggml.tokens") for each in (header, guessing))
    if not isinstance(tokens, StringArray) or not isinstance(its_tokens, StringArray):
        return "one of them has no vocabulary"
    n = min(len(tokens), len(its_tokens))
    is_other = kind != its_kind or abs(len(tokens) - len(its_tokens)) > _MOST_DIFFERENCE
    if is_other or any(tokens.raw(i) != its_tokens.raw(i) for i in range(0, n, max(1, n // _COMPARED))):
        return "it has another vocabulary"
    layers = layer_memories(guessing)
    if layers is None or any(layer.window or layer.n_state for layer in layers):
        return "it has recurrent layers or windows"
    return None


def _stem(family: str) -> str:
    """ "llama3" of "llama3.1", "qwen2-coder" of "qwen2.5-coder"."""
    return re.sub(r"(\d)\.\d+", r"\1", family)
