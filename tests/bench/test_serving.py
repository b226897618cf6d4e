"""Loads at a server: prompts, levels, capacity by invented servers; and a real one, through the command."""

from __future__ import annotations

import json

import pytest
from conftest import RunLlmrun

from llmrun.bench import serving
from llmrun.bench.http_load import Report, Seen, check_address
from llmrun.bench.load import Objectives
from llmrun.bench.serving import Level, Wanted
from llmrun.errors import UsageError


def level(n: int, ttft_s: float, tpot_s: float, *, errors: int = 0) -> Level:
    """Twenty answers of eleven tokens in ten pieces."""
    seen = [Seen(0.0, [ttft_s + i * tpot_s * 10 / 9 for i in range(10)], 5, 0, 11) for _ in range(20 - errors)]
    return Level(n, None, Report([*seen, *(Seen(0.0, [], error="no") for _ in range(errors))], 0.2))


def test_tokens_are_counted_by_what_the_server_says() -> None:
    """Pieces may have several: eleven tokens in ten pieces."""
    found = level(2, 0.5, 0.1)
    assert found.tps_each == pytest.approx(10.0) and found.result.ttft_s(0.5) == 0.5
    assert found.result.tokens_per_s == pytest.approx(20 * 11 / 1.5) and found.client_s == 0.01
    told = found.document(Objectives(ttft_s=0.4))
    assert told["goodput_per_s"] == 0 and told["n_errors"] == 0 and told["ttft_p99_s"] is None


@pytest.mark.parametrize("most", [0, 1, 2, 3, 4, 7, 11, 63, 64])
def test_capacity(most: int) -> None:
    """Of a server whose first tokens take too long beyond so many: found exactly, in few loads."""
    asked: list[int] = []

    def measure(n: int) -> Level:
        asked.append(n)
        return level(n, 0.1 if n <= most else 2.0, 0.01)

    tried = [*serving.capacity(measure, Objectives(ttft_s=0.5))]
    best = serving.most_that_met(tried)
    assert (best.in_flight if best else 0) == most and len(asked) <= 13 and len(set(asked)) == len(asked)


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (level(1, 0.1, 0.01), True),
        (level(1, 0.1, 0.2), False),
        (level(1, 0.1, 0.01, errors=2), True),
        (level(1, 0.1, 0.01, errors=3), False),
    ],
)
def test_nine_of_ten(found: Level, met: bool) -> None:
    """An answer that failed meets nothing."""
    assert serving.is_met(found, Objectives(ttft_s=0.5, tpot_s=0.05)) is met


def test_prompts() -> None:
    """Unlike each other from the first word on, but for what they share; the same another time."""
    wanted = Wanted(n_prompt=32, n_shared=8)
    made = serving.calls(wanted, 50)
    beginnings = {" ".join(call.prompt.split()[:8]) for call in made}
    assert len(beginnings) == 1 and len({call.prompt.split()[8] for call in made}) == 50
    assert made == serving.calls(wanted, 50) and made != serving.calls(wanted, 50, turn=1)
    assert len({call.prompt.split()[0] for call in serving.calls(Wanted(), 50)}) == 50


@pytest.mark.parametrize(
    ("given", "found"),
    [("http://a:1/", "http://a:1"), ("http://a:1/v1", "http://a:1"), ("https://a/x/v1/", "https://a/x")],
)
def test_addresses(given: str, found: str) -> None:
    assert check_address(given) == found


@pytest.mark.parametrize("given", ["a:1", "ftp://a", "http://", ""])
def test_no_addresses(given: str) -> None:
    with pytest.raises(UsageError):
        check_address(given)


def test_of_a_model(llmrun: RunLlmrun) -> None:
    """A server is started for it, loaded, and gone; every answer has the length that was asked for."""
    wanted = ("--concurrency", "1,3", "--requests", "6", "-p", "16", "-n", "8", "--ignore-eos")
    done = llmrun("bench", "serve", "tiny", *wanted, "--ttft", "1000", "--json")
    assert done.returncode == 0, done.stderr
    loads = json.loads(done.stdout)["loads"]
    assert [(each["in_flight"], each["n_requests"], each["n_errors"]) for each in loads] == [(1, 6, 0), (3, 6, 0)]
    for each in loads:
        assert each["tokens_per_s"] == pytest.approx(6 * 8 / each["seconds"]) and each["n_prompt"] > 16
        assert each["tokens_per_s_each_by_server"] > 0 and each["goodput_per_s"] > 0


def test_words(llmrun: RunLlmrun) -> None:
    done = llmrun("bench", "serve", "tiny", "--find-capacity", "--ttft", "0", "--requests", "2", "-n", "4", "-q")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Not even one alone gets the first token within 0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--concurrency", "1", "--rate", "2"], "one of them at a time"),
        (["tiny", "--find-capacity"], "--ttft 0.5"),
        (["tiny", "--concurrency", "0"], "--concurrency"),
        (["tiny", "--rate", "x"], "--rate"),
        (["http://127.0.0.1:9"], "127.0.0.1:9"),
        (["nowhere.gguf"], "nowhere.gguf"),
    ],
)
def test_refused(llmrun: RunLlmrun, arguments: list[str], said: str) -> None:
    done = llmrun("bench", "serve", *arguments, "-q")
    assert done.returncode not in (0, -6, -11) and said in done.stderr and "Traceback" not in done.stderr
