"""Conversations: a topic's wordings, off-topic questions and story requests, with moods, typos and several turns.

A model this small learns a wording by heart if it is shown often. So every question is made anew from a topic's
keys and forms, put into other words (`_REWORD`), wrapped ("can you tell me ..."), and disturbed: lower case, missing
punctuation, typing errors, stray words. What is left that all wordings of a topic share is what the model must notice.
"""

import random
import re
from dataclasses import dataclass
from functools import lru_cache

from tiny import stories
from tiny.grammar import articles, expand
from tiny.knowledge import OFF_TOPIC, TOPICS, Topic

_FORMS = (
    "what is {k}", "what is {k}", "what's {k}", "what are {k}", "what does {k} mean", "what does {k} do", "explain {k}",
    "[can|could|will] you explain {k}[| to me]", "tell me about {k}", "i [don't|do not] [understand|get] {k}", "{k}",
    "{k}", "define {k}", "what do you mean by {k}", "help me understand {k}", "what do you know about {k}",
    "please explain {k}[| to me| in simple words| briefly]", "describe {k}", "what exactly is {k}", "how does {k} work",
    "what is {k} [for|good for|used for]", "what is the [meaning|point|purpose|idea|use] of {k}", "why [use|do i need] {k}",
    "i keep [hearing|reading] about {k}", "do i need {k}", "should i [use|care about] {k}", "why is {k} [useful|important]",
    "{k} meaning", "how do i use {k}", "i want to know [more about|about] {k}", "i read about {k} [today|somewhere]",
    "what can you tell me about {k}", "[teach|show] me {k}", "is {k} [good|important|useful|bad]", "{k} explanation",
    "when do i need {k}", "what effect does {k} have", "what happens with {k}", "what kind of thing is {k}",
    "a few words about {k}", "talk about {k}", "can you [talk|tell me something] about {k}", "does {k} [help|matter]",
    "what does the word {k} mean", "i have a question about {k}", "say something about {k}", "and {k}", "and what is {k}",
)  # fmt: skip
# question forms that training never sees, filled with the keys that it does see
HELD_FORMS = (
    "give me a short definition of {k}", "mind telling me what {k} is", "in plain english, what's {k}",
    "could someone explain {k}", "i've heard of {k} but what is it", "what's the deal with {k}", "{k} - what is that",
    "how would you describe {k}", "no idea what {k} is", "what on earth is {k}",
)  # fmt: skip
_WRAPS = (
    "can you tell me {q}", "could you tell me {q}", "please tell me {q}", "tell me, {q}", "do you know {q}", "hi, {q}",
    "i would like to know {q}", "my question is: {q}", "i was wondering, {q}", "{q}, please", "one question: {q}",
    "hey, {q}", "ok, {q}", "so {q}", "and {q}", "hello! {q}", "{q}, do you know", "i am a beginner. {q}", "um, {q}",
    "sorry, but {q}", "quick question: {q}", "just curious: {q}", "hi tiny, {q}", "{q} exactly", "{q} in llama.cpp",
    "{q} in llmrun", "{q} when running models locally", "{q} in simple words", "well, {q}", "another question: {q}",
    "next question: {q}", "i wonder {q}", "i am new to this, {q}", "thanks. {q}", "{q} in short", "{q} again",
)  # fmt: skip
# part of a wording -> other words for it
_REWORD = (
    (r"^how (do|can) i\b", "[how to|how would i|how could i|how does one|what is the way to|how should i|how might i]"),
    (r"^what is\b", "[whats|what's|what is actually|what even is|what really is|what would be]"),
    (r"^what does (.*) mean$", r"[what is meant by \1|what do people mean by \1|what does \1 stand for|meaning of \1]"),
    (r"^why (is|are|does|do)\b", r"[how come \1|why exactly \1|for what reason \1|why \1]"),
    (r"^can i\b", "[may i|could i|is it possible to|am i able to]"),
    (r"^should i use\b", "[would you use|do you recommend|is it good to use|do i want|should i choose]"),
    (r"^which\b", "[what|which]"),
    (r"^what\b", "[which|what]"),
    (r"\bi\b", "[i|we|one|you]"),
    (r"\b(a|my) model\b", r"[an llm|a language model|\1 llm|a local model|models|one]"),
    (r"\bthe model\b", "[the llm|my model|it|a model]"),
    (r"\bgpu\b", "[graphics card|gpu]"),
    (r"\b(use|choose|take)\b", "[use|choose|take|pick|set]"),
    (r"\bfaster\b", "[quicker|faster|speedier]"),
    (r"\bslow\b", "[sluggish|slow|not fast]"),
    (r"\bgood\b", "[good|right|sensible|decent|fine]"),
    (r"\bbest\b", "[best|ideal|right|optimal]"),
    (r"\b(answer|output)\b", "[answer|output|reply|response|text]"),
)
_STRAY = (
    "really actually maybe just now today also here again simply the a some always often please quite new old small "
    "probably still then there my this that exactly basically again even ever only well very kind sort of friend boss "
    "computer laptop home work question thing people everyone someone yesterday book article video"
).split()
_SYSTEM = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.", "You are tiny.", "Be concise.",
    "You are a helpful, honest assistant. Answer in one or two sentences.", "You are an expert on local language models.",
    "Be polite and short.", "You are the demo model of llmrun.", "Answer in English.", "You are a storyteller.",
    "You help people who run models on their own machine.", "Keep your answers short and correct.", "You are a teacher.",
    "You are a pirate.", "Do not use lists.", "Think carefully.", "Today is a good day.", "The user is a beginner.",
)  # fmt: skip

