"""Comparing two benches: the interval is exact on cases small enough to count, and rows find their partners."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from conftest import RunLlmrun
from test_export import DATA, golden, record_of
from test_record import DECODE, RECORD

from llmrun.bench import compare, journal
from llmrun.bench.compare import compare_samples
from llmrun.bench.export.formats import export
from llmrun.bench.record import Record, Row, Sample, Steps, to_document
from llmrun.bench.sides import open_side, side_of
from llmrun.bench.spec import Test
from llmrun.errors import Act, NotFound, UsageError


def record(rates: list[float], id: str = "20261121-010203-ab12", **settings: Any) -> Record:
    """One test "tg1" whose samples have these rates in tokens per second."""
    samples = tuple(Sample(steps=Steps.of([1 / rate])) for rate in rates)
    return replace(RECORD, id=id, rows=(Row(Test("tg", n_gen=1), {"n_threads": 2, **settings}, samples),))


# -- the interval ------------------------------------------------------------------------------------------------------


def test_ratio_of_two_runs() -> None:
    """The median of all quotients: of 10, 10, 10, 10 and 11, 11, 11, 12 it is 1.1, from 1.1 to 1.2."""
    found = compare_samples([10, 10, 10, 10], [11, 11, 11, 12], paired=False)
    assert (found.n_a, found.n_b, found.median_a, found.median_b) == (4, 4, 10, 11)
    assert [found.ratio, found.low, found.high] == pytest.approx([1.1, 1.1, 1.2])
    assert found.word == "faster"


def test_interval_of_two_runs_of_five() -> None:
    """Of the 25 quotients in order the third and the third from the end: Mann and Whitney's U ≤ 2 has 4/252."""
    a, b = [100.0, 101, 102, 103, 104], [110.0, 112, 114, 116, 118]
    quotients = sorted(y / x for x in a for y in b)
    found = compare_samples(a, b, paired=False)
    assert (found.low, found.high) == (quotients[2], quotients[-3])
    assert found.ratio == pytest.approx(quotients[12])


def test_one_disturbed_sample_changes_little() -> None:
    """One sample at half the speed: the ratio stays within 1 % of what it was."""
    a = [100.0, 100.5, 101, 100.2, 99.8]
    calm = compare_samples(a, [105.0, 105.5, 106, 105.2, 104.8], paired=False)
    disturbed = compare_samples(a, [105.0, 105.5, 52, 105.2, 104.8], paired=False)
    assert disturbed.ratio == pytest.approx(calm.ratio, rel=0.01)


def test_ratio_of_pairs() -> None:
    """The median of the pairs' ratios; of six, all of them hold it with 97 %. A drift of both is no difference."""
    a = [100.0, 90, 80, 70, 60, 50]
    b = [1.01 * 100, 1.02 * 90, 1.03 * 80, 1.04 * 70, 1.05 * 60, 1.06 * 50]
    found = compare_samples(a, b, paired=True)
    assert found.ratio == pytest.approx(math.sqrt(1.03 * 1.04))
    assert (found.low, found.high) == pytest.approx((1.01, 1.06))
    assert found.word == "faster"
    assert compare_samples(a, b, paired=False).word == "unclear"


def test_b_against_a_is_one_over_a_against_b() -> None:
    """Whichever is called B, the finding is the same."""
    a, b = [10.0, 11, 13, 17], [12.0, 19, 14, 15]
    for paired in (True, False):
        one, other = compare_samples(a, b, paired=paired), compare_samples(b, a, paired=paired)
        assert one.ratio == pytest.approx(1 / other.ratio)
    one, other = compare_samples(a, b, paired=False), compare_samples(b, a, paired=False)
    assert one.low and other.high and one.low == pytest.approx(1 / other.high)


def test_few_samples_have_no_interval() -> None:
    """Three a side leave 10 % to chance whatever they are, and so do five pairs: 1/16."""
    for n, paired in ((3, False), (1, False), (5, True)):
        found = compare_samples([1.0] * n, [2.0] * n, paired=paired)
        assert found.ratio == pytest.approx(2) and found.low is None and found.high is None
        assert found.word == "too few samples" and found.is_below(0.5) is None
    assert compare_samples([1.0] * 4, [2.0] * 4, paired=False).low == 2
    assert compare_samples([1.0] * 6, [2.0] * 6, paired=True).low == 2


@pytest.mark.parametrize(
    ("rates", "word"),
    [
        ([100, 101, 102, 103, 104], "same"),
        ([100.5, 101.5, 102.5, 103.5, 104.5], "same"),
        ([110, 111, 112, 113, 114], "faster"),
        ([90, 91, 92, 93, 94], "slower"),
        ([60, 101, 140, 90, 110], "unclear"),
    ],
)
def test_words(rates: list[float], word: str) -> None:
    """ "same" needs an interval that is narrow, not only one that holds 1."""
    assert compare_samples([100, 101, 102, 103, 104], rates, paired=False).word == word


