"""Plots: the description is arithmetic, the SVG holds it as text, and nothing is drawn where nothing varies."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from terminal import Terminal
from test_record import RECORD
from waiting import HANGS_S

from llmrun.bench import journal
from llmrun.bench.plot import figures, images
from llmrun.bench.plot.text import bar, sketch, sparkline
from llmrun.bench.record import Record, Row, Sample, Steps, to_document
from llmrun.bench.sides import side_of
from llmrun.bench.spec import Test
from llmrun.errors import DiskError, UsageError
from llmrun.machine.environment import DeviceInfo, MachineInfo
from llmrun.models.model_info import ModelInfo

DATA = Path(__file__).parent / "data"


def row(test: Test, tps: Sequence[float], **more: Any) -> Row:
    """A row whose samples ran at these rates."""
    settings = {"n_threads": 2, "n_threads_batch": 2, "n_ubatch": 512, "n_gpu_layers": 0, **more.pop("settings", {})}
    n = test.n_seq * (test.n_prompt or test.n_gen)
    if test.kind == "pp":
        samples = tuple(Sample(prefill_s=n / rate) for rate in tps)
    else:
        samples = tuple(Sample(0.0, Steps.of([test.n_seq / rate] * test.n_gen)) for rate in tps)
    return Row(test, settings, samples, **more)


def record(*rows: Row, name: str = "tiny", id: str = "20261121-010203-ab12") -> Record:
    machine = MachineInfo(
        "Intel(R) Xeon(R) Gold 6 CPU @ 2.00GHz", devices=(DeviceInfo("CUDA0", "gpu", "a GPU", "CUDA"),)
    )
    return replace(RECORD, id=id, rows=rows, machine=machine, model=ModelInfo(name, quantization="Q8_0"))


def bench(made: Record) -> figures.Bench:
    return figures.Bench(side_of(made), made)


def threads(n: int) -> dict[str, int]:
    return {"n_threads": n, "n_threads_batch": n}


TG = Test("tg", n_gen=4)
SWEEP = record(*(row(TG, (9 * n, 11 * n), settings=threads(n)) for n in (1, 2, 4)), row(Test("pp", 8), (100, 300)))
ROOF: dict[str, Any] = {"flops_per_token": 2e9, "ceiling_bytes_per_s": {"RAM": (9e9, 11e9)}}
ROOF |= {"ceiling_flops_per_s": (100e9,)}
ROOFLINE = record(row(TG, (8.0,), step_read_bytes={"RAM": 10**9}, **ROOF), row(Test("pp", 100), (40.0,), **ROOF))
BATCH = record(*(row(Test("pg", 8, 4, n_seq=n), (10.0 * n**0.5,)) for n in (1, 4, 16)))


# -- descriptions ------------------------------------------------------------------------------------------------------


def test_sweep() -> None:
    """9 and 11 t/s are 10 ± √2; 1, 2, 4 threads are powers; threads of the batch follow and are not a line's name."""
    figure = figures.figure([bench(SWEEP)])
    assert figure.title == "tiny · Q8_0 · Intel Xeon Gold 6"
    (panel,) = figure.panels
    assert (panel.kind, panel.title, panel.y.label) == ("sweep", "decode, tg4", "tokens per second")
    assert (panel.x.label, panel.x.scale, panel.x.ticks) == ("threads", "log", ((1, "1"), (2, "2"), (4, "4")))
    (series,) = panel.series
    assert series.label == ""
    assert [(p.x, p.n) for p in series.points] == [(1, 2), (2, 2), (4, 2)]
    assert [p.y for p in series.points] == pytest.approx([10, 20, 40])
    assert [p.err for p in series.points] == pytest.approx([2**0.5, 8**0.5, 32**0.5])
    assert figure.left_out == ("prefill, pp8: nothing varies",)
    assert figure.notes[0].startswith("mean of 2 samples, error bars: standard deviation · ")


