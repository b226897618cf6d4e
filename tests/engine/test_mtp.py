"""A model's own head that guesses: the same text as without, on a synthetic model with such a head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXACT
from numpy.typing import NDArray
from test_kv_context import text

from llmrun.engine.engine import ChildEngine
from llmrun.engine.generation import ChildGeneration
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

SHAPE = replace(synth.small(synth.SHAPES["qwen3.5-0.8b"]), n_ctx_train=4096, n_nextn=1)
MTP = replace(EXACT, draft="mtp")
GREEDY = SamplingConfig(temperature=0, max_tokens=100, ignore_eos=True)


@pytest.fixture(scope="module")
def with_head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mtp") / "model.gguf"
    synth.write(path, SHAPE, "F32")
    return path


def make_it_repeat(path: Path) -> None:
    """Have the head say what the model has just said: its layer adds nothing to the hidden state, which it takes."""
    header, last, d = open_header(path), SHAPE.n_layer, SHAPE.n_embd
    norm = read(path, "output_norm.weight")
    wanted: dict[str, Any] = {
        "attn_output.weight": 0.0,
        "ffn_down.weight": 0.0,
        "nextn.eh_proj.weight": np.hstack([np.zeros((d, d)), np.eye(d)]),
        "nextn.hnorm.weight": 1.0,
        "nextn.shared_head_norm.weight": norm,
    }
    with path.open("r+b") as file:
        for name, value in wanted.items():
            tensor = header.tensor(f"blk.{last}.{name}")
            assert tensor is not None
            file.seek(header.data_offset + tensor.offset)
            file.write(np.broadcast_to(value, [*reversed(tensor.shape)]).astype(np.float32).tobytes())


def read(path: Path, name: str) -> NDArray[np.float32]:
    header = open_header(path)
    tensor = header.tensor(name)
    assert tensor is not None
    data = path.read_bytes()[header.data_offset + tensor.offset :][: tensor.n_bytes]
    return np.frombuffer(data, np.float32)


def answers(path: Path, config: LoadConfig) -> list[ChildGeneration]:
    story = text(60)
    asked = [(story, GREEDY), (story + text(20, 1), GREEDY), (story, replace(GREEDY, temperature=0.7, seed=3))]
    asked += [(story * 4, replace(GREEDY, max_tokens=n)) for n in (1, 2, 17)]
    made = []
    with ChildEngine(path, open_header(path), config) as engine:
        for prompt, sampling in asked:
            generation = engine.generate(prompt, sampling, options=PromptOptions(reuse=True))
            list(generation)
            made.append(generation)
        assert engine.count("a") > 0  # it still answers
    return made


def test_the_same_text(with_head: Path) -> None:
    """Of random weights no guess is right, and what is wrong is taken back, states of recurrent layers too."""
    plain, guessed = answers(with_head, EXACT), answers(with_head, MTP)
    for one, other in zip(plain, guessed, strict=True):
        assert other.token_ids == one.token_ids and other.stop_reason == one.stop_reason
    assert sum(each.timing.n_drafted for each in guessed) > 0


def test_guesses_that_are_right(with_head: Path, tmp_path: Path) -> None:
    """A head that repeats what was said is right in a text that does, and counted as often."""
    path = tmp_path / "model.gguf"
    path.write_bytes(with_head.read_bytes())
    make_it_repeat(path)
    plain, guessed = answers(path, EXACT), answers(path, MTP)
    n_alike = n_accepted = 0
    for one, other in zip(plain, guessed, strict=True):
        assert other.token_ids == one.token_ids
        n_alike += sum(a == b for a, b in zip(one.token_ids, one.token_ids[1:], strict=False))
        n_accepted += other.timing.n_accepted
        assert other.timing.n_accepted <= other.timing.n_drafted
    assert 0 < n_accepted <= n_alike  # the first guess is always tried; whether more pay is measured


def test_models_without(exact: Path) -> None:
    with pytest.raises(UsageError, match="no head of its own"):
        ChildEngine(exact, open_header(exact), MTP)
