"""What others took of the machine: CPU time of the machine without ours."""

from __future__ import annotations

import subprocess
import sys

from llmrun.machine.others import Others, own_cpu_s

BURN = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(flush=True); input()"


def test_of_a_machine() -> None:
    machine, own, now = iter([100.0, 110.0, None]), iter([5.0, 9.0]), iter([0.0, 4.0, 5.0])
    others = Others(busy_s=lambda: next(machine), own_s=lambda: next(own), clock=lambda: next(now))
    assert others.cores() == (10 - 4) / 4
    assert others.cores() is None


def test_what_is_ours() -> None:
    """What a child has used, while it runs and when it has ended."""
    before = own_cpu_s()
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin and child.stdout
    child.stdout.readline()
    running = own_cpu_s()
    child.communicate(b"\n", timeout=60)
    ended = own_cpu_s()
    assert before + 0.15 < running <= ended + 0.02
