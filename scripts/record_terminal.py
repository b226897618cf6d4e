#!/usr/bin/env python3
"""Records commands as a terminal shows them, figures and all, and draws the last screen: docs/img/terminal.svg.

    scripts/record_terminal.py [-o docs/img/terminal.svg] [--model GGUF] [COMMAND...]

Each command runs here and now, on a terminal of its own with colours; what is seen of it when it has ended is what is
drawn. A model that is given is imported before, under the name of its file, of which the header will do: README's is
Llama 3 70 B's (`shapes`, without weights), on two machines that are not here. Fonts are the reader's own, and nothing
in the file points anywhere.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from fcntl import ioctl
from io import StringIO
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pyte
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.style import Style
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COLUMNS, LINES = 110, 200
COMMANDS = (
    'llmrun run tiny "What do GPU layers do?" --temp 0',
    "llmrun bench tiny -p 64 -n 64 -r 3",
)
OF_A_MODEL = (
    'llmrun run tiny "What do GPU layers do?" --temp 0',
    'llmrun plan local/{name} --what-if "2x RTX 3090" -d 0,4096',
    'llmrun plan local/{name} --what-if "i9-14900, 32 GB" -d 0',
)


def shown(command: str, home: str) -> list[Text]:
    """The lines that a terminal has at its end. Raises `SystemExit` where it fails."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    ioctl(theirs, TIOCSWINSZ, pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LLMRUN_HOME": home}
    words = [sys.executable, "-m", *shlex.split(command)]
    process = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=environment, start_new_session=True
    )
    os.close(theirs)
    try:
        while data := os.read(ours, 65536):
            stream.feed(data)
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(ours)
    if process.wait():
        raise SystemExit(f"{command}: ended with {process.returncode}")
    lines = [_line(screen, y) for y in range(LINES)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    return lines


def _line(screen: pyte.Screen, y: int) -> Text:
    text = Text()
    for x in range(COLUMNS):
        cell = screen.buffer[y][x]
        text.append(cell.data, Style(color=_colour(cell.fg), bold=cell.bold, italic=cell.italics))
    text.rstrip()
    return text


def _colour(name: str) -> str | None:
    """pyte has hexadecimal digits and names; of some it has its own."""
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return {"brown": "yellow"}.get(name, name.replace("bright", "bright_").replace("bright_brown", "bright_yellow"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("-o", "--output", type=Path, default=ROOT / "docs" / "img" / "terminal.svg")
    options.add_argument("--model", type=Path)
    options.add_argument("commands", nargs="*")
    asked = options.parse_args()
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as home:
        commands = asked.commands or COMMANDS
        if asked.model:
            commands = asked.commands or [each.format(name=asked.model.stem) for each in OF_A_MODEL]
            shown(f"llmrun import {shlex.quote(str(asked.model))}", home)
        for command in commands:
            lines = shown(command, home)
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            for line in [*lines, Text()]:
                console.print(line)
    without_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    drawn = console.export_svg(title="llmrun", code_format=without_fonts.replace("Fira Code, ", ""))
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "").replace("https://www.textualize.io", "")
    asked.output.write_text(drawn)
    print(asked.output)


if __name__ == "__main__":
    main()
