"""Grammars: what llama.cpp takes is taken and means the same, what is wrong is refused in words with the line."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import product

import pytest
from conftest import TINY
from waiting import HANGS_S

from llmrun.constrain import gbnf, output_format
from llmrun.engine.grammar import compiled, judge
from llmrun.errors import UsageError

# Load each grammar, then follow each of its texts token by token. A JSON list of [grammar, texts] comes on stdin; out
# goes a list: null where llama.cpp makes no sampler, else for each text whether every token was allowed, and the end.
FOLLOW = """
import ctypes, json, sys
from llmrun.engine.child.native import Log, llama
log = Log()
params = llama.llama_model_default_params()
params.vocab_only = True
llama.llama_backend_init()
model = llama.llama_model_load_from_file(sys.argv[1].encode(), params)
vocab = llama.llama_model_get_vocab(model)
n = llama.llama_vocab_n_tokens(vocab)
tokens = (llama.llama_token * 4096)()
data = (llama.llama_token_data * n)(*[llama.llama_token_data(i, 0, 0) for i in range(n)])
blank = bytes(data)

def allowed(sampler, token):
    ctypes.memmove(data, blank, len(blank))
    candidates = llama.llama_token_data_array(data, n, -1, False)
    llama.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return data[token].logit == 0

def follow(sampler, text):
    llama.llama_sampler_reset(sampler)
    raw = text.encode()
    for token in tokens[: llama.llama_tokenize(vocab, raw, len(raw), tokens, 4096, False, False)]:
        if not allowed(sampler, token):
            return False
        llama.llama_sampler_accept(sampler, token)
    return allowed(sampler, llama.llama_vocab_eos(vocab))

out = []
for grammar, texts in json.load(sys.stdin):
    sampler = llama.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    out.append([follow(sampler, text) for text in texts] if sampler else None)
print(json.dumps(out))
"""

Native = Callable[[list[tuple[str, list[str]]]], "list[list[bool] | None]"]


def native(grammars: list[tuple[str, list[str]]]) -> list[list[bool] | None]:
    """What llama.cpp itself makes of grammars and texts, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", FOLLOW, str(TINY)],
        input=json.dumps(grammars),
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def verdict(grammar: str, text: str) -> str:
    """Of a whole text, by the grammar that tokens are sampled by."""
    return judge(output_format.of_grammar(grammar).grammar, text)


# Grammar, texts that it takes, texts that it doesn't.
GOOD: list[tuple[str, list[str], list[str]]] = [
    ('root ::= "yes" | "no"', ["yes", "no"], ["", "ye", "yess", "maybe"]),
    ("root ::= [a-c]+", ["a", "abcabc"], ["", "d"]),
    ("root ::= [^a-c]", ["d", "é", "\n"], ["a", "dd"]),
    ("root ::= [a-]", ["a", "-"], ["b"]),
    ("root ::= [--0]+", ["-./0"], ["1"]),
    ('root ::= "a"* "b"?', ["", "aaa", "aab", "b"], ["ba"]),
    ('root ::= "ab"{2}', ["abab"], ["ab", "abb", "ababab"]),
    ('root ::= "ab"{2,}', ["abab", "ababab"], ["ab"]),
    ('root ::= "ab"{1,3}', ["ab", "ababab"], ["", "abababab"]),
    ('root ::= "a"{0}', [""], ["a"]),
    ('root ::= "a"{,2} "b"'.replace("{,", "{0,"), ["b", "aab"], ["aaab"]),
    ('root ::= "a"{ 1 , 2 }', ["a", "aa"], ["aaa"]),
    ('root ::= ("a" | "b" "c")+ "d"', ["ad", "bcad"], ["bd"]),
    ('root ::= (\n  "a" # one\n  | "b"\n)\n', ["a", "b"], ["c"]),
    ('root ::= "a" |\n "b"', ["a", "b"], [""]),
    ('root ::=\n  "a"', ["a"], [""]),
    ('# only\n\nroot ::= x\r\nx ::= "y"\r\n', ["y"], ["x"]),
    (r'root ::= "\x41\u00e9\U0001F600\t\n\r\\\"\[\]"', ["Aé😀\t\n\r\\\"[]"], ["A"]),
    (r"root ::= [\[\]\-\\\"]+", ['[]-\\"'], ["a"]),
    ('root ::= "日本" [ぁ-ゟ]', ["日本ぁ"], ["日本"]),
    ("root ::= .{3}", ["a\né", "日本語"], ["ab"]),
    ('root ::= "" | "a"', ["", "a"], ["b"]),
    ("root ::= ", [""], ["a"]),
    ("root ::= () \"a\" ( )", ["a"], [""]),
    ('root ::= ("a"*)*', ["", "aaa"], ["b"]),
    ('root ::= ("a"? "b"?)* "c"', ["c", "ababc"], ["ab"]),
    ('root ::= "(" root ")" | "x"', ["x", "((x))"], ["((x)"]),
    ('root ::= "a" root | ""', ["", "aaaa"], ["b"]),
    ('root ::= a-1 B\na-1 ::= "1"\nB ::= "2"', ["12"], ["1"]),
    ('root ::= x{30}\nx ::= "a"{0,2}', ["a" * 60], ["a" * 61]),
    ("root ::= [a]{2000}", ["a" * 2000], ["a" * 1999]),
    ("root ::= [a]{0,2000}", ["", "a" * 2000], ["a" * 2001]),
    ('root ::= "a"{2}{3}', ["a" * 6], ["a" * 5]),
    ('root ::= ("a"{1000} "b"){1000}', [], ["a"]),
    (r'root ::= [^"\\\x7F\x00-\x1F]+', ["aé"], ["\n"]),
    ("root ::= [\\x00-z]", ["a"], ["~"]),
    ('root ::= "\'" root-2\nroot-2 ::= "]"', ["']"], ["'"]),
    ('root ::= e "b"\ne ::= f\nf ::= ""', ["b"], [""]),
    ('root ::= [a-z]+ "abc" | "x"', ["zabc", "abcabc", "x"], ["abc", "abx"]),
]  # fmt: skip

