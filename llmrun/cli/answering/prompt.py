"""The prompt of a one-shot run, made of standard input, files, the argument, and a template for them."""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Formatter

from llmrun import paths
from llmrun.cli.terminal import files, screen
from llmrun.errors import NotFound, UsageError

_NAME = re.compile(r"[a-z_][a-z0-9_]*")


def gather(argument: str | None, named: Sequence[Path]) -> dict[str, str]:
    """What a prompt is made of, by the names of `BUILT_IN`: "input" is standard input, then the files, then the
    argument, with a blank line between them. A part that is not given is empty. Raises `UsageError`, `NotFound`.

    A file called "-" is standard input, which is read first in any case.
    """
    piped = _from_stdin()
    read = "\n\n".join(filter(None, (_from_file(os.fspath(path)) for path in named if str(path) != "-")))
    given = files.text_or_note(os.fsencode(argument or ""), "the prompt")
    whole = "\n\n".join(filter(None, (piped, read, given)))
    return dict(zip(BUILT_IN, (whole, piped, read, given), strict=True))


def composed(argument: str | None, files: Sequence[Path], template: str | None, fields: Sequence[str]) -> str | None:
    """The prompt, of all parts and the template. Raises `UsageError`, `NotFound`.

    None if there is neither a part nor a template; empty if they hold no text.
    """
    values = parse_fields(fields)
    if values and template is None:
        raise UsageError("--field: there is no template for it", hint="--template NAME")
    source = open_template(template) if template is not None else None
    parts = gather(argument, files)
    return parts["input"] or None if source is None else filled(source, parts, values)


def _from_stdin() -> str:
    """What was piped or redirected into us; terminals and devices are not read."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    # A pipe that stays open without a writer blocks us for ever, as it does every filter. Going on without it would
    # drop what a slow writer sends late; so there is only a note, with --quiet too.
    if not select.select([0], [], [], 2.0)[0]:
        screen.note("waiting for standard input; leave it out with: </dev/null")
    with os.fdopen(os.dup(0), "rb") as stream:
        return files.text_or_note(stream.read(), "standard input").rstrip("\n")


def _from_file(name: str, option: str = "-f") -> str:
    """Without line ends at the end."""
    return files.text_or_note(files.read_bytes(option, name), name[:200]).rstrip("\n")


# -- templates ---

BUILT_IN = ("input", "stdin", "files", "prompt")


def filled(template: str, parts: Mapping[str, str], fields: Mapping[str, str]) -> str:
    """The template with its {fields} filled in: {input}, {stdin}, {files}, {prompt}, and the user's own.

    {{ and }} are literal braces. A template without any of the four gets the input behind it, so that none is lost.
    Raises `UsageError` for a field without a value, and for a value whose field the template does not have.
    """
    values = {**parts, **fields}
    made, used = [], set()
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UsageError(f"--template: {error}; write {{{{ or }}}} for a literal brace", hint="{{ and }}") from None
    for literal, name, form, conversion in pieces:
        made.append(literal)
        if name is None:
            continue
        if form or conversion or not _NAME.fullmatch(name):
            spelled = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
            raise UsageError(
                f"--template: '{{{spelled[:40]}}}' is not a field: small letters, digits and _", hint="{input}"
            )
        if name not in values:
            raise UsageError(f"--template: no value for {{{name}}}", hint=f"--field {name}=...")
        used.add(name)
        made.append(values[name])
    if unused := [name for name in fields if name not in used]:
        known = ", ".join(sorted(used - set(BUILT_IN))) or "none of its own"
        raise UsageError(f"--field {unused[0]}: the template has no such field; it has {known}")
    text = "".join(made)
    return text if used & set(BUILT_IN) or not parts["input"] else f"{text.rstrip()}\n\n{parts['input']}"


def parse_fields(texts: Sequence[str]) -> dict[str, str]:
    """The values of NAME=VALUE, and of NAME=@FILE, which stands for the text of a file."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not _NAME.fullmatch(name) or name in BUILT_IN:
            raise UsageError(f"--field: '{text[:60]}' is not NAME=VALUE", hint="--field language=French")
        found[name] = _from_file(value[1:], "--field") if value.startswith("@") else value
    return found


def open_template(name: str) -> str:
    """The template: `name` is a file, a text with fields, or a file in the folder of templates. Raises `NotFound`."""
    if files.is_file(name) or name.startswith(("/dev/", "/proc/")):  # a pipe's
        return _from_file(name, "--template")
    if "{" in name or " " in name or "\n" in name:
        return name
    folder = paths.config() / "templates"  # where the user keeps them
    for candidate in () if "/" in name else (folder / name, folder / f"{name}.txt", folder / f"{name}.md"):
        if files.is_file(os.fspath(candidate)):
            return _from_file(os.fspath(candidate), "--template")
    known = sorted(each.stem for each in folder.iterdir()) if folder.is_dir() else []
    there = f"there are {', '.join(known[:10])}" if known else "there are none yet"
    raise NotFound(f"--template: no file '{name[:100]}', and no template of that name; {there}", hint=f"ls {folder}")
