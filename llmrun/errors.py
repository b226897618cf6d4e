"""Everything that can go wrong, as one tree: what happened, the next command to type, and the exit code.

| class            | exit | when                                                             |
|------------------|------|------------------------------------------------------------------|
| `LlmrunError`    | 1    | the root; itself never raised                                    |
| `UsageError`     | 2    | an option or argument outside its range, before native code      |
| `NotInStore`     | 3    | the model is not on this machine and the network may not be used |
| `NotFound`       | 4    | no such model, quantization, revision or file; gated or private  |
| `NetworkError`   | 5    | the hub could not be reached, or broke off for good              |
| `IntegrityError` | 6    | the bytes are not the ones that the hub promised                 |
| `DiskError`      | 7    | no space, file too large for the disk or its quota, read-only    |
| `BadModel`       | 8    | the file is not a model that can be run                          |
| `EngineCrashed`  | 9    | the engine's process died or stopped making progress             |
| `OutOfMemory`    | 10   | memory ran out, or plainly would                                 |
| `PromptTooLong`  | 11   | the prompt has more tokens than the context                      |
| `TooSlow`        | 12   | a comparison found less speed than `--fail-under` allows         |
| `WrongShape`     | 13   | the answer is not of the form that was asked for                 |

Two ends are no errors of ours and have no class here: Ctrl-C exits with 130, a broken pipe with 141.
"""

from __future__ import annotations

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class LlmrunError(Exception):
    """An error to show in one line. `message` says what happened, with numbers; `hint` is the next command to type."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(LlmrunError):
    exit_code = 2


class NotInStore(LlmrunError):
    exit_code = 3


class NotFound(LlmrunError):
    exit_code = 4


class NetworkError(LlmrunError):
    exit_code = 5


class IntegrityError(LlmrunError):
    exit_code = 6


class DiskError(LlmrunError):
    exit_code = 7


class BadModel(LlmrunError):
    exit_code = 8


class EngineCrashed(LlmrunError):
    """`log` has the last 20 kB of llama.cpp's log, where there is one."""

    exit_code = 9

    def __init__(self, message: str, *, hint: str | None = None, log: str = "") -> None:
        super().__init__(message, hint=hint)
        self.log = log


class OutOfMemory(LlmrunError):
    exit_code = 10


class PromptTooLong(LlmrunError):
    exit_code = 11


class TooSlow(LlmrunError):
    exit_code = 12


class WrongShape(LlmrunError):
    exit_code = 13