# Grammar, what is said of it, what llama.cpp does: "refuses" by itself, "dies" of it (or hangs), "takes" it for
# something else than is written.
BAD: list[tuple[str, str, str]] = [
    ("", "is empty", "takes"),
    ("  # nothing\n", "is empty", "refuses"),
    ("start ::= [a]", "no rule 'root'", "refuses"),
    ("root ::= a", "line 1: there is no rule 'a'", "refuses"),
    ('root ::= "a"\nx ::= (y | [a])', "line 2: there is no rule 'y'", "refuses"),
    ("root", "'::=' belongs behind", "refuses"),
    ("root = [a]", "'::=' belongs behind", "refuses"),
    ("root := [a]", "'::=' belongs behind", "refuses"),
    ("ro_ot ::= [a]", "no underscores", "refuses"),
    ("root ::= a_b\na ::= [b]", "no underscores", "refuses"),
    ("::= [a]", "begins with its name", "refuses"),
    ("root ::= [a]\n| [b]", "line 2: a rule begins with its name", "refuses"),
    ("root ::= [a] x ::= [b]", "every rule begins on a line of its own", "refuses"),
    ("root ::= [a] ; x", "';", "refuses"),
    ("root ::= 'a'", "double quotes, not in single", "refuses"),
    ('root ::= "a', 'the " that closes it', "refuses"),
    ("root ::= [a", "the ] that closes it", "refuses"),
    ("root ::= [a-", "the ] that closes it", "refuses"),
    ('root ::= ("a"', "the '(' of line 1 is not closed", "refuses"),
    ('root ::= ("a"\n"b"\nx ::= "c"', "of line 1 is not closed", "refuses"),
    ('root ::= "a")', "a ')' without", "refuses"),
    ("root ::= [a]]", "a ']' without", "refuses"),
    ("root ::= []abc]", "an empty class", "refuses"),
    ("root ::= []", "an empty class", "takes"),
    ("root ::= [^]", "an empty class", "takes"),
    (r'root ::= "\d"', "not an escape", "refuses"),
    (r"root ::= [\w]", "not an escape", "refuses"),
    ('root ::= "\\', "not an escape", "refuses"),
    (r'root ::= "\x4"', "2 hexadecimal digits", "refuses"),
    (r'root ::= "\u12G4"', "4 hexadecimal digits", "refuses"),
    (r'root ::= "\U0001F60"', "8 hexadecimal digits", "refuses"),
    (r'root ::= "\x00"', "no text has the character U+0000", "dies"),
    (r'root ::= "\ud800"', "no text has the character U+D800", "dies"),
    (r'root ::= "\U00110000"', "no text has", "dies"),
    (r"root ::= [\uD800-\uDFFF]", "matches no character", "dies"),
    (r"root ::= [\x00]", "matches no character", "dies"),
    (r"root ::= [^\x00-\U0010FFFF]", "matches no character", "dies"),
    ("root ::= [z-a]", "runs backwards", "dies"),
    ("root ::= *", "nothing before it", "refuses"),
    ('root ::= ""*', "nothing before it", "refuses"),
    ('root ::= "a" | ?', "nothing before it", "refuses"),
    ('root ::= "a"{', "a number belongs behind", "refuses"),
    ('root ::= "a"{,2}', "a number belongs behind", "refuses"),
    ('root ::= "a"{x}', "a number belongs behind", "refuses"),
    ('root ::= "a"{2', "'{' of a repetition is not closed", "refuses"),
    ('root ::= "a"{1,2,3}', "'{' of a repetition is not closed", "refuses"),
    ('root ::= "a"{3,1}', "at least 3 and at most 1", "dies"),
    ('root ::= "a"{0,2000000}', "2000000… repetitions; at most 1000000", "takes"),
    ('root ::= "a"{99999999999999999999}', "999999999999… repetitions", "refuses"),
    ("root ::= root", "has no end", "refuses"),
    ('root ::= "a" d\nd ::= e d\ne ::= f\nf ::= ""', "has no end", "dies"),
    ('root ::= "a" root', "has no end", "takes"),
    ('root ::= "x" a\na ::= "y" root', "has no end", "takes"),
    ("root ::= [a]\nroot ::= [b]", "line 2: the rule 'root' is defined again, first on line 1", "takes"),
    ("root ::= <[1]>", "a token", "takes"),
    ("root ::= <think>", "a token", "refuses"),
    ("root ::= !<[1]>*", "a token", "takes"),
    ('root ::= "a"\0 | "b"', "a NUL character", "takes"),
    ('root ::= "\ud800"', "not UTF-8", "dies"),
    ("root ::= " + "(" * 101 + "[a]" + ")" * 101, "more than 100 parentheses", "takes"),
    ("root ::= " + "(" * 1_000_000, "more than 100 parentheses", "dies"),
    ("root ::= a0" + "".join(f"\na{i} ::= a{i + 1}" for i in range(10_000)), "more than 10000 rules", "takes"),
    ("# " + "x" * gbnf.MAX_TEXT, "at most 4194304", "refuses"),
]  # fmt: skip


