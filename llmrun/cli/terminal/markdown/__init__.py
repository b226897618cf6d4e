"""An answer as it comes, on a terminal: markdown drawn token by token, and nothing that is written is touched again.

Everything here only ever appends. So a construct is decided before it is drawn, and what is undecided is held back: a
word until it ends (it may have to wrap), a delimiter until its next characters, a single `*` or `_`, a code span and
a link until they are closed or can't be any more, a line of code until its newline, a table until its end.

Four steps, each of which gives the same for the same text, however the text was cut into pieces; blocks have tables
drawn by `table` and code coloured by `highlight`:

    stream.Clean     harmless text      inline.Inline   emphasis, code spans, links
    blocks.Markdown  lines, blocks      page.Page       words, cells, line breaks, styles

What append-only costs:

- `**` and `~~` that are never closed lose their marker and hold until the paragraph ends. Where that is likely, the end
  must be near (100 characters, same line) for emphasis to be some: of a single `*` or `_`, and of `**` before a small
  letter (`**kwargs`). A code span's end must be near as well (300). `**` inside a word is text: `2**8`.
- A line that makes the line above it a heading (`===`) comes too late: it stays text, and `---` is a rule.
- A table needs a `|` at the beginning of its rows. Reference links and footnotes are shown as they are written.
- A line that is not indented has left its list, one without `>` its quote: CommonMark would go on lazily.

A newline is kept: models mean it. Blank lines come out as one, those at the end not at all. In cells of tables `<br>`
breaks the line; all other HTML, and mathematics between `$` or `\\(` and `\\[`, is shown as it is written.

Without colour there is no escape sequence at all. Then the markers that would be colour stay: `#`, `**`, backticks,
fences; bullets, quotes, links and tables are drawn the same.
"""

from llmrun.cli.terminal.markdown.blocks import Markdown

__all__ = ["Markdown"]
