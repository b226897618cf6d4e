"""What `AnswerOptions` are made of, for `run` and `chat`: thinking, chat template, output format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrun.cli.terminal.files import read_text
from llmrun.errors import Change, UsageError
from llmrun.options.spec import SHAPE, TEXT, Choice, Flag, Text, Whole, check, option

if TYPE_CHECKING:
    from llmrun.chat.answer_options import AnswerOptions
    from llmrun.constrain.output_format import OutputFormat


@dataclass(frozen=True)
class AnswerArguments:
    """What can be said of answers; `options` is what it means."""

    think: str = option(
        "show",
        "think",
        Choice(("show", "fold", "hide", "off")),
        panel=TEXT,
        metavar="show|fold|hide|off",
        help="Of reasoning models: their thinking in full, as one line, not at all; off: none is asked for.",
        example=Change({"think": "fold"}),
    )
    think_budget: int | None = option(
        None,
        "think-budget",
        Whole(0, 1 << 24),
        panel=TEXT,
        metavar="N",
        help="End the thinking after N tokens.",
        without="none",
        example=Change({"think": "off"}),
    )
    chat_template: str | None = option(
        None,
        "chat-template",
        Text(),
        panel=TEXT,
        metavar="FILE|TEXT",
        help="A Jinja template instead of the model's own.",
    )
    special: bool = option(
        False,
        "special",
        Flag(),
        panel=TEXT,
        help="Control tokens written in prompts and files count as such, and are not text.",
    )
    json_schema: str | None = option(
        None,
        "json-schema",
        Text(),
        panel=SHAPE,
        metavar="FILE|TEXT",
        help="The answer is JSON that keeps to this schema.",
    )
    json_mode: bool = option(False, "json-mode", Flag(), panel=SHAPE, help="The answer is JSON.")
    grammar: str | None = option(
        None, "grammar", Text(), panel=SHAPE, metavar="FILE", help="The answer keeps to this GBNF."
    )
    choice: str | None = option(
        None, "choice", Text(), panel=SHAPE, metavar="A,B,...", help="The answer is one of these words."
    )

    def __post_init__(self) -> None:
        check(self)

    def options(self) -> AnswerOptions:
        """Files are read."""
        from llmrun.chat.answer_options import AnswerOptions

        return AnswerOptions(
            think=self.think,  # type: ignore[arg-type]  # checked when it is made
            think_budget=self.think_budget,
            output_format=_output_format(self.json_schema, self.json_mode, self.grammar, self.choice),
            chat_template=None if self.chat_template is None else _template(self.chat_template),
            special=self.special,
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
    return text if "{{" in text or "{%" in text or not text.strip() else read_text("--chat-template", text)
