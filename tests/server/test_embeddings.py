"""Texts as vectors: of a model that writes and of an encoder, as llama-cpp-python has them, in each form of request."""

from __future__ import annotations

import base64
import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Server, serving

from llmrun.wire import embeddings

TEXTS = ["b c d", "the end", "a", "b c d e " * 40]
REFERENCE = """
import json, sys
from llama_cpp import Llama
path, pooling, texts = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
model = Llama(path, embedding=True, pooling_type=pooling, n_ctx=1024, n_batch=1024, n_ubatch=1024, verbose=False)
json.dump([model.embed(text, normalize=True) for text in texts], sys.stdout)
"""
WORDS = ["▁the", "▁end", "▁a", "▁b", "▁c", "▁d", "▁e", "ing", "s"]


def reference(path: Path, pooling: int, texts: list[str]) -> list[list[float]]:
    command = [sys.executable, "-c", REFERENCE, str(path), str(pooling), json.dumps(texts)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: list[list[float]] = json.loads(done.stdout)
    return found


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def vectors(server: Server, given: Any, **more: Any) -> list[list[float]]:
    status, found = server.ask("/v1/embeddings", {"input": given, **more})
    assert status == 200, found
    return [each["embedding"] for each in found["data"]]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder of random weights: every token sees all others, the first one is the text's vector."""
    import numpy as np
    from gguf import GGUFWriter, PoolingType

    path, n_embd, n_ff, n_layer, n_ctx = tmp_path_factory.mktemp("bert") / "bert.gguf", 32, 64, 2, 64
    writer, rng = GGUFWriter(path, "bert"), np.random.default_rng(1)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_block_count(n_layer)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.CLS)
    writer.add_file_type(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    writer.add_tokenizer_model("bert")
    writer.add_token_list([*special, *WORDS])
    writer.add_token_types([3] * len(special) + [1] * len(WORDS))
    writer.add_token_type_count(2)
    for name, token in (("bos", 2), ("eos", 3), ("unk", 1), ("sep", 3), ("pad", 0), ("cls", 2), ("mask", 4)):
        writer.add_uint32(f"tokenizer.ggml.{name if name != 'sep' else 'seperator'}_token_id", token)

    def add(name: str, *dims: int) -> None:
        value = np.ones(dims) if name.endswith("norm.weight") else rng.normal(0, 0.2, dims)
        writer.add_tensor(name, value.astype(np.float32))

    n_vocab = len(special) + len(WORDS)
    add("token_embd.weight", n_vocab, n_embd)
    add("position_embd.weight", n_ctx, n_embd)
    add("token_types.weight", 2, n_embd)
    for part in ("weight", "bias"):
        add(f"token_embd_norm.{part}", n_embd)
    for i in range(n_layer):
        wide = {"attn_q": (n_embd, n_embd), "attn_k": (n_embd, n_embd), "attn_v": (n_embd, n_embd)}
        wide |= {"attn_output": (n_embd, n_embd), "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff)}
        for name, dims in wide.items():
            add(f"blk.{i}.{name}.weight", *dims)
            add(f"blk.{i}.{name}.bias", dims[0])
        for name in ("attn_output_norm", "layer_output_norm"):
            for part in ("weight", "bias"):
                add(f"blk.{i}.{name}.{part}", n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def encoder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(str(bert), home=tmp_path_factory.mktemp("home")) as server:
        yield server.ready()


@pytest.fixture(scope="module")
def writing(exact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model that writes, in F32, so that several at once are as each alone to the last digits that count."""
    with serving(str(exact), "--pooling", "mean", "-c", "4096", home=tmp_path_factory.mktemp("home")) as server:
        yield server.ready()


def test_tokens_written_with_a_point(encoder: Server) -> None:
    """5.0 is a whole number, whatever stands beside it; 5.5 is no token."""
    assert vectors(encoder, [1, 2.0]) == vectors(encoder, [1, 2], dimensions=32.0) == vectors(encoder, [[1.0, 2]])
    assert encoder.ask("/v1/embeddings", {"input": [1, 2.5]})[0] == 400


def test_of_an_encoder(bert: Path, encoder: Server) -> None:
    """As llama-cpp-python has them, one by one and all at once, and of length 1."""
    texts = ["the end", "a b c", "b", "the ending"]
    wanted = reference(bert, 2, texts)
    for found in (vectors(encoder, texts), [vectors(encoder, text)[0] for text in texts]):
        for mine, theirs in zip(found, wanted, strict=True):
            assert cosine(mine, theirs) > 0.99999
            assert math.isclose(sum(x * x for x in mine), 1, rel_tol=1e-5)
    assert cosine(*vectors(encoder, ["a b", "b a"])) < 0.9999  # the order counts


def test_of_a_model_that_writes(exact: Path, writing: Server) -> None:
    """Also of a text of several parts: the mean of all of its tokens. And it goes on writing."""
    wanted = reference(exact, 1, TEXTS)
    for mine, theirs in zip(vectors(writing, TEXTS), wanted, strict=True):
        assert cosine(mine, theirs) > 0.9999
    long = "b c d e f " * 150
    (found,), (theirs,) = vectors(writing, long), reference(exact, 1, [long[:1500]])
    assert cosine(found, theirs) > 0.9
    assert writing.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200


def test_tokens_are_what_they_say(writing: Server) -> None:
    """Tokens of a text, one list or several, give what the text gives."""
    ids = writing.ask("/tokenize", {"content": "b c d", "add_special": True})[1]["tokens"]
    (wanted,) = vectors(writing, "b c d")
    for given in (ids, [ids]):
        assert cosine(vectors(writing, given)[0], wanted) > 0.99999


def test_forms(encoder: Server) -> None:
    """base64 is float32, little-endian; what is shortened has length 1 again; ollama's forms have the same vectors."""
    (plain,) = vectors(encoder, "the end")
    status, found = encoder.ask("/v1/embeddings", {"input": "the end", "encoding_format": "base64", "dimensions": 8})
    (packed,) = (each["embedding"] for each in found["data"])
    short = list(struct.unpack("<8f", base64.b64decode(packed)))
    length = math.sqrt(sum(x * x for x in plain[:8]))
    assert status == 200 and short == pytest.approx([x / length for x in plain[:8]], abs=1e-6)
    assert found["usage"] == {"prompt_tokens": 4, "total_tokens": 4} and found["model"] == "bert.gguf"
    status, found = encoder.ask("/api/embed", {"model": "bert.gguf", "input": ["the end", "a"]})
    assert status == 200 and found["embeddings"][0] == pytest.approx(plain) and found["prompt_eval_count"] == 7
    assert encoder.ask("/api/embeddings", {"model": "bert.gguf", "prompt": "the end"})[1]["embedding"] == pytest.approx(
        plain
    )
    assert encoder.ask("/api/embed", {"model": "bert.gguf", "input": []})[1]["embeddings"] == []
    assert encoder.ask("/api/show", {"model": "bert.gguf"})[1]["capabilities"] == ["embedding"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": "a " * 100}, "input[0] has 102 tokens, 64 are possible"),
        ({"input": ["a", "a " * 100]}, "input[1] has 102 tokens"),
        ({"input": []}, "input has 0 texts"),
        ({"input": [[]]}, "input[0] has no tokens"),
        ({"input": [[1 << 20]]}, "there is no token 1048576"),
        ({"input": [1, "a"]}, "input[0] must be a text"),
        ({"input": [True]}, "input[0] must be a text"),
        ({"input": "a", "dimensions": 33}, "a vector has 32 here"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "more": 1}, "more"),
    ],
)
def test_refused(encoder: Server, body: dict[str, Any], said: str) -> None:
    status, found = encoder.ask("/v1/embeddings", body)
    assert status == 400 and said in found["error"]["message"]


def test_ollama_cuts(encoder: Server) -> None:
    """A text that is too long, unless that is forbidden; what belongs behind every text stays there."""
    body = {"model": "bert.gguf", "input": "a " * 100}
    status, found = encoder.ask("/api/embed", body)
    assert status == 200 and found["prompt_eval_count"] == 64
    assert found["embeddings"][0] == pytest.approx(vectors(encoder, "a " * 62)[0], abs=1e-6)
    assert encoder.ask("/api/embed", {**body, "truncate": False})[0] == 400
    assert encoder.ask("/api/embed", {**body, "options": {"num_ctx": 65}})[0] == 400


def test_each_for_what_it_is(encoder: Server, tiny_server: Server) -> None:
    """An embedding model writes nothing, and one that does not say how it would pool is asked for no vectors."""
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/api/generate", {"model": "bert.gguf", "prompt": "a"}),
        ("/v1/messages/count_tokens", {"model": "bert.gguf", "messages": [{"role": "user", "content": "a"}]}),
    ):
        status, found = encoder.ask(path, body)
        assert status == 400 and "is an embedding model: it writes no text" in json.dumps(found)
    assert encoder.ask("/tokenize", {"content": "the ending"})[1] == {"tokens": [5, 6, 12]}
    status, found = tiny_server.ask("/v1/embeddings", {"input": "a"})
    assert status == 400 and "option `pooling`" in found["error"]["message"]


def test_parts() -> None:
    """Texts are asked for in parts of some 512 tokens, in their order; a long one is one of its own."""
    rng = random.Random(0)
    inputs: list[str | list[int]] = ["x" * rng.choice([0, 3, 400, 5000]) for _ in range(100)]
    parts = embeddings.parts_of(inputs)
    assert [each for _, part in parts for each in part] == inputs
    assert [first for first, _ in parts] == [sum(len(part) for _, part in parts[:i]) for i in range(len(parts))]
    assert all(len(part) == 1 or sum(1 + len(each) // 4 for each in part) <= 512 for _, part in parts)
    assert embeddings.parts_of([]) == []
