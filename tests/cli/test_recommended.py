"""Sampling that was recommended: by a catalog, by a file, for what nobody has asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun

from llmrun.cli.loading.recommended import sampling_of
from llmrun.gguf import synth
from llmrun.models.resolve import find_model
from llmrun.options.sampling import SamplingConfig
from llmrun.options.settings import Given
from llmrun.options.user_config import Setting

CATALOG = Setting("temp", 0.6, Path("models.toml"), "qwen3:4b")
USERS = Setting("temp", 0.2, Path("config.toml"), "[defaults]")


def sampled(chosen: dict[str, Given], **of_file: Any) -> tuple[SamplingConfig, list[str]]:
    header = find_model("tiny").header
    keys = {f"general.sampling.{name}": value for name, value in of_file.items()}
    return sampling_of(chosen, replace(header, metadata={**header.metadata, **keys}))


def test_the_files_recommendation() -> None:
    """By llama.cpp's names; in single precision, as it was meant."""
    config, said = sampled({}, temp=0.6000000238418579, top_k=20.0, penalty_repeat=1.0499999523162842, top_p=1)
    assert config == SamplingConfig(temperature=0.6, top_k=20, repeat_penalty=1.05, top_p=1.0)
    assert said == ["sampling as the file recommends: repeat-penalty 1.05, temp 0.6, top-k 20, top-p 1.0"]
    assert sampled({}) == (SamplingConfig(), [])


@pytest.mark.parametrize(
    ("chosen", "temperature", "said"),
    [
        (Given(0.1), 0.1, []),
        (Given(0.2, USERS), 0.2, []),
        (Given(0.6, CATALOG), 0.6, ["sampling as the catalog for qwen3:4b recommends: temp 0.6"]),
    ],
)
def test_who_goes_before_the_file(chosen: Given, temperature: float, said: list[str]) -> None:
    """The command line, the user's own defaults, and the catalog, which somebody has looked into."""
    assert sampled({"temperature": chosen, "n_ctx": Given(5)}, temp=0.9) == (
        SamplingConfig(temperature=temperature),
        said,
    )


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("temp", -5.0, "temp -5.0, which is left out: -5.0 is outside 0 to 100"),
        ("top_k", "many", "top_k many, which is left out"),
        ("mirostat", 2, "mirostat too, which is not among the options"),
        ("mirostat", 0, None),
        ("top_k", -1, "sampling as the file recommends: top-k 0"),
    ],
)
def test_what_can_not_be_done(key: str, value: object, words: str | None) -> None:
    _, said = sampled({}, **{key: value})
    assert len(said) == (words is not None) and (words or "") in "".join(said)


def test_on_the_command_line(llmrun: RunLlmrun) -> None:
    """It counts, in a run and in a chat, and is said; what was typed goes before it."""
    keys = ("--override-kv", "general.sampling.temp=float:0", "--override-kv", "general.sampling.top_k=int:7")
    runs = [llmrun("run", "tiny", "What do GPU layers do?", "-n", "20", *keys) for _ in range(2)]
    assert (
        runs[0].stdout == runs[1].stdout == llmrun("run", "tiny", "What do GPU layers do?", "-n20", "--temp=0").stdout
    )
    assert "sampling as the file recommends: temp 0.0, top-k 7\n" in runs[0].stderr
    chat = llmrun("chat", "tiny", *keys, "--top-k", "3", input="/set\n")
    assert "sampling as the file recommends: temp 0.0\n" in chat.stderr and "top-k              3 " in chat.stdout


def test_what_is_said_of_a_prompt(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """A context beyond the trained one, and a model without a template; what such a one continues is text."""
    done = llmrun("run", "tiny", "Hi", "-n", "1", "-c", "2048")
    assert "2048 tokens is longer than the 1024 that the model was trained on" in done.stderr
    assert "trained" not in llmrun("run", "tiny", "Hi", "-n", "1", "-c", "2048", "--rope-scale", "2").stderr
    path = tmp_path / "base.gguf"
    synth.write(path, synth.SHAPES["micro"], "Q8_0", chat_template=" \n")
    how = ("-n", "1", "--temp", "0")
    plain = llmrun("run", str(path), "a</s>", *how)
    assert "base.gguf has no chat template: the text is continued as it is" in plain.stderr
    raw, special = (llmrun("run", str(path), "a</s>", *how, option) for option in ("--raw", "--special"))
    assert "template" not in raw.stderr and "template" in special.stderr
    n_prompt = [int(each.stderr.split("prompt ")[1].split()[0]) for each in (plain, raw, special)]
    assert n_prompt[1] == n_prompt[2] < n_prompt[0]
