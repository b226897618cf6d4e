"""How answers are made, beside how their tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from llmrun.errors import Change, UsageError
from llmrun.options.spec import TEXT, Choice, Flag, Text, Whole, check, option

if TYPE_CHECKING:
    from llmrun.constrain.output_format import OutputFormat
    from llmrun.engine.protocol import Done, PromptOptions

Overflow = Literal["drop", "stop"]
Think = Literal["show", "fold", "hide", "off"]
MAX_THINK_BUDGET = 1 << 24
"""Tokens; no context is longer."""


@dataclass(frozen=True)
class AnswerOptions:
    """Checked when made. Raises `UsageError`.

    Attributes:
        think: "off" asks a reasoning model for none; the others are how its thinking is shown.
        think_budget: the most tokens of thinking; None: no limit.
        chat_template: Jinja, instead of the model's own; None: the model's.
        special: control tokens whose names stand in messages count as such; False: they are text, as all of it.
        output_format: the format that every answer has; None: free text.
        weighs: of choices, how likely each is to be the answer is found as well.
        ctx_overflow: what happens when the context is full: "drop" the oldest turns, or "stop".
    """

    PANEL: ClassVar[str] = TEXT

    think: Think = option(
        "show",
        "think",
        Choice(get_args(Think)),
        help="Of reasoning models: their thinking in full, as one line, not at all; off: none is asked for.",
        example=Change({"think": "fold"}),
    )
    think_budget: int | None = option(
        None,
        "think-budget",
        Whole(0, MAX_THINK_BUDGET),
        metavar="N",
        help="End the thinking after N tokens.",
        without="none",
        example=Change({"think": "off"}),
    )
    chat_template: str | None = option(
        None, "chat-template", Text(), metavar="FILE|TEXT", help="A Jinja template instead of the model's own."
    )
    special: bool = option(
        False, "special", Flag(), help="Control tokens written in prompts and files count as such, and are not text."
    )
    output_format: OutputFormat | None = None
    weighs: bool = False
    ctx_overflow: Overflow = "drop"

    def __post_init__(self) -> None:
        check(self)
        if (given := self.ctx_overflow) not in (known := get_args(Overflow)):
            raise UsageError(f"'{given[:40]}' is none of {', '.join(known)}", field="ctx_overflow", value=given)
        if self.chat_template is not None and not self.chat_template.strip():
            raise UsageError("it is empty, and would leave the question out", field="chat_template")

    @property
    def thinks(self) -> bool:
        """Whether a reasoning model may think."""
        return self.think != "off"

    @property
    def grammar(self) -> str | None:
        """What every answer keeps to, for llguidance."""
        return self.output_format.grammar if self.output_format else None

    def choice_probabilities(self, done: Done | None) -> dict[str, float] | None:
        """How likely each choice was to be the answer that has ended so; None where they were not weighed."""
        if done is None or done.choices is None or self.output_format is None:
            return None
        return dict(zip(self.output_format.choices, done.choices, strict=True))

    def for_prompt(self, **more: Any) -> PromptOptions:
        """The same for the engine, with what more is to be said there."""
        from llmrun.engine.protocol import PromptOptions

        mine: dict[str, Any] = {
            "template": self.chat_template,
            "thinks": self.thinks,
            "think_budget": self.think_budget,
        }
        if self.weighs and self.output_format is not None and self.output_format.choices:
            mine["choices"] = list(self.output_format.choices)
        return PromptOptions(**mine | {"grammar": self.grammar, "special": self.special} | more)
