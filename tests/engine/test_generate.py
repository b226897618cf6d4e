"""One answer, token by token, from a script instead of a model: everything here is counted by hand."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from llmrun.engine.child.generate import COALESCE_S, GenerationState, TokenBatch
from llmrun.engine.child.prompts import with_known_tokens
from llmrun.engine.child.reasoning import HARMONY, THINK, Tags
from llmrun.engine.child.thinking import Thinking
from llmrun.engine.child.written import own
from llmrun.engine.protocol import Message, TokenLogprobs, Tokens

EOS = "</s>"


class Words:
    """A vocabulary of the words that it meets: each is a token. Those in <...> are control tokens, without text."""

    adds_bos = True

    def __init__(self) -> None:
        self.words: list[str] = []

    def id(self, word: str) -> int:
        if word not in self.words:
            self.words.append(word)
        return self.words.index(word)

    def ids(self, text: str) -> list[int]:
        return [self.id(word) for word in text.split()]

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return self.ids(("<s> " if add_special else "") + text.replace("\n", " "))

    def attributes(self, token: int) -> int:
        return 8 if self.words[token].startswith("<") else 4

    def piece(self, token: int) -> bytes:
        word = self.words[token]
        return b"" if word.startswith("<") else word.replace("_", " ").encode()

    def text_of(self, token: int, *, special: bool) -> bytes:
        return self.words[token].encode() if special else self.piece(token)

    def is_end(self, token: int) -> bool:
        return self.words[token] == EOS


class Script:
    """A token source that says what it was written to say; capital words under the grammar, if there is one."""

    def __init__(self, words: Words, text: str, *, grammar: bool = False) -> None:
        self._words, self._text = words, iter(text.split())
        self.has_grammar = grammar
        self.accepted: list[str] = []

    def sample(self, context: object, index: int) -> int:
        return self._words.id(next(self._text))

    def sample_constrained(self, context: object, index: int) -> int:
        word = next(self._text)
        return self._words.id(word if word.startswith("<") else word.upper())

    def accept(self, token: int) -> None:
        self.accepted.append(self._words.words[token])

    def follow(self, token: int) -> None: ...

    def logprobs(self, context: object, index: int, token: int, n: int) -> TokenLogprobs:
        return TokenLogprobs(token, self._words.words[token].encode(), -float(token))


class Answer:
    """What came of a generation that was taken to its end."""

    def __init__(self, text: str, *, words: Words | None = None, grammar: bool = False, **options: object) -> None:
        words = words or Words()
        sent: list[Message] = []
        self.source = Script(words, text, grammar=grammar)
        defaults: dict[str, object] = {"stop": []}
        self.state = GenerationState(self.source, words, sent.append, **(defaults | options))  # type: ignore[arg-type]
        while self.state.stop_reason is None:
            self.state.step(None)
        self.state.finish()
        self.sent = [message for message in sent if isinstance(message, Tokens)]
        self.text = "".join(message.text for message in self.sent)
        self.thinking = "".join(message.thought for message in self.sent)
        self.n_thinking = sum(message.n_thought for message in self.sent)
        self.words = [words.words[token] for message in self.sent for token in message.ids]


# -- where it ends ---


def test_the_model_ends_it() -> None:
    """EOS ends an answer and is no part of it: not of its tokens, not of its text."""
    answer = Answer(f"a_ b {EOS} c")
    assert (answer.text, answer.words, answer.state.stop_reason) == ("a b", ["a_", "b"], "end")
    assert answer.state.n_tokens == 2


def test_eos_ignored() -> None:
    """Asked to go on, EOS is a token like any other, until the tokens are spent."""
    answer = Answer(f"a {EOS} b c d", ignore_eos=True, max_tokens=4)
    assert (answer.text, answer.state.stop_reason) == ("abc", "length")
    assert answer.words == ["a", EOS, "b", "c"]


def test_a_grammar_that_is_complete_ends_it() -> None:
    """Under a grammar EOS is the end of what was asked for, and can't be ignored."""
    answer = Answer(f"a {EOS} b", grammar=True, ignore_eos=True)
    assert (answer.text, answer.state.stop_reason) == ("A", "end")


def test_an_answer_without_a_word() -> None:
    """EOS at once: nothing is sent."""
    answer = Answer(EOS)
    assert answer.state.stop_reason == "end" and not answer.sent


@pytest.mark.parametrize(("max_tokens", "text"), [(0, ""), (1, "a"), (2, "ab")])
def test_max_tokens(max_tokens: int, text: str) -> None:
    """So many and no more; of none, none is sampled."""
    answer = Answer("a b c", max_tokens=max_tokens)
    assert (answer.text, answer.state.n_tokens, answer.state.stop_reason) == (text, max_tokens, "length")


def test_a_stop_string_across_tokens() -> None:
    """It is found in the middle of two tokens; the tokens count, its text is not shown."""
    answer = Answer("one_ tw o_three four", stop=["wo"])
    assert (answer.text, answer.state.stop_reason, answer.state.stop) == ("one t", "stop", "wo")
    assert answer.words == ["one_", "tw", "o_three"]