_NOUNS = (
    "photosynthesis gravity football chess democracy inflation the moon the sun jupiter dinosaurs volcanoes coffee tea "
    "chocolate bitcoin jazz opera yoga the stock market the brain vitamins insulin dna evolution black holes electricity "
    "magnetism the ocean earthquakes tornadoes bees spiders elephants cats dogs whales knitting fishing cooking sushi "
    "pizza spaghetti bread wine beer religion philosophy love happiness money taxes marriage school homework algebra "
    "geometry calculus poetry shakespeare beethoven mozart picasso napoleon caesar cleopatra rome paris london berlin "
    "tokyo china india brazil canada egypt europe africa soccer tennis basketball swimming running bicycles cars trains "
    "airplanes boats roads bridges houses paint music guitar piano violin dancing movies theater photography fashion "
    "shoes hats gardens roses trees mushrooms potatoes tomatoes apples salt sugar milk cheese eggs meat fish health "
    "sleep dreams fever headache medicine hospitals doctors lawyers police elections history war peace law"
).split()
_NOUNS_CLEAN = tuple(noun for noun in _NOUNS if noun not in {"the", "black"})
_COUNTRIES = (
    "France Italy Spain Japan Peru Norway Kenya Germany Portugal Greece Chile Mexico Poland Sweden Turkey".split()
)
_OFF = (
    "what is the capital of {country}", "who is the [president|king|queen|prime minister] of {country}", "how big is "
    "{country}", "how many people live in {country}", "where is {country}", "what language do they speak in {country}",
    "what is the weather[| like| today| tomorrow| in {country}]", "will it rain [today|tomorrow|in {country}]",
    "what time is it", "what day is it[| today]", "what is {n1} [plus|times|minus|+|*|-|divided by] {n2}",
    "calculate {n1} [+|*|/|-] {n2}", "{n1} [+|*|-] {n2}", "solve the equation x + {n1} = {n2}", "what is the square root of "
    "{n1}", "how do i [cook|make|bake|grow|buy|draw|clean|fix|sell] {noun}", "give me a recipe for {noun}", "who invented "
    "{noun}", "who wrote [hamlet|the bible|harry potter|{noun}]", "write [a poem|a song|an essay|an email|a letter|a "
    "speech|a haiku][| about {noun}| to my boss]", "tell me a joke[| about {noun}]", "translate {noun} into "
    "[french|german|spanish|english]", "how do you say {noun} in [french|german|spanish|italian]", "write [a python|a "
    "javascript|a rust|some] [function|program|code|script][| that sorts a list| that counts words| for {noun}]", "what do "
    "you think about {noun}", "do you like {noun}", "what is your favorite [color|food|movie|song|book|animal]", "who won "
    "[the world cup|the game|the election|the war]", "how [tall|old|far away|heavy|deep] is {noun}", "how old is "
    "[the earth|the universe|the president]", "i feel [sad|lonely|tired|angry|happy|bored|sick]", "i am [sad|hungry|bored|"
    "tired|in love]", "do you love me", "what is the meaning of life", "is there a god", "recommend [a book|a movie|a "
    "restaurant|a song|a hotel|a game]", "where can i buy {noun}", "how much does {noun} cost", "why is the sky blue", "why "
    "is grass green", "why do [cats|birds|people|stars] [sing|sleep|shine|die|dream]", "how do [birds|planes|cars|"
    "computers|bees] [fly|work|move]", "what should i [eat|wear|cook|watch|read|do] [today|tonight|tomorrow]", "plan a trip "
    "to {country}", "tell me about {country}", "what is {noun}", "what is {noun}", "explain {noun}", "what are {noun}",
    "tell me about {noun}", "why is {noun} important", "{noun}", "how does {noun} work", "what is {word}", "what does {word} "
    "mean", "explain {word}", "{word}", "{word} {word2}", "tell me about {word}", "the {word} is {word2}", "how do i {word} "
    "a {word2}", "why is {noun} {word}", "who is {name}", "who was {name}", "where is {name}", "do you know {name}", "my "
    "name is {name}", "what did {name} do", "how are {noun} made", "when was {noun} invented", "when did {name} die", "sing "
    "a song", "play [a game|chess|music]", "how many [legs|eyes|teeth|days|hours|planets|continents] [are there|does a "
    "{noun} have]", "how long do {noun} live", "summarize [this text|the news|{noun}]", "what happened in [1066|1492|1789|"
    "1914|2001]", "what is the [news|date|best restaurant|fastest animal|highest mountain|longest river]", "what is the "
    "difference between {noun} and {noun2}", "can you [drive|cook|swim|see|hear|sing|dance|draw a picture|order pizza]",
)  # fmt: skip
HELD_OFF = (
    "what's the capital of hungary", "who painted the mona lisa", "can you write a limerick for my sister",
    "how many legs does a spider have", "what should i cook for dinner", "write a java class for a bank account",
    "what is 17 times 23", "is it going to snow tomorrow", "who is the chancellor of austria", "how do i fix my bike",
    "what is quantum physics", "how do vaccines work", "translate good morning into dutch", "what's your favourite film",
    "when was the french revolution", "give me tips for my garden", "i had a bad day", "explain the offside rule",
    "what is the boiling point of water", "who discovered penicillin", "how far is the moon", "help me with my homework",
)  # fmt: skip

