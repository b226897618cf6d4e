"""Thinking apart from answering: which texts a model puts around its thoughts, and where they stand in what it says.

The tags are recognised by the chat template, never by a model's name. Most templates name them literally; of the others
a conversation is rendered whose last answer has thoughts, and what stands around them is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

from llmrun.engine.child.answer_text import overlap

Render = Callable[[list[dict[str, str]]], str]
"""A conversation through the template, ready for the next answer. It may raise."""


class Tags(NamedTuple):
    """Texts as they stand in the token stream: control tokens written out, without the whitespace around them.

    Attributes:
        open: before the thoughts.
        close: behind them.
        answer: what may then stand before the answer and belongs to neither; "" is nothing.
        direct: the same before an answer without thoughts.
        end: what may close the answer; it and whatever follows belong to neither.
    """

    open: str
    close: str
    answer: str = ""
    direct: str = ""
    end: str = ""

    @property
    def again(self) -> str:
        """Before thoughts that follow thoughts: where a turn of its own holds each, it begins as the answer's does."""
        return self.answer.removesuffix(self.direct) + self.open if self.direct else self.open


HARMONY = Tags(
    "<|channel|>analysis<|message|>",
    "<|end|>",
    answer="<|start|>assistant<|channel|>final<|message|>",
    direct="<|channel|>final<|message|>",
)

_START, _END = "<|START_{}|>", "<|END_{}|>"

KNOWN = (
    HARMONY,
    Tags("<|channel>thought", "<channel|>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<mm:think>", "</mm:think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("◁think▷", "◁/think▷"),
    Tags("<|begin_of_thought|>", "<|end_of_thought|>"),
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),
    Tags("<unused94>thought", "<unused95>"),
    Tags("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
"""Pairs that tell thinking wherever both stand in a template's source."""

COHERE = Tags(_START.format("THINKING"), _END.format("THINKING"))
_COHERE_ANSWERS = ("RESPONSE", "TEXT")
COMPOSED = Tags(
    "<|open|>think<|sep|>", "<|close|>think<|sep|>", answer="<|open|>response<|sep|>", end="<|close|>response<|sep|>"
)
"""Kimi K3's, which its template puts together from pieces."""
THINK = Tags("<think>", "</think>")
PROSE = (Tags("<thinking>", "</thinking>"), Tags("<thought>", "</thought>"), Tags("<reasoning>", "</reasoning>"))
"""Words that instructions may use as well: they count only where a template strips them from earlier answers."""

_THOUGHTS, _ANSWER, _QUESTION = "qzjxvkw", "wkvxjzq", "jxqwvkz"
_TAG_BEFORE = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])$")


def tags_of(template: str, render: Render | None = None) -> Tags | None:
    """The tags of a template's models, or None where nothing in it tells of thinking.

    `template` is its source. Without `render` only what stands literally in the source is recognised.
    """
    for tags in KNOWN:
        if tags.close in template and all(piece in template for piece in _pieces(tags.open)):
            return tags
    if COHERE.open in template and COHERE.close in template:
        for name in _COHERE_ANSWERS:
            if _START.format(name) in template:
                opening = _START.format(name)
                return Tags(COHERE.open, COHERE.close, answer=opening, direct=opening, end=_END.format(name))
        return COHERE
    if THINK.open in template or THINK.close in template:
        return THINK  # one that merely strips "</think>" from earlier answers has models that write it
    if render is None:
        return None
    return _around_thoughts(render) or next((tags for tags in PROSE if _strips(tags, template, render)), None)


def _pieces(text: str) -> list[str]:
    # A template may put the words of a channel together itself.
    return ["<|channel|>", "analysis"] if text == HARMONY.open else [text]


def opened_by(prompt: str, tags: Tags) -> bool:
    """Whether the prompt itself opens the thinking, so that the model begins inside of it."""
    return prompt.rstrip().endswith(tags.open)


def _around_thoughts(render: Render) -> Tags | None:
    """By what a template puts around the thoughts of a last answer."""
    question = {"role": "user", "content": _QUESTION}
    said = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHTS}
    prompt, text = _text(render, question), _text(render, question, said)
    before, found, behind = text.partition(_THOUGHTS)
    between, answered, _ = behind.partition(_ANSWER)
    if not (found and answered and prompt):
        return None
    before, between = before.rstrip(), between.strip()
    if before.endswith(COMPOSED.open) and between.startswith(COMPOSED.close):
        return COMPOSED
    header = _header(prompt.rpartition(_QUESTION)[2], before, between)
    if header:
        # Thoughts and answer each have a turn of their own, of the kind that the prompt has begun.
        close, _, direct = between.partition(header)
        opening = before.rpartition(header)[2]
        return Tags(opening.strip(), close.strip(), answer=header + direct, direct=direct.strip())
    opening_tag = _TAG_BEFORE.search(before)
    if opening_tag is None:
        return None
    inner = opening_tag[0]
    close = f"{inner[0]}/{inner[1:]}"
    return Tags(inner, close) if between.startswith(close) else None


