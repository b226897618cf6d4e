"""Thinking tags by what a template says, and an answer divided by them however it is cut."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from llmrun.engine.child.chat_template import Templates
from llmrun.engine.child.reasoning import COHERE, COMPOSED, HARMONY, THINK, Splitter, Tags, opened_by, tags_of


def split(text: str, tags: Tags, cuts: list[int] | None = None, *, inside: bool = False) -> tuple[str, str]:
    """Answer and thoughts of `text`, given in pieces that end at `cuts`."""
    splitter = Splitter(tags, inside=inside)
    edges = [0, *sorted(cuts or []), len(text)]
    shown = [splitter.add(text[begin:end]) for begin, end in pairwise(edges)]
    shown.append(splitter.finish())
    return "".join(answer for answer, _ in shown), "".join(thoughts for _, thoughts in shown)


COHERE_TEXT = Tags(COHERE.open, COHERE.close, "<|START_TEXT|>", "<|START_TEXT|>", "<|END_TEXT|>")

CASES = [
    # what the model says, the tags, whether the prompt opened them, answer, thoughts
    ("<think>\nhm\n</think>\n\nyes", THINK, False, "yes", "hm"),
    (" \n<think>hm</think>yes", THINK, False, "yes", "hm"),
    ("hm\n</think>\n\nyes\n", THINK, True, "yes\n", "hm"),
    ("<think>\n\n</think>\n\nyes", THINK, False, "yes", ""),
    ("yes <think>no</think>", THINK, False, "yes <think>no</think>", ""),
    ("  yes", THINK, False, "  yes", ""),
    ("yes</think>", THINK, False, "yes</think>", ""),
    ("<think>a</think>\n<think>b</think> c <think>", THINK, False, "c <think>", "ab"),
    ("<think>a </thin b", THINK, False, "", "a </thin b"),
    ("<think>a\n\n b </thi", THINK, False, "", "a\n\n b </thi"),
    ("<think> a \n", THINK, False, "", "a \n"),
    ("<thi", THINK, False, "<thi", ""),
    ("<think>a</think> <thi", THINK, False, "<thi", "a"),
    ("a</think></think>b", THINK, True, "</think>b", "a"),
    ("", THINK, True, "", ""),
    (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>yes",
        HARMONY,
        False,
        "yes",
        "hm",
    ),
    ("<|channel|>final<|message|>yes", HARMONY, False, "yes", ""),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>"
        "<|start|>assistant<|channel|>final<|message|>c",
        HARMONY,
        False,
        "c",
        "ab",
    ),
    ("hm<|END_THINKING|><|START_TEXT|>yes<|END_TEXT|>", COHERE_TEXT, True, "yes", "hm"),
    ("<|START_TEXT|>yes<|END_TEXT", COHERE_TEXT, False, "yes<|END_TEXT", ""),
    ("a<|close|>think<|sep|><|open|>response<|sep|>b<|close|>response<|sep|>x", COMPOSED, True, "b", "a"),
]


@pytest.mark.parametrize(("text", "tags", "inside", "answer", "thoughts"), CASES)
def test_split(text: str, tags: Tags, inside: bool, answer: str, thoughts: str) -> None:
    """Thoughts come first or not at all; the whitespace around the tags is nobody's."""
    assert split(text, tags, inside=inside) == (answer, thoughts)


@pytest.mark.parametrize(("text", "tags", "inside", "answer", "thoughts"), CASES)
def test_any_cut_gives_the_same(text: str, tags: Tags, inside: bool, answer: str, thoughts: str) -> None:
    """Character by character or in pieces of any length."""
    assert split(text, tags, list(range(len(text))), inside=inside) == (answer, thoughts)
    rng = random.Random(7)
    for _ in range(50):
        cuts = [rng.randrange(len(text) + 1) for _ in range(rng.randrange(6))]
        assert split(text, tags, cuts, inside=inside) == (answer, thoughts)


def test_random_texts_do_not_depend_on_the_cut() -> None:
    """Tags, halves of tags and whitespace in any order."""
    rng = random.Random(11)
    pieces = ["<think>", "</think>", "<th", "</", "\n", " ", "a", "b c", "<"]
    for _ in range(400):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(9)))
        inside = rng.random() < 0.5
        whole = split(text, THINK, inside=inside)
        assert split(text, THINK, list(range(len(text))), inside=inside) == whole, text


def test_what_can_be_shown_is_shown_at_once() -> None:
    """Only what may become a tag waits."""
    splitter = Splitter(THINK, inside=False)
    shown = [(splitter.add(piece), splitter.inside) for piece in ("<thi", "nk>a b<", "c", "</think>\nyes<")]
    assert shown == [(("", ""), False), (("", "a b"), True), (("", "<c"), True), (("yes<", ""), False)]


# -- templates ---

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tags(template: str) -> Tags | None:
    renderer = Templates()
    return tags_of(
        template, lambda messages: renderer.render(template, messages, {"bos_token": "<s>", "eos_token": "</s>"})
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, None),
        (CHATML + "<|im_start|>assistant\n<think>\n", THINK),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}", THINK),
        ("{{ messages[0].content }}{# [THINK] and [/THINK] #}", Tags("[THINK]", "[/THINK]")),
        ("{{ '<|channel|>' + 'analysis' }}<|end|>", HARMONY),
        ("{% if a %}<|START_THINKING|>x<|END_THINKING|><|START_TEXT|>y<|END_TEXT|>{% endif %}", COHERE_TEXT),
        ("Write <thinking> and </thinking>. {{ messages[0].content }}", None),
        (
            "{% for m in messages %}{{ m.content.split('</thinking>')[-1] }}{% endfor %}",
            Tags("<thinking>", "</thinking>"),
        ),
    ],
)
def test_tags_of_a_template(template: str, expected: Tags | None) -> None:
    """Pairs that only thinking uses count where they stand; words of prose only where thoughts are stripped."""
    assert tags(template) == expected


def test_tags_that_a_template_makes_up() -> None:
    """A pair that stands nowhere in the source is found by what surrounds the thoughts."""
    template = (
        "{% set word = 'ponder:' ~ 7 %}{% for m in messages %}[{{ m.role }}]"
        "{% if m.reasoning_content %}<{{ word }}>\n{{ m.reasoning_content }}\n</{{ word }}>\n\n{% endif %}"
        "{{ m.content }}{% endfor %}[assistant]"
    )
    assert tags(template) == Tags("<ponder:7>", "</ponder:7>")


def test_thoughts_in_a_turn_of_their_own() -> None:
    """Where thoughts and answer are two turns, the second one's beginning belongs to neither."""
    template = (
        "{% for m in messages %}{% if m.reasoning_content %}<|go|>assistant<|mull|>{{ m.reasoning_content }}<|off|>"
        "{% endif %}<|go|>{{ m.role }}<|say|>{{ m.content }}<|off|>{% endfor %}<|go|>assistant"
    )
    found = tags(template)
    assert found == Tags("<|mull|>", "<|off|>", "<|go|>assistant<|say|>", "<|say|>")
    assert found is not None
    assert split("<|mull|>hm<|off|><|go|>assistant<|say|>yes", found) == ("yes", "hm")
    assert split("<|say|>yes", found) == ("yes", "")


def test_opened_by_the_prompt() -> None:
    """Only a tag at the very end counts: one that is closed again does not."""
    assert opened_by("<|im_start|>assistant\n<think>\n", THINK)
    assert not opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n", THINK)
    assert not opened_by("what is <think>?", THINK)


def test_a_template_that_fails_has_no_tags() -> None:
    """Whatever it dies of."""
    assert tags("{{ raise_exception('no') }}") is None