# What llama.cpp refuses, dies of or takes for something else, and is no trouble here.
ONLY_OURS: list[tuple[str, list[str], list[str]]] = [
    ('root ::= root "a" | "a"', ["a", "aaa"], ["", "b"]),
    ('root ::= a\na ::= b "x"\nb ::= a | "y"', ["yx", "yxx"], ["y"]),
    ('root ::= "a"? root "b" | "c"', ["c", "acb", "cbb"], ["ac"]),
    ('root ::= e root "a" | "b"\ne ::= f f\nf ::= ("x"*)', ["b", "xxbaa"], ["bx"]),
    ("root ::= ()*", [""], ["a"]),
    ('root ::= "a"{2001}', ["a" * 2001], ["a" * 2000]),
    ('root ::= "a"{0,2001}', ["", "a" * 2001], ["a" * 2002]),
    ('root ::= ("a"{0,20}){0,20}', ["a" * 400], ["a" * 401]),
    ('root ::= "a"{50}{50}', ["a" * 2500], ["a" * 2499]),
    ("root ::= a0\n" + "".join(f"a{i} ::= a{i + 1} | a{i + 1}\n" for i in range(50)) + "a50 ::= [a]", ["a"], ["aa"]),
    ("root ::= " + " | ".join(f'"{i}"' for i in range(10_001)), ["0", "10000"], ["10001"]),
    ('root ::= ro-ot Ro-Ot\nro-ot ::= "a"\nRo-Ot ::= "b"', ["ab"], ["aa"]),
]


@pytest.mark.parametrize(("grammar", "right", "wrong"), GOOD + ONLY_OURS, ids=lambda value: str(value)[:40])
def test_good(grammar: str, right: list[str], wrong: list[str]) -> None:
    """What the syntax allows is read, and means what llama.cpp's guide says."""
    made = output_format.of_grammar(grammar).grammar
    assert [text for text in right if judge(made, text) != "complete"] == []
    assert [text for text in wrong if judge(made, text) == "complete"] == []


