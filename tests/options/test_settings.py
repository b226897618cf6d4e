"""Settings in a file: where a value comes from, what is wrong with it, and how the file is changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RunLlmrun
from waiting import HANGS_S

from llmrun.errors import DiskError, UsageError
from llmrun.models import catalog
from llmrun.models.model_settings import Names
from llmrun.options import user_config
from llmrun.options.user_config import Setting

KNOWN = {name: name for name in ("temp", "top-p", "top-k", "min-p", "ctx-size", "stop", "n-predict", "repeat-penalty")}

CATALOG = """
[[model]]
name = "pet:1b"
aliases = ["pet"]
repo = "User/Pet-GGUF"
settings = { temp = 0.9, top-k = 7 }

[[model]]
name = "wolf:1b"
repo = "user/wolf-GGUF"
quant = "Q8_0"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's config folder, with a small catalog of theirs."""
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "models.toml").write_text(CATALOG)
    monkeypatch.setenv("LLMRUN_CONFIG_DIR", os.fspath(folder))
    return folder


def write(home: Path, text: str) -> Path:
    path = home / "config.toml"
    path.write_text(textwrap.dedent(text).lstrip("\n"))
    return path


def values(model: str, known: dict[str, str] | None = None) -> dict[str, object]:
    return {name: each.value for name, each in user_config.load().of(model, known or KNOWN, Names()).items()}


# -- which one counts ---


def test_nothing_is_set(home: Path) -> None:
    """Without a file there are no settings but what the catalog recommends, and no TOML is parsed for `tiny`."""
    assert values("tiny") == {} and values("./a.gguf") == {}
    assert values("pet") == {"temp": 0.9, "top-k": 7}


def test_the_nearest_counts(home: Path) -> None:
    """[models] before [defaults] before the catalog, key by key."""
    write(
        home,
        """
        [defaults]
        temp = 0.2
        ctx-size = 4096
        [models.pet]
        ctx-size = 8192
        """,
    )
    assert values("pet") == {"temp": 0.2, "top-k": 7, "ctx-size": 8192}
    assert values("wolf:1b") == {"temp": 0.2, "ctx-size": 4096}


@pytest.mark.parametrize("typed", ["pet", "PET:1b", "pet:Q4_K_M", "user/pet-gguf", "hf://User/Pet-GGUF", "pet@v2"])
@pytest.mark.parametrize("named", ["pet", "Pet:1B", "user/PET-gguf"])
def test_one_model_has_many_names(home: Path, typed: str, named: str) -> None:
    """A table means its model, whatever either is called, in any case; and so does what the catalog recommends."""
    write(home, f'[models."{named}"]\nctx-size = 1024')
    assert values(typed) == {"temp": 0.9, "top-k": 7, "ctx-size": 1024}
    assert values("wolf:1b") == {}


def test_a_level_is_nearer_than_none(home: Path) -> None:
    """With a level the table is for that level only, and before one without, wherever it stands."""
    write(
        home,
        """
        [models."pet:q8_0"]
        temp = 0.8
        [models.pet]
        temp = 0.1
        top-p = 0.5
        [models."user/pet-GGUF:Q8_0@v2"]
        min-p = 0.02
        """,
    )
    assert values("pet:Q8_0") == {"temp": 0.8, "top-k": 7, "top-p": 0.5}
    assert values("user/Pet-GGUF:Q8_0@v2")["min-p"] == 0.02
    assert values("pet:Q4_K_M")["temp"] == 0.1 and values("pet")["temp"] == 0.1


def test_a_usual_level_of_the_catalog_is_no_level(home: Path) -> None:
    """The catalog takes wolf at Q8_0 when nobody asks; a table for wolf is for all its levels."""
    write(home, '[models."wolf:1b"]\ntemp = 0.3')
    assert values("wolf:1b")["temp"] == values("wolf:1b:Q4_K_M")["temp"] == values("user/wolf-gguf")["temp"] == 0.3


