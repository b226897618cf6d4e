"""What the GGUF file can do, measured through llama.cpp: accuracy on held-out wordings, endings, perplexity, stories."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tiny import chat, data, stories
from tiny.export import render
from tiny.grammar import articles, expand
from tiny.knowledge import OFF_TOPIC, TOPICS
from tiny.tokenizer import Tokenizer

if TYPE_CHECKING:
    from tiny.engine import Engine

Say = Callable[[str], None]
_LIMIT = 200  # an answer has to end by itself before that many tokens
_STORY_LIMIT = 320
SAMPLE_QUESTIONS = (
    "who is this", "what do the letters in q4_k_m stand for", "why does memory limit decoding", "what does ngl do",
    "how come the prompt is processed faster than the answer", "whats flash attention", "how to test how fast my model is",
    "what command do i use to download a model", "why do llms make stuff up", "what's the capital of hungary",
)  # fmt: skip


@dataclass
class Question:
    """A question and the answer that counts as right."""

    text: str
    answer: str
    topic: str


@dataclass
class Result:
    """Everything that an evaluation found out; `accuracy` is by set of questions."""

    accuracy: dict[str, float] = field(default_factory=dict)
    n_questions: dict[str, int] = field(default_factory=dict)
    wrong: list[dict[str, str]] = field(default_factory=list)
    unfinished: int = 0
    longest_answer: int = 0
    perplexity: dict[str, float] = field(default_factory=dict)
    stories: dict[str, float] = field(default_factory=dict)
    tokenizer_differences: int = 0
    sample_stories: list[tuple[str, str]] = field(default_factory=list)
    sample_answers: list[tuple[str, str]] = field(default_factory=list)


def question_sets() -> dict[str, list[Question]]:
    """The fixed evaluation sets; none of these wordings is trained on.

    hand        written by hand, as they stand in knowledge.py and chat.py
    disturbed   the same with case, punctuation and typing errors
    forms       general question forms that training never sees, filled with a topic's keys
    """
    rng = random.Random("evaluation")
    hand = [Question(text, topic.answer, topic.name) for topic in TOPICS for text in topic.held]
    hand += [Question(text, OFF_TOPIC, "off_topic") for text in chat.HELD_OFF]
    disturbed = [Question(chat.noisy(rng, q.text), q.answer, q.topic) for q in hand]
    forms = [
        Question(expand(form, rng, {"k": rng.choice(topic.keys)}), topic.answer, topic.name)
        for topic in TOPICS
        if topic.keys
        for form in rng.sample(chat.HELD_FORMS, 3)
    ]
    return {"hand": hand, "disturbed": disturbed, "forms": forms}


def evaluate(path: Path, tokenizer: Tokenizer, held: list[data.Document], say: Say) -> Result:
    """Run everything on the file; `held` are held-out documents for the perplexity."""
    from tiny.engine import Engine  # here, so that training does not need llama-cpp-python

    engine, result = Engine(path), Result()
    _check_tokenizer(engine, tokenizer, held, result)
    for name, questions in question_sets().items():
        right = 0
        for question in questions:
            tokens, ended = engine.generate(render([("user", question.text)], tokenizer), _LIMIT)
            answer = engine.text(tokens)
            right += answer == question.answer
            result.unfinished += not ended
            result.longest_answer = max(result.longest_answer, len(tokens))
            if answer != question.answer:
                result.wrong.append({"set": name, "topic": question.topic, "question": question.text, "answer": answer})
        result.accuracy[name], result.n_questions[name] = right / len(questions), len(questions)
        say(f"{name}: {right} of {len(questions)} right ({right / len(questions):.1%})")
    _second_turns(engine, tokenizer, result, say)
    for kind, is_chat in (("stories", False), ("chat", True)):
        scores = [engine.nll(d.tokens, d.counted) for d in held if d.is_chat == is_chat]
        result.perplexity[kind] = float(2.718281828459045 ** (sum(s for s, _ in scores) / sum(n for _, n in scores)))
        say(f"perplexity of {len(scores)} held-out {kind} documents: {result.perplexity[kind]:.3f}")
    _stories(engine, tokenizer, result, say)
    for text in SAMPLE_QUESTIONS:
        answer = engine.text(engine.generate(render([("user", text)], tokenizer), _LIMIT)[0])
        result.sample_answers.append((text, answer))
    engine.close()
    return result


def save(result: Result, path: Path) -> None:
    """The result as JSON."""
    path.write_text(json.dumps(asdict(result), indent=1) + "\n")


def _check_tokenizer(engine: "Engine", tokenizer: Tokenizer, held: list[data.Document], result: Result) -> None:
    """llama.cpp has to cut every text as training did, and any UTF-8 text has to survive a round trip."""
    texts = [tokenizer.decode(document.tokens) for document in held]
    texts += [question.text for questions in question_sets().values() for question in questions]
    odd = [
        "",
        " ",
        "  two  spaces ",
        "\n\ttabs\n",
        "naïve café",
        "日本語 😀",
        "\u2581",
        "a\u0000b",
        "<|end|> <s>",
        "1e-5",
    ]
    for text in texts + odd:
        tokens = engine.tokenize(text, special=False, parse=False)
        same = tokens == tokenizer.encode(text) and engine.text(tokens) == text.replace("\u2581", " ")
        result.tokenizer_differences += not same


def _second_turns(engine: "Engine", tokenizer: Tokenizer, result: Result, say: Say) -> None:
    """The hand-written wordings once more, after a system prompt and another question with its answer."""
    rng = random.Random("second turn")
    questions = rng.sample(question_sets()["hand"], 100)
    right = 0
    for question in questions:
        first = rng.choice(TOPICS)
        messages = [
            ("system", "You are a helpful assistant."),
            ("user", chat.ask(rng, first)),
            ("assistant", first.answer),
        ]
        tokens, ended = engine.generate(render([*messages, ("user", question.text)], tokenizer), _LIMIT)
        right += engine.text(tokens) == question.answer
        result.unfinished += not ended
    result.accuracy["second_turn"], result.n_questions["second_turn"] = right / len(questions), len(questions)
    say(f"second turn: {right} of {len(questions)} right")


def _stories(engine: "Engine", tokenizer: Tokenizer, result: Result, say: Say) -> None:
    """Ask for stories about a hero, and continue "Once upon a time"; count what a reader would notice."""
    rng = random.Random("stories")
    n = 60
    about = ended = consistent = in_length = 0
    texts: list[tuple[str, str]] = []
    for i in range(n):
        hero = rng.choice(stories.heroes())
        request = articles(expand(rng.choice(chat.HELD_STORY_ASKS), rng, {"about": f"about a {hero}"}))
        prompt = [1, *tokenizer.encode("Once upon a time")] if i % 3 == 0 else render([("user", request)], tokenizer)
        tokens, end = engine.generate(prompt, _STORY_LIMIT, rng)
        text = ("Once upon a time" if i % 3 == 0 else "") + engine.text(tokens)
        texts.append(("Once upon a time" if i % 3 == 0 else request, text))
        about += i % 3 != 0 and hero in text.split(". ")[0]
        ended += end
        in_length += 60 <= len(text.split()) <= 180
        consistent += len(_names(text)) <= 2
    result.stories = {
        "n": n, "about_the_hero": about / (n - n // 3), "ended": ended / n, "60_to_180_words": in_length / n,
        "at_most_two_names": consistent / n, "different": len({text for _, text in texts}) / n,
    }  # fmt: skip
    result.sample_stories = texts[:3]
    say(f"stories: {result.stories}")


def _names(text: str) -> set[str]:
    words = re.findall(r"[A-Z][a-z]+", text.replace("May I", ""))
    return set(words) & set(stories.names())
