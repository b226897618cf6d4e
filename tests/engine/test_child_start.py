"""The start of the engine's child: what it does not need is not imported, for a user waits for it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "numpy",
    "jinja2",
    "dataclasses",
    "inspect",
    "typing_extensions",
    "asyncio",
    "socket",
    "ssl",
    "logging",
    "secrets",
)


def test_nothing_heavy_to_compute_a_token() -> None:
    """All that a child imports to load a model and to answer."""
    code = (
        "import sys\n"
        "from llmrun.engine.child import bootstrap\n"
        "with bootstrap.small_typing_extensions(): from llmrun.engine.child import main\n"
        "from llmrun.engine.child import generate, ggml, native, params\n"
        "print(native.llama.llama_print_system_info.__name__, *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & set(HEAVY)


def test_typing_extensions_is_whole_afterwards() -> None:
    """The small one is gone when the block is left; a real one that was there before stays."""
    code = (
        "import sys; from llmrun.engine.child.bootstrap import small_typing_extensions as small\n"
        "with small(): from typing_extensions import TypeAlias\n"
        "assert 'typing_extensions' not in sys.modules\n"
        "import typing_extensions as real\n"
        "with small(): from typing_extensions import Protocol\n"
        "assert sys.modules['typing_extensions'] is real\n"
    )
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)
