"""Everything that can go wrong, as one tree: what happened, what would help, and the exit code.

| class            | exit | when                                                             |
|------------------|------|------------------------------------------------------------------|
| `LlmrunError`    | 1    | the root; itself never raised                                    |
| `UsageError`     | 2    | an option or argument outside its range, before native code      |
| `NotInStore`     | 3    | the model is not on this machine and the network may not be used |
| `NotFound`       | 4    | no such model, quantization, revision or file; gated or private  |
| `NetworkError`   | 5    | hub, worker or server can't be reached, or broke off             |
| `IntegrityError` | 6    | the bytes are not the ones that the hub promised                 |
| `DiskError`      | 7    | no space, file too large for the disk or its quota, read-only    |
| `BadModel`       | 8    | the file is not a model that can be run                          |
| `EngineCrashed`  | 9    | the engine's process died or stopped making progress             |
| `WorkerLost`     | 5    | a worker, or the way to it, ended, and the engine with it        |
| `OutOfMemory`    | 10   | memory ran out, or plainly would                                 |
| `PromptTooLong`  | 11   | the prompt has more tokens than the context                      |
| `TooSlow`        | 12   | a comparison found less speed than was demanded                  |
| `WrongFormat`    | 13   | the answer is not of the format that was asked for               |
| `RowsFailed`     | 14   | some rows of a batch are errors                                  |

Two ends are no errors of ours and have no class here: Ctrl-C exits with 130, a broken pipe with 141.

The core says *what* is wrong in its own words: the name of a field, the problem, the value. How a field is spelled as
an option, and which command helps, is known to the command line alone (`cli/framework/spelling.py`); a server makes
other words of the same error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

EXIT_BROKEN_PIPE = 141


class Change(NamedTuple):
    """A remedy: the same again with these fields, by name: `Change({"n_ctx": 4096})`.

    Names are those of `LoadConfig` (of its `offload` and `rope` as well), `SamplingConfig` and the other option
    types of `options/`. None as a value means to leave the field out. `note` says what comes of it.
    """

    fields: Mapping[str, object]
    note: str = ""


class Act(NamedTuple):
    """A remedy: an action of llmrun, by name: `Act("pull", "qwen3:4b")`; `Act("help", "run")` is to read its help.

    Attributes:
        action: what there is a command for: "show", "list", "pull", "rm", "devices", "doctor"...
        target: what it is done to, mostly a model; empty: nothing.
        fields: options for it, by field.
        note: what comes of it, in brackets behind it.
    """

    action: str
    target: str = ""
    fields: Mapping[str, object] | None = None
    note: str = ""


Remedy = Change | Act | str
"""What would help; a text is shown as it is."""


class LlmrunError(Exception):
    """An error to show in one line.

    Attributes:
        message: what happened, with numbers. Fields of options that it mentions stand in backticks, `n_ctx`, so that a
            front end can spell them its own way.
        remedies: what would help, the best first.
        field: name of the option's field that is wrong, `n_ctx`; None where it is not about one. The message does not
            begin with it: "512 is outside 1 to 16".
        value: of that field, as it was given.
        where: the place in a file of settings where the value stands; None where it was given directly.
    """

    exit_code = 1
    where: str | None = None

    def __init_subclass__(cls, exit_code: int | None = None) -> None:
        cls.exit_code = exit_code or cls.exit_code

    def __init__(
        self,
        message: str,
        *,
        hint: Remedy | None = None,
        remedies: Iterable[Remedy] = (),
        field: str | None = None,
        value: object = None,
    ) -> None:
        """`hint` is one remedy, for the many errors that have one."""
        super().__init__(f"{field}: {message}" if field else message)
        self.message = message
        self.remedies: tuple[Remedy, ...] = (*(() if hint is None else (hint,)), *remedies)
        self.field = field
        self.value = value

    @property
    def hint(self) -> str | None:
        """The remedies in the core's own words, for those who have no others."""
        return "  or  ".join(map(_in_words, self.remedies)) or None


def _in_words(remedy: Remedy) -> str:
    if isinstance(remedy, str):
        return remedy
    fields = ", ".join(f"{name}={value}" for name, value in (remedy.fields or {}).items())
    words = ("",) if isinstance(remedy, Change) else (remedy.action, remedy.target)
    return " ".join(filter(None, (*words, fields, f"({remedy.note})" if remedy.note else "")))


class UsageError(LlmrunError, exit_code=2): ...


class NotInStore(LlmrunError, exit_code=3): ...


class NotFound(LlmrunError, exit_code=4): ...


class NetworkError(LlmrunError, exit_code=5): ...


class IntegrityError(LlmrunError, exit_code=6): ...


class DiskError(LlmrunError, exit_code=7): ...


class BadModel(LlmrunError, exit_code=8): ...


class EngineCrashed(LlmrunError, exit_code=9):
    """`log` has the last 20 kB of llama.cpp's log, where there is one."""

    def __init__(
        self, message: str, *, log: str = "", hint: Remedy | None = None, remedies: Iterable[Remedy] = ()
    ) -> None:
        super().__init__(message, hint=hint, remedies=remedies)
        self.log = log


class WorkerLost(EngineCrashed, exit_code=5):
    """A worker, or the network to it, ended in the middle, and the engine with it."""


class OutOfMemory(LlmrunError, exit_code=10): ...


class PromptTooLong(LlmrunError, exit_code=11): ...


class TooSlow(LlmrunError, exit_code=12): ...


class WrongFormat(LlmrunError, exit_code=13): ...


class RowsFailed(LlmrunError, exit_code=14): ...
