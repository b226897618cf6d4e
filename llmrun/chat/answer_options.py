"""How answers are made, beside how their tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from llmrun.errors import Act, UsageError

if TYPE_CHECKING:
    from llmrun.constrain.output_format import OutputFormat

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
        output_format: the format that every answer has; None: free text.
        chat_template: Jinja, instead of the model's own; None: the model's.
        special: control tokens whose names stand in messages count as such; False: they are text, as all of it.
        ctx_overflow: what happens when the context is full: "drop" the oldest turns, or "stop".
    """

    think: Think = "show"
    think_budget: int | None = None
    output_format: OutputFormat | None = None
    chat_template: str | None = None
    special: bool = False
    ctx_overflow: Overflow = "drop"

    def __post_init__(self) -> None:
        for field, value, known in (
            ("think", self.think, get_args(Think)),
            ("ctx_overflow", self.ctx_overflow, get_args(Overflow)),
        ):
            if value not in known:
                raise UsageError(
                    f"'{str(value)[:40]}' is none of {', '.join(known)}",
                    field=field,
                    value=value,
                    hint=Act("help", "chat"),
                )
        if self.chat_template is not None and not self.chat_template.strip():
            raise UsageError("it is empty, and would leave the question out", field="chat_template")
        budget = self.think_budget
        if budget is not None and not 0 <= budget <= MAX_THINK_BUDGET:
            raise UsageError(
                f"{budget} is outside 0 to {MAX_THINK_BUDGET}",
                field="think_budget",
                value=budget,
                hint=Act("help", "chat"),
            )

    @property
    def thinks(self) -> bool:
        """Whether a reasoning model may think."""
        return self.think != "off"

    @property
    def grammar(self) -> str | None:
        """What every answer keeps to, for llguidance."""
        return self.output_format.grammar if self.output_format else None