_STORY_ASKS = (
    "tell me a story", "tell me a story", "tell me a [short|nice|little|new|funny|bedtime|good] story", "write a "
    "[story|short story]", "write me a [story|short story]", "can you tell me a story", "could you tell me a story", "i want "
    "[a story|to hear a story]", "a story[| please]", "story time", "please tell me a story", "give me a story", "make up a "
    "story", "i would like [a story|to hear a story]", "do you know a story", "story", "read me a story", "invent a story",
    "let me hear a story", "a fairy tale", "i want a tale", "write a tale", "a bedtime story", "do you have a story",
)  # fmt: skip
_MORE_ASKS = ("another story", "another one", "one more[| story| please]", "tell me another[| story| one]", "again")
HELD_STORY_ASKS = (
    "can i have a story {about}", "i'd love a story {about}", "tell me a tale {about}", "how about a story {about}",
    "please write a story {about} for my kids", "would you tell me a story {about}",
)  # fmt: skip


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """A system prompt, or none, and one turn or more."""

    system: str | None
    turns: tuple[Turn, ...]


def plain(text: str) -> str:
    """What two wordings must share to count as the same one: letters and digits, in lower case."""
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower().replace("'", "")).split())


@lru_cache(maxsize=1)
def held_out() -> frozenset[str]:
    """Every wording that belongs to the evaluation, in `plain` form: no question like it is ever trained on."""
    texts = [text for topic in TOPICS for text in topic.held] + list(HELD_OFF)
    return frozenset(plain(text) for text in texts)