def test_the_name_as_typed_is_nearest(home: Path) -> None:
    """Two tables of one model: the one with the very name."""
    write(home, '[models."user/pet-GGUF"]\ntemp = 0.1\n[models.pet]\ntemp = 0.2\n[models."pet:1b"]\ntemp = 0.3')
    assert (values("user/pet-GGUF")["temp"], values("pet")["temp"], values("pet:1b")["temp"]) == (0.1, 0.2, 0.3)


def test_files_and_the_embedded_model(home: Path, tmp_path: Path) -> None:
    """A file is the same by every path to it; `tiny` is `tiny`."""
    file = tmp_path / "some.gguf"
    write(home, f'[models."{file}"]\ntemp = 0.1\n[models.tiny]\ntemp = 0.2\n[models."~/x.gguf"]\ntemp = 0.3')
    assert values(os.fspath(file)) == {"temp": 0.1} and values("TINY") == {"temp": 0.2}
    assert values(os.fspath(Path("~/x.gguf").expanduser())) == {"temp": 0.3}


def test_a_table_of_no_model_is_nobodys(home: Path) -> None:
    """A model that left the catalog, or a name that is none, stops nothing; and a wrong name has the defaults."""
    write(home, '[defaults]\ntop-p = 0.5\n[models."gone:7b"]\ntemp = 0.1\n[models."a//b"]\ntemp = 0.2')
    assert values("wolf:1b") == {"top-p": 0.5}
    assert values("gone:7b") == {"top-p": 0.5, "temp": 0.1}
    assert values("no//model") == {"top-p": 0.5}


def test_other_spellings_are_the_same_option(home: Path) -> None:
    """Where an option has two names, a nearer table overrides either."""
    write(home, "[defaults]\npredict = 5\n[models.tiny]\nn-predict = 7")
    assert values("tiny", {**KNOWN, "predict": "n-predict"}) == {"n-predict": 7}


# -- what is wrong ---