def test_lines() -> None:
    """Three depths at two numbers of threads: depth has most values and is x, threads are the lines."""
    rows = [
        row(Test("tg", n_gen=4, n_depth=d), (t * 10.0,), settings=threads(t)) for t in (1, 2) for d in (512, 0, 1024)
    ]
    (panel,) = figures.figure([bench(record(*rows))]).panels
    assert panel.x.label.startswith("depth") and panel.x.scale == "linear"  # two powers and 0
    assert [(s.label, [p.x for p in s.points]) for s in panel.series] == [
        ("1 thread", [0, 512, 1024]),
        ("2 threads", [0, 512, 1024]),
    ]
    (panel,) = figures.figure([bench(record(*rows))], x="n_threads").panels
    assert [s.label for s in panel.series] == ["depth 512", "depth 0", "depth 1024"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [((1, 2, 4), "log"), ((0, 512, 1024, 4096), "symlog"), ((10, 100, 1000), "log"),
     ((1, 2, 3), "linear"), ((1, 2), "linear")],
)  # fmt: skip
def test_scale(values: tuple[int, ...], scale: str) -> None:
    """Logarithmic where values are powers, with a place for 0; two values are none."""
    rows = [row(Test("tg", n_gen=4, n_depth=d), (9.0,)) for d in values]
    (panel,) = figures.figure([bench(record(*rows))], ["sweep"]).panels
    assert panel.x.scale == scale


def test_models() -> None:
    """A line for each model; the machine, which they share, is in the title once."""
    figure = figures.figure([bench(SWEEP), bench(replace(SWEEP, model=ModelInfo("other")))], ["sweep"])
    assert [series.label for series in figure.panels[0].series] == ["tiny", "other"]
    assert figure.title == "tiny · Q8_0, other · Intel Xeon Gold 6"


def test_bars() -> None:
    """No layer and all layers on the GPU: a group for each test, one panel for each kind of test."""
    rows = [
        row(test, (base * factor,), settings={"n_gpu_layers": n, "layers": ["CUDA0"] * n or ["CPU"]})
        for n, factor in ((0, 1.0), (7, 10.0))
        for test, base in ((Test("pp", 64), 100.0), (Test("pp", 128), 90.0), (TG, 5.0))
    ]
    figure = figures.figure([bench(record(*rows))])
    assert figure.title.endswith(" + a GPU") and list(figure.kinds) == ["bars"]
    prefill, decode = figure.panels
    assert list(prefill.x.ticks) == [(0, "pp64"), (1, "pp128")]
    assert [(s.label, [(p.x, round(p.y, 6)) for p in s.points]) for s in prefill.series] == [
        ("CPU", [(0, 100), (1, 90)]),
        ("7 layers on GPU", [(0, 1000), (1, 900)]),
    ]
    assert [[round(p.y, 6) for p in s.points] for s in decode.series] == [[5], [50]]
    assert decode.series[0].points[0].err is None  # one sample says nothing of its spread


def test_roofline() -> None:
    """2 GFLOP of 1 GB at 8 t/s: 2 operations per byte, 16 of the 20 GFLOP/s that 10 GB/s feed. A prompt of 100 reads
    the weights once: 200 operations per byte, 80 of 100 GFLOP/s."""
    figure = figures.figure([bench(ROOFLINE)], ["roofline"])
    (panel,) = figure.panels
    roof, dots = panel.series
    assert (panel.x.scale, panel.y.scale, roof.mark, dots.mark) == ("log", "log", "roof", "dot")
    assert roof.label == "RAM: 10.0 GB/s, 100 GFLOP/s"
    # From a third of the lowest x to three times the highest, with a corner where 10 GB/s feed 100 GFLOP/s.
    assert [(p.x, p.y) for p in roof.points] == [
        (pytest.approx(2 / 3), pytest.approx(20 / 3)),
        (10, 100),
        (pytest.approx(600), 100),
    ]
    assert [(p.label, p.x, p.limit) for p in dots.points] == [("tg4", 2, 20), ("pp100", 200, 100)]
    assert [p.y for p in dots.points] == pytest.approx([16, 80])
    assert any(note.startswith("roof: ") for note in figure.notes)