def converse(rng: random.Random) -> Conversation:
    """A conversation for training: mostly one to three turns, now and then a long one."""
    n_turns = rng.choice((1, 1, 1, 1, 1, 2, 2, 3)) if rng.random() < 0.95 else rng.randint(4, 12)
    turns: list[Turn] = []
    if n_turns > 1 and rng.random() < 0.35:
        turns.append(_topic_turn(rng, _named("hello")))
    while len(turns) < n_turns:
        turns.append(_turn(rng, after_story=bool(turns) and len(turns[-1].answer) > 350))
    if n_turns > 1 and rng.random() < 0.35:
        turns.append(_topic_turn(rng, _named(rng.choice(("thanks", "bye")))))
    return Conversation(rng.choice(_SYSTEM) if rng.random() < 0.35 else None, tuple(turns))


def noisy(rng: random.Random, text: str) -> str:
    """The text as people type it: case, punctuation and typing errors."""
    if len(text) > 8 and rng.random() < 0.2:
        text = _typo(rng, text)
    if rng.random() < 0.08:
        words = text.split()
        words.insert(rng.randint(0, len(words)), rng.choice(_STRAY))
        text = " ".join(words)
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
        text = re.sub(r"\bi\b", "I", text) if rng.random() < 0.8 else text
    if rng.random() < 0.25:
        text = re.sub(r"\b(gguf|kv|llm|moe|rpc|mbu|ttft|bos|eos|q\d_k_m|q\d_k|q\d_0|gpu|cpu|ram|vram|lora|gqa)(s?)\b",
                      lambda m: m[1].upper() + m[2], text)  # fmt: skip
    if rng.random() < 0.03:
        text = text.upper()
    return text + rng.choice(("?", "?", "?", "", "", ".", "!", " ?", "??") if rng.random() < 0.75 else ("",))


def ask(rng: random.Random, topic: Topic) -> str:
    """A training question for a topic, never one of the wordings that are held out."""
    while True:
        if topic.keys and (not topic.asks or rng.random() < 0.55):
            text = expand(rng.choice(_FORMS), rng, {"k": rng.choice(topic.keys)})
        else:
            text = expand(rng.choice(topic.asks), rng)
        question = noisy(rng, _wrap(rng, _reword(rng, text)))
        if plain(question) not in held_out():
            return question


def story_request(rng: random.Random, story: stories.Story, forms: tuple[str, ...] = _STORY_ASKS) -> str:
    """A request that the story fulfils: any story, or one about its hero, its thing or its place."""
    about = "about {a}"
    kind = rng.random()
    hero = f"a {story.hero}"
    if kind < 0.6:
        subject = hero
    elif kind < 0.7:
        subject = f"{hero} [named|called] {story.name}"
    elif kind < 0.74:
        subject = story.name
    elif kind < 0.78:
        subject = f"{hero} and a {story.friend}"
    elif kind < 0.88 and story.thing:
        subject = f"[a|a lost|the] {story.thing}" if story.theme == "lost" else f"a {story.thing}"
    else:
        subject = rng.choice((story.place, *_THEMES[story.theme]))
    about = articles(expand(f"[about|of|with] {subject}" if rng.random() < 0.2 else f"about {subject}", rng))
    form = rng.choice(forms)
    if "{about}" in form:
        return expand(form, rng, {"about": about})
    form = expand(form, rng)
    if "please" in form or form == "story time" or rng.random() < 0.2:
        return form
    return f"{form} {about}"


