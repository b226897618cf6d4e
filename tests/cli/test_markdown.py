"""Answers as they come, drawn as markdown: read back through a terminal emulator, cut anywhere, and hostile ones."""

from __future__ import annotations

import random
import re
import time
import unicodedata
from collections.abc import Callable, Iterable

import pyte
import pytest
from waiting import little_work
from wcwidth import wcswidth

from llmrun.cli.terminal.markdown import Markdown
from llmrun.cli.terminal.markdown.highlight import Highlighter
from llmrun.cli.terminal.stream import Plain, Stream

SGR = re.compile("\x1b\\[([0-9;]*)m")
OURS = {"0", "1", "2", "3", "4", "9", "31", "32", "35", "36"}
BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Screen(pyte.Screen):
    """pyte leaves out what stands behind a character without a cell, when both come in one piece."""

    def draw(self, data: str) -> None:
        for char in data:
            super().draw(char)


def written(stream: Stream, pieces: Iterable[str]) -> str:
    return "".join(stream.feed(piece) for piece in pieces) + stream.finish()


def output(text: str, width: int = 40, *, color: bool = True) -> str:
    """What is written for `text`, which is the same for all at once and character by character."""
    whole = written(Markdown(lambda: width, color=color), [text])
    assert written(Markdown(lambda: width, color=color), text) == whole
    return whole


def shown(output: str, width: int) -> str:
    screen = Screen(width, max(1, output.count("\n") + 1))
    pyte.Stream(screen).feed(output.replace("\n", "\r\n"))
    return "\n".join(line.rstrip() for line in screen.display).rstrip()


def drawn(text: str, width: int = 40, *, color: bool = True) -> str:
    """What stands on a terminal of `width` columns."""
    return shown(output(text, width, color=color), width)


def cut(text: str, chance: random.Random, longest: int = 12) -> list[str]:
    pieces = []
    while text:
        length = chance.randint(0, longest)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


# -- what is drawn ---