def test_no_probabilities_of_a_stop_string() -> None:
    """Told are those of tokens of which something is shown; what was held back and turned out to be none, as well."""

    def told(text: str, **options: Any) -> list[str]:
        answer = Answer(text, n_logprobs=0, **options)
        return [each.piece.decode() for message in answer.sent for each in message.logprobs]

    assert told("one_ tw o_three four", stop=["wo"]) == ["one_", "tw"]
    assert told("one_ t w o four", stop=["two"]) == ["one_"]
    assert told("one_ t w a", stop=["two"], max_tokens=4) == ["one_", "t", "w", "a"]
    assert told("one_ t w", stop=["two"], max_tokens=3) == ["one_", "t", "w"]
    assert told(f"a b {EOS}", stop=["bc"]) == ["a", "b"]


def test_a_stop_string_is_worth_more_than_the_length() -> None:
    """The last token that may be made completes one: it is the stop string that ended the answer."""
    assert Answer("a b", stop=["b"], max_tokens=2).state.stop_reason == "stop"


def test_held_text_comes_with_the_end() -> None:
    """What might have become a stop string is shown when nothing follows."""
    ticks = itertools.count()
    answer = Answer("a b c", stop=["cd"], max_tokens=3, clock=lambda: next(ticks))
    assert [(message.text, len(message.ids)) for message in answer.sent] == [("a", 1), ("b", 1), ("", 1), ("c", 0)]


def test_the_token_to_compute() -> None:
    """A step returns the token that the next one needs computed; at EOS there is none."""
    words = Words()
    state = GenerationState(Script(words, f"a {EOS}"), words, lambda _: None, stop=[])
    assert state.step(None) == words.id("a") and state.stop_reason is None
    assert state.step(None) is None and state.stop_reason == "end"


# -- when it is sent ---


def test_slow_tokens_go_alone() -> None:
    """Tokens 100 ms apart: one message each, with its time."""
    ticks = iter([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.2])
    answer = Answer("a b c", max_tokens=3, clock=lambda: next(ticks))
    assert [(message.text, message.at_s) for message in answer.sent] == [("a", [0.0]), ("b", [0.1]), ("c", [0.2])]


def test_fast_tokens_go_together() -> None:
    """The first goes at once. Of those 1 ms apart the next that goes is 11 ms behind it, with all between."""
    batch = TokenBatch()
    assert batch.add(0, 5.0)
    first = batch.take(5.0)
    assert first is not None and first.ids == [0]
    due = [batch.add(i, 5.0 + i / 1000) for i in range(1, 12)]
    assert due == [False] * 10 + [True]
    together = batch.take(5.011)
    assert together is not None and together.ids == list(range(1, 12)) and together.at_s[-1] == 5.011
    assert batch.take(5.012) is None


def test_a_pause_sends() -> None:
    """A token that took longer than half of what anyone waits is sent, and what was waiting with it."""
    batch = TokenBatch()
    batch.add(0, 0.0)
    batch.take(0.0)
    assert not batch.add(1, 0.001)
    assert batch.add(2, 0.001 + COALESCE_S / 2 + 1e-6)


# -- thinking ---


def thinking(words: Words, tags: Tags = THINK, *, is_open: bool = False, budget: int | None = None) -> Thinking:
    return Thinking(tags, words, is_open=is_open, budget=budget)


@pytest.mark.parametrize(
    ("text", "tags", "told"),
    [
        ("<think> hmm </think> _ _ hello", THINK, ["hello"]),
        ("[th ink] hmm [/th ink]hel lo", Tags("[think]", "[/think]"), ["ink]hel", "lo"]),
        ("[th ink] hmm [/th ink] _ hello", Tags("[think]", "[/think]"), ["hello"]),
        ("[th under", Tags("[think]", "[/think]"), ["[th", "under"]),
        (
            "<|channel|> analysis <|message|> hmm <|end|> <|start|> assistant <|channel|> final <|message|> hello",
            HARMONY,
            ["hello"],
        ),
        ("<|channel|> final <|message|> hello", HARMONY, ["hello"]),
    ],
)
def test_no_probabilities_beside_the_answer(text: str, tags: Tags, told: list[str]) -> None:
    """Of thoughts, tags and the blanks around them nothing is told: the tokens make up the text."""
    words = Words()
    answer = Answer(f"{text} {EOS}", words=words, n_logprobs=0, thinking=thinking(words, tags))
    assert [each.piece.decode() for message in answer.sent for each in message.logprobs] == told


def test_thinking_apart() -> None:
    """Four tokens of thinking, the two tags among them, and two of answer. Control tokens count as what they say."""
    words = Words()
    answer = Answer(f"<think> hm_ hm </think> ye s {EOS}", words=words, thinking=thinking(words))
    assert (answer.text, answer.thinking, answer.n_thinking) == ("yes", "hm hm", 4)
    assert answer.state.n_tokens == 6