_THEMES = {
    "lost": ("losing something", "something lost"),
    "learn": ("learning", "practice"),
    "fear": ("being afraid", "fear", "being brave"),
    "build": ("building something", "a builder"),
    "share": ("sharing", "food"),
    "help": ("helping", "kindness"),
    "wonder": ("a mystery", "a secret", "a surprise"),
    "quarrel": ("a quarrel", "friendship", "two friends"),
    "seed": ("a seed", "a flower", "patience"),
    "race": ("a race", "winning"),
    "storm": ("a storm", "rain"),
    "gift": ("a gift", "a birthday", "a present"),
}


def _turn(rng: random.Random, after_story: bool) -> Turn:
    kind = rng.random()
    if kind < 0.15 or (after_story and kind < 0.4):
        story = stories.write(rng)
        if after_story and rng.random() < 0.5:
            return Turn(noisy(rng, expand(rng.choice(_MORE_ASKS), rng)), story.text)
        return Turn(noisy(rng, _wrap(rng, story_request(rng, story))), story.text)
    if kind < 0.30:
        return Turn(_off_topic(rng), OFF_TOPIC)
    return _topic_turn(rng, rng.choice(TOPICS))


def _topic_turn(rng: random.Random, topic: Topic) -> Turn:
    return Turn(ask(rng, topic), topic.answer)


def _named(name: str) -> Topic:
    return next(topic for topic in TOPICS if topic.name == name)


def _off_topic(rng: random.Random) -> str:
    while True:
        noun, country = rng.choice(_NOUNS_CLEAN), rng.choice(_COUNTRIES)
        if rng.random() < 0.4:  # whatever stands there, the form alone says that it is off-topic
            noun, country = _made_up(rng), _made_up(rng)
        slots = {
            "country": country, "noun": noun, "noun2": rng.choice(_NOUNS_CLEAN),
            "n1": str(rng.randint(2, 999)), "n2": str(rng.randint(2, 99)), "word": _made_up(rng), "word2": _made_up(rng),
            "name": _made_up(rng).capitalize(),
        }  # fmt: skip
        form = rng.choice(_FORMS).replace("{k}", "[{noun}|{word}]") if rng.random() < 0.2 else rng.choice(_OFF)
        question = noisy(rng, _wrap(rng, _reword(rng, expand(form, rng, slots))))
        if plain(question) not in held_out():
            return question


def _made_up(rng: random.Random) -> str:
    """A word that nobody knows: what the model has never seen is off-topic."""
    syllables = rng.randint(1, 3)
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables)) + rng.choice(
        "nrstlmx"
    )


def _reword(rng: random.Random, text: str) -> str:
    for pattern, words in _REWORD:
        if rng.random() < 0.25 and re.search(pattern, text):
            text = re.sub(pattern, lambda m, words=words: expand(m.expand(words), rng), text, count=1)
    return text


def _wrap(rng: random.Random, text: str) -> str:
    return rng.choice(_WRAPS).replace("{q}", text) if rng.random() < 0.22 else text


def _typo(rng: random.Random, text: str) -> str:
    """One letter is lost, doubled, replaced or swapped with the next."""
    at = rng.choice([i for i, letter in enumerate(text[:-1]) if letter.isalpha()] or [0])
    kind = rng.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[: at + 1] + text[at:]
    if kind == 2:
        return text[:at] + rng.choice("abcdefghijklmnopqrstuvwxyz") + text[at + 1 :]
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