WRONG = [
    ("[defaults]\ntemperature = 1", "[defaults] temperature: unknown; the nearest is temp"),
    ("[defaults]\nctx_size = 1", "[defaults] ctx_size: unknown; the nearest is ctx-size"),
    ("[models.pet]\ntopp = 1", '[models."pet"] topp: unknown; the nearest is top-p'),
    ("[default]\ntemp = 1", "default: unknown; there are [defaults] and [models.NAME]"),
    ("temp = 1", "temp: unknown"),
    ("models = 3", "models: must be tables"),
    ("defaults = 3", "[defaults]: must be a table"),
    ("[models]\ntiny = 3", '[models."tiny"]: must be a table'),
    ("[models.qwen3.5]\ntemp = 1", "must be a"),
    ("[models.pet.x]\ntemp = 1", '[models."pet"] x: is a table and not a value'),
    ("[defaults]\ntemp = 1979-05-27", "[defaults] temp: must be a number, a text, true or false"),
    ("[defaults]\nstop = [['a']]", "[defaults] stop: must be a number"),
    ("[defaults]\ntemp = ", ":2: not valid TOML"),
    ("\n\n[defaults\n", ":3: not valid TOML"),
    ("[defaults]\ntemp = 1\ntemp = 2", ":3: not valid TOML"),
    ("x = " + "[" * 5000, "not valid TOML"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_wrong_file_is_told(home: Path, text: str, said: str) -> None:
    """A `UsageError` with the file, and the line or the key."""
    path = home / "config.toml"
    path.write_text(text)
    if "qwen3.5" in text:
        said = '[models."qwen3"] 5: is a table and not a value; a model\'s name with dots in it stands in quotes'
    with pytest.raises(UsageError) as caught:
        user_config.load().of("tiny", KNOWN, Names())
    assert caught.value.message.startswith(f"{path}") and said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_text(home: Path) -> None:
    """Not UTF-8, a folder, nobody's to read: said with the file."""
    path = home / "config.toml"
    path.write_bytes(b"[defaults]\ntemp = \xff")
    with pytest.raises(UsageError, match=r"config\.toml:2: not UTF-8"):
        user_config.load()
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=r"config\.toml: can't be read"):
        user_config.load()


def test_a_recommendation_is_checked_as_well(home: Path) -> None:
    """An unknown option in the user's models.toml: that file, and the entry."""
    (home / "models.toml").write_text('[[model]]\nname = "pet:1b"\nrepo = "a/b"\nsettings = { tempp = 1 }')
    with pytest.raises(UsageError, match=r"models\.toml: pet:1b tempp: unknown; the nearest is temp"):
        user_config.load().of("pet:1b", KNOWN, Names())
    (home / "models.toml").write_text('[[model]]\nname = "pet:1b"\nrepo = "a/b"\nsettings = 3')
    with pytest.raises(UsageError, match=r"models\.toml:4: pet:1b: settings: must be a table of options"):
        catalog.load()


# -- to write ---

FILE = """
# My settings.
[defaults]   # everywhere
ctx-size = 8192   # enough
stop = [ "###",
  "END" ]   # two

# The one I use.
[models."pet:1b"]
temp   =   0.6
"""


def test_comments_and_blanks_stay(home: Path) -> None:
    """Setting and unsetting changes the one line and no other."""
    path = write(home, FILE)
    before = path.read_text()
    user_config.put("temp", 0.2)
    user_config.put("temp", 0.7, "PET:1b")
    after = path.read_text()
    assert after.replace("temp = 0.2\n", "").replace("temp   =   0.7", "temp   =   0.6") == before
    assert values("pet") == {"temp": 0.7, "top-k": 7, "ctx-size": 8192, "stop": ["###", "END"]}
    user_config.drop("temp")
    assert path.read_text().replace("0.7", "0.6") == before
    user_config.drop("temp", "pet:1b")
    assert "The one I use" in path.read_text() and "models" not in path.read_text()


def test_one_option_is_set_once(home: Path) -> None:
    """Under another spelling it takes the place of the first, and either takes it out."""
    path = write(home, "[defaults]\npredict = 1\ntemp = 2\n")
    both = ("n-predict", "predict")
    user_config.put("n-predict", 3, instead_of=both)
    assert path.read_text() == "[defaults]\ntemp = 2\nn-predict = 3\n"
    user_config.drop("predict", also=both)
    assert path.read_text() == "[defaults]\ntemp = 2\n"


def test_an_unknown_option_can_be_taken_out(llmrun: RunLlmrun, home: Path) -> None:
    """What stops every run must be easy to remove."""
    write(home, "[defaults]\ntempp = 1\n")
    assert llmrun("config", "unset", "tempp").returncode == 0
    assert llmrun("config").returncode == 0


def test_from_nothing(home: Path) -> None:
    """The first setting makes the file, the folder too; names that need quotes get them."""
    path = home / "deep" / "config.toml"
    user_config.put("temp", 0.5, "qwen3.5:4b", path)
    user_config.put("stop", ["a", 'b"'], None, path)
    loaded = user_config.load(path)
    assert loaded.defaults == (Setting("stop", ["a", 'b"'], path, "[defaults]"),)
    assert list(loaded.models) == ["qwen3.5:4b"]
    user_config.drop("stop", None, path)
    user_config.drop("temp", "QWEN3.5:4b", path)
    assert user_config.load(path).all == () and sorted(each.name for each in path.parent.iterdir()) == ["config.toml"]


def test_what_is_not_set_can_not_be_unset(home: Path) -> None:
    """Told, and the file stays as it is."""
    path = write(home, FILE)
    before = path.read_bytes()
    for model in (None, "pet:1b", "nobody"):
        with pytest.raises(UsageError, match="has no top-p"):
            user_config.drop("top-p", model)
    assert path.read_bytes() == before


def test_a_broken_file_is_not_edited(home: Path) -> None:
    """Nobody's text is replaced by a guess at what it meant."""
    path = write(home, "[defaults\ntemp = 1")
    with pytest.raises(UsageError, match=r"config\.toml:1: not valid TOML"):
        user_config.put("temp", 2)
    assert path.read_text() == "[defaults\ntemp = 1"


def test_links_and_modes_stay(home: Path, tmp_path: Path) -> None:
    """A config.toml that is a link into a folder of dotfiles stays one, and who may read it stays as well."""
    real = tmp_path / "dotfiles.toml"
    real.write_text("[defaults]\r\ntemp = 1\r\n", newline="")
    real.chmod(0o600)
    (home / "config.toml").symlink_to(real)
    user_config.put("temp", 2)
    assert (home / "config.toml").is_symlink()
    assert real.read_bytes() == b"[defaults]\r\ntemp = 2\r\n" and real.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_takes_nothing(tmp_path: Path) -> None:
    """A folder that can't be made: `DiskError` with the file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"config\.toml: can't be written"):
        user_config.put("temp", 1, None, tmp_path / "file" / "config.toml")


_WRITER = """
import sys
from pathlib import Path
from llmrun.options import user_config as settings
path, me, n = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for i in range(n):
    settings.put("temp", i, f"model-{me}", path)
    print(i, flush=True)
"""


def writer(path: Path, me: int, n: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _WRITER, os.fspath(path), str(me), str(n)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_several_at_once_lose_nothing(tmp_path: Path) -> None:
    """Four processes write ten values each: all four tables have their last one."""
    path = tmp_path / "config.toml"
    writers = [writer(path, me, 10) for me in range(4)]
    for each in writers:
        each.communicate(timeout=HANGS_S)
        assert each.returncode == 0
    assert {name: table[0].value for name, table in user_config.load(path).models.items()} == {
        f"model-{me}": 9 for me in range(4)
    }


def test_a_killed_write_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """kill -9 at ten moments of one write after another: the file is always whole, and the next write works."""
    path = tmp_path / "config.toml"
    user_config.put("temp", -1, "model-0", path)
    for moment in range(10):
        process = writer(path, 0, 100_000)
        assert process.stdout
        process.stdout.readline()
        for _ in range(moment):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=HANGS_S)
        (table,) = user_config.load(path).models.values()
        assert table[0].key == "temp" and isinstance(table[0].value, int)
    user_config.put("temp", 5, None, path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["config.toml"]


# -- the command line ---


def run_json(llmrun: RunLlmrun, *arguments: str) -> Any:
    done = llmrun("run", "tiny", "Once upon a time", "-n", "3", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["settings"]


def test_a_run_uses_them(llmrun: RunLlmrun, home: Path) -> None:
    """What the file says is what the engine gets; what is typed wins, a list as a whole."""
    write(home, '[defaults]\ntemp = 0\nstop = ["zzz", "yyy"]\nthreads = 1\n[models.tiny]\ntop-k = 11')
    said = run_json(llmrun)
    assert (said["temperature"], said["top_k"], said["n_threads"], said["stop"]) == (0, 11, 1, ["zzz", "yyy"])
    said = run_json(llmrun, "--temp", "0.5", "--stop", "xxx", "--top-k", "40")
    assert (said["temperature"], said["top_k"], said["stop"]) == (0.5, 40, ["xxx"])


@pytest.mark.parametrize(
    ("line", "typed"),
    [
        ("cpu-moe = true", "--n-cpu-moe=1"),
        ("mlock = true", "--load-mode=none"),
        ("rope-scale = 2", "--rope-freq-scale=1"),
    ],
)
def test_the_same_in_other_words(llmrun: RunLlmrun, home: Path, line: str, typed: str) -> None:
    """What was typed counts, also where the file says the same by another option."""
    write(home, f"[defaults]\n{line}\n")
    done = llmrun("run", "tiny", "Once", "-n", "1", typed)
    assert done.returncode == 0, done.stderr


def test_a_flag_and_a_single_text(llmrun: RunLlmrun, home: Path) -> None:
    """A flag is true or false, one text is a list of one, and a number can stand for a text."""
    write(home, '[defaults]\nquiet = true\nraw = false\nstop = "zzz"\nn-predict = 2')
    done = llmrun("run", "tiny", "Once upon a time")
    assert done.returncode == 0 and done.stderr == "" and done.stdout
    write(home, "[defaults]\nsystem = 7\nn-predict = 2")
    assert llmrun("run", "tiny", "hello").returncode == 0


BAD_VALUES = [
    ("temp = 900", "[defaults] temp: --temp: 900.0 is outside 0 to 100"),
    ("temp = nan", "[defaults] temp: --temp: nan is outside 0 to 100"),
    ("temp = '0.6'", "[defaults] temp: must be a number, not '0.6'"),
    ("temp = true", "[defaults] temp: must be a number, not true"),
    ("temp = [1]", "[defaults] temp: must be a number"),
    ("top-k = 2.5", "[defaults] top-k: must be a whole number, not 2.5"),
    ("top-k = -3", "[defaults] top-k: --top-k: -3 is outside 0 to"),
    ("quiet = 1", "[defaults] quiet: must be true or false"),
    ("flash-attn = true", "[defaults] flash-attn: must be a text, not true"),
    ("flash-attn = 'maybe'", "[defaults] flash-attn: -fa/--flash-attn: 'maybe' is none of auto, on, off"),
    ("stop = ['']", "[defaults] stop: --stop: an empty text"),
    ("stop = [true]", "[defaults] stop: must be a text, or a list, not true"),
    ("logit-bias = ['x']", "[defaults] logit-bias: -l/--logit-bias: 'x' is not TOKEN+BIAS"),
    ("temprature = 1", "[defaults] temprature: unknown; the nearest is temp"),
    ("temp = ", "config.toml:2: not valid TOML"),
]


@pytest.mark.parametrize(("line", "said"), BAD_VALUES, ids=[line for line, _ in BAD_VALUES])
def test_a_bad_value_names_its_file(llmrun: RunLlmrun, home: Path, line: str, said: str) -> None:
    """The same checks as for what is typed; the message says where the value stands. Exit 2, no traceback."""
    path = write(home, f"[defaults]\n{line}\n")
    done = llmrun("run", "tiny", "hello")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert str(path) in done.stderr and said in done.stderr, done.stderr


def test_what_was_typed_is_not_the_files_fault(llmrun: RunLlmrun, home: Path) -> None:
    """A wrong value that is typed over a good one: the message is about the command line."""
    write(home, "[defaults]\ntemp = 0.5\ntop-k = 5")
    done = llmrun("run", "tiny", "hello", "--temp", "900")
    assert done.returncode == 2 and "config.toml" not in done.stderr and "--temp" in done.stderr


def test_help_reads_no_file(llmrun: RunLlmrun, home: Path) -> None:
    """Neither does `--version`, nor a command that runs no model: a broken file stops nobody from being helped."""
    write(home, "[[[ no TOML")
    for arguments in (["--help"], ["run", "--help"], ["run", "tiny", "--help"], ["config", "--help"], ["--version"]):
        done = llmrun(*arguments)
        assert done.returncode == 0 and "config.toml:1" not in done.stderr
    assert llmrun("config", "--path").stdout == f"{home / 'config.toml'}\n"
    assert llmrun("config").returncode == 2


def test_without_a_file_no_parser_is_imported(home: Path) -> None:
    """`run tiny` with nothing set: neither a TOML parser nor what finds the folder elsewhere."""
    code = (
        "import sys\nfrom llmrun.cli.app import run\n"
        "run(['run', 'tiny', '--temp', '900', 'hello'])\nprint(' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS_S, cwd=ROOT)
    assert not {"tomllib", "tomli", "tomlkit", "platformdirs"} & set(done.stdout.split())


def test_config_set_and_unset(llmrun: RunLlmrun, home: Path) -> None:
    """From the command line into the file, typed as TOML has it, and out again."""
    assert llmrun("config", "set", "temp", "0.2").returncode == 0
    assert llmrun("config", "set", "--top-k", "5", "--model", "pet").returncode == 0
    assert llmrun("config", "set", "stop", "a b", "c", "--model", "pet").returncode == 0
    assert llmrun("config", "set", "seed", "-1").returncode == 0
    assert llmrun("config", "set", "quiet", "true").returncode == 0
    assert user_config.load().of("pet", {**KNOWN, "seed": "seed", "quiet": "quiet"}, Names()).keys() == {
        "temp",
        "top-k",
        "stop",
        "seed",
        "quiet",
    }
    shown = llmrun("config").stdout.splitlines()
    assert [line.split() for line in shown] == [
        ["OPTION", "VALUE", "FROM"],
        ["temp", "0.2", "[defaults]"],
        ["seed", "-1", "[defaults]"],
        ["quiet", "true", "[defaults]"],
        ["top-k", "5", '[models."pet"]'],
        ["stop", '["a', 'b",', '"c"]', '[models."pet"]'],
    ]
    assert llmrun("config", "unset", "top-k", "--model", "PET").returncode == 0
    assert values("pet", {**KNOWN, "seed": "seed", "quiet": "quiet"})["top-k"] == 7
    done = llmrun("config", "unset", "top-k")
    assert done.returncode == 2 and "[defaults] has no top-k" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["temp", "900"], "--temp: 900.0 is outside 0 to 100"),
        (["flash-attn", "maybe"], "'maybe' is none of auto, on, off"),
        (["logit-bias", "x"], "'x' is not TOKEN+BIAS"),
        (["temp", "warm"], "temp: 'warm' is not a number"),
        (["top-k", "2.5"], "top-k: '2.5' is not a whole number"),
        (["quiet", "perhaps"], "quiet: 'perhaps' is not true or false"),
        (["temp", "1", "2"], "temp: 2 values, and it takes one"),
        (["tempo", "1"], "tempo: not an option; the nearest is temp"),
        (["temp", "1", "--model", "nobody:7b"], "nobody:7b"),
    ],
)
def test_config_set_refuses(llmrun: RunLlmrun, home: Path, arguments: list[str], said: str) -> None:
    """What every run would refuse is not written."""
    done = llmrun("config", "set", *arguments)
    assert done.returncode in (2, 4) and said in done.stderr, done.stderr
    assert not (home / "config.toml").exists()


def test_config_as_json(llmrun: RunLlmrun, home: Path) -> None:
    """Every value with its file and table; --all adds what is built in, once per option."""
    path = write(home, "[defaults]\ntemp = 0.2\n[models.pet]\nctx-size = 9")
    said = json.loads(llmrun("config", "--model", "pet", "--json").stdout)
    assert said["path"] == str(path) and said["exists"] is True and said["model"] == "pet"
    rows = {row["key"]: (row["value"], row["file"], row["table"]) for row in said["settings"]}
    assert rows == {
        "temp": (0.2, str(path), "[defaults]"),
        "ctx-size": (9, str(path), '[models."pet"]'),
        "top-k": (7, str(home / "models.toml"), "pet:1b"),
    }
    everything = json.loads(llmrun("config", "--model", "pet", "--json", "--all").stdout)["settings"]
    keys = [row["key"] for row in everything]
    assert len(keys) == len(set(keys)) > 20
    assert next(row for row in everything if row["key"] == "top-p")["table"] == "built in"


def test_the_shipped_recommendations_are_valid(llmrun: RunLlmrun, home: Path) -> None:
    """Every value that models.toml recommends would be taken from a user: one model after the other."""
    entries = [entry for entry in catalog.read(ROOT / "models.toml").entries if entry.settings]
    assert len(entries) > 30
    lines: dict[str, set[Any]] = {}
    for entry in entries:
        for key, value in entry.settings.items():
            lines.setdefault(key, set()).add(value)
    for i in range(max(len(each) for each in lines.values())):
        chosen = {key: sorted(each)[min(i, len(each) - 1)] for key, each in lines.items()}
        write(home, "[defaults]\n" + "".join(f"{key} = {value}\n" for key, value in chosen.items()))
        done = llmrun("run", "tiny", "")
        assert done.returncode == 2 and "there is no prompt" in done.stderr, done.stderr  # past all other checks
    assert llmrun("config", "--model", "qwen3:4b").returncode == 0