@pytest.mark.parametrize(
    ("text", "screen"),
    [
        # paragraphs
        ("one two", "one two"),
        ("one\ntwo\n\n\n\nthree\n\n", "one\ntwo\n\nthree"),
        ("\n\none", "one"),
        ("one  \ntwo\\\nthree", "one\ntwo\nthree"),
        ("one\r\ntwo", "one\ntwo"),
        ("the quick brown fox jumps over", "the quick brown fox\njumps over"),
        ("1234567890123456789 x", "1234567890123456789\nx"),
        ("go to 0123456789012345678901234567890 x", "go to 0123456789012\n345678901234567890\nx"),
        ("    kept indent\n  and this", "    kept indent\n  and this"),
        ("one\ttwo", "one    two"),
        # emphasis
        ("*a* _b_ **c** __d__ ***e*** ~~f~~", "a b c d e f"),
        ("**a *b***c", "a bc"),
        ("***a** b* c", "a b c"),
        ("2 * 3 * 4, 5*3*2", "2 * 3 * 4, 5*3*2"),
        ("snake_case_name _x", "snake_case_name _x"),
        ("*args and **x**", "*args and x"),
        ("2**8 or f(x)**2", "2**8 or f(x)**2"),
        ("int *p = 5*3;", "int *p = 5*3;"),
        ("*a 5*3* b", "a 5*3 b"),
        ("**kwargs char **v", "**kwargs char **v"),
        ("**a b** **C d", "a b C d"),
        ("**「重」**点。**E:**", "「重」点。E:"),
        ("a ** b ~ c ~5", "a ** b ~ c ~5"),
        ("**** ______", "**** ______"),
        ("\\*a\\* \\_b\\_ \\\\", "*a* _b_ \\"),
        ("这是**重点**内容", "这是重点内容"),
        # code spans
        ("`a*b*` ``c`d`` `` ` ``", "a*b* c`d `"),
        ("an ` unclosed", "an ` unclosed"),
        # links
        ("[a](b) c", "a (b) c"),
        ("[a](b(c)d) ![e](f)", "a (b(c)d) e (f)"),
        ('[a](b "title").', "a (b)."),
        ("[a] [b]x [c", "[a] [b]x [c"),
        ("[a](b c) d", "[a](b c) d"),
        ("[**a** `b`](c)", "a b (c)"),
        ("[a.b](https://a.b)", "a.b"),
        ("http://a.b/_c_/*d*", "http://a.b/_c_/*d*"),
        ("<http://a.b> &amp;", "<http://a.b> &amp;"),
        ("Hi! [1] and ![x", "Hi! [1] and ![x"),
        # mathematics and HTML
        ("$a_1 * b_2$ *c*", "$a_1 * b_2$ c"),
        ("\\(a*b*c\\) *d*", "\\(a*b*c\\) d"),
        ("\\[\n- a\n\\\\ b\n\\]\n- c", "\\[\n- a\n\\\\ b\n\\]\n• c"),
        ("$$\nx *y* z\n$$ *a*", "$$\nx *y* z\n$$ a"),
        ("for $5 or $6 *a*", "for $5 or $6 a"),
        ("<b>x</b>", "<b>x</b>"),
        # headings
        ("# One\n## Two ##\n###### C#", "One\nTwo\nC#"),
        ("#tag and # no", "#tag and # no"),
        ("#\nx", "\nx"),
        # lists
        ("- a\n* b\n+ c", "• a\n• b\n• c"),
        ("- a\n  - b\n    - c\n- d", "• a\n  • b\n    • c\n• d"),
        ("1. a\n2) b\n   c\n10. d", "1. a\n2) b\n   c\n10. d"),
        ("1. a\n  - b\n    - c", "1. a\n   • b\n     • c"),
        ("- the quick brown fox jumps", "• the quick brown\n  fox jumps"),
        ("- a\n\n  b\n\nc", "• a\n\n  b\n\nc"),
        ("- [ ] a\n- [x] b\n- [c] d\n- [", "☐ a\n☑ b\n• [c] d\n• ["),
        ("- - a\n-\n- b", "• • a\n•\n• b"),
        ("-a\n1.b\n2024 c", "-a\n1.b\n2024 c"),
        ("- **a**: b\n- *c*", "• a: b\n• c"),
        # quotes
        ("> a\n> b\n\nc", "│ a\n│ b\n\nc"),
        (">a\n>\n>> b\n> c", "│ a\n│\n│ │ b\n│ c"),
        ("> the quick brown fox jumps", "│ the quick brown\n│ fox jumps"),
        ("> - a\n>   - b\n- > c\n  > d", "│ • a\n│   • b\n• │ c\n  │ d"),
        # rules
        ("a\n\n---\n* * *\n___", "a\n\n" + "\n".join(["─" * 19] * 3)),
        ("-- \n*-* x", "--\n- x"),
        # code
        ("```\na  *b*\n\n\n  c\n```\nd", "a  *b*\n\n\n  c\nd"),
        ("~~~ text\n```\n~~~~\n*a*", "```\na"),
        ("````\n```\n````", "```"),
        ("```python\nx = 1", "x = 1"),
        ("```nonsense!\nx", "x"),
        ("- a\n  ```\n  b\n    c\n  ```\n- d", "• a\n  b\n    c\n• d"),
        ("- ```\n  b\n  ```", "• b"),
        ("> ```\n> a\nb", "│ a\nb"),
        ("```\n0123456789012345678901234\n```", "0123456789012345678\n901234"),
        ("```\n\tx\n```", "    x"),
        ("```a``` b", "a b"),
        ("``\nx", "``\nx"),
        # tables
        ("| a | b |\n|---|--:|\n| c | 10 |", "a │  b\n──┼───\nc │ 10"),
        ("|a|b|\n|-|:-:|\n|`c\\|d`|efg|\n\nx", "a   │  b\n────┼────\nc|d │ efg\n\nx"),
        ("| a |\n| b |\nc", "| a |\n| b |\nc"),
        ("|x| is\n\ny", "|x| is\n\ny"),
        ("| a | b |\n|---|---|\n| c |\n| d | e | f |", "a │ b\n──┼──\nc │\nd │ e"),
        ("|a|b|\n|-|-|\n|one two three|x|", "a             │ b\n──────────────┼──\none two three │ x"),
        (
            "|a|b|\n|-|-|\n|the quick brown fox|x|\n|c<br>d|y|",
            "a               │ b\n────────────────┼──\nthe quick brown │ x\nfox             │\n"
            "────────────────┼──\nc               │ y\nd               │",
        ),
        (
            "|name|b|c|d|e|f|g|\n|-|-|-|-|-|-|-|\n|x|2|3|4|5|6|7|\n|y|2|3|4|5|6|7|",
            "name: x\nb: 2\nc: 3\nd: 4\ne: 5\nf: 6\ng: 7\n───\nname: y\nb: 2\nc: 3\nd: 4\ne: 5\nf: 6\ng: 7",
        ),
        ("- a\n\n  | b |\n  |---|\n  | c |\n- d", "• a\n\n  b\n  ─\n  c\n• d"),
        ("> | b |\n> |---|\n> | c |\nd", "│ b\n│ ─\n│ c\nd"),
        # wide characters
        ("一二三四五六七八九十一二", "一二三四五六七八九\n十一二"),
        ("一二三四五六七八九。十", "一二三四五六七八\n九。十"),
        ("```\nx一二三四五六七八九十\n```", "x一二三四五六七八九\n十"),
        ("가나다라마 바사아자차카", "가나다라마\n바사아자차카"),
    ],
)
def test_screen(text: str, screen: str) -> None:
    """On a terminal of 20 columns, in colour."""
    output = written(Markdown(lambda: 20), [text])
    assert written(Markdown(lambda: 20), text) == output
    # pyte shows a wide character as itself and an empty cell.
    assert shown(output, 20) == screen


