"""What `AnswerOptions` are made of, for `run` and `chat`: files and texts to templates and output formats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.terminal.files import read_text
from llmrun.errors import UsageError
from llmrun.options.spec import SHAPE, Flag, Text, option

if TYPE_CHECKING:
    from llmrun.constrain.output_format import OutputFormat


@dataclass(frozen=True)
class AnswerShape:
    """What can be said of an answer's form."""

    PANEL: ClassVar[str] = SHAPE

    json_schema: str | None = option(
        None, "json-schema", Text(), metavar="FILE|TEXT", help="The answer is JSON that keeps to this schema."
    )
    json_mode: bool = option(False, "json-mode", Flag(), help="The answer is JSON.")
    grammar: str | None = option(None, "grammar", Text(), metavar="FILE", help="The answer keeps to this GBNF.")
    choice: str | None = option(None, "choice", Text(), metavar="A,B,...", help="The answer is one of these words.")


def answer_options(typed: AnswerOptions, shape: AnswerShape) -> AnswerOptions:
    """What was typed, with what the files hold that it names."""
    template = None if typed.chat_template is None else _template(typed.chat_template)
    return replace(typed, output_format=_output_format(shape), chat_template=template)


def _output_format(shape: AnswerShape) -> OutputFormat | None:
    given = [f"--{key.replace('_', '-')}" for key, value in vars(shape).items() if value not in (None, False)]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: an answer has one format", hint=f"{given[0]} alone")
    if not given:
        return None
    from llmrun.constrain import output_format

    if shape.json_schema is not None:
        return output_format.of_schema(*_schema(shape.json_schema))
    if shape.grammar is not None:
        return output_format.of_grammar(read_text("--grammar", shape.grammar))
    if shape.choice is not None:
        return output_format.of_choices([each.strip() for each in shape.choice.split(",")])
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
