#!/usr/bin/env python3
"""Writes man pages and completions from the commands themselves: docs/man, docs/completions; the wheel installs them.

scripts/make_man.py            # writes them
scripts/make_man.py --check    # exit 1 where what is there is not what would be written
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun import __version__  # noqa: E402
from llmrun.cli import app  # noqa: E402
from llmrun.cli.framework import help as help_  # noqa: E402
from llmrun.cli.framework import spelling  # noqa: E402
from llmrun.options.spec import Option  # noqa: E402

_SHELLS = {"bash": "llmrun.bash", "zsh": "_llmrun", "fish": "llmrun.fish"}
_EXIT = re.compile(r"^\| (\d+(?:, \d+)*) \| (.+) \|$", re.MULTILINE)


def files() -> dict[Path, str]:
    """By path below docs/."""
    found = {Path("man/llmrun.1"): _program()}
    for path, entry in app.COMMANDS.items():
        if not entry.hidden:
            found[Path("man") / f"llmrun-{path.replace(' ', '-')}.1"] = _of_command(path, entry.help)
    from typer._completion_shared import get_completion_script

    for shell, name in _SHELLS.items():
        script = get_completion_script(prog_name="llmrun", complete_var="_LLMRUN_COMPLETE", shell=shell)
        found[Path("completions") / name] = script.rstrip() + "\n"
    return found


def _program() -> str:
    shown = [(path, entry.help) for path, entry in app.COMMANDS.items() if not entry.hidden]
    lines = [*_head("llmrun", app.TITLE), ".SH SYNOPSIS", ".B llmrun", ".RI [ OPTIONS ] \\ COMMAND \\ [ ARGS ]..."]
    lines += [".SH OPTIONS", *_rows((*app.OPTIONS, ("-h, --help", "Show help and exit.")))]
    lines += [".SH COMMANDS", *_rows([(f"llmrun-{path.replace(' ', '-')}(1)", text) for path, text in shown])]
    lines += [".SH EXIT STATUS", *_rows(_EXIT.findall((ROOT / "README.md").read_text()))]
    lines += [".SH ENVIRONMENT", *_rows(_ENVIRONMENT)]
    return "\n".join(lines) + "\n"


_ENVIRONMENT = (
    ("LLMRUN_HOME", "Where everything is kept that is not the hub's."),
    ("LLMRUN_CONFIG_DIR", "Where config.toml and models.toml are."),
    ("LLMRUN_API_KEY", "The key of a server, for those who serve and those who ask."),
    ("LLMRUN_DEBUG", "1 adds the traceback to an error."),
    ("HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE", "As the hub's own tools have them."),
)


def _of_command(path: str, title: str) -> str:
    command = app.command(path)
    spelling.command_is(path, command.options)
    name = f"llmrun-{path.replace(' ', '-')}"
    usage = " ".join(["[OPTIONS]", *map(help_.in_usage, command.arguments)])
    lines = [*_head(name, title), ".SH SYNOPSIS", f".B llmrun {path}", _plain(usage), ".SH DESCRIPTION"]
    lines += [".PP\n" + _plain(" ".join(each.split())) for each in re.split(r"\n\s*\n", command.help)]
    if command.arguments:
        lines += [".SH ARGUMENTS", *_rows([(each.metavar, each.help) for each in command.arguments])]
    for panel in dict.fromkeys(option.panel for option in command.options):
        mine = [option for option in command.options if option.panel == panel]
        lines += [f'.SH "{(panel or "Options").upper()}"', *_rows([_row(option) for option in mine])]
    lines += [".SH SEE ALSO", ".BR llmrun (1)"]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> tuple[str, str]:
    names, text = help_._row(option)
    return names, text


def _head(name: str, title: str) -> list[str]:
    return [
        f'.TH "{name.upper()}" 1 "" "llmrun {__version__}" "User commands"',
        ".SH NAME",
        f"{_plain(name)} \\- {_plain(title.rstrip('.'))}",
    ]


def _rows(rows: object) -> Iterator[str]:
    for left, right in rows:  # type: ignore[attr-defined]
        yield f".TP\n.B {_plain(left)}\n{_plain(right)}"


def _plain(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--check", action="store_true")
    asked = options.parse_args()
    wanted = {ROOT / "docs" / path: text for path, text in files().items()}
    there = {path for folder in ("man", "completions") for path in (ROOT / "docs" / folder).glob("*")}
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    stale += sorted(there - wanted.keys())
    if asked.check:
        for path in stale:
            print(f"not as it would be written: {path.relative_to(ROOT)}", file=sys.stderr)
        return 1 if stale else 0
    for path in there - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