@pytest.mark.parametrize(
    ("text", "screen"),
    [
        ("## a ##", "## a"),
        ("**a** *b* ~~c~~ `d` ***e***", "**a** *b* ~~c~~ `d` ***e***"),
        ("```py\nx = 1\n```", "```py\nx = 1\n```"),
        ("- a\n\n> b", "• a\n\n│ b"),
        ("[a](b)", "a (b)"),
        ("|a|\n|-|\n|**b**|", "a\n─────\n**b**"),
    ],
)
def test_without_color(text: str, screen: str) -> None:
    """No escape sequence; the markers that would have been colour stay."""
    plain = output(text, color=False)
    assert "\x1b" not in plain
    assert plain.replace(" \n", "\n") == screen


def test_styles() -> None:
    """Each style begins at its text and is closed behind it, also before a newline."""
    assert output("a **b** c") == "a \x1b[1mb\x1b[0m c"
    assert output("**A\nb** c") == "\x1b[1mA\x1b[0m\n\x1b[1mb\x1b[0m c"
    assert output("***a***`b`") == "\x1b[1;3ma\x1b[0m\x1b[36mb\x1b[0m"
    assert output("# a *b*") == "\x1b[1;4ma \x1b[0m\x1b[1;3;4mb\x1b[0m"
    assert output("[a](b)") == "\x1b[4ma\x1b[0m \x1b[2m(b)\x1b[0m"
    assert output("**Never closed\n\nb") == "\x1b[1mNever closed\x1b[0m\n\nb"
    assert output("> a") == "\x1b[2m│ \x1b[0ma"


def test_code_has_colors() -> None:
    """A string that goes on over lines is one; a comment in it is none. So is what a list holds."""
    code = output('```python\nx = """a\n# b\n"""  # c\nprint(1)\n```', 60)
    assert "\x1b[32m# b\x1b[0m\n" in code and "\x1b[2m# c\x1b[0m" in code and "\x1b[36mprint\x1b[0m" in code
    assert "\x1b[35mint\x1b[0m" in output("- ```c\n  int x;\n  ```") and "\x1b" in output("```{.rust}\nfn a() {}\n```")
    for info in (
        "",
        "text",
        "nonsense",
        "maple",
        "../../x",
        "a" * 100,
        "python" + "\u202e",
        "os",
        "pygments.lexers",
        "\x1b[31m",
    ):
        assert SGR.sub("", output(f"```{info}\nif x: pass\n```")) == "if x: pass"
        assert "\x1b" not in output(f"```{info}\nif x: pass\n```")


