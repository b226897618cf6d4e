"""How long a child may be silent, and what it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """In seconds, but for `header_bytes`; a child beyond one of them counts as hung, and is ended, but for `prefix_s`.

    Attributes:
        start_s: from its start to `Ready`: Python and llama.cpp's libraries, from a cold disk.
        header_s: reading the header and the vocabulary. Damaged ones are known to loop.
        header_bytes: private memory meanwhile. Damaged ones are known to grow without end.
        idle_s: without using the CPU, in any later phase: a deadlock, or a device or worker that does not answer.
            A busy child is given as long as it takes: a prompt can take hours on a slow machine.
        cancel_s: from `Cancel` to the end of the generation.
        prefix_s: what a prompt must take for what it was computed to be kept on disk; 0: any.
    """

    start_s: float = 120
    header_s: float = 60
    header_bytes: int = 4 << 30
    idle_s: float = 300
    cancel_s: float = 0.5
    prefix_s: float = 1.0
