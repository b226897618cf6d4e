"""What somebody wants to know of models, in every form of `llmrun plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmrun.errors import Change, UsageError
from llmrun.options.load import LoadConfig

if TYPE_CHECKING:
    from llmrun.models.levels import Levels
    from llmrun.planning.predict.costs import Costs
    from llmrun.planning.predict.prediction import Question

USUAL_DEPTHS = (0, 4096)


@dataclass(frozen=True)
class Asked:
    """What is to be predicted of every model, and how it is shown."""

    n_prompt: int
    n_gen: int
    depths: tuple[int, ...]
    load: LoadConfig
    target_tps: float | None
    costs: Costs
    offline: bool
    as_json: bool
    quiet: bool

    def question(self, levels: Levels) -> Question:
        from llmrun.planning.predict.prediction import Question

        trained, n_ctx = levels.files[0].header.n_ctx_train, self.load.n_ctx
        asked = {"n_prompt": self.n_prompt, "n_gen": self.n_gen, "n_depth": max(self.depths, default=0)}
        for field, value in asked.items():
            if trained and value > trained:
                raise UsageError(
                    f"{value} tokens are more than the {trained} that {levels.name} was trained on",
                    field=field,
                    hint=Change({field: trained}),
                )
            if n_ctx and value > n_ctx:
                raise UsageError(
                    f"{value} tokens are more than a context of {n_ctx} holds",
                    field=field,
                    hint=Change({field: n_ctx}),
                )
        depths = self.depths or tuple(d for d in usual_depths(levels) if not n_ctx or d < n_ctx)
        return Question(self.n_prompt, self.n_gen, depths, self.load)


def usual_depths(levels: Levels) -> tuple[int, ...]:
    """As deep as the model was trained for."""
    trained = levels.files[0].header.n_ctx_train or 0
    return tuple(depth for depth in USUAL_DEPTHS if depth < max(1, trained))