def test_long_code_keeps_its_text() -> None:
    """Beyond what is lexed, code goes on without colours; every character stays, and a line can be longer than all."""
    lines = [f"    x{i} = '{i}'  # {i}" for i in range(600)] + ["y" * 5000, "    z = 1"]
    code = output("```python\n" + "\n".join(lines) + "\n```", 10_000)
    assert SGR.sub("", code).split("\n") == lines
    assert "\x1b" in code.split("\n")[100] and "\x1b" not in code.split("\n")[-1]


def test_code_colors_start_anew() -> None:
    """Functions one after the other need no more context than one of them: the last has its colours."""
    lines = [line for i in range(300) for line in (f"def f{i}(x):", "    return 'a'", "")]
    code = output("```python\n" + "\n".join(lines) + "\n```", 80)
    assert "\x1b[32m'a'\x1b[0m" in code.split("\n")[-1]


# -- as it comes ---


def test_no_word_waits_for_the_next() -> None:
    """A word is written as it comes, near the edge when it has ended; a delimiter when the next character tells what
    it is."""
    stream = Markdown(lambda: 40)
    assert [stream.feed(piece) for piece in ("He", "llo", " wor", "ld. ", "**", "B", "old", "** ", "x")] == [
        "He",
        "llo",
        " wor",
        "ld.",
        "",
        " \x1b[1mB",
        "old",
        "",
        "",  # 18 cells are taken, and a word of 24 would not fit any more
    ]
    assert stream.column == len("Hello world. Bold")
    assert stream.finish() == "\x1b[0m x"
    stream = Markdown(lambda: 40)
    assert stream.feed("- one\n") == "• one"
    assert stream.feed("- t") == "\n• t"
    assert stream.feed("wo ") == "wo"
    stream = Markdown(lambda: 26)
    assert stream.feed("- t") == "•"
    assert stream.feed("wo ") == " two"


def test_code_comes_line_by_line() -> None:
    stream = Markdown(lambda: 40)
    assert stream.feed("```\nab") == ""
    assert stream.feed("c\nd") == "abc"
    assert stream.feed("\n``") == "\nd"
    assert stream.feed("`\nx ") == "\nx"


def test_a_table_comes_whole() -> None:
    stream = Markdown(lambda: 40, color=False)
    assert stream.feed("x\n\n| a | b |\n|--") == "x"
    assert stream.feed("-|---|\n| c | d |\n") == ""
    assert stream.feed("\n") == "\n\na │ b\n──┼──\nc │ d"


def test_a_table_too_large_is_text() -> None:
    """Rows, columns and characters are bounded: beyond, what was held back comes as it is, and what follows at once."""
    head = "| a | b |\n|---|---|\n"
    for table in (head + "| c | d |\n" * 300, head + "| " + "c" * 9000, "|a" * 10_000 + "|\n" + "|-" * 10_000 + "|\n"):
        assert output(table, 100, color=False).replace("\n", "").startswith(table[:7])
    stream = Markdown(lambda: 40)
    stream.feed(head + "| c | d |\n" * 300)
    assert stream.feed("| e | f |\n") == "\n| e | f |"


def test_a_long_word_is_not_held_back() -> None:
    stream = Markdown(lambda: 20)
    assert stream.feed("x" * 19) == ""
    assert stream.feed("x") == "x" * 19 + "\nx"
    assert stream.feed("yz") == "yz"


def test_a_resize_is_followed() -> None:
    """The width is asked anew at each line."""
    width = 11
    stream = Markdown(lambda: width)
    assert stream.feed("aaaa bbbb ") == "aaaa bbbb"
    width = 21
    assert stream.feed("cccc dddd eeee ffff gggg ") == "\ncccc dddd eeee ffff\ngggg"