def test_batch() -> None:
    """Four sequences at 20 t/s together are 5 t/s each."""
    together, each = figures.figure([bench(BATCH)]).panels
    assert together.title == "decode, all sequences together" and together.x.scale == "log"
    assert [(p.x, round(p.y, 6)) for p in together.series[0].points] == [(1, 10), (4, 20), (16, 40)]
    assert [round(p.y, 6) for p in each.series[0].points] == [10, 5, 2.5]


def test_llama_bench() -> None:
    """llama-bench's own JSON has rates and settings; it has no ceilings."""
    benches = figures.open_benches([str(DATA / "llama-bench-sweep.jsonl")])
    figure = figures.figure(benches)
    assert list(figure.kinds) == ["bars"] and figure.title.startswith("llama ?B Q8_0 · ")
    with pytest.raises(UsageError, match="bytes per step"):
        figures.figure(benches, ["roofline"])


@pytest.mark.parametrize(
    ("made", "kinds", "said"),
    [
        (record(), [], "no row has samples"),
        (record(row(TG, (1.0,))), [], "nothing varies"),
        (record(row(TG, (1.0,))), ["sweep"], "kind: 'sweep' can't be drawn: no setting takes several numbers"),
        (record(row(TG, (1.0,))), ["bars"], "nothing to set side by side"),
        (SWEEP, ["batch"], "number of sequences does not vary"),
    ],
)
def test_nothing_to_draw(made: Record, kinds: Sequence[figures.Kind], said: str) -> None:
    """Each says what is missing, and a command that measures it."""
    with pytest.raises(UsageError, match=said) as raised:
        figures.figure([bench(made)], kinds)
    assert raised.value.hint


def test_failed_rows_are_named() -> None:
    """What could not be measured is not in the picture, and it is said."""
    made = replace(SWEEP, rows=(*SWEEP.rows, Row(Test("tg", n_gen=9), error="out of memory")))
    assert "not measured: tg9" in figures.figure([bench(made)]).left_out


# -- as text -----------------------------------------------------------------------------------------------------------


def test_sketch() -> None:
    """40 t/s of 8 characters: 10 are two, 20 are four. Nothing but text: no colour to turn off."""
    assert sketch(figures.figure([bench(SWEEP)]), 30) == (
        "tiny · Q8_0 · Intel Xeon Gold 6\n"
        "\n"
        "decode, tg4 · tokens per second, by threads\n"
        "  1  ███▎           10.0 ± 1.4\n"
        "  2  ██████▌        20.0 ± 2.8\n"
        "  4  █████████████  40.0 ± 5.7\n"
        "\n"
        "mean of 2 samples, error bars: standard deviation · llmrun 0.1.0 · ggml 0.25.3\n"
    )


def test_sketch_of_a_roofline() -> None:
    """16 of 20 and 80 of 100 GFLOP/s: 80 % of the roof, both."""
    text = sketch(figures.figure([bench(ROOFLINE)], ["roofline"]), 60)
    assert "share of the roof (RAM: 10.0 GB/s, 100 GFLOP/s)" in text
    assert [line.split("  ")[-1].strip() for line in text.splitlines()[3:5]] == [
        "80.0 % of 20.0 GFLOP/s",
        "80.0 % of 100 GFLOP/s",
    ]


def test_bar_and_sparkline() -> None:
    """Eighths of a character; something is never nothing; equal samples are a flat line."""
    assert [bar(share, 2) for share in (0, 1e-9, 0.5, 0.57, 1, 7)] == ["", "▏", "█", "█▏", "██", "██"]
    assert sparkline([1, 2, 3, 8]) == "▁▂▃█"
    assert (sparkline([5, 5]), sparkline([])) == ("▄▄", "")


# -- as files ----------------------------------------------------------------------------------------------------------


def test_svg() -> None:
    """Text is text, a name's dollars and angles are themselves, and the same picture has the same bytes."""
    made = replace(SWEEP, model=ModelInfo("a$b$<c>\x07"))
    figure = figures.figure([bench(made), bench(BATCH), bench(ROOFLINE)], ["sweep", "roofline"])
    svg = images.render(figure, "svg")
    assert svg == images.render(figure, "svg") and len(svg) < 60_000
    text = svg.decode()
    for part in (
        "a$b$&lt;c&gt;?",
        ">threads<",
        ">tokens per second<",
        ">decode, tg4<",
        "10.0 GB/s, 100 GFLOP/s",
        ">tg4<",
    ):
        assert part in text, part
    assert "<dc:date>" not in text and "<image" not in text


