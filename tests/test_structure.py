"""The layout is a rule: imports go down only, and each heavy package has one door."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "llmrun"

# From the top down. A module may import from its own floor and from those below, late or early.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"models"},
    {"engine"},
    {"hub", "store", "meter"},
    {"planner"},
    {"footprint", "catalog", "synth", "gguf_rules"},
    {"gguf", "ggml_types", "quants", "hardware", "config"},
    {"errors", "units"},
    {"__init__"},
]
# meter reads the engine's messages, which are plain data.
GRANTED = {("meter", "engine.protocol")}
DOORS = {"llama_cpp": "engine", "huggingface_hub": "hub", "typer": "cli", "rich": "cli"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def floor_of(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """No module knows of one above it."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return  # the front door: it names what lives elsewhere, and imports it at first use
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package != "llmrun" or not any(other in floor for floor in FLOORS):
            continue
        if any(room == who and rest.startswith(what) for who, what in GRANTED):
            continue
        assert floor_of(other) >= floor_of(room), f"{room} imports {rest}, which is above it"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_door(path: Path) -> None:
    """llama_cpp, huggingface_hub, typer and rich are each imported in one room only."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imports_of(path):
        door = DOORS.get(name.partition(".")[0])
        assert door is None or door == room, f"{room} imports {name}: that is for {door}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_nothing_heavy_to_say_hello(arguments: list[str]) -> None:
    """Help and version import none of the packages that take long."""
    code = (
        "import sys; sys.argv[:] = ['llmrun', *sys.argv[1:]]\n"
        "from llmrun.__main__ import main\n"
        "try: main()\n"
        "finally: print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert not loaded & {
        "rich",
        "numpy",
        "gguf",
        "huggingface_hub",
        "llama_cpp",
        "psutil",
        "jinja2",
        "httpx",
        "requests",
    }