def test_plain() -> None:
    """Words are wrapped, one style for all, and markdown is none. Empty lines at the ends are left out."""
    assert written(Plain(lambda: 12, style="2"), "\n\n*a* b\n\n# the quick\n\n") == (
        "\x1b[2m*a* b\x1b[0m\n\n\x1b[2m# the quick\x1b[0m"
    )
    assert written(Plain(lambda: 10, style="2", color=False), ["the quick brown"]) == "the quick\nbrown"
    stream = Plain(lambda: 80)
    assert (stream.feed("a b"), stream.feed(" c\r"), stream.feed("\nd"), stream.finish()) == ("a b", " c", "\nd", "")


# -- cut anywhere ---

DOCUMENTS = [
    "",
    " ",
    "\n",
    "-",
    "**",
    "# Heading\n\nText with *emphasis*, **strong** and `code`.\nNext line.\n",
    "Setext\n===\nother\n---\n",
    "1. one\n   - two\n     > three\n     > ```py\n     > x = 1\n     > ```\n2. four\n\n   five\n\n      six\n",
    "- [ ] a\n- [x] b\n- [X] c\n- [y] d\n  - [ ]\n1. [ ] e\n",
    "> quote *a\n> b* c\n>\n> > deeper\nlazy\n\n> new\n",
    "| a | b |\n|:--|--:|\n| *c* | `d` |\n| e | [f](g) |\n\nafter\n| no | table\n| at | all |\n|---\n| x",
    "text\n| a | b |\n|---|---|\n| 很长的内容在这里需要换行 | the quick brown fox jumps over the lazy dog |\ntext",
    "```python\ndef f():\n    '''doc\n    string'''\n    return 1\n\n\nclass A: pass\n```\n\n"
    "```\nplain\n```\n~~~sql\nselect 1;",
    "```html\n<a href='x'>b</a>\n<script>\nlet x = `a\nb`;\n</script>\n```\n",
    "*a **b** c* **d *e* f** ***g*** ***h** i* *j **k*** **l***m* __n__ _o_ ~~p~~ ~q~ ~~~r\n",
    "*a\n\n**b\n\n~~c\n\n`d\n\n[e\n\n![f\n\n[g](h\n\n[i](j 'k\n\n$l\n\n\\(m\n\n\\[n\n\n$$o\n\np*",
    'a*b*c a_b_c a**b**c a * b a_ b _c * d ** e **f** *g* ** * __ _ *h *i* j* 2*3 4**5 (*k*) "_l_"\n',
    "`` a ` b `` ` c `` d ` ```e``` ````f ``` g````` h`\n",
    "[a](b) [c](d(e)f) [g](h((i))j) [k](l m) [n](o 'p') [q](<r>) [s][t] [u]: v "
    "![w](x) [![y](z)](1) [](2) [3]() \\[4](5)\n",
    "See https://a.b/c_d_e*f*g~~h~~ and <https://i.j> or **https://k.l** *http://m.n* [o p](https://q.r/s_t_u).\n",
    "Costs $5, $6.50 or $7-8; $x_1 * y_2$ and $$z$$ \\(a_b*c*\\) \\[\n x_1 \\\\ y\n\\] \\$9 $a$b$ $ c $\n",
    "\\*a\\* \\_b\\_ \\`c\\` \\\\d \\# \\- \\e C:\\Users\\*x* end\\\nnext\\",
    "---\n***\n* * *\n- - -\n_ _ _\n--\n**\n- - - a\n* * b\n+ + c\n-- d\n*** e\n",
    "这是一个**很长**的段落，没有空格，所以可以在任何字之间换行。「引号」（括号）也要正确处理！ABC和123混合。\n"
    "日本語のテキスト。한국어 문장입니다.\n",
    "👩‍👩‍👧‍👦 family ❤️ heart 🇩🇪🇫🇷 flags 👍🏽 skin 1️⃣ key ☝🏽 e\u0301\u0301 combining 🏳️‍🌈x\u200dy \u200d\ufe0f z" * 3,
    "مرحبا **بالعالم** العربي و *עברית* ไทยไม่มีช่องว่างระหว่างคำทำให้ยาวมาก हिन्दी में पाठ\n",
    "a\r\nb\r\n\r\n- c\r\n- d\re\r\n```\r\nf\r\n```\r\n",
    "\x1b[31mred\x1b[0m \x07\x08 \x9b31m \u202eabc \ud800 \udc00 **\x1b[1m** `\x1b]0;x\x07` [\x1b](\x1b[2J)\n"
    "# \x1b[7m\n",
    "    indented\n\ttabbed\n  \t mixed\n- \titem\n-\ttab\n  \tx\n>\tq\n```\n\tcode\there\n```\n",
    "supercalifragilisticexpialidocious" * 9 + " " + "x" * 41 + "**" + "y" * 60 + "** `" + "z" * 90 + "`\n",
    "> " * 30 + "deep\n" + "- " * 30 + "deep\n" + "  " * 30 + "- deep\n" + "1. " * 30 + "deep\n",
    "a"
    + " " * 200
    + "b"
    + "\n" * 90
    + "c\n```\n"
    + "\n" * 90
    + "d\n```\n"
    + "#" * 90
    + " e "
    + "#" * 300
    + "\n"
    + "-" * 300
    + "\n",
    "<div>\n<p>html *a*</p>\n</div>\n&lt; &copy; <!-- c -->\n\nTerm\n: definition\n\n[^1]: note\n",
    "```" * 70
    + "\n~~~"
    + "x" * 300
    + "\n"
    + "*" * 50
    + "a"
    + "`" * 50
    + "b\n"
    + "$" * 50
    + "\n"
    + "|" * 200
    + "\n"
    + "|-" * 80,
    "```text\n" + "long line " * 900 + "\n\tshort\n```\n| " + "cell " * 2000 + "|\n|-|\n| a |\n",
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=range(len(DOCUMENTS)))
def test_cut_anywhere(document: str) -> None:
    """Any cut of the same text writes the same bytes, at any width, with colour and without, and without markdown."""
    chance = random.Random(document.encode(errors="replace"))
    for turn in range(12):
        width, color = chance.choice([1, 2, 3, 5, 9, 10, 17, 40, 80, 120]), turn % 3 > 0
        make: Callable[[], Stream]

        def markdown(width: int = width, color: bool = color) -> Stream:
            return Markdown(lambda: width, color=color)

        def plain(width: int = width, color: bool = color) -> Stream:
            return Plain(lambda: width, style="2", color=color)

        for make in (markdown, plain):
            whole = written(make(), [document])
            assert written(make(), cut(document, chance, chance.choice([1, 2, 5, 30]))) == whole
            check(whole, color=color)


