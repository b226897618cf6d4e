"""Documents as token ids: raw stories, and conversations in the chat template. Batches of documents of like length."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tiny import stories
from tiny.chat import Conversation, converse
from tiny.tokenizer import ASSISTANT, BOS, END, EOS, SYSTEM, USER, Tokenizer

CUT_SHARE = 0.7  # of the conversations end soon after the last answer has begun: what follows is known by heart
RAW_STORY_SHARE = 0.2  # of the documents; the others are conversations


@dataclass(frozen=True)
class Document:
    """Token ids, and for each whether the model has to predict it."""

    tokens: list[int]
    counted: list[bool]
    is_chat: bool


def story(text: str, tokenizer: Tokenizer) -> Document:
    """`<s>` text `</s>`; everything after `<s>` is predicted."""
    tokens = [BOS, *tokenizer.encode(text), EOS]
    return Document(tokens, [False] + [True] * (len(tokens) - 1), is_chat=False)


def conversation(talk: Conversation, tokenizer: Tokenizer) -> Document:
    """The conversation in the chat template; only the answers, with their `<|end|>`, are predicted."""
    tokens, counted = [BOS], [False]

    def add(role: int, text: str, predict: bool) -> None:
        body = [*tokenizer.encode(text), END]
        tokens.extend([role, *body])
        counted.extend([False] + [predict] * len(body))

    if talk.system is not None:
        add(SYSTEM, talk.system, predict=False)
    for turn in talk.turns:
        add(USER, turn.question, predict=False)
        add(ASSISTANT, turn.answer, predict=True)
    return Document(tokens, counted, is_chat=True)


def cut(document: Document, rng: random.Random) -> Document:
    """Keep only the beginning of the last answer, which shows whether the question was understood.

    An answer is always the same text, so its end teaches nothing new after some dozen times; a story follows its
    grammar once its hero is chosen. Without those tokens, the same time goes into three times as many questions.
    """
    start = len(document.tokens) - 1 - document.tokens[::-1].index(ASSISTANT)
    is_story = len(document.tokens) - start > 90
    end = start + 1 + (rng.randint(30, 70) if is_story else rng.randint(5, 12))
    return Document(document.tokens[:end], document.counted[:end], document.is_chat)


def write(rng: random.Random, n: int, tokenizer: Tokenizer, n_ctx: int, without: frozenset[str]) -> list[Document]:
    """`n` documents that fit into `n_ctx` tokens; no raw story is one of `without`."""
    documents: list[Document] = []
    while len(documents) < n:
        if rng.random() < RAW_STORY_SHARE:
            text = stories.write(rng).text
            if text in without:
                continue
            document = story(text, tokenizer)
        else:
            document = conversation(converse(rng), tokenizer)
            if rng.random() < CUT_SHARE:
                document = cut(document, rng)
        if len(document.tokens) <= n_ctx:
            documents.append(document)
    return documents


def batches(documents: list[Document], size: int, rng: random.Random) -> Iterator[list[Document]]:
    """Batches of at most `size` tokens with padding, in random order; in each, documents of about the same length."""
    order = sorted(documents, key=lambda document: (len(document.tokens), rng.random()))
    groups: list[list[Document]] = [[]]
    for document in order:  # ascending, so the newest document is the longest of its batch
        if groups[-1] and len(document.tokens) * (len(groups[-1]) + 1) > size:
            groups.append([])
        groups[-1].append(document)
    rng.shuffle(groups)
    yield from groups


def pad(batch: list[Document]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, longest) token ids, padded with `</s>`, and a mask of the tokens to predict."""
    longest = max(len(document.tokens) for document in batch)
    tokens = np.full((len(batch), longest), EOS, dtype=np.int64)
    counted = np.zeros((len(batch), longest), dtype=bool)
    for row, document in enumerate(batch):
        tokens[row, : len(document.tokens)] = document.tokens
        counted[row, : len(document.tokens)] = document.counted
    return tokens, counted
