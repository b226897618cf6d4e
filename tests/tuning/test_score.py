"""How right predictions were: kept, summed up, learned from, forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrun.tuning import score
from llmrun.tuning.score import Compared, Kind


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))


def figure(ratio: float, kind: Kind = "decode", machine: str = "here") -> Compared:
    """Measured at so many times what was predicted."""
    return Compared(machine, "m", kind, "plain", 2, 100, 0, 10.0, 10.0 * ratio)


def test_nothing_yet() -> None:
    assert [*score.kept()] == [] and score.accuracy([]) == [] and score.correction("here", "decode") == 1
    assert score.forget() == 0


def test_kept_in_order_and_damaged_lines_left_out() -> None:
    score.keep([figure(1.0), figure(1.1, "prefill")])
    with score.path().open("a") as file:
        file.write('{"machine": "here"}\nnonsense\n')
    score.keep([figure(1.2)])
    assert [round(each.measured, 6) for each in score.kept()] == [10, 11, 12]
    assert all(each.at for each in score.kept()) and score.path().stat().st_mode & 0o777 == 0o600
    assert score.forget() == 3 and [*score.kept()] == []


def test_accuracy() -> None:
    """Errors are of what was measured: 10 predicted and 8 measured is a quarter too fast."""
    found = [figure(ratio) for ratio in (0.8, 1.0, 1.25)] + [figure(1.0, "prefill")]
    prefill, decode = score.accuracy(found)
    assert (prefill.kind, prefill.n, prefill.median) == ("prefill", 1, 0)
    assert decode.n == 3 and decode.median == pytest.approx(0.2) and decode.p90 == pytest.approx(0.25)
    assert decode.bias == 0


def test_learned_from_five_runs_on() -> None:
    """The median of the last, of this machine and this figure alone, within bounds."""
    score.keep([figure(1.2)] * 4 + [figure(3.0, machine="elsewhere")] * 9)
    assert score.correction("here", "decode") == 1
    score.keep([figure(1.2)])
    assert score.correction("here", "decode") == pytest.approx(1.2) and score.correction("here", "prefill") == 1
    assert score.correction("elsewhere", "decode") == 1.5
    score.keep([figure(0.9)] * 20)
    assert score.correction("here", "decode") == pytest.approx(0.9)


def test_the_oldest_go() -> None:
    score.keep([figure(1.0)] * 7000)
    before = score.path().stat().st_size
    score.keep([figure(2.0)])
    assert before > 1 << 20 > score.path().stat().st_size
    assert [*score.kept()][-1].measured == 20