WORDS = [
    *"a I the quick brown fox https://example.org/a/long/path?x=1 - * ** _ ` ``` ~~~ # > | |--| 1. [x](y)".split(),
    *"$x$ \\( \\*".split(),
    *"漢字 かな交じり文。 한글 ｗｉｄｅ （全角） 😀 🎉🎉 e\u0301 x\u0332y ü Привет ไทย ∑ → “quoted” naïve—dash".split(),
    *(
        "\n",
        "\n\n",
        "\n- ",
        "\n  - ",
        "\n> ",
        "\n| a | 漢 |\n|---|---|\n| ",
        " | ",
        "\n```python\n",
        "\n```\n",
        "\t",
        "  ",
    ),
]


def test_column_is_the_cursors() -> None:
    """After each feed, the cursor of the terminal stands where `column` says, and no line reaches the last column.

    Two columns are too few to keep one free. There, pyte takes a combining character to the next line.
    """
    chance = random.Random(3)
    for width in range(1, 121):
        words = WORDS if width > 2 else [word for word in WORDS if not set(word) & {"\u0301", "\u0332"}]
        text = "".join(chance.choice(words) + chance.choice(["", " ", " "]) for _ in range(60))
        screen = Screen(width, 10)
        terminal = pyte.Stream(screen)
        stream: Stream = Plain(lambda w=width: w) if width % 5 == 0 else Markdown(lambda w=width: w)  # type: ignore[misc]
        for piece in [*cut(text, chance), None]:
            new = stream.finish() if piece is None else stream.feed(piece)
            terminal.feed(new.replace("\n", "\r\n"))
            assert stream.column == screen.cursor.x, (width, piece, new)
            assert stream.column <= max(width - 1, 1) or width < 3


