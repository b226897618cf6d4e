"""How likely each of several texts is to be the answer: against hand-made figures, and against what is sampled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import EXACT, RunLlmrun

from llmrun.constrain.output_format import of_choices
from llmrun.engine.child.choice_weights import ChoiceWeights
from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.sampling import SamplingConfig

PIECES = ["y", "yes", "es", "n", "no", "o", ", but", "<end>"]
END = 7


class Texts:
    """What a grammar of these texts allows, by pieces."""

    def __init__(self, texts: Sequence[str], said: str = "") -> None:
        self.texts, self.said = texts, said

    def copy(self) -> Texts:
        return Texts(self.texts, self.said)

    def accept(self, token: int) -> None:
        self.said += PIECES[token]

    def allowed(self) -> Any:
        goes_on = [i for i, piece in enumerate(PIECES) if any(t.startswith(self.said + piece) for t in self.texts)]
        return np.array([*goes_on, *([END] if self.said in self.texts else [])])


def weights(*texts: str) -> ChoiceWeights:
    return ChoiceWeights(texts, Texts(texts), lambda i: PIECES[i].encode(), lambda i: i == END)  # type: ignore[arg-type]


def logits(**shares: float) -> Any:
    """By piece; `_` for what is no name."""
    found: Any = np.full(len(PIECES), -1e9, np.float32)
    for name, share in shares.items():
        found[PIECES.index({"_but": ", but", "_end": "<end>"}.get(name, name))] = np.log(share)
    return found


def test_words_that_begin_differently() -> None:
    """One look, at shares of what is allowed alone; however a word is cut, it is that word."""
    made = weights("yes", "no")
    first = made.next()
    assert first is not None
    made.look(first, logits(yes=0.5, y=0.1, no=0.1, n=0.1, es=40.0))
    assert made.next() is None and not made.is_new
    assert made.probabilities() == pytest.approx([0.75, 0.25])


def test_words_with_the_same_beginning() -> None:
    """What they have in common is looked into, the likeliest first; an answer that ends is one of them."""
    made = weights("yes", "yes, but", "no")
    first = made.next()
    assert first is not None
    made.look(first, logits(yes=0.6, y=0.2, no=0.2))
    second = made.next()
    assert second is not None and second.tokens == [1] and second.probability == pytest.approx(0.6)
    made.look(second, logits(_but=0.25, _end=0.75))
    third = made.next()
    assert third is not None and third.tokens == [0]
    made.look(third, logits(es=1.0))
    fourth = made.next()
    assert fourth is not None and fourth.tokens == [0, 2]
    made.look(fourth, logits(_but=0.5, _end=0.5))
    assert made.next() is None
    assert made.probabilities() == pytest.approx([0.55, 0.25, 0.2], abs=1e-6)


def test_little_is_not_looked_into() -> None:
    """It is shared as what is known is."""
    made = weights("yes", "yes, but", "no")
    first = made.next()
    assert first is not None
    made.look(first, logits(no=0.9995, y=0.0005))
    assert made.next() is None
    found = made.probabilities()
    assert found is not None
    assert found == pytest.approx([0.00025, 0.00025, 0.9995], abs=1e-6) and sum(found) == pytest.approx(1)


def weighed(
    engine: ChildEngine, choices: Sequence[str], prompt: str, **sampling: Any
) -> tuple[str, list[float] | None]:
    options = PromptOptions(grammar=of_choices([*choices]).grammar, choices=[*choices])
    generation = engine.generate(prompt, SamplingConfig(**{"max_tokens": 40, **sampling}), options=options)
    said = "".join(generation)
    assert generation.done is not None
    return said, generation.done.choices


@pytest.mark.parametrize(("name", "n"), [("llama-1.2b", 400), ("mamba2-2.7b", 80), ("gemma3-1b", 80)])
def test_as_often_as_it_is_said(tmp_path: Path, name: str, n: int) -> None:
    """Hundreds of answers at temperature 1, of words with the same beginning: by chi-square they are as likely as was
    said; and the same is said whatever was answered, alone and beside others."""
    path = tmp_path / "model.gguf"
    synth.write(path, replace(synth.small(synth.SHAPES[name], n_embd=64), n_ctx_train=2048), "F32")
    choices = ["a", "ab", "abc", "b", "ba"]
    chance = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    with ChildEngine(path, open_header(path), EXACT) as engine:
        said: Counter[str] = Counter()
        found: list[list[float] | None] = []
        for seed in range(n):
            answer, likely = weighed(engine, choices, "a b c", temperature=1.0, seed=seed, **chance)
            said[answer] += 1
            found.append(likely)
        expected = found[0]
        assert expected is not None and sum(expected) == pytest.approx(1)
        assert all(each == pytest.approx(expected, rel=1e-3) for each in found)
        options = PromptOptions(grammar=of_choices(choices).grammar, choices=choices)
        with engine.parallel(4, 256) as answers:
            for seed in range(8):
                answers.submit("a b c", SamplingConfig(temperature=1.0, seed=seed, max_tokens=40), options=options)
            while (answer_ := answers.wait()) is not None:
                assert answer_.done is not None and answer_.done.choices == pytest.approx(expected, rel=1e-3)
    squares = sum((said[c] - n * p) ** 2 / (n * p) for c, p in zip(choices, expected, strict=True) if n * p > 4)
    assert squares < 18.5  # four degrees of freedom: one in a thousand is above


def test_the_same_whatever_is_left_of_the_answer(exact: Path) -> None:
    """An answer that is cut, and beginnings that are long: what is computed for it has room, or nothing is told."""
    choices = ["the quick brown fox", "the quick brown dog"]
    with ChildEngine(exact, open_header(exact), EXACT) as engine:
        whole = weighed(engine, choices, "a b c", temperature=0)[1]
        assert whole is not None
        for n in (1, 2, 4):
            assert weighed(engine, choices, "a b c", temperature=0, max_tokens=n)[1] == pytest.approx(whole, rel=1e-4)
        long = weighed(engine, ["a " * 60 + "b", "a " * 60 + "c"], "a b c", temperature=0, max_tokens=200)[1]
        assert long is None or abs(long[0] - 0.5) > 1e-6
    with ChildEngine(exact, open_header(exact), replace(EXACT, n_ctx=8)) as engine:
        assert weighed(engine, ["the quick brown fox", "the quick brown dog"], "a b", temperature=0)[1] is None


def test_the_greedy_answer_is_the_likeliest_first_token(llmrun: RunLlmrun) -> None:
    """From the command line, and none without choices."""
    done = llmrun("run", "tiny", "Is the sky blue?", "--choice", "yes,no,perhaps", "--json", "--temp", "0")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and [*found["choices"]] == ["yes", "no", "perhaps"]
    assert sum(found["choices"].values()) == pytest.approx(1)
    assert found["answer"] == max(found["choices"], key=found["choices"].get)
    assert json.loads(llmrun("run", "tiny", "Hi", "--json", "-n", "2").stdout)["choices"] is None


def test_in_a_batch(llmrun: RunLlmrun, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("Is the sky blue?\nIs water dry?\n")
    done = llmrun("batch", "tiny", str(tmp_path / "in.txt"), "--choice", "yes,no", "--temp", "0")
    rows = [json.loads(line)["response"]["body"]["choices"][0] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(rows) == 2
    for row in rows:
        assert sum(row["choice_probabilities"].values()) == pytest.approx(1)
        assert row["message"]["content"] == max(row["choice_probabilities"], key=row["choice_probabilities"].get)
