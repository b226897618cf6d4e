"""`llmrun verify MODEL...`: reads every byte of models again and compares it with what was promised."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from llmrun.cli.framework import options
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import stored
from llmrun.cli.terminal import progress, screen, tables
from llmrun.errors import Act, IntegrityError, UsageError

if TYPE_CHECKING:
    from llmrun.models.store.verify import Verdict, VerifyProgress


def verify(
    names: options.SomeModelNames = None,
    everything: Annotated[bool, Option("--all", help="All models on this machine.")] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Read every byte again and compare it with what the hub promised.

    What is damaged is set aside, so that nothing uses it and a pull brings it anew; then the exit code is 6.
    """
    from llmrun.models.resolve import all_stored
    from llmrun.models.store.listing import list_models
    from llmrun.models.store.verify import verify_models

    if bool(names) == everything:
        raise UsageError("name the models to verify, or --all", hint=Act("verify", fields={"all": True}))
    if everything:
        models = list_models(header_budget_s=0)
    else:
        models = [*{m.path: m for name in names or () for m in all_stored(name)}.values()]
    names_of = stored.names()
    listed = {model.path: names_of.as_listed(model) for model in models}  # before anything is set aside
    before, current, total = 0, ("", 0), sum(model.size for model in models)
    with closing(progress.Bytes(quiet=quiet)) as bar:

        def on_event(event: VerifyProgress) -> None:
            nonlocal before, current
            if event.file != current[0]:
                before, current = before + current[1], (event.file, event.total)
            bar.show(f"verifying {_n(len(models), 'model')}", before + event.done, total)

        verdicts = verify_models(models, on_event)
    words = {True: "ok", False: "damaged", None: "noted"}
    rows: list[dict[str, Any]] = [
        {
            "verdict": "missing" if verdict.missing else words[verdict.ok],
            "name": listed[verdict.model.path],
            "file": verdict.file,
            "reason": verdict.reason,
            "set_aside": None if verdict.set_aside is None else os.fspath(verdict.set_aside),
        }
        for verdict in verdicts
    ]
    if as_json:
        screen.out_json(rows)
    else:
        titles = ("VERDICT", "NAME", "FILE", "WHY…")
        tables.show(titles, ([row["verdict"], row["name"], row["file"], row["reason"]] for row in rows))
    if bad := [verdict for verdict in verdicts if verdict.ok is False]:
        raise _not_whole(bad, len(verdicts), listed)


def _not_whole(bad: list[Verdict], n_files: int, listed: dict[Path, str]) -> IntegrityError:
    damaged = [verdict for verdict in bad if not verdict.missing]
    missing = len(bad) - len(damaged)
    found = []
    if damaged:
        aside = " and set aside" if all(verdict.set_aside for verdict in damaged) else ""
        found.append(f"{len(damaged)} of {_n(n_files, 'file')} {_are(len(damaged))} damaged{aside}")
    if missing:
        found.append(f"{missing} of {_n(n_files, 'file')} {_are(missing)} missing")
    model = bad[0].model
    again = "import the file again" if model.commit is None else Act("pull", listed[model.path])
    return IntegrityError("; ".join(found), hint=again)


def _are(n: int) -> str:
    return "is" if n == 1 else "are"


def _n(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"
