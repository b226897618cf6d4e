"""The layout is a rule: imports go down only, and each heavy package has one door."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANGS_S

PACKAGE = Path(__file__).resolve().parents[1] / "llmrun"

# From the top down. A module may import from its own floor and from those below, late or early.
FLOORS = [
    {"__main__"},
    {"cli"},
    {"api"},
    {"experiments"},
    {"server"},
    {"batch"},
    {"wire"},
    {"constrain", "chat", "bench"},
    {"tuning"},
    {"engine"},
    {"planning"},
    {"models"},
    {"machine"},
    {"options", "gguf"},
    {"fs", "paths", "codec"},
    {"errors", "units", "text", "clock"},
    {"__init__"},
]
# The same inside `cli/`.
CLI_FLOORS = [
    {"app"},
    {"commands"},
    {"chat"},
    {"answering", "plans"},
    {"loading"},
    {"framework", "terminal"},
    {"__init__"},
]
# Arrows that pure moves left pointing up, by importing file: each goes with the work on its package.
LEFT: set[tuple[str, str]] = set()
# Packages and modules of `llmrun`.
DOORS = {
    "llama_cpp": {"engine"},
    "jinja2": {"engine"},
    "gguf": {"engine", "gguf"},
    "huggingface_hub": {"models.hub"},
    "typer": {"cli"},
    "rich": {"cli"},
    "prompt_toolkit": {"cli"},
    "pygments": {"cli"},
    "sqlite3": {"chat", "models.store.state"},
    "matplotlib": {"bench"},
    "distributed": {"batch.cluster"},
    "starlette": {"server.app"},
    "uvicorn": {"server.serve"},
    "prometheus_client": {"server.metrics"},
}

# Modules of the core that still spell options of the command line; each goes with the work on its package.
SPELLS_OPTIONS: set[str] = set()

# What `from llmrun import NAME` finds in the package itself: __version__ and what it names lazily.
NAMES_OF_INIT = {"__version__"}

MODULES = sorted(path for path in PACKAGE.rglob("*.py"))


def floor_of(package: str, floors: list[set[str]] = FLOORS) -> int:
    found = [i for i, floor in enumerate(floors) if package in floor]
    assert len(found) == 1, f"{package} has no floor"
    return found[0]


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_left(path: Path, name: str) -> bool:
    return any(path.name == who and f"{name}.".startswith(f"{what}.") for who, what in LEFT)


def imports_of(path: Path, source: str | None = None) -> set[str]:
    """What a module imports, early or late, by absolute name."""
    inside = ("llmrun", *path.relative_to(PACKAGE).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) + 1 - node.level] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def imported_room(imported: str) -> str | None:
    """The room of `llmrun.ROOM…`; None for what is no module of ours: another package, a name of `__init__` itself."""
    package, _, rest = imported.partition(".")
    room = rest.partition(".")[0]
    if package != "llmrun" or not room:
        return None
    if room in NAMES_OF_INIT:
        return "__init__"
    return room


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    """No package knows of one above it."""
    room = room_of(path)
    mine = floor_of(room)
    if room == "__init__":
        return  # the front door: it names what lives elsewhere, and imports it at first use
    for name in imports_of(path):
        other = imported_room(name)
        if other is not None and not is_left(path, name):
            assert floor_of(other) >= mine, f"{room} imports {name}, which is above it"


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(path) == "cli"], ids=lambda path: path.stem)
def test_the_inner_order_of_cli(path: Path) -> None:
    """What commands are made of knows of no command, and no command of another."""
    inside = path.relative_to(PACKAGE / "cli").parts
    mine = inside[0].removesuffix(".py")
    for name in imports_of(path):
        if not name.startswith("llmrun.cli.") or is_left(path, name):
            continue
        other, *rest = name.split(".")[2:]
        floor = floor_of(other, CLI_FLOORS)
        assert floor >= floor_of(mine, CLI_FLOORS), f"cli/{mine} imports {name}, which is above it"
        if mine == other == "commands" and rest:
            assert rest[0] == path.stem, f"{path.stem} imports {name}, which is another command"


def test_relative_and_unknown_imports_count() -> None:
    """`from . import x` and `from ..y import z` are what they say, and a room that nobody gave a floor is an error."""
    module = PACKAGE / "cli" / "some.py"
    assert imports_of(module, "from . import screen") == {"llmrun.cli", "llmrun.cli.screen"}
    assert imports_of(module, "from ..store import find") == {"llmrun.store", "llmrun.store.find"}
    assert imports_of(PACKAGE / "some.py", "from . import hub") == {"llmrun", "llmrun.hub"}
    with pytest.raises(AssertionError, match="attic has no floor"):
        floor_of("attic")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_door(path: Path) -> None:
    """A heavy package is imported behind its own doors only."""
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imports_of(path):
        doors = DOORS.get(name.partition(".")[0])
        is_open = doors is None or any(f"{module}.".startswith(f"{door}.") for door in doors)
        assert is_open, f"{module} imports {name}: that is for {' and '.join(sorted(doors or ()))}"


def _words_of_the_command_line() -> re.Pattern[str]:
    """Every option as it is typed, and "llmrun" with a command behind it."""
    from llmrun.cli import app
    from llmrun.cli.framework.parser import HELP, HELP_ALL
    from llmrun.cli.framework.spelling import names_of

    commands = {path: app.command(path) for path in app.COMMANDS}
    names = {name for command in commands.values() for option in command.options for name in names_of(option)}
    words = [
        *(re.escape(name) for name in (*names, *HELP, *HELP_ALL)),
        f"llmrun (?:{'|'.join(map(re.escape, commands))})",
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(words, key=len, reverse=True))})(?![\w-])")


# Of other programs, whose options are theirs.
_OTHERS = re.compile(r"\b(?:ulimit|iconv|docker run|taskset|mkdir)\b[^;,()]*|^-[cm]$")


def strings_of(source: str) -> list[tuple[int, str]]:
    """Line and text of every string of a module that is not a docstring."""
    tree = ast.parse(source)
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docs)
    return [(node.lineno, node.value) for node in constants if isinstance(node.value, str)]


def test_the_core_speaks_no_command_line() -> None:
    """Nothing outside `cli/` spells an option of ours or names a command: a server would tell its clients to type them.

    Say it by field: `UsageError("512 is outside 1 to 16", field="n_threads", value=512)`, other fields in a message in
    backticks, `flash_attn`; remedies as data, `hint=Change({"n_ctx": 4096})`, `hint=Act("show", path)`. How a field is
    spelled is in its declaration (`options/load.py`, or the signature of a command).
    """
    words = _words_of_the_command_line()
    found: dict[str, list[str]] = {}
    for path in MODULES:
        if room_of(path) != "cli" and path.name != "__main__.py":
            said = [
                f"{line}: {text[:60]}"
                for line, text in strings_of(path.read_text())
                if words.search(_OTHERS.sub("", text))
            ]
            if said:
                found[str(path.relative_to(PACKAGE))] = said
    extra = {name: said for name, said in found.items() if name not in SPELLS_OPTIONS}
    assert not extra, f"{extra}\n{test_the_core_speaks_no_command_line.__doc__}"
    done = SPELLS_OPTIONS - set(found)
    assert not done, f"{sorted(done)} spell no option any more: take them off SPELLS_OPTIONS"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_power_for_the_compiler(path: Path) -> None:
    """`2**31` is computed while the module is compiled, where Python looks for signals and then clears every error but
    KeyboardInterrupt: a SIGTERM would be lost. `1 << 31` and 1_000_000_000 are as good."""
    powers = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.BinOp)]
    powers = [node for node in powers if isinstance(node.op, ast.Pow) and isinstance(node.left, ast.Constant)]
    assert not [node.lineno for node in powers if isinstance(node.right, ast.Constant)]


def test_strings_without_docstrings() -> None:
    """Parts of f-strings count; docstrings of modules, functions and attributes don't."""
    source = '"""-c"""\nx = 1\n"""-d"""\ndef f():\n    """-e"""\n    return f"-g {x}"\n'
    assert strings_of(source) == [(6, "-g ")]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"]])
def test_nothing_heavy_to_say_hello(arguments: list[str]) -> None:
    """Help and version import none of the packages that take long."""
    code = (
        "import sys; sys.argv[:] = ['llmrun', *sys.argv[1:]]\n"
        "from llmrun.__main__ import main\n"
        "try: main()\n"
        "finally: print(' '.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0
    loaded = set(done.stderr.split())
    assert not loaded & {
        "rich",
        "prompt_toolkit",
        "pygments",
        "sqlite3",
        "jsonschema",
        "numpy",
        "matplotlib",
        "gguf",
        "huggingface_hub",
        "llama_cpp",
        "psutil",
        "jinja2",
        "httpx",
        "typer",
        "pydantic",
        "httpx2",
        "requests",
    }