def test_two_runs_within_a_percent_are_the_same() -> None:
    """0.5 % is less than two runs at different times differ by; of samples taken in turn, it counts."""
    a, b = [100.0] * 8, [100.5] * 8
    assert compare_samples(a, b, paired=False).word == "same"
    assert compare_samples(a, b, paired=True).word == "faster"


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 5), (3, 6)])
def test_distribution_of_u(n: int, m: int) -> None:
    """Counted: of all the ways to arrange n and m samples, those with so many of the m below one of the n."""
    counts = [0] * (n * m + 1)
    for places in combinations(range(n + m), n):
        counts[sum(place - i for i, place in enumerate(places))] += 1
    assert compare._u_counts(n, m) == counts


def test_ranks() -> None:
    """As the tables have them for 95 %: U may be at most 2, 5, 23 and 127 for 5, 6, 10 and 20 samples a side."""
    assert [compare.shift_rank(n, n) for n in (3, 4, 5, 6, 10, 20)] == [0, 1, 3, 6, 24, 128]
    assert [compare.sign_rank(n) for n in (5, 6, 8, 9, 20)] == [0, 1, 1, 2, 6]
    exact, rough = compare.shift_rank(40, 40), compare.shift_rank(41, 41)
    assert 0 < rough - exact < 50


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 400 comparisons of samples with a true ratio of 1.05, at least 93 % hold it; skewed by disturbances, too."""
    chance = random.Random(7)

    def rates(speed: float) -> list[float]:
        return [speed / (1 + chance.expovariate(1 / 0.02)) for _ in range(5)]

    for paired, n in ((False, 5), (True, 8)):
        held = 0
        for _ in range(400):
            a, b = (rates(100) + rates(100))[:n], (rates(105) + rates(105))[:n]
            found = compare_samples(a, b, paired=paired)
            assert found.low is not None and found.high is not None
            held += found.low <= 1.05 <= found.high
        assert held >= 0.93 * 400


@pytest.mark.parametrize(
    ("a", "b", "paired"),
    [([], [1], False), ([1], [], False), ([1, 2], [1], True), ([0], [1], False), ([-1], [1], True)],
)
def test_what_can_not_be_compared(a: list[float], b: list[float], paired: bool) -> None:
    """No samples, no partner, or a rate that is none."""
    with pytest.raises(ValueError, match="can't compare"):
        compare_samples(a, b, paired=paired)


# -- rows find each other ----------------------------------------------------------------------------------------------


def test_what_differs_between_the_sides_is_what_is_compared() -> None:
    """Two threads there, four here: that is the question, and no reason not to compare."""
    result = compare.compare(side_of(record([10] * 5)), side_of(record([20] * 5, n_threads=4, type_k="q8_0")))
    assert [match.test.name for match in result.matches] == ["tg1"]
    assert result.differences == {"n_threads": (2, 4)}  # type_k is known on one side only
    assert result.matches[0].settings == {}


def test_sweeps_are_matched_by_what_they_swept() -> None:
    """Rows of a sweep belong together by its values; what only one side has is named."""
    one = side_of(record_of(golden("llama-bench-sweep.jsonl")))
    part = replace(one, name="part", entries=tuple(e for e in one.entries if e.settings["n_threads"] == 2)[:2])
    result = compare.compare(one, part)
    assert [(match.test.name, dict(match.settings)) for match in result.matches] == [
        ("pp32", {"n_threads": 2}),
        ("tg16", {"n_threads": 2}),
    ]
    assert all(match.comparison.ratio == 1 for match in result.matches)
    assert "pp32 n_threads=1" in result.only_a and len(result.only_a) == 10 and result.only_b == ()
    assert result.differences == {}


def test_warnings_are_passed_on() -> None:
    """What made a side doubtful is not forgotten when it is compared."""
    noisy = replace(RECORD, rows=(DECODE, DECODE))
    assert side_of(noisy).warnings == ("noisy",)


def test_nothing_in_common() -> None:
    """The error names what each side has."""
    other = replace(RECORD, id="b", rows=(replace(DECODE, test=Test("tg", n_gen=9)),))
    with pytest.raises(UsageError, match="ab12 has tg1; b has tg9"):
        compare.compare(side_of(record([1] * 5)), side_of(other))


def test_records_taken_in_turn_are_compared_by_pairs() -> None:
    """The record says so; the pairs' ratios agree where the runs' quotients do not."""
    a, b = record([100, 80, 60, 50, 40, 30]), record([102, 81.6, 61.2, 51, 40.8, 30.6], id="20261121-010203-cd34")
    assert compare.compare(side_of(a), side_of(b)).matches[0].comparison.word == "unclear"
    found = compare.compare(side_of(a), side_of(replace(b, interleaved_with=a.id))).matches[0].comparison
    assert found.paired and found.ratio == pytest.approx(1.02) and found.word == "faster"


# -- what is read ------------------------------------------------------------------------------------------------------


def test_every_format_that_has_the_samples(tmp_path: Path) -> None:
    """A record, a journal, our JSON and JSON lines, llama-bench's JSON and JSON lines: the same samples."""
    ours = record_of(golden("llama-bench-sweep.jsonl"))
    files = {
        "record.json": json.dumps(to_document(ours), indent=2),
        "line.json": json.dumps(to_document(ours)),
        "export.json": export(ours, "json"),
        "export.jsonl": export(ours, "jsonl"),
        "bench.json": json.dumps(golden("llama-bench-sweep.jsonl")),
        "bench.jsonl": (DATA / "llama-bench-sweep.jsonl").read_text(),
    }
    with journal.Journal(tmp_path / "journal.jsonl", ours):
        pass
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    wanted = side_of(ours)
    for name in [*files, "journal.jsonl"]:
        side = open_side(str(tmp_path / name))
        result = compare.compare(wanted, side)
        assert len(result.matches) == 12 and not result.only_a and not result.only_b
        assert all(match.comparison.ratio == pytest.approx(1, rel=1e-9) for match in result.matches)
        assert result.differences == {}, name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "not JSON of a bench"),
        ("[]", "not a record"),
        ('[{"samples_ns": ["1"], "n_prompt": 1}]', r"row 1: samples_ns\[0\] must be a number, not a text"),
        ('[{"samples_ns": [0], "n_prompt": 1}]', "row 1: samples_ns must be numbers above 0"),
        ('[{"samples_ns": [1], "n_prompt": "1"}]', "row 1: n_prompt must be a whole number"),
        ('{"a": 1}', "not a record"),
        ("", "not JSON of a bench"),
        ("[" * 100_000, "not JSON of a bench"),
        ('{"schema": ' + "[" * 100_000, "not JSON of a bench"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    """The error says what is wrong with which file."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"x.json.*{message}"):
        open_side(str(path))


def test_files_that_are_not_there() -> None:
    """What looks like a path is one; what does not is an id."""
    with pytest.raises(NotFound, match="there is no file none.json"):
        open_side("none.json")
    with pytest.raises(NotFound, match="no bench of this machine has the id 'none'"):
        open_side("none")


def test_the_last_of_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    with pytest.raises(NotFound, match="no bench is kept on this machine") as error:
        open_side("last")
    assert error.value.remedies == (Act("bench", "MODEL"),)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def benches(tmp_path: Path) -> Iterator[dict[str, Path]]:
    found = {}
    rates = {"base": [100, 101, 102, 103, 104], "slow": [90, 91, 92, 93, 94], "wide": [60, 101, 140, 90, 110]}
    for name, values in {**rates, "few": [80, 81]}.items():
        found[name] = tmp_path / f"{name}.json"
        found[name].write_text(json.dumps(to_document(record([float(v) for v in values], n_batch=len(name)))))
    yield found


def test_command(llmrun: RunLlmrun, benches: dict[str, Path]) -> None:
    """The medians, the ratio with its interval, and the word; what differs first."""
    done = llmrun("compare", str(benches["base"]), str(benches["slow"]))
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines() == [
        "TEST        A         B    B/A  95 %            B IS",
        "tg1   102 t/s  92.0 t/s  0.902  0.875 to 0.930  slower",
    ]
    document = json.loads(llmrun("compare", str(benches["base"]), str(benches["few"]), "--json").stdout)
    assert document["differences"] == {"n_batch": {"a": 4, "b": 3}}
    assert document["warnings"] == {"a": [], "b": []}
    (test,) = document["tests"]
    assert (test["n_a"], test["n_b"], test["low"], test["verdict"]) == (5, 2, None, "too few samples")


def test_fail_under(llmrun: RunLlmrun, benches: dict[str, Path]) -> None:
    """12 when it is slower for sure, 0 when that may be chance, 2 when there are too few samples to tell."""

    def status(name: str, bound: str) -> tuple[int, str]:
        done = llmrun("compare", str(benches["base"]), str(benches[name]), "--fail-under", bound)
        return done.returncode, done.stderr

    assert status("slow", "0.95")[0] == 12
    assert "1 of 1 tests below 0.95 of the speed: tg1 at 0.902" in status("slow", "0.95")[1]
    assert status("slow", "0.9")[0] == 0  # 0.875 to 0.930: 0.9 may be reached
    assert status("wide", "0.95")[0] == 0
    assert status("few", "0.95")[0] == 2
    assert status("base", "x")[0] == status("base", "-1")[0] == 2


def test_history(llmrun: RunLlmrun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches in the state folder are found by how their ids begin."""
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path))
    for id, rate in (("20261121-010203-ab12", 100.0), ("20261122-010203-ab12", 100.1)):
        journal.Journal.of(record([rate + i / 10 for i in range(5)], id=id)).close()
    done = llmrun("compare", "20261121", "last")
    assert done.returncode == 0 and done.stdout.endswith("same\n")
