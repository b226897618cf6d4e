"""What is told of a bench while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from llmrun.bench.load_row import LoadRow
from llmrun.bench.record import Record, Row
from llmrun.bench.spec import Case
from llmrun.errors import LlmrunError


class Observer:
    """Is told what happens in a bench. Every method does nothing unless it is overridden."""

    def loaded(self, notes: Sequence[str]) -> None:
        """An engine was opened, the first or for other settings; `notes` says how, one sentence each."""

    def began(self, record: Record, planned: Sequence[Row], *, energy: bool) -> None:
        """The record without rows; a row without samples for each that will come; whether joules are measured."""

    def sampled(self, case: Case, done: int, of: int) -> None:
        """A case has `done` of its samples."""

    def finished(self, row: Row) -> None:
        """A row is complete, or has its `error`."""

    def loads_began(self, record: Record, planned: Sequence[LoadRow]) -> None:
        """The record of a bench of a server; a row without requests for each load that is known to come."""

    def load_finished(self, row: LoadRow) -> None:
        """A load of a server has ended."""

    def failed(self, error: LlmrunError) -> None:
        """A case can't be measured; its row, which comes next or once a record has begun, has the same words."""

    def ended(self, record: Record) -> None:
        """The record with all finished rows; its `ended` is None where the bench was cut short."""
