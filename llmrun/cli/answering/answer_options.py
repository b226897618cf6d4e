"""The options of `AnswerOptions`, for `run` and `chat`: thinking, chat template, output format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.framework.help import SHAPE, TEXT
from llmrun.cli.framework.option_groups import gathered
from llmrun.cli.terminal.files import read_text
from llmrun.errors import UsageError

if TYPE_CHECKING:
    from llmrun.constrain.output_format import OutputFormat


def _option(*names: str, help: str, panel: str | None = SHAPE, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _options(
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
) -> AnswerOptions:
    return AnswerOptions(
        think=think,  # type: ignore[arg-type]  # checked when it is made
        think_budget=think_budget,
        output_format=_output_format(json_schema, json_mode, grammar, choice),
        chat_template=None if chat_template is None else _template(chat_template),
    )


def _output_format(
    json_schema: str | None, json_mode: bool, grammar: str | None, choice: str | None
) -> OutputFormat | None:
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
        raise UsageError(f"{' and '.join(given)}: an answer has one format", hint=f"{given[0]} alone")
    from llmrun.constrain import output_format

    if json_schema is not None:
        return output_format.of_schema(*_schema(json_schema))
    if grammar is not None:
        return output_format.of_grammar(read_text("--grammar", grammar))
    if choice is not None:
        return output_format.of_choices([each.strip() for each in choice.split(",")])
    return output_format.of_json()


def _schema(text: str) -> tuple[str, str]:
    """The schema, and the file that it is from; a text that begins with a brace, or is true or false, is the schema."""
    stripped = text.strip()
    if stripped.startswith("{") or stripped in ("true", "false"):
        return stripped, ""
    return read_text("--json-schema", text), text


def _template(text: str) -> str:
    """The text itself if it looks like a template, else what the file holds."""
    return text if "{{" in text or "{%" in text else read_text("--chat-template", text)


with_answer_options = gathered("answers", _options)
"""A decorator: the command gets these options, and their values as one `AnswerOptions` called `answers`."""
