"""When flash attention is left out: by hand-computed numbers, and asked of llama.cpp."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrun.engine.protocol import TimeAttention
from llmrun.gguf.reader import Header, open_header
from llmrun.gguf.shapes import SHAPES, small
from llmrun.gguf.synth import header_of, write
from llmrun.options.load import LoadConfig
from llmrun.tuning import attention, first_use, kept
from llmrun.tuning.attention import AttentionCost
from llmrun.tuning.dials import WORKLOADS, Dials, Workload
from llmrun.tuning.kept import Choice, Tried
from llmrun.tuning.slice_runner import SliceRunner

LONG = {"long": WORKLOADS["long"]}  # 2,048 tokens of prompt, 256 of answer


class Asked:
    """A microsecond for each token that is attended to, a half without flash attention; keeps the questions."""

    def __init__(self) -> None:
        self.questions: list[TimeAttention] = []

    def __call__(self, question: TimeAttention) -> list[float]:
        self.questions.append(question)
        return [question.n_depths[0] * question.n_tokens[0] * (1e-6 if question.flash else 0.5e-6)]


def header(name: str) -> Header:
    return header_of(SHAPES[name], "Q4_K_M")


def test_what_is_asked_of_a_dense_model() -> None:
    """Of 16 layers: a token in the middle of the answer, and the prompt at half of its length, in its micro-batches."""
    ask = Asked()
    ((flash, apart),) = attention.costs(header("llama-1.2b"), LoadConfig(), LONG, 2, ask).values()
    asked = [(each.flash, each.n_depths, each.n_tokens) for each in ask.questions]
    assert asked == [
        (True, [1024], [512]),
        (True, [2304], [1]),  # 2,176 in whole blocks, which two threads share
        (False, [1280], [128]),  # whole blocks up to the end of the micro-batch in the middle
        (False, [2304], [1]),
    ]
    of = {(each.head_size, each.n_head, each.n_head_kv, *each.n_threads) for each in ask.questions}
    assert of == {(64, 32, 8, 2)}
    assert (flash.prompt_s, flash.step_s) == pytest.approx((16 * 1024e-6, 16 * 2304e-6))
    assert (apart.prompt_s, apart.step_s) == pytest.approx((16 * 640e-6, 16 * 1152e-6))
    assert ask.questions[1].n_bytes == 2 * 2 * 64 * 8 * 2304 * 16  # of all layers, as in the model
    alone = Asked()
    attention.costs(header("llama-1.2b"), LoadConfig(), LONG, 1, alone)
    assert alone.questions[1].n_depths == [2176]  # one thread has no others to share with


def test_windows_are_attended_to_no_further() -> None:
    """Gemma 3 1B: four layers of 26 look back all the way, the others at 512 tokens."""
    ask = Asked()
    ((flash, _),) = attention.costs(header("gemma3-1b"), LoadConfig(), LONG, 2, ask).values()
    assert [each.n_depths for each in ask.questions if each.n_tokens == [1] and each.flash] == [[512], [2304]]
    assert flash.step_s == pytest.approx((22 * 512 + 4 * 2304) * 1e-6)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("deepseek-v2-lite", LoadConfig()),  # latent attention
        ("mamba2-2.7b", LoadConfig()),
        ("llama-1.2b", LoadConfig(flash_attn="on")),
        ("llama-1.2b", LoadConfig(type_k="q8_0", type_v="q8_0")),
    ],
)
def test_where_there_is_no_choice(name: str, config: LoadConfig) -> None:
    ask = Asked()
    assert attention.costs(header(name), config, LONG, 2, ask) == {} and not ask.questions


def test_what_can_not_be_measured_is_no_choice() -> None:
    assert attention.costs(header("llama-1.2b"), LoadConfig(), LONG, 2, lambda _: []) == {}


@pytest.mark.parametrize(("step_s", "is_left_out"), [(0.030, False), (0.0285, False), (0.025, True)])
def test_left_out_where_it_is_worth_it(step_s: float, is_left_out: bool) -> None:
    """A step of 60 ms, half of it attention; without, it has to gain a twentieth of prompt and answer together."""
    tried = [Tried(Dials("off", 2), 0.001, 0.03), Tried(Dials("on", 2), 0.001, 0.02)]
    pair = AttentionCost(0.001, 0.03), AttentionCost(0.001, step_s)
    dials, (flash, apart) = first_use.with_attention(tried, Dials("off"), Workload(100, 256), pair)
    assert dials == (Dials("off", flash_attn="off", n_ubatch=128) if is_left_out else Dials("off"))
    assert (flash.prefill_s, flash.decode_s) == (0.002, 0.06) and apart.decode_s == 0.03 + step_s


@pytest.mark.parametrize(
    ("n_prompt", "n_seq", "config", "flash_attn", "n_ubatch"),
    [
        (2000, 1, LoadConfig(), "off", 128),
        (2000, 4, LoadConfig(), "auto", 512),  # measured for one answer
        (20_000, 1, LoadConfig(), "auto", 512),  # scores of 20,000 tokens
        (2000, 1, LoadConfig(n_ctx=0), "auto", 512),
        (2000, 1, LoadConfig(n_ctx=8192), "off", 128),
        (2000, 1, LoadConfig(flash_attn="on"), "on", 512),
    ],
)
def test_where_it_counts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_prompt: int,
    n_seq: int,
    config: LoadConfig,
    flash_attn: str,
    n_ubatch: int,
) -> None:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    known, given = header("llama-1.2b"), {"flash_attn"} if config.flash_attn != "auto" else set()
    choice = Choice(Dials("off", flash_attn="off", n_ubatch=128), "first use")
    kept.keep(kept.key_of(known, config), "m", {"long": choice, "many": choice})
    settled, _ = first_use.settled(known, config, n_prompt, n_seq=n_seq, model="m", given=given)
    assert (settled.flash_attn, settled.n_ubatch, settled.repack) == (flash_attn, n_ubatch, "off")


@pytest.mark.parametrize("name", ["llama-1.2b", "gemma3-1b"])
def test_asked_of_llama_cpp(tmp_path: Path, name: str) -> None:
    write(tmp_path / "m.gguf", small(SHAPES[name]), "Q4_0")
    found = open_header(tmp_path / "m.gguf")
    with SliceRunner(found, LoadConfig()) as runner:
        ((flash, apart),) = attention.costs(found, LoadConfig(), LONG, 1, runner.seconds_of).values()
    assert min(flash.prompt_s, flash.step_s, apart.prompt_s, apart.step_s) > 0
