"""The commands, and the one place where an error becomes a line and an exit code."""

from __future__ import annotations

from typing import Annotated

import typer

from llmrun import __version__
from llmrun.cli.commands.bench import bench
from llmrun.cli.commands.bench_history import app as bench_history_app
from llmrun.cli.commands.chat import ChatCommand, chat
from llmrun.cli.commands.compare import CompareCommand, compare
from llmrun.cli.commands.config import app as config_app
from llmrun.cli.commands.devices import devices
from llmrun.cli.commands.doctor import doctor
from llmrun.cli.commands.history import app as history_app
from llmrun.cli.commands.plot import plot
from llmrun.cli.commands.pull import pull
from llmrun.cli.commands.quantize import levels_help, quantize
from llmrun.cli.commands.run import run as commands_run
from llmrun.cli.commands.search import search
from llmrun.cli.commands.show import show
from llmrun.cli.commands.store import import_, list_, rm, verify
from llmrun.cli.commands.worker import worker
from llmrun.cli.framework.help import Command, Group
from llmrun.cli.framework.subgroup import with_subgroup
from llmrun.cli.framework.user_settings import ModelCommand
from llmrun.cli.terminal import screen

app = typer.Typer(
    cls=Group,
    name="llmrun",
    help="Run quantized language models on this machine, and know how fast it is.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # plain help: Rich would cost half of the start
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In the order in which a newcomer needs them.
app.command("run", cls=ModelCommand)(commands_run)
app.command("chat", cls=ChatCommand)(chat)
app.add_typer(history_app, name="history")
app.command("bench", cls=with_subgroup("history", bench_history_app))(bench)
app.command("pull", cls=Command)(pull)
app.command("list", cls=Command)(list_)
app.command("ls", cls=Command, hidden=True)(list_)
app.command("show", cls=Command)(show)
app.command("rm", cls=Command)(rm)
app.command("search", cls=Command)(search)
app.command("verify", cls=Command)(verify)
app.command("import", cls=Command)(import_)
app.command("quantize", cls=Command, epilog=levels_help())(quantize)
app.command("compare", cls=CompareCommand)(compare)
app.command("plot", cls=Command)(plot)
app.command("devices", cls=Command)(devices)
app.command("worker", cls=Command)(worker)
app.command("doctor", cls=Command)(doctor)
app.add_typer(config_app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        screen.out(f"llmrun {__version__}\n")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def run(arguments: list[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    return screen.guarded(lambda: app(args=arguments, prog_name="llmrun"))