def test_llama_cpp_agrees() -> None:
    """Every good grammar loads in llama.cpp, which then allows and forbids the same texts."""
    asked = [(grammar, [text for text in [*right, *wrong] if len(text) < 400]) for grammar, right, wrong in GOOD]
    for (grammar, texts), found in zip(asked, native(asked), strict=True):
        assert found == [verdict(grammar, text) == "complete" for text in texts], grammar


@pytest.mark.parametrize(("grammar", "words", "llama_cpp"), BAD, ids=lambda value: str(value)[:40])
def test_bad(grammar: str, words: str, llama_cpp: str) -> None:
    """A bad grammar is a `UsageError` with the reason, the option and a way on."""
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        output_format.of_grammar(grammar)
    assert caught.value.field == "grammar"
    assert caught.value.hint
    assert len(caught.value.message) < 300


def test_llama_cpp_refuses_them_too() -> None:
    """What the table says llama.cpp refuses by itself, it does: our reading is not stricter by accident."""
    asked = [(grammar, list[str]()) for grammar, _, llama_cpp in BAD if llama_cpp == "refuses"]
    for (grammar, _), found in zip(asked, native(asked), strict=True):
        assert found is None, grammar[:200]


def test_lines() -> None:
    """The line is the one of an editor, whatever ends it."""
    for end in ("\n", "\r\n", "\r"):
        with pytest.raises(UsageError, match="x: line 3: there is no rule 'zap'"):
            gbnf.to_lark(end.join(['root ::= "a" b', 'b ::= "c"', "d ::= zap"]), "x")


def test_random_grammars_agree() -> None:
    """Of random grammars that llama.cpp takes, every text of up to four letters is allowed here as it is there."""
    chance = random.Random(11)

    def piece(depth: int) -> str:
        plain = chance.choice(['"a"', '"b"', '"ab"', "[ab]", "[^a]", "x", "y", "z", '""', "."])
        inner = f"({body(depth + 1)})" if depth < 2 and chance.random() < 0.4 else plain
        return inner + (chance.choice(["", "", "", "*", "+", "?", "{2}", "{0,3}"]) if inner != '""' else "")

    def body(depth: int) -> str:
        sequences = [" ".join(piece(depth) for _ in range(chance.randint(0, 3))) for _ in range(chance.randint(1, 3))]
        return " | ".join(sequences)

    texts = ["".join(letters) for n in range(4) for letters in product("ab(", repeat=n)]
    asked = []
    for _ in range(150):
        # No rule leads back to itself: llama.cpp dies of left recursion.
        x, y = body(0), body(0)
        rules = [
            f'x ::= "(" {x.replace("x", "y")}',
            f"y ::= {re.sub('[xy]', 'z', y)}",
            chance.choice(["z ::= [b]", "z ::="]),
        ]
        asked.append(("root ::= x y | z\n" + "\n".join(rules), texts))
    taken = [(grammar, found) for (grammar, _), found in zip(asked, native(asked), strict=True) if found is not None]
    assert len(taken) > 30
    for grammar, found in taken:
        matcher = compiled(output_format.of_grammar(grammar).grammar)
        for text, theirs in zip(texts, found, strict=True):
            matcher.reset()
            data = list(text.encode())
            ours = (
                matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
                if data
                else matcher.is_accepting()
            )
            assert ours == theirs, (grammar, text)


def test_judge_says_incomplete() -> None:
    """A text that could go on is told from one that cannot."""
    grammar = 'root ::= "[" [0-9]+ ("," [0-9]+)* "]"'
    assert [verdict(grammar, text) for text in ("[1,22]", "[1,", "", "[x", "[1]]")] == [
        "complete",
        "incomplete",
        "incomplete",
        "wrong",
        "wrong",
    ]


def test_a_long_text_is_judged() -> None:
    """20,000 words are no trouble, nor are 2^60 ways to read one."""
    assert verdict('root ::= "[" ([a-z]+ ","?)* "]"', "[" + "abc," * 20_000 + "]") == "complete"
    assert verdict('root ::= a\na ::= "x" a "y" | "x" a "z" | ""', "x" * 60) == "incomplete"
