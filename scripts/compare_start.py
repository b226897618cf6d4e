"""How long `llmrun --help` and `--version` take, and what scripts/llmrun adds; prints Markdown.

The medians of interleaved starts, beside a bare `python -c pass`. Then what is read and judged before a model loads:
the catalog, and the worst that is known of grammars, schemas and chat templates (those of the tests). Exit 1 where the
catalog takes more than 20 ms at best, or the worst of the others more than two seconds.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / name) for name in (".", "constrain", "engine"))]

from test_chat_template import BOMBS, render  # noqa: E402
from test_gbnf import BAD  # noqa: E402
from test_output_format import REFUSED  # noqa: E402

from llmrun.constrain import gbnf, output_format  # noqa: E402
from llmrun.engine.child.chat_template import TemplateError  # noqa: E402
from llmrun.errors import LlmrunError  # noqa: E402
from llmrun.models import catalog  # noqa: E402

COMMAND = Path(sys.executable).with_name("llmrun")
CASES: dict[str, list[Path | str]] = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "llmrun --version": [COMMAND, "--version"],
    "llmrun --help": [COMMAND, "--help"],
    "llmrun run --help": [COMMAND, "run", "--help"],
    "scripts/llmrun --version": [ROOT / "scripts" / "llmrun", "--version"],
}


def taken_ms(what: Callable[[], object]) -> float:
    begin = time.perf_counter()
    with contextlib.suppress(LlmrunError, TemplateError):
        what()
    return (time.perf_counter() - begin) * 1e3


def before_loading(rounds: int) -> bool:
    """Print the second table; returns whether all of it is quick enough."""
    catalog_ms = [taken_ms(lambda: catalog.read(ROOT / "models.toml")) for _ in range(rounds)]
    grammars = [taken_ms(partial(gbnf.check, text)) for text, *_ in BAD]
    judged = taken_ms(lambda: gbnf.parse('root ::= a\na ::= "x" a "y" | "x" a "z" | ""').judge("x" * 60))
    schemas = [taken_ms(partial(output_format.of_schema, schema)) for schema, _ in REFUSED]
    bombs = [taken_ms(partial(render, text)) for text, _ in BOMBS]
    print("\n| what | median | fastest | slowest |\n|---|---|---|---|")
    for name, times in (
        ("the catalog", catalog_ms),
        (f"{len(grammars)} bad grammars", grammars),
        ("a text with 2⁶⁰ readings", [judged]),
        (f"{len(schemas)} bad schemas", schemas),
        (f"{len(bombs)} hostile chat templates", bombs),
    ):
        print(f"| {name} | {statistics.median(times):.1f} ms | {min(times):.1f} ms | {max(times):.1f} ms |")
    return min(catalog_ms) < 20 and max(*grammars, judged, *schemas, *bombs) < 2000


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 31
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, command in CASES.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            taken[name].append((time.perf_counter() - begin) * 1e3)
    print("| command | median | fastest |\n|---|---|---|")
    for name, times in taken.items():
        print(f"| `{name}` | {statistics.median(times):.0f} ms | {min(times):.0f} ms |")
    return 0 if before_loading(rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