EMOJI = ["👩‍👩‍👧‍👦", "❤️", "🇩🇪", "👍🏽", "🏳️‍🌈", "❤️‍🔥", "1️⃣", "😀", "e\u0301", "漢", "a", " ", "ok "]


def test_clusters_stay_whole() -> None:
    """What is one character to the eye is never cut by the edge, and has the cells that wcwidth gives the whole."""
    chance = random.Random(4)
    for width in range(4, 40):
        parts = chance.choices(EMOJI, k=80)
        stream = Markdown(lambda w=width: w, color=False)  # type: ignore[misc]
        lines = written(stream, cut("".join(parts), chance, 3)).split("\n")
        assert all(wcswidth(line) <= width - 1 for line in lines)
        assert stream.column == wcswidth(lines[-1])
        # At the edge, inside a word that is longer than a line, a heart stays the narrow one.
        kept, given = (text.replace(" ", "").replace("\ufe0f", "") for text in ("".join(lines), "".join(parts)))
        assert kept == given
        assert not any(line.startswith(("\u200d", "\ufe0f", "\u0301", "🏽")) for line in lines)


# -- hostile ---


def check(output: str, *, color: bool) -> None:
    """Nothing is left that a terminal would obey, but our own styles."""
    for codes in SGR.findall(output):
        assert color and set(codes.split(";")) <= OURS, codes
    for char in set(SGR.sub("", output)):
        assert char == "\n" or unicodedata.category(char) not in ("Cc", "Cs", "Zl", "Zp"), repr(char)
        assert char not in BIDI


def check_both(pieces: list[str], width: int, *, color: bool) -> None:
    streams: list[Stream] = [Markdown(lambda: width, color=color), Plain(lambda: width, style="2", color=color)]
    for stream in streams:
        check(written(stream, pieces), color=color)
        assert 0 <= stream.column <= width


