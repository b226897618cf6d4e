"""What is told of a model: its files by their hashes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmrun import fs
from llmrun.gguf.reader import open_header
from llmrun.models import model_info
from llmrun.models.model_info import ModelFile


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder of its own."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


def test_model(micro: Path, home: Path) -> None:
    """The file's hash is computed once, and anew when the file is another."""
    looked: list[tuple[int, int]] = []
    model = model_info.describe_model(
        "micro", micro, open_header(micro), description="llama ?B Q8_0", on_bytes=lambda *seen: looked.append(seen)
    )
    size = micro.stat().st_size
    assert model.files == (ModelFile("micro.gguf", size, fs.sha256_of(micro)),)
    assert looked[-1] == (size, size)
    assert (model.architecture, model.quantization, model.n_params) == ("llama", "Q8_0", 1443072)
    assert sum(model.tensor_types.values()) == model.weight_bytes == 1537024
    looked.clear()
    assert model_info.describe_model(
        "micro", micro, open_header(micro), on_bytes=lambda *s: looked.append(s)
    ) == replace(model, description=None)
    assert looked == []
