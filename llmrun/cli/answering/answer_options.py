"""The options that shape an answer: its thinking, its template, what form it has to have. For `run` and `chat`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun.cli.framework.help import SHAPE, TEXT
from llmrun.cli.framework.option_groups import gathered
from llmrun.cli.terminal.files import read_text
from llmrun.errors import UsageError

if TYPE_CHECKING:
    from llmrun.chat.conversation import Think
    from llmrun.constrain.output_format import Shape


@dataclass(frozen=True)
class Wanted:
    """How answers are to be.

    Attributes:
        shape: what every answer has to be; None: free.
        template: Jinja, instead of the model's own.
    """

    think: Think
    think_budget: int | None
    template: str | None
    shape: Shape | None


def _option(*names: str, help: str, panel: str | None = SHAPE, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _wanted(
    think: Annotated[
        str,
        _option(
            "--think",
            metavar="show|fold|hide|off",
            help="Of reasoning models: their thinking in full, as one line, not at all; off: none is asked for.",
            panel=TEXT,
        ),
    ] = "show",
    think_budget: Annotated[
        int | None,
        _option("--think-budget", metavar="N", help="End the thinking after N tokens.  [default: none]", panel=TEXT),
    ] = None,
    chat_template: Annotated[
        str | None,
        _option(
            "--chat-template", metavar="FILE|TEXT", help="A Jinja template instead of the model's own.", panel=TEXT
        ),
    ] = None,
    json_schema: Annotated[
        str | None,
        _option("--json-schema", metavar="FILE|TEXT", help="The answer is JSON that keeps to this schema."),
    ] = None,
    json_mode: Annotated[bool, _option("--json-mode", help="The answer is JSON.")] = False,
    grammar: Annotated[str | None, _option("--grammar", metavar="FILE", help="The answer keeps to this GBNF.")] = None,
    choice: Annotated[
        str | None, _option("--choice", metavar="A,B,...", help="The answer is one of these words.")
    ] = None,
) -> Wanted:
    if think not in ("show", "fold", "hide", "off"):
        raise UsageError(f"--think: '{think[:40]}' is none of show, fold, hide, off", hint="--think fold")
    if think_budget is not None and not 0 <= think_budget <= 1 << 24:
        raise UsageError(f"--think-budget: {think_budget} is outside 0 to {1 << 24}", hint="--think off")
    template = None if chat_template is None else _template(chat_template)
    return Wanted(think, think_budget, template, _shape(json_schema, json_mode, grammar, choice))  # type: ignore[arg-type]


def _shape(json_schema: str | None, json_mode: bool, grammar: str | None, choice: str | None) -> Shape | None:
    given = [
        option
        for option, value in (
            ("--json-schema", json_schema),
            ("--json-mode", json_mode or None),
            ("--grammar", grammar),
            ("--choice", choice),
        )
        if value is not None
    ]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: an answer has one form", hint=f"{given[0]} alone")
    from llmrun.constrain import output_format

    if json_schema is not None:
        return output_format.of_schema(output_format.parse_schema_argument(json_schema))
    if grammar is not None:
        return output_format.of_grammar(read_text("--grammar", grammar))
    if choice is not None:
        return output_format.of_choices([each.strip() for each in choice.split(",")])
    return output_format.of_json()


def _template(text: str) -> str:
    """The file, or the text itself where it plainly is a template."""
    return text if "{{" in text or "{%" in text else read_text("--chat-template", text)


with_manner = gathered("wanted", _wanted)
"""A decorator: the command gets these options, and their values as one `Wanted` called `wanted`."""
