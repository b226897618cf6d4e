"""A member of a cluster: the process of another machine that answers some rows, with a model of its own cache.

`answer` is what Dask calls there. The model stays loaded from one call to the next.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from llmrun import __version__, fs
from llmrun.batch.job import Job, Tally
from llmrun.batch.rows import Row
from llmrun.batch.width import Width, chosen
from llmrun.engine.interface import Engine
from llmrun.errors import LlmrunError
from llmrun.models.reference import HubFile
from llmrun.models.resolve import Model
from llmrun.options.load import LoadConfig


@dataclass(frozen=True)
class Work:
    """What all members are told.

    Attributes:
        model: its name, and `sha256`, of its files in their order.
        load: what is given of how it is loaded; what it leaves open each member settles for itself.
        given: names of the fields of `load` that are given.
        room: tokens of prompt and answer that each row has room for from the beginning.
        n_prompt: tokens of the longest prompt, about.
        n_rows: all that are to be answered.
        parallel: answers side by side; None: each member finds out.
    """

    version: str
    model: str
    sha256: tuple[str, ...]
    load: LoadConfig
    given: frozenset[str]
    room: int
    n_prompt: int
    n_rows: int
    parallel: int | None
    tune: bool


@dataclass(frozen=True)
class Answered:
    """Results of rows, and what they took. `problem`: why there are none: this member is of no use."""

    results: list[dict[str, Any]]
    tally: Tally
    n_seq: int = 1
    problem: str | None = None


class _Kept(list[dict[str, Any]]):
    def add(self, result: dict[str, Any]) -> None:
        self.append(result)


_lock = threading.Lock()
"""A worker may run several calls at a time: the model is there once."""
_at_work: list[tuple[Work, Job]] = []


def answer(work: Work, rows: list[Row]) -> Answered:
    """The rows' results. Raises nothing that this project knows: errors of it say nothing to the scheduler."""
    with _lock:
        kept = _Kept()
        try:
            job = _job(work)
            job.tally = Tally()
            job.run(rows, kept)
        except LlmrunError as error:
            return Answered([], Tally(), problem=error.message)
        return Answered(list(kept), replace(job.tally), job.width.n_seq if job.width else 1)


def _job(work: Work) -> Job:
    if _at_work and _at_work[0][0] == work:
        return _at_work[0][1]
    while _at_work:
        _at_work.pop()[1].close()
    if work.version != __version__:
        raise LlmrunError(f"it has llmrun {__version__}, the batch is of {work.version}")
    job = _opened(work)
    _at_work.append((work, job))
    return job


def _opened(work: Work) -> Job:
    from llmrun.engine.engine import ChildEngine
    from llmrun.models.resolve import find_model
    from llmrun.tuning import first_use
    from llmrun.tuning.dials import MANY

    model = find_model(work.model, fetch=_not_here)
    if digests(model) != work.sha256:
        raise LlmrunError(f"its {work.model} is another file: the sha256 differs")
    load = work.load
    if work.tune and not (load.override_kv or load.lora or first_use.is_small(model.header)):
        load, _ = first_use.settled(
            model.header, load, work.n_prompt, n_seq=MANY, model=model.name, given=set(work.given)
        )

    def opened() -> Engine:
        n_seq = min(work.parallel or 1, max(1, work.n_rows))
        return ChildEngine(
            model.path, model.header, load, expected_tokens=work.room, least_tokens=work.room, n_seq=n_seq
        )

    def width(engine: Engine) -> Width:
        return chosen(engine, work.room, work.parallel, work.n_rows)

    return Job(opened, model.name, width=width)


def _not_here(file: HubFile) -> NoReturn:
    raise LlmrunError(f"it has no {file.repo} in its cache")


def digests(model: Model) -> tuple[str, ...]:
    """The sha256 of a model's files; of one that was pulled it is known, another is read."""
    from llmrun.models.quants import split_parts
    from llmrun.models.store import state

    found = []
    for name in split_parts(model.path.name):
        path = model.path.with_name(name)
        known = state.verified_sha256(path)
        if known is None:
            known = fs.sha256_of(path)
            state.remember(path, sha256=known)
        found.append(known)
    return tuple(found)
