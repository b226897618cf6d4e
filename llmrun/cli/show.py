"""`llmrun show MODEL`: what a model is, from its header alone."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from llmrun.cli import options, screen
from llmrun.units import count, size

if TYPE_CHECKING:
    from llmrun.models import Model


def show(model: options.ModelName, as_json: options.Json = False) -> None:
    """Show what a model is: shape, weights, tokenizer, licence."""
    from llmrun.models import find_model

    found = find_model(model)
    facts = facts_of(found)
    if as_json:
        screen.out_json(facts)
        return
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        screen.out(f"{name.replace('_', ' '):{width}}  {_shown(name, value)}\n")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "–"
    if name.endswith("bytes") or name == "bytes_per_token":
        return size(value)
    if name == "parameters":
        return count(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {share:.1%}" for key, share in value.items())
    return screen.harmless(str(value)).replace("\n", " ")


def facts_of(found: Model) -> dict[str, Any]:
    """What there is to know; JSON-ready, sizes in bytes, None where the header does not say."""
    from llmrun.footprint import decode_reads, kv_bytes_per_token

    header = found.header
    metadata = header.metadata
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    return {
        "name": found.name,
        "description": metadata.get("general.description"),
        "architecture": header.architecture,
        "parameters": header.n_params,
        "quantization": header.quantization_label,
        "weight_bytes": header.weight_bytes,
        "tensor_types": {kind: n / header.weight_bytes for kind, n in sizes.most_common()},
        "layers": header.n_layer,
        "embedding_length": header.n_embd,
        "heads": max(header.n_head, default=None),
        "kv_heads": max(header.n_head_kv, default=None),
        "experts": header.n_expert or None,
        "context_length": header.n_ctx_train,
        "vocabulary": header.n_vocab,
        "tokenizer": metadata.get("tokenizer.ggml.model"),
        "chat_template": "yes" if header.chat_template else "no",
        "licence": metadata.get("general.license"),
        "bytes_per_token": decode_reads(header).weight_bytes,
        "kv_bytes_per_context_token": kv_bytes_per_token(header),
        "path": str(found.path),
    }