def test_a_budget() -> None:
    """After two tokens of thinking the tag is forced; the penalties are told of it, and the model goes on behind."""
    words = Words()
    answer = Answer(f"hm_ hm yes {EOS}", words=words, thinking=thinking(words, is_open=True, budget=2))
    assert (answer.text, answer.thinking) == ("yes", "hm hm")
    assert answer.source.accepted == ["</think>"] and answer.n_thinking == 3


def test_no_budget_at_all() -> None:
    """A model that begins to think all the same is led out at once."""
    words = Words()
    answer = Answer(f"<think> yes {EOS}", words=words, thinking=thinking(words, budget=0))
    assert (answer.text, answer.thinking) == ("yes", "")
    assert answer.words == ["<think>", "</think>", "yes"]


def test_a_grammar_binds_the_answer_alone() -> None:
    """What the model thinks first is free, and what is behind is in capitals: the grammar's."""
    words = Words()
    control = thinking(words)
    control.constrain(lambda: words.id("<think>"), answer_begun=False)
    answer = Answer(f"hm </think> yes {EOS}", words=words, grammar=True, thinking=control)
    assert answer.words == ["<think>", "hm", "</think>", "YES"] and answer.text == "YES"


@pytest.mark.parametrize(("said", "budget"), [(f"hm <|end|> yes {EOS}", None), (f"hm yes {EOS}", 2)])
def test_a_grammar_of_calls_behind_thoughts(said: str, budget: int | None) -> None:
    """Harmony's thoughts, answers and calls begin with the same token: what begins with it is thinking as a whole.
    Calls have no heading but what each of its turns begins with, and a budget leads out to that."""
    words = Words()
    control = thinking(words, HARMONY, budget=budget)
    control.constrain(lambda: words.id("<|channel|>"), answer_begun=False, heads=False)
    words.tokenize = lambda text, **_: words.ids(text.replace("><|start|>", "> <|start|>"))  # type: ignore[method-assign]
    answer = Answer(said, words=words, grammar=True, thinking=control)
    assert answer.words == [HARMONY.open, "hm", "<|end|>", "<|start|>assistant", "YES"]
    assert answer.thinking == "hm"


def test_a_grammar_and_a_model_that_answers_at_once() -> None:
    """The heading before an answer is forced, since no grammar knows of it; harmony's is not text."""
    words = Words()
    tags = Tags("<a>", "<b>", answer="<c> <d>", direct="<d>")
    control = thinking(words, tags)
    control.constrain(lambda: words.id("yes"), answer_begun=False)
    answer = Answer(f"yes {EOS}", words=words, grammar=True, thinking=control)
    assert answer.words == ["<d>", "YES"] and answer.text == "YES"


def test_a_grammar_behind_thoughts() -> None:
    """The heading that follows thoughts is forced before the grammar begins."""
    words = Words()
    control = thinking(words, Tags("<a>", "<b>", answer="<c>", direct="<d>"), is_open=True)
    control.constrain(lambda: 1 // 0, answer_begun=False)  # nothing to guess: the prompt has opened it
    answer = Answer(f"hm <b> yes {EOS}", words=words, grammar=True, thinking=control)
    assert answer.words == ["hm", "<b>", "<c>", "YES"] and (answer.text, answer.thinking) == ("YES", "hm")


def test_an_answer_that_has_begun_thinks_no_more() -> None:
    """Behind the first words of an answer nothing is forced, and the grammar binds the first token."""
    words = Words()
    control = thinking(words, HARMONY)
    control.constrain(lambda: 1 // 0, answer_begun=True)
    assert control.is_constrained and not control.forced


# -- known tokens ---


def test_known_tokens_are_kept() -> None:
    """The same text is given in the tokens that were sampled, if it goes on with a control token."""
    words = Words()
    known = words.ids("<s> ab cd")
    text = own("abcd<u>")
    tokens = words.ids("<s> abcd <u>")
    words.tokenize = lambda text, **_: words.ids(text)  # type: ignore[method-assign]
    assert with_known_tokens(words, text, "", tokens, known) == [*known, words.id("<u>")]
    assert with_known_tokens(words, own("abcde"), "", tokens, known) == tokens  # "e" would be a part of a word
    assert with_known_tokens(words, own("abc"), "", tokens, known) == tokens  # another text
    assert with_known_tokens(words, text, "", tokens, tokens[:2]) == tokens  # nothing to keep


def test_known_control_tokens_are_the_templates() -> None:
    """A text that merely looks like what is known has none of its control tokens."""
    words = Words()
    known = words.ids("<s> ab <u> cd")
    words.tokenize = lambda text, **_: words.ids(text)  # type: ignore[method-assign]
    assert with_known_tokens(words, own("ab<u>cd<v>"), "", [], known) == [*known, words.id("<v>")]
    assert with_known_tokens(words, own("ab") + "<u>" + own("cd<v>"), "", [], known) == []
