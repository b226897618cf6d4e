"""How a command line is read, what its help says, and how the shells complete it."""

from __future__ import annotations

import inspect
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from conftest import RunLlmrun

from llmrun.cli import app
from llmrun.cli.framework import parser, shells, spelling, sweeps
from llmrun.errors import UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import options_of

RUN = app.command("run")


@pytest.mark.parametrize("words", [["-n", "8"], ["-n8"], ["--n-predict", "8"], ["--n-predict=8"], ["-n=8"]], ids=str)
def test_one_option_in_every_form(words: list[str]) -> None:
    """A name of one letter, the long one, the value behind it or attached."""
    said = parser.read(["tiny", *words, "Hi"], RUN.options, command="run")
    assert said.texts == {"max_tokens": ["8"]} and said.arguments == ["tiny", "Hi"]


def test_flags_and_what_stands_behind_dashes() -> None:
    """Flags of one letter together; the last of flag and denial counts; a value may begin with a dash."""
    said = parser.read(
        ["-qv", "--no-quiet", "--stop", "-x", "-ngl", "3", "--", "--raw", "-"], RUN.options, command="run"
    )
    assert said.texts == {"quiet": [True, False], "verbose": [True], "stop": ["-x"], "n_gpu_layers": ["3"]}
    assert said.arguments == ["--raw", "-"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--tmep", "3"], "there is no option --tmep; the nearest is --temp"),
        (["-x"], "there is no option -x"),
        (["--stop"], "--stop needs a value: TEXT"),
        (["--raw=yes"], "--raw takes no value, not 'yes'"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said(words: list[str], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        parser.read(words, RUN.options, command="run")
    assert caught.value.message.startswith(problem) and spelling.hint(caught.value) == "llmrun run --help"


def test_a_name_that_is_nowhere_near_is_not_offered() -> None:
    """`tune rm` has one option, which is not what --json means."""
    with pytest.raises(UsageError) as caught:
        parser.read(["--json"], app.command("tune rm").options, command="tune rm")
    assert caught.value.message == "there is no option --json"


@pytest.mark.parametrize("text", ["x", "", "1,,2", "0-8*2"])
def test_a_list_that_is_none_says_how_one_is_typed(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        sweeps.whole("-d/--n-depth", [text])
    assert (caught.value.hint or "").startswith("-d ")


@pytest.mark.parametrize("path", ["run", "bench", "quantize"])
def test_read_as_typer_reads_it(path: str) -> None:
    """On random command lines, each option in every form that there is, the values are those that Typer finds."""
    command = app.command(path)
    read: dict[str, object] = {}
    function = shells.parameters_of(command)

    def keep(**values: object) -> None:
        read.update(values)

    keep.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    keep.__annotations__ = function.__annotations__
    reference = typer.Typer(rich_markup_mode=None, add_completion=False)
    reference.command()(keep)
    choose = random.Random(7)
    for _ in range(12):
        words = ["tiny"]
        for option in choose.sample(command.options, min(9, len(command.options))):
            name = choose.choice(spelling.names_of(option))
            if option.is_flag:
                words.append(choose.choice([name, f"--{option.contrary[0]}"]))
            else:
                value = choose.choice(["8", "-3", "a b", "x=y", ""])
                words += choose.choice([[name, value], [f"{name}={value}"] if name.startswith("--") else [name, value]])
        reference(words, standalone_mode=False)
        said = parser.read(words, command.options, command=path)
        for option in command.options:
            found = said.texts.get(option.key)
            assert read[option.key] == (found and (found if option.repeatable else found[-1])), (option.key, words)


def test_help_of_the_program_is_that_of_its_commands() -> None:
    """The table has the first sentence of every command's own help, so that nothing is imported to show it."""
    for path, entry in app.COMMANDS.items():
        first = " ".join(app.command(path).help.split("\n\n")[0].split())
        assert first == entry.help, path


@pytest.mark.parametrize("config", [LoadConfig, SamplingConfig])
def test_defaults_are_in_range_and_are_written_as_they_are_read(config: type) -> None:
    """Of every option: what it writes of its default, it reads as its default."""
    for option in options_of(config):
        if option.means is None and not option.repeatable and option.default not in (None, ()):
            option.check(option.default)
            (text,) = option.texts(option.default)
            assert option.parse(text) is not option.negated or option.is_flag
            if not option.is_flag:
                assert option.parse(text) == option.default, option.key


def test_a_flag_of_the_file_is_switched_off(llmrun: RunLlmrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`quiet = true` in config.toml: --no-quiet brings the figures back; a flag can be denied in the file as well."""
    monkeypatch.setenv("LLMRUN_CONFIG_DIR", os.fspath(tmp_path))
    (tmp_path / "config.toml").write_text("[defaults]\nquiet = true\nkv-offload = true\nn-predict = 2\n")
    assert llmrun("run", "tiny", "hello").stderr == ""
    assert "t/s" in llmrun("run", "tiny", "hello", "--no-quiet").stderr
    (tmp_path / "config.toml").write_text("[defaults]\nno-quiet = false\nno-kv-offload = true\nn-predict = 2\n")
    assert llmrun("run", "tiny", "hello").stderr == ""


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("llmrun ru", {"run"}),
        ("llmrun run --cache", {"--cache-type-k", "--cache-type-v"}),
        ("llmrun history exp", {"export"}),
        ("llmrun bench history s", {"show"}),
        ("llmrun bench --pri", {"--price-kwh", "--price-hour"}),
        ("llmrun run tin", {"tiny"}),
    ],
)
def test_completion(line: str, offered: set[str]) -> None:
    """Commands, options and models, in bash; nothing but the command that stands there is imported."""
    environment = {
        **os.environ,
        "_LLMRUN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split()) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "llmrun"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert offered <= set(done.stdout.split()), done
