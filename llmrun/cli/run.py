"""`llmrun run MODEL [PROMPT]`: one prompt, one answer."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmrun.cli import options, report, screen
from llmrun.cli.advice import with_smaller_quantization
from llmrun.cli.load import with_load
from llmrun.cli.pull import fetch_with_progress
from llmrun.cli.sampling import with_sampling
from llmrun.config import LoadConfig, SamplingConfig
from llmrun.errors import NotFound, UsageError

if TYPE_CHECKING:
    from llmrun.engine.child import Child
    from llmrun.engine.client import Engine, Generation
    from llmrun.models import Model


@with_load
@with_sampling
def run(
    model: options.ModelName,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="What to answer or to continue.")] = None,
    file: options.Files = None,
    system: options.System = None,
    raw: options.Raw = False,
    as_json: options.Json = False,
    verbose: options.Verbose = False,
    quiet: options.Quiet = False,
    *,
    load: LoadConfig,
    sampling: SamplingConfig,
) -> None:
    """Answer one prompt and exit.

    The prompt is what stands on standard input, in the files and in the argument, in this order. The answer, and
    nothing else, goes to standard output; what it took goes to standard error.
    """
    text = gather_prompt(prompt, file or [])

    from llmrun.engine.client import started_early
    from llmrun.models import find_model
    from llmrun.resources import Sampler, open_nvml

    with started_early() as child:
        found = find_model(model, fetch=fetch_with_progress(quiet))
        if found.note and not quiet:
            screen.note(found.note)
        asked = as_asked(found, text, system, raw=raw)
        with screen.bar(f"loading {found.name}", shown=not quiet) as bar:
            engine = loaded(model, found, load, sampling, asked, bar, child)
        with Sampler(engine.pid, nvml=open_nvml()) as sampler:
            with screen.bar("reading the prompt", shown=not quiet) as bar:
                generation = engine.generate(
                    asked, sampling, on_prefill=(lambda done, of: bar.update(done / of)) if bar else None
                )
                shown = iter(generation)
                first = next(shown, "")
            if not quiet:
                for note in engine.notes:
                    screen.note(note)
            if as_json:
                for _ in shown:
                    pass
            else:
                show(generation, chain([first], shown))
        run = report.Run(found, engine, generation, load, sampling, sampler.summary())
        if as_json:
            screen.out_json(report.as_document(run))
        elif not quiet:
            screen.note(report.meter_line(run))
            if verbose:
                for line in report.details(run):
                    screen.note(line)


def loaded(
    reference: str,
    found: Model,
    load: LoadConfig,
    sampling: SamplingConfig,
    asked: str | list[dict[str, str]],
    bar: screen.Bar | None,
    child: Child,
) -> Engine:
    """The engine; what does not fit gets a smaller quantization among its ways out."""
    from llmrun.engine.client import Engine
    from llmrun.planner import DoesNotFit

    expected, least = expected_tokens(asked, sampling.max_tokens)
    try:
        return Engine(
            found.path,
            found.header,
            load,
            on_progress=bar.update if bar else None,
            child=child,
            expected_tokens=expected,
            least_tokens=least,
        )
    except DoesNotFit as error:
        raise with_smaller_quantization(error, reference, found) from None


def expected_tokens(asked: str | list[dict[str, str]], max_tokens: int) -> tuple[int, int]:
    """About how many tokens prompt and answer will have, and how few would do: memory is planned before the prompt can
    be counted.

    English has some four bytes to a token, other languages and code fewer; a prompt that turns out longer is planned
    for again (`Engine.try_longer`). An answer without a bound gets room as the engine will give it.
    """
    from llmrun.planner import COMFORTABLE_CTX

    texts = [asked] if isinstance(asked, str) else [message["content"] for message in asked]
    n_prompt = sum(len(text.encode(errors="replace")) for text in texts) // 3 + 64 * len(texts)
    if max_tokens >= 0:
        return n_prompt + max_tokens, n_prompt + max_tokens
    return max(COMFORTABLE_CTX, n_prompt + COMFORTABLE_CTX // 2), n_prompt


def show(generation: Generation, pieces: Iterable[str]) -> None:
    """Stream the answer to stdout."""
    try:
        for piece in whole_line_ends(pieces):
            screen.out(piece)
    finally:
        # Whatever comes next, an error or the shell's prompt, begins on a line of its own.
        if screen.is_terminal(sys.stdout) and generation.text and not generation.text.endswith("\n"):
            screen.out("\n")


# -- the prompt ---


def gather_prompt(argument: str | None, files: list[Path]) -> str:
    """Standard input, then the files, then the argument, a blank line between them. Raises `UsageError`, `NotFound`.

    A file called "-" is standard input too, which is read first in any case.
    """
    parts = [_from_stdin(), *(_from_file(path) for path in files if str(path) != "-"), argument or ""]
    text = "\n\n".join(part for part in parts if part)
    if not text:
        raise UsageError(
            "there is no prompt: give it as an argument, in a file, or on standard input",
            hint='llmrun run tiny "Once upon a time"',
        )
    return text


def _from_stdin() -> str:
    """What was piped or redirected into us; a terminal or a device has nothing to say."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return ""
    if not (stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)):
        return ""
    # An open pipe that nobody writes to keeps us for ever, as it does every filter. To go on without would drop what a
    # slow writer sends late; so it is only said, also to those who want quiet.
    if not select.select([0], [], [], 2.0)[0]:
        screen.note("waiting for standard input; leave it out with: </dev/null")
    with os.fdopen(os.dup(0), "rb") as stream:
        return _text(stream.read())


def _text(data: bytes) -> str:
    """UTF-8 without the mark that some editors begin with, and without the line end that all end with."""
    return data.decode("utf-8-sig", errors="replace").rstrip("\n")


def _from_file(path: Path) -> str:
    try:
        return _text(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"there is no file '{path}'", hint=f"ls {path.parent}") from None
    except OSError as error:
        raise UsageError(f"can't read '{path}': {error.strerror}") from None


def as_asked(found: Model, text: str, system: str | None, *, raw: bool) -> str | list[dict[str, str]]:
    """The text as it is, or as a conversation where the model has a chat template."""
    if raw or found.header.chat_template is None:
        if system:
            why = "--raw leaves the chat template out" if raw else "this model has no chat template"
            raise UsageError(f"--system has no place: {why}", hint="put it at the beginning of the prompt")
        return text
    messages = [{"role": "user", "content": text}]
    return [{"role": "system", "content": system}, *messages] if system else messages


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, no piece ending between a carriage return and the line feed that may follow."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r") if held else text
    yield held