def test_png(tmp_path: Path) -> None:
    """8.8 inches of 150 dots for two panels."""
    path = tmp_path / "new" / "two.PNG"
    images.write(figures.figure([bench(BATCH)]), path)
    data = path.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and width == 1320 and 400 < height < 800
    assert [each.name for each in path.parent.iterdir()] == ["two.PNG"]


def test_file_that_cannot_be(tmp_path: Path) -> None:
    """A folder in the file's place is the disk's error; another suffix is the user's."""
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(DiskError):
        images.write(figures.figure([bench(BATCH)]), tmp_path / "x.svg")
    assert [each.name for each in tmp_path.iterdir()] == ["x.svg"]
    with pytest.raises(UsageError, match=r"'x\.pdf' is neither \.svg nor \.png"):
        images.write(figures.figure([bench(BATCH)]), tmp_path / "x.pdf")


def test_without_matplotlib(tmp_path: Path) -> None:
    """One line with the command that installs it; text needs none."""
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(to_document(SWEEP)))
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'matplotlib':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from llmrun.cli.app import run\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "plot", str(path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=HANGS_S)

    done = run("-o", str(tmp_path / "x.svg"))
    assert done.returncode == 2 and "matplotlib, which is not installed" in done.stderr
    assert "pip install" in done.stderr.splitlines()[-1] and not (tmp_path / "x.svg").exists()
    assert run().returncode == 0


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history with one sweep."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    with journal.Journal.of(SWEEP) as kept:
        kept.end()
    return tmp_path


def test_command(home: Path, llmrun: RunLlmrun) -> None:
    """Data on stdout, talk on stderr; a file is written and named."""
    done = llmrun("plot", "last")
    assert done.returncode == 0 and done.stdout.startswith("tiny · Q8_0") and "█" in done.stdout
    assert done.stderr.splitlines()[0] == "kind: sweep"
    assert "\x1b" not in done.stdout
    done = llmrun("plot", "2026", "-o", str(home / "x.svg"), "--json")
    assert done.returncode == 0 and (home / "x.svg").read_text().startswith("<?xml")
    document = json.loads(done.stdout)
    assert document["panels"][0]["series"][0]["points"][0]["y"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["last", "-o", "x.pdf"], 2, "neither .svg nor .png"),
        (["last", "--kind", "pie"], 2, "'pie' is none of sweep, batch, bars, roofline"),
        (["last", "--kind", "sweep,batch"], 2, "--kind: 'batch' can't be drawn: "),
        (["last", "--x", "n_moon"], 2, "no row has a setting 'n_moon'"),
        (["1999"], 4, "no bench of this machine"),
        (["last", "-o", "/proc/x.svg"], 7, "writing /proc/x.svg"),
    ],
)
def test_refused(home: Path, llmrun: RunLlmrun, arguments: list[str], code: int, said: str) -> None:
    """What is wrong, and the exit code that says whose fault it is."""
    done = llmrun("plot", *arguments, cwd=home)
    assert (done.returncode, done.stdout) == (code, "") and said in done.stderr, done.stderr
    assert [each.name for each in home.iterdir()] == ["home"]


def test_terminal(home: Path) -> None:
    """No line is wider than the terminal; the history's samples are a line of characters there."""
    environment = {"LLMRUN_HOME": os.environ["LLMRUN_HOME"], "NO_COLOR": "1"}
    with Terminal("plot", "last", columns=50, env=environment) as terminal:
        assert terminal.wait() == 0
        bars = [line for line in terminal.text.splitlines() if "█" in line]
        assert len(bars) == 3 and max(map(len, bars)) == 50
    with journal.Journal.of(replace(record(row(TG, (1, 2, 3, 8))), id="20261122-010203-ab12")) as kept:
        kept.end()
    with Terminal("bench", "history", "show", "last", env=environment) as terminal:
        assert terminal.wait() == 0
        assert "▁▂▃█" in terminal.text