def _header(tail: str, before: str, between: str) -> str:
    """What begins a turn of the model's, if thoughts and answer have one each; "" where they share one.

    It ends the prompt and stands again between thoughts and answer. There the end of a turn precedes it, which may be
    of the same kind as the one that ends the user's: it belongs to the thoughts' turn.
    """
    for begin, char in enumerate(tail):
        header = tail[begin:].strip()
        if char in "<[" and between.find(header) > 0 and header in before and not before.endswith(header):
            return header
    return ""


def _strips(tags: Tags, template: str, render: Render) -> bool:
    """Whether thoughts between these tags are taken out of an earlier answer."""
    if tags.close not in template:
        return False
    question = {"role": "user", "content": _QUESTION}
    said = {"role": "assistant", "content": f"{tags.open}{_THOUGHTS}{tags.close}{_ANSWER}"}
    text = _text(render, question, said, question)
    return _ANSWER in text and _THOUGHTS not in text


def _text(render: Render, *messages: dict[str, str]) -> str:
    try:
        return render([*messages])
    except Exception:  # noqa: BLE001 - whatever a template dies of, it has not told of thinking
        return ""


class Splitter:
    """Divides what a model says, as it comes, into answer and thoughts.

    Thoughts begin at the very beginning of the answer (whitespace before the tag is dropped) or directly behind other
    thoughts; anywhere else a tag is text like any other. They end at the first closing tag. Whitespace directly behind
    the opening tag and around the closing one belongs to neither. How the text is cut into pieces changes nothing.
    """

    def __init__(self, tags: Tags, *, inside: bool) -> None:
        """`inside`: the prompt has opened the thoughts already."""
        self._tags = tags
        self._held = ""
        self._at: Literal["begin", "thoughts", "behind", "answer", "end"] = "thoughts" if inside else "begin"
        self._fresh = True  # nothing of these thoughts was given out yet

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to the thoughts."""
        return self._at == "thoughts"

    @property
    def n_held(self) -> int:
        """Characters that are held back."""
        return len(self._held)

    def add(self, text: str) -> tuple[str, str]:
        """Answer and thoughts that can be shown after this piece; what may become a tag is held back."""
        self._held += text
        answer = thoughts = ""
        while True:
            at = self._at
            if at == "thoughts":
                thoughts += self._think()
            elif at == "answer":
                answer += self._answer()
            elif at == "end":
                self._held = ""
            else:
                self._choose()
            if self._at == at or not self._held:
                return answer, thoughts

    def finish(self) -> tuple[str, str]:
        """What was held back, now that nothing follows. Thoughts that were never closed are thoughts."""
        held, self._held = self._held, ""
        if self._at == "thoughts":
            return "", held.lstrip() if self._fresh else held
        return (held.lstrip() if self._at == "behind" else held), ""

    def _choose(self) -> None:
        """At a beginning: thoughts, an answer, or not enough yet to tell."""
        tags = self._tags
        text = self._held.lstrip()
        if not text:
            return
        if self._at == "begin":
            beginnings = {tags.open: True, tags.direct: False}
        else:
            beginnings = {tags.open: True, tags.again: True, tags.answer: False}
        if any(len(text) < len(tag) and tag.startswith(text) for tag in beginnings):
            return
        found = max((tag for tag in beginnings if tag and text.startswith(tag)), key=len, default=None)
        if found is not None:
            self._held = text[len(found) :]
            self._at, self._fresh = ("thoughts", True) if beginnings[found] else ("answer", False)
        else:
            self._held = text if self._at == "behind" else self._held
            self._at = "answer"

    def _think(self) -> str:
        if self._fresh:
            self._held = self._held.lstrip()
        text, closed, rest = self._held.partition(self._tags.close)
        if closed:
            self._held, self._at = rest, "behind"
            shown = text.rstrip()
        else:
            # Whitespace is held as well: a closing tag behind it would make it nobody's.
            shown = text[: len(text) - overlap(text, self._tags.close)].rstrip()
            self._held = text[len(shown) :]
        self._fresh = self._fresh and not shown
        return shown

    def _answer(self) -> str:
        end = self._tags.end
        if not end:
            shown, self._held = self._held, ""
            return shown
        text, closed, _ = self._held.partition(end)
        if closed:
            self._at = "end"
            return text
        shown = text[: len(text) - overlap(text, end)]
        self._held = text[len(shown) :]
        return shown
