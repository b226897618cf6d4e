"""How right predictions were: `llmrun plan --accuracy`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmrun.cli.terminal import screen, tables
from llmrun.errors import NotFound
from llmrun.units import percent

if TYPE_CHECKING:
    from llmrun.tuning.score import Compared


def tell_accuracy(*, as_json: bool, forget: bool) -> None:
    """How right predictions were; or no memory of it."""
    from llmrun.tuning import score

    if forget:
        screen.note(f"forgot {score.forget()} predictions, and what was learned from them")
        return
    found = [*score.kept()]
    if as_json:
        from llmrun import codec

        screen.out_json([codec.plain(each) for each in found])
        return
    if not found:
        raise NotFound(
            "no run here was compared with its prediction yet", hint="llmrun plan MODEL, and llmrun run MODEL"
        )
    tables.show(
        ("FIGURE", ">RUNS", ">MEDIAN ERROR", ">P90", ">BIAS", "…"),
        (
            (
                each.kind,
                str(each.n),
                percent(each.median),
                percent(each.p90),
                percent(each.bias, signed=True),
                _bars(found, each.kind),
            )
            for each in score.accuracy(found)
        ),
    )


def _bars(found: list[Compared], kind: str) -> str:
    """How many errors there are of each size: "-20 % ▁▂█▃▁ +20 %"."""
    edges = [-0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3]
    counts = [0] * (len(edges) + 1)
    for each in found:
        if each.kind == kind:
            counts[sum(each.error > edge for edge in edges)] += 1
    return "-30 % " + "".join(" ▁▂▃▄▅▆▇█"[-(-8 * n // max(counts))] for n in counts) + " +30 %"
