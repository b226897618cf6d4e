"""`llmrun show MODEL...`: what a model is, from its header alone; of one that is not here, by a few range requests."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrun.cli.framework import options
from llmrun.cli.terminal import screen, tables
from llmrun.models.reference import HubFile, parse
from llmrun.models.resolve import find_stored, open_whole
from llmrun.units import count, percent, size

if TYPE_CHECKING:
    from llmrun.gguf.reader import Header


def show(models: options.ModelNames, offline: options.Offline = False, as_json: options.Json = False) -> None:
    """Show what a model is: shape, weights, tokenizer, licence.

    Of a model that is not on this machine, only the header is read from the hub: a few MB.
    """
    documents = [facts_of_named(name, offline=offline) for name in models]
    if as_json:
        screen.out_json(documents if len(documents) > 1 else documents[0])
        return
    for i, facts in enumerate(documents):
        if i:
            screen.out("\n")
        tables.show_pairs((name.replace("_", " "), _shown(name, value)) for name, value in facts.items())


def facts_of_named(reference: str, *, offline: bool = False) -> dict[str, Any]:
    """`facts_of` the model that the user named, and where it is."""
    named = parse(reference)
    if not isinstance(named, HubFile):
        path, header = open_whole(named.path)
        return {**facts_of(named.name, header), **_place(path, header)}
    stored = find_stored(named)
    if stored is not None:
        found, note = stored
        if note:
            screen.note(note)
        path, header = open_whole(found.path)
        facts = facts_of(str(named), header)
        return {**facts, "repository": found.repo, "commit": found.commit, **_place(path, header)}

    from llmrun.models.hub.info import model_info, quants_of, resolve
    from llmrun.models.hub.remote import remote_header

    resolved = resolve(named, offline=offline)
    if resolved.why:
        screen.note(f"{named} is {resolved.quant} ({resolved.why}) of {resolved.repo}; it is not here, asking the hub")
    facts = facts_of(str(named), remote_header(resolved))
    on_offer = quants_of(model_info(resolved.repo, resolved.commit))
    return {
        **facts,
        "licence": facts["licence"] or resolved.licence,
        "repository": resolved.repo,
        "commit": resolved.commit,
        "file": resolved.files[0].name,
        "files": len(resolved.files),
        "file_bytes": resolved.total_bytes,
        "levels": {each.quant: each.size for each in on_offer},
        "path": None,
    }


def _place(path: Path, header: Header) -> dict[str, Any]:
    from llmrun.models import quants

    parts = quants.split_parts(path.name)
    n_bytes = sum(path.with_name(part).stat().st_size for part in parts)
    return {"files": len(parts), "file_bytes": n_bytes, "path": os.fspath(path)}


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not on this machine" if name == "path" else "–"
    if name.endswith("bytes") or name in ("bytes_per_token", "kv_bytes_per_context_token"):
        return size(value)
    if name == "parameters":
        return count(value)
    if name == "levels":
        return ", ".join(f"{quant} {size(n_bytes)}" for quant, n_bytes in value.items())
    if isinstance(value, dict):
        return ", ".join(f"{key} {percent(share)}" for key, share in value.items())
    return str(value)


def facts_of(name: str, header: Header) -> dict[str, Any]:
    """What the header says; JSON-ready, sizes in bytes, None where it does not say."""
    from llmrun.planning.footprint import decode_reads, kv_bytes_per_token

    metadata = header.metadata
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type.name] += tensor.n_bytes
    named = ", ".join(header.chat_templates)
    facts = {
        "name": name,
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
        "experts_used": header.n_expert_used or None,
        "context_length": header.n_ctx_train,
        "vocabulary": header.n_vocab,
        "tokenizer": metadata.get("tokenizer.ggml.model"),
        "chat_template": "yes" if header.chat_template else f"no, only {named}" if named else "no",
        "licence": metadata.get("general.license"),
        "quantized_by": metadata.get("general.quantized_by"),
        "bytes_per_token": decode_reads(header).weight_bytes,
        "kv_bytes_per_context_token": kv_bytes_per_token(header),
    }
    made_from = {key: value for key, value in metadata.items() if key.startswith("llmrun.quantize.")}
    if made_from:
        facts["quantized_from"] = metadata.get("llmrun.quantize.source_file")
        facts["quantized_from_sha256"] = metadata.get("llmrun.quantize.source_sha256")
        if "llmrun.quantize.source_repo" in metadata:
            facts["quantized_from_repository"] = metadata["llmrun.quantize.source_repo"]
            facts["quantized_from_commit"] = metadata.get("llmrun.quantize.source_commit")
    return facts