def test_random_bytes() -> None:
    """10,000 answers of noise, half of them made of what markdown and terminals know."""
    chance = random.Random(1)
    known = b"\x1b\x1b[[]m;0378\x9b\xc2\x9b\x07\r\n\n\t  **__``~~#>|-+1.!()$\\<:ax\xe2\x80\xae\xf0\x9f\x98\x80"
    for turn in range(10_000):
        length = chance.randint(1, 90)
        answer = chance.randbytes(length) if turn % 2 else bytes(chance.choices(known, k=length))
        text = answer.decode(errors="replace")
        pieces = [text] if turn % 3 else [text[: length // 2], text[length // 2 :]]
        check_both(pieces, chance.choice([1, 2, 7, 20, 80]), color=turn % 4 > 0)


ATTACKS = [
    *(chr(code) for code in [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *map(ord, sorted(BIDI))]),
    *(
        "\x1b[5m",
        "\x1b[7;8m",
        "\x1b[38;5;1m",
        "\x1b[2J",
        "\x1b[6n",
        "\x9b5m",
        "\x1bc",
        "\x1b[?1049h",
        "\x1b(0",
        "\x1b#8",
    ),
    *("\x1b]0;t\x07", "\x1b]8;;http://x\x1b\\y\x1b]8;;\x1b\\", "\x1b]52;c;eA==\x07", "\x9d0;x\x9c", "\x1bP1$r0m\x1b\\"),
    *(
        "\x1b_x\x1b\\",
        "\x1b^x\x1b\\",
        "\x90q\x9c",
        "\ud800",
        "\udfff",
        "\udcff",
        "\ud83d\ude00",
        "\r",
        "\r\r\n",
        "\x08\x08",
    ),
    "\x1b\x1b[5m[5m",
    "\x1b[\x1b[5m5m",
]
PLACES = [
    "{}",
    "a{}b\n",
    "# {}\n",
    "**{}**",
    "`{}`",
    "[{}]({})",
    "![a](b{} 'c{}')",
    "```{}\n{}\n```{}",
    "~~~py\n'{}'\n~~~",
    "|{}|b|\n|-|-|\n|c|{}|\n",
    "- {}\n  1. {}",
    "> {}\n>{}",
    "$${}$$ \\({}\\)",
    "{}" * 30,
]


def test_attacks() -> None:
    """Every control character and sequence, in every place that a text can have, also cut in two."""
    count = 0
    for place in PLACES:
        for attack in ATTACKS:
            text = place.replace("{}", attack)
            for pieces in ([text], list(text)):
                check_both(pieces, 7 + count % 60, color=count % 3 > 0)
                count += 1
    assert count > 1000


@pytest.mark.parametrize(
    "text",
    [
        "x" * 1_000_000,
        "字" * 300_000,
        "*" * 100_000,
        "**a " * 50_000,
        "*a " * 50_000,
        "_a" * 50_000,
        "> " * 100_000,
        "- " * 100_000,
        "1. " * 100_000,
        "[" * 100_000,
        "[a](" * 25_000,
        "[a](b " * 20_000,
        ("[a](b" + " " * 900) * 200,
        "![" * 50_000,
        "`" * 10_000,
        "` `` ``` " * 10_000,
        "$a " * 50_000,
        "\\(" * 50_000,
        "#" * 100_000,
        "# a" + " #" * 50_000,
        "-" * 100_000,
        ("-" * 199 + "x\n") * 500,
        " " * 100_000 + "x",
        "\n" * 100_000,
        "|a" * 10_000 + "|\n" + "|-" * 10_000 + "|\n" + "|b" * 10_000 + "|",
        "|" * 100_000,
        "| a | b |\n" * 10_000,
        ("|" + "a|" * 60 + "\n" + "|" + "-|" * 60 + "\n" + ("|" + "b|" * 60 + "\n") * 180),
        "```python\n" + "x = 1\n" * 4_000,
        "```python\n" + "(" * 100_000,
        "```c\n" + "  /* a\n" * 3_000,
        "```\n" + "\n" * 100_000,
        "```" + "a" * 100_000,
        "e" + "\u0301" * 100_000,
        "👩\u200d" * 50_000,
        "\t" * 100_000,
    ],
    ids=lambda text: ascii(text[:12]) + str(len(text)),
)
def test_nothing_takes_long(text: str) -> None:
    """No text takes more than linear time."""
    for pieces in ([text], [text[i : i + 5] for i in range(0, len(text), 5)]):
        with little_work():
            written(Markdown(lambda: 80), pieces)


class SlowLexer:
    """Colours every line as a keyword; the first `slow` lines cost more CPU time than a line may take."""

    def __init__(self, slow: int) -> None:
        self.slow = slow

    def get_tokens_unprocessed(self, text: str) -> Iterable[tuple[int, tuple[str, ...], str]]:
        self.slow -= 1
        begin_s = time.thread_time()
        while self.slow >= 0 and time.thread_time() - begin_s < 0.25:
            pass
        return [(0, ("Keyword",), text)]


def test_a_slow_lexer() -> None:
    """A language whose patterns take long to compile, once, has its colours; one that always takes long has none."""
    highlighter = Highlighter(SlowLexer(slow=1))
    assert [highlighter.line("a"), highlighter.line("b")] == [[("a", "35")], [("b", "35")]]
    highlighter = Highlighter(lexer := SlowLexer(slow=100))
    assert [highlighter.line("a"), highlighter.line("b")] == [[("a", "")], [("b", "")]]
    assert lexer.slow == 98, "not asked again"
