"""Pulling from a hub that misbehaves: the real huggingface_hub client, real processes, real signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hub_server import FOR_EVER, STALLS, TOKEN, Client, Cut, Hub, Outcome, pull_together, split_gguf, tiny_gguf
from waiting import HANGS_S, until

from llmrun.models.hub.info import is_safe_name
from llmrun.models.store.partial import bytes_here, extents_of

SIZE = 3 << 20
FILE = "model-Q4_K_M.gguf"
MODEL, OTHER = tiny_gguf(SIZE), tiny_gguf(300_000, seed=1)
LARGE = tiny_gguf(24 << 20, seed=2)
REPO = "user/model"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with Hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def shared(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with Client(server, tmp_path_factory.mktemp("nobody")) as client:
        yield client


class Bench:
    """A hub with one model, an empty store, and a client."""

    def __init__(self, hub: Hub, client: Client, home: Path) -> None:
        self.hub, self.client, self.home = hub, client, home
        self.cache = home / "hf" / "hub"

    def ask(self, do: str, repo: str = REPO, **arguments: object) -> Outcome:
        return self.client.ask(do, home=self.home, repo=repo, **arguments)

    def pull(self, repo: str = REPO, **arguments: object) -> Outcome:
        return self.ask("pull", repo, **arguments)

    def listed(self) -> list[str]:
        return [model["name"] for model in self.ask("list").result]

    def files(self, pattern: str = "*") -> list[Path]:
        return sorted(path for path in self.cache.rglob(pattern) if not path.name.endswith(".lock"))

    def partials(self) -> list[Path]:
        return self.files("*.partial")

    def new_client(self, **env: str) -> Client:
        return Client(self.hub, self.home, **env)


@pytest.fixture
def bench(server: Hub, shared: Client, tmp_path: Path) -> Bench:
    server.forget()
    server.repos.clear()
    server.add(REPO, {FILE: MODEL})
    return Bench(server, shared, tmp_path)


def test_importing_is_cheap() -> None:
    """`import llmrun.models.hub.download` loads neither huggingface_hub nor anything that it needs."""
    code = "import sys, llmrun.models.hub.download, llmrun.models.hub.search, llmrun.models.store.listing\n"
    code += "print({'huggingface_hub', 'httpx2', 'sqlite3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- the ordinary case


def test_standard_layout(bench: Bench) -> None:
    """A pull leaves what huggingface_hub leaves: blob, relative link, ref; and hf tools find it without a request."""
    done = bench.pull()
    assert done.exit == 0
    path = Path(done.result)
    repo = bench.hub.repos[REPO]
    sha256, _ = repo.files[FILE]
    folder = bench.cache / "models--user--model"
    assert path == folder / "snapshots" / repo.commit / FILE
    assert str(path.readlink()) == f"../../blobs/{sha256}"
    assert (folder / "refs" / "main").read_text() == repo.commit
    assert path.read_bytes() == MODEL
    assert bench.partials() == []
    assert bench.ask("hf_find", file=FILE).result == str(path)
    sent = bench.hub.seen["cdn"].bytes
    assert bench.ask("hf_download", file=FILE).result == str(path)
    assert bench.hub.seen["cdn"].bytes == sent == len(MODEL)


def test_nothing_is_fetched_twice(bench: Bench) -> None:
    """What is here and verified costs no byte and no second hashing; what another tool brought costs one hashing."""
    assert bench.ask("hf_download", file=FILE).exit == 0
    sent = bench.hub.seen["cdn"].bytes
    first, second = bench.pull(), bench.pull()
    assert first.exit == second.exit == 0
    assert bench.hub.seen["cdn"].bytes == sent
    assert first.of("PullChecking") and not second.of("PullChecking")
    assert second.of("PullFinished")[0]["fetched"] == 0


def test_resolve_chooses_and_says_why(bench: Bench) -> None:
    """Q4_K_M when nothing is named, else the nearest, with the reason; a dry run is `resolve` and `missing_bytes`."""
    bench.hub.add("user/many", {f"m-{q}.gguf": tiny_gguf(n) for q, n in (("Q8_0", 900_000), ("Q5_K_M", 600_000))})
    nearest = bench.ask("resolve", "user/many").result
    assert nearest["quant"] == "Q5_K_M"
    assert "nearest" in nearest["why"]
    named = bench.ask("resolve", "user/many", quant="Q8_0").result
    assert (named["quant"], named["why"]) == ("Q8_0", "")
    assert named["missing"] == named["total"] > 850_000
    assert bench.hub.seen["cdn"].bytes == 0


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"quant": "Q2_K"}, "Q4_K_M (3.0"),
        ({"file": "other.gguf"}, "no file other.gguf"),
        ({"revision": "nowhere"}, "no revision 'nowhere'"),
        ({"repo": "user/missing"}, "the hub knows no user/missing"),
        ({"repo": "../../etc"}, "can't be the name of a repository"),
        ({"repo": "user/no-models"}, "has no GGUF file"),
    ],
)
def test_not_found(bench: Bench, wanted: dict[str, str], said: str) -> None:
    """Exit 4, what exists instead, and a next step."""
    bench.hub.add("user/no-models", {"README.md": b"hello"})
    done = bench.pull(**wanted)
    assert (done.exit, done.error) == (4, "NotFound")
    assert said in done.message
    assert done.hint or "name of a repository" in done.message
    assert bench.files() == []


def test_revisions(bench: Bench) -> None:
    """A commit is pulled as asked, leaves no ref, and the branch's newer one is another model beside it."""
    old = bench.hub.repos[REPO].commit
    new = bench.hub.add(REPO, {FILE: tiny_gguf(SIZE, seed=1)}).commit
    assert f"/snapshots/{old}/" in bench.pull(revision=old).result
    assert not (bench.cache / "models--user--model" / "refs").exists()
    assert f"/snapshots/{new}/" in bench.pull().result
    assert len(bench.ask("list").result) == 2


def test_commit_is_pinned(bench: Bench) -> None:
    """A push to the branch in the middle of a pull changes nothing about it."""
    repo = bench.hub.repos[REPO]
    bench.hub.faults.cuts = [Cut("close", 200_000)]
    bench.hub.faults.throttle_bps = 100_000
    with bench.new_client() as client:
        client.send("pull", repo=REPO)
        for event in client.events():
            if event["event"] == "PullRetrying":
                bench.hub.add(REPO, {FILE: OTHER})
                bench.hub.faults.throttle_bps = 0
            if event["event"] == "Outcome":
                assert f"/snapshots/{repo.commit}/" in event["result"]


def test_windows(bench: Bench) -> None:
    """No request asks for more than a window: that is how files above the CDN's limit of 50 GB are fetched."""
    done = bench.pull(patience={"window_bytes": 1 << 20})
    assert done.exit == 0
    assert [int(r.partition("=")[2].partition("-")[0]) >> 20 for r in bench.hub.seen["cdn"].ranges] == [0, 1, 2, 3]
    assert bench.hub.seen["cdn"].bytes == len(MODEL)
    assert done.of("PullRetrying") == []


def test_read_only_store_can_be_used(bench: Bench) -> None:
    """What is here and verified needs no lock and no write."""
    assert bench.pull().exit == 0
    locks = bench.cache / ".locks"
    for path in sorted(locks.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    locks.rmdir()
    locks.write_text("no folder for locks can be made here")
    assert bench.pull().exit == 0


def test_other_tools_can_read_an_unfinished_store(bench: Bench) -> None:
    """A partial and a blob that was set aside do not disturb huggingface_hub's own view of the cache."""
    assert bench.pull().exit == 0
    blobs = bench.cache / "models--user--model" / "blobs"
    for name in ("1" * 64 + ".partial", "2" * 64 + ".damaged", "3" * 64 + ".12.link"):
        (blobs / name).write_bytes(b"x" * 10)
    assert bench.ask("hf_scan").result == {"repos": [REPO], "warnings": []}


def test_file_system_without_links(bench: Bench) -> None:
    """Where a file lies in place of its link, as other tools leave it without links, it is used and not fetched."""
    pointer = Path(bench.pull().result)
    pointer.resolve().rename(pointer)
    bench.hub.forget()
    for _ in range(2):
        assert bench.pull().exit == 0
    assert bench.hub.seen["cdn"].bytes == 0
    assert bench.listed() == [f"{REPO}:Q4_K_M"]


# --- who may


@pytest.mark.parametrize("access", ["gated", "private"])
def test_closed_repositories(bench: Bench, access: str) -> None:
    """Exit 4 without a token, saying what to do; with one it is pulled, and only the hub ever sees the token."""
    bench.hub.add("user/closed", {FILE: MODEL}, access=access)
    refused = bench.pull("user/closed")
    assert refused.exit == 4
    assert "HF_TOKEN" in (refused.hint or "")
    assert access != "gated" or "accept" in (refused.hint or "")
    bench.hub.forget()
    bench.hub.faults.redirects = 2
    bench.hub.faults.cuts = [Cut("close", 1_000_000)]
    done = bench.pull("user/closed", env={"HF_TOKEN": TOKEN})
    bench.ask("list", env={"HF_TOKEN": ""})
    assert done.exit == 0
    assert set(bench.hub.seen["hub"].authorizations) == {f"Bearer {TOKEN}"}
    assert bench.hub.seen["cdn"].authorizations == []


def test_token_does_not_follow_a_redirect(bench: Bench) -> None:
    """A hub that sends questions on to another host does not get the token sent there."""
    bench.hub.faults.api_location = f"{bench.hub.cdn_url}/collect"
    done = bench.pull(env={"HF_TOKEN": TOKEN})
    bench.ask("list", env={"HF_TOKEN": ""})
    assert done.exit in (4, 5)
    assert bench.hub.seen["hub"].authorizations == [f"Bearer {TOKEN}"]
    assert bench.hub.seen["cdn"].requests.total() > 0
    assert bench.hub.seen["cdn"].authorizations == []


def test_token_of_the_hubs_own_login(bench: Bench) -> None:
    """What `hf auth login` has left is used."""
    bench.hub.add("user/closed", {FILE: MODEL}, access="private")
    (bench.home / "hf").mkdir()
    (bench.home / "hf" / "token").write_text(TOKEN)
    with bench.new_client(HF_TOKEN="") as client:
        assert client.ask("pull", repo="user/closed").exit == 0


@pytest.mark.parametrize(
    ("said", "content", "exit_code"),
    [("t\u00f6ken\u20ac", None, 4), ("two words", None, 4), ("", b"\xff\xfe\x80", 4), ("", None, 7)],
    ids=["not-ascii", "blank", "undecodable-file", "unreadable-file"],
)
def test_broken_token(bench: Bench, said: str, content: bytes | None, exit_code: int) -> None:
    """What is wrong with the token is not blamed on the hub, which never sees it."""
    token = bench.home / "hf" / "token"
    token.parent.mkdir()
    if content is not None:
        token.write_bytes(content)
    else:
        token.mkdir()
    with bench.new_client(HF_TOKEN=said) as client:
        for do in ("pull", "search"):
            done = client.ask(do, repo=REPO, words=["model"])
            assert done.exit == exit_code, done
            assert ("HF_TOKEN" if said else str(token)) in done.message
            assert exit_code == 7 or "HF_TOKEN" in (done.hint or "")
    assert bench.hub.seen["hub"].requests.total() == 0


# --- death and resume


def test_kill_9_and_resume(bench: Bench) -> None:
    """Killed at random points: nothing corrupt is listed, one partial at most, and it goes on where it was."""
    bench.hub.add(REPO, {FILE: tiny_gguf(8 << 20)})
    size = len(tiny_gguf(8 << 20))
    chance = random.Random(7)
    bench.hub.faults.throttle_bps = 1 << 20
    for _ in range(5):
        before = sum(path.stat().st_size for path in bench.partials())
        with bench.new_client() as client:
            client.send("pull", repo=REPO)
            started = next(event for event in client.events() if event["event"] in ("PullStarted", "Outcome"))
            assert started.get("resumed_at", size) >= before - (10 << 20)
            assert started.get("resumed_at", size) == before
            more = (event for event in client.events() if event["event"] == "PullProgress")
            for _ in range(chance.randrange(3)):
                next(more)
            client.process.kill()
            client.process.wait()
        assert len(bench.partials()) <= 1
        assert bench.listed() == []
    bench.hub.faults.throttle_bps = 0
    resumed = sum(path.stat().st_size for path in bench.partials())
    assert resumed > 0
    assert bench.pull().exit == 0
    # Of the bytes sent nothing can be said: what the killed clients' connections still carry is counted late.
    assert bench.hub.seen["cdn"].ranges[-1] == f"bytes={resumed}-{size - 1}"
    assert bench.listed() == [f"{REPO}:Q4_K_M"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stalled", [False, True])
def test_signals(bench: Bench, signum: signal.Signals, stalled: bool) -> None:
    """Ctrl-C and SIGTERM end it, also while the network is silent; the next pull goes on. scripts/fault_pull.py has how
    soon."""
    bench.hub.faults.throttle_bps = 300_000
    bench.hub.faults.cuts = [Cut("stall", 400_000)] if stalled else []
    with bench.new_client() as client:
        client.send("pull", repo=REPO, patience=FOR_EVER)
        next(event for event in client.events() if event["event"] == "PullProgress")
        if stalled:
            until(lambda: not bench.hub.faults.cuts[0].times, "silence")
        client.process.send_signal(signum)
        assert client.process.wait(timeout=HANGS_S) == 128 + signum
    bench.hub.forget()
    assert bench.partials()[0].stat().st_size > 0
    done = bench.pull()
    assert done.exit == 0
    assert bench.hub.seen["cdn"].bytes < len(MODEL)


@pytest.mark.parametrize("size", [None, len(MODEL), len(MODEL) + 1], ids=["short", "full", "longer"])
def test_damaged_partial_costs_one_more_download(bench: Bench, size: int | None) -> None:
    """A partial that a power cut has left wrong is found out, thrown away, and the file fetched in one piece."""
    bench.hub.faults.cuts = [Cut("close", 2_000_000, times=99)]
    assert bench.pull().exit == 5
    (partial,) = bench.partials()
    partial.write_bytes(bytes(size or partial.stat().st_size))
    bench.hub.forget()
    done = bench.pull()
    assert done.exit == 0
    assert len(done.of("PullRestarted")) == (0 if size == len(MODEL) + 1 else 1)
    assert Path(done.result).read_bytes() == MODEL


# --- the network


@pytest.mark.parametrize("kind", ["close", "reset", "stall"])
def test_broken_connections(bench: Bench, kind: str) -> None:
    """Broken at five places, the file still comes, each byte about once, with a fresh URL every time."""
    offsets = sorted(random.Random(kind).sample(range(1, len(MODEL)), 5))
    bench.hub.faults.cuts = [Cut(kind, at) for at in offsets]
    done = bench.pull(patience=STALLS if kind == "stall" else {})
    assert done.exit == 0
    assert Path(done.result).read_bytes() == MODEL
    assert len(done.of("PullRetrying")) == 5
    assert bench.hub.seen["hub"].requests["HEAD"] == 6
    # What a reset finds in the receiver's socket is lost: TCP's doing, not ours.
    assert kind == "reset" or bench.hub.seen["cdn"].bytes < len(MODEL) + 5 * (64 << 10)


@pytest.mark.parametrize("kind", ["close", "reset", "stall"])
def test_broken_for_good(bench: Bench, kind: str) -> None:
    """Exit 5 after a few attempts without progress; what came is kept, and the next pull brings only the rest."""
    bench.hub.faults.cuts = [Cut(kind, 2_000_000, times=99)]
    done = bench.pull(patience=STALLS if kind == "stall" else {})
    assert (done.exit, done.error) == (5, "NetworkError")
    assert "are kept" in done.message
    assert bench.listed() == []
    bench.hub.forget()
    assert bench.pull().exit == 0
    assert bench.hub.seen["cdn"].bytes <= len(MODEL) - 1_000_000


@pytest.mark.parametrize(
    "faults",
    [
        {"api_status": 503, "api_times": 2},
        {"head_status": 500, "head_times": 2},
        {"get_status": 502, "get_times": 3},
        {"get_status": 429, "get_times": 2},
        {"expired_urls": 2},
        {"redirects": 3},
        {"same_origin": True},
        {"no_ranges": True, "cuts": [Cut("close", 1_500_000)]},
        {"wrong_range": True, "cuts": [Cut("close", 500_000)]},
        {"refuse_ranges": 1, "cuts": [Cut("close", 1_500_000)]},
        {"refuse_ranges": 2, "cuts": [Cut("close", 1_500_000)]},
    ],
    ids=lambda faults: "-".join(faults),
)
def test_servers_that_fail_for_a_while(bench: Bench, faults: dict[str, object]) -> None:
    """Server errors, expired URLs, redirects, servers that can't or won't do ranges: it comes whole all the same."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    done = bench.pull()
    assert done.exit == 0, done.message
    assert Path(done.result).read_bytes() == MODEL


@pytest.mark.parametrize(
    "faults",
    [
        {"api_status": 500, "api_times": 99},
        {"head_status": 503, "head_times": 99},
        {"get_status": 503, "get_times": 99},
    ],
    ids=["api", "head", "get"],
)
def test_servers_that_fail_for_good(bench: Bench, faults: dict[str, object]) -> None:
    """Exit 5, and no traceback."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    assert bench.pull().exit == 5
    assert bench.listed() == []


def test_dead_hub_says_so_quickly(bench: Bench) -> None:
    """Nobody listens: exit 5. A silent one: after the answer time, twice. How soon: scripts/fault_pull.py."""
    with bench.new_client(HF_ENDPOINT="http://127.0.0.1:9") as client:
        done = client.ask("pull", repo=REPO)
        assert done.exit == 5
    with bench.new_client(HF_ENDPOINT="nonsense") as client:
        done = client.ask("pull", repo=REPO)
        assert done.exit == 5 and "HF_ENDPOINT is 'nonsense'" in done.message
    bench.hub.faults.hang_s = 3
    with bench.new_client(HF_HUB_ETAG_TIMEOUT="1") as client:
        assert client.ask("pull", repo=REPO).exit == 5
    assert 1 <= bench.hub.seen["hub"].requests.total() <= 2


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_offline_never_asks(bench: Bench, by: str) -> None:
    """Offline, what is stored is found, what is not is exit 3, and no request leaves."""
    env = {"HF_HUB_OFFLINE": "1"} if by == "environment" else {}
    assert bench.pull().exit == 0
    bench.hub.forget()
    with bench.new_client(**env) as client:
        here = client.ask("pull", repo=REPO, offline=not env)
        missing = client.ask("pull", repo="user/other", offline=not env)
        other_quant = client.ask("pull", repo=REPO, quant="Q8_0", offline=not env)
    assert here.exit == 0
    assert Path(here.result).read_bytes() == MODEL
    assert (missing.exit, missing.error) == (3, "NotInStore")
    assert other_quant.exit == 3
    assert sum(seen.requests.total() for seen in bench.hub.seen.values()) == 0


# --- several connections


@pytest.fixture
def large(bench: Bench) -> bytes:
    """24 MiB and a little, in pieces of 4 MiB."""
    bench.hub.add(REPO, {FILE: LARGE})
    return LARGE


def asked(bench: Bench) -> list[tuple[int, int]]:
    """The ranges that the CDN was asked for, (from, up to)."""
    ranges = (wanted.removeprefix("bytes=").split("-") for wanted in bench.hub.seen["cdn"].ranges)
    return [(int(first), int(last) + 1) for first, last in ranges]


def in_the_middle(bench: Bench, client: Client, n: int = 6 << 20, **arguments: Any) -> int:
    """A slow pull over four connections that has brought more than so many bytes; how many it told of."""
    bench.hub.faults.throttle_bps = 2_000_000
    client.send("pull", repo=REPO, connections=4, **arguments)
    done: int = next(
        event["done"] for event in client.events() if event["event"] == "PullProgress" and event["done"] > n
    )
    return done


def killed(bench: Bench) -> tuple[int, int]:
    """What is here of a pull that was killed with four ranges open, and what it had told of."""
    with bench.new_client() as client:
        told = in_the_middle(bench, client)
        client.process.kill()
        client.process.wait()
    bench.hub.forget()
    (left,) = bench.partials()
    assert len(extents_of(left)) > 1, "it has holes"
    return bytes_here(left), told


def test_pieces_over_four_connections(bench: Bench, large: bytes) -> None:
    """Every piece, whichever comes first, the last in halves where one is done sooner; one question about the file;
    nothing of it is left."""
    done = bench.pull(connections=4)
    assert done.exit == 0, done.message
    assert Path(done.result).read_bytes() == large
    assert {first for first, _ in asked(bench)} >= {first << 20 for first in range(0, 28, 4)}
    assert bench.hub.seen["hub"].requests["HEAD"] == 1
    assert done.of("PullFinished")[0]["fetched"] == len(large)
    assert bench.files("*.partial*") == []


def test_more_connections_where_they_gain(bench: Bench, large: bytes) -> None:
    """A server that gives each connection so much: there are several after a while; to a small file, one."""
    bench.hub.faults.throttle_bps = 3_000_000
    assert bench.pull().exit == 0
    assert len(asked(bench)) > 2
    bench.hub.add("user/small", {FILE: MODEL})
    bench.hub.forget()
    bench.hub.faults.throttle_bps = 1_000_000
    assert bench.pull("user/small").exit == 0
    assert bench.hub.seen["cdn"].requests["GET"] == 1 and asked(bench) == []


def test_kill_9_with_four_ranges_open(bench: Bench, large: bytes) -> None:
    """What each had brought but for its last bytes is here, and only the rest is asked for again."""
    kept, told = killed(bench)
    assert told - kept <= 4 * (128 << 10)
    assert bench.listed() == []
    assert [(item["kind"], item["size"]) for item in bench.ask("leftovers").result] == [("partial", kept)]
    assert bench.ask("resolve").result["missing"] == len(large) - kept
    done = bench.pull(connections=4)
    assert done.exit == 0, done.message
    assert done.of("PullStarted")[0]["resumed_at"] == kept
    assert done.of("PullFinished")[0]["fetched"] == len(large) - kept
    assert Path(done.result).read_bytes() == large
    assert bench.files("*.partial*") == []


def test_one_connection_fills_the_holes(bench: Bench, large: bytes) -> None:
    """What was begun over four goes on over one."""
    kept, _ = killed(bench)
    done = bench.pull()
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert sum(end - begin for begin, end in asked(bench)) == len(large) - kept


def test_a_partial_with_holes_can_be_freed(bench: Bench, large: bytes) -> None:
    """With its journal; what it had taken is what was freed."""
    kept, _ = killed(bench)
    assert bench.ask("free").result == kept
    assert not (bench.cache / "models--user--model").exists()


def test_a_partial_of_one_connection_goes_on_over_four(bench: Bench, large: bytes) -> None:
    """As llmrun left it before there were several: a run of bytes from the first."""
    sha256, _ = bench.hub.repos[REPO].files[FILE]
    blobs = bench.cache / "models--user--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{sha256}.partial").write_bytes(large[: 5 << 20])
    done = bench.pull(connections=4)
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert done.of("PullStarted")[0]["resumed_at"] == 5 << 20
    assert min(asked(bench)) == (5 << 20, 9 << 20)
    assert done.of("PullFinished")[0]["fetched"] == len(large) - (5 << 20)


@pytest.mark.parametrize(
    "faults",
    [
        {"cuts": [Cut("close", 5_000_000), Cut("reset", 9_000_000), Cut("close", 20_000_000)]},
        {"cuts": [Cut("stall", 2_000_000), Cut("stall", 6_000_000), Cut("stall", 10_000_000)]},
        {"expired_urls": 2},
        {"get_status": 503, "get_times": 3},
        {"head_status": 500, "head_times": 2},
        {"same_origin": True},
        {"redirects": 3},
        {"no_ranges": True},
        {"wrong_range": True},
        {"refuse_ranges": 4},
    ],
    ids=lambda faults: "-".join(faults),
)
def test_four_connections_to_a_server_that_fails(bench: Bench, large: bytes, faults: dict[str, object]) -> None:
    """Ranges that break off, expired addresses, servers that can't do ranges: it comes whole all the same."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    done = bench.pull(connections=4, patience=STALLS)
    assert done.exit == 0, done.message
    assert Path(done.result).read_bytes() == large
    assert bench.files("*.partial*") == []


def test_a_server_that_gives_two_at_once(bench: Bench, large: bytes) -> None:
    """Who is refused beside others that get theirs is no failure: two it is, and nobody waits."""
    bench.hub.faults.at_once, bench.hub.faults.throttle_bps = 2, 6_000_000
    done = bench.pull(connections=6)
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert done.of("PullRetrying") == []
    assert bench.hub.seen["cdn"].requests["GET"] - bench.hub.seen["cdn"].bodies <= 5


def test_holes_and_a_server_without_ranges(bench: Bench, large: bytes) -> None:
    """It can send only the whole: that is said, and done."""
    killed(bench)
    bench.hub.faults.no_ranges = True
    done = bench.pull()
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert "in the middle" in done.of("PullRestarted")[0]["reason"]
    assert done.of("PullFinished")[0]["fetched"] == len(large)


@pytest.mark.parametrize(
    "faults", [{"corrupt_at": 9_000_000}, {"swap_after": 2}, {"short_to": 9_000_000}], ids=["bit", "swapped", "short"]
)
def test_wrong_bytes_of_one_range(bench: Bench, large: bytes, faults: dict[str, object]) -> None:
    """Exit 6, never in the list, nothing is left to go on from; when the server is well again, a new pull works."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    done = bench.pull(connections=4)
    assert (done.exit, done.error) == (6, "IntegrityError"), done.message
    assert bench.listed() == []
    bench.hub.forget()
    again = bench.pull(connections=4)
    assert again.exit == 0 and Path(again.result).read_bytes() == large


def test_pieces_that_do_not_fit_together_come_in_one(bench: Bench, large: bytes) -> None:
    """A partial that is wrong somewhere costs one more download, over one connection."""
    killed(bench)
    (left,) = bench.partials()
    with left.open("r+b") as file:
        file.write(b"\0" * 1000)
    done = bench.pull(connections=4)
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert len(done.of("PullRestarted")) == 1
    assert bench.hub.seen["cdn"].requests["GET"] == len(asked(bench)) + 1, "the last for all of it"


def test_a_file_that_changes_while_four_are_open(bench: Bench, large: bytes) -> None:
    """What the hub says now is not what it promised: exit 6 as soon as it is asked again, with what is here kept."""
    with bench.new_client() as client:
        in_the_middle(bench, client)
        bench.hub.faults.etag = "0" * 64
        bench.hub.faults.cuts = [Cut("close", at << 20) for at in range(24)]
        done = client.outcome()
    assert (done.exit, done.error) == (6, "IntegrityError")
    assert "contradicts itself" in done.message
    assert bench.listed() == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stalled", [False, True])
def test_signals_with_four_ranges_open(bench: Bench, large: bytes, signum: signal.Signals, stalled: bool) -> None:
    """It ends with all that came noted, also while the network is silent."""
    with bench.new_client() as client:
        bench.hub.faults.cuts = [Cut("stall", (at << 20) + 2_000_000) for at in (0, 4, 8, 12)] if stalled else []
        in_the_middle(bench, client, patience=FOR_EVER)
        client.process.send_signal(signum)
        assert client.process.wait(timeout=HANGS_S) == 128 + signum
    kept = bytes_here(bench.partials()[0])
    bench.hub.forget()
    done = bench.pull(connections=4)
    assert done.exit == 0 and Path(done.result).read_bytes() == large
    assert done.of("PullStarted")[0]["resumed_at"] == kept > 6 << 20


def test_file_size_limit_with_four_ranges(bench: Bench, large: bytes) -> None:
    """What lies behind the limit can't be written: exit 7, what is before it is kept."""
    with bench.new_client() as client:
        bench.hub.faults.throttle_bps = 2_000_000
        done = client.ask("pull", repo=REPO, connections=4, file_limit=13 << 20)
    assert (done.exit, done.error) == (7, "DiskError")
    bench.hub.forget()
    again = bench.pull(connections=4)
    assert again.exit == 0 and Path(again.result).read_bytes() == large
    assert again.of("PullStarted")[0]["resumed_at"] > 0


# --- wrong bytes


@pytest.mark.parametrize(
    "faults",
    [
        {"corrupt_at": 700},
        {"corrupt_at": SIZE - 5},
        {"swap_after": 0},
        {"swap_after": 1, "cuts": [Cut("close", 1_500_000)]},
        {"short_to": 1_000_000},
        {"short_to": SIZE - 1},
        {"longer_by": 100},
    ],
    ids=["header", "weights", "swapped", "swapped-between", "short", "short-by-little", "longer"],
)
def test_wrong_bytes(bench: Bench, faults: dict[str, object]) -> None:
    """Exit 6 every time, never in the list; when the server is well again, a new pull works."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    done = bench.pull()
    assert (done.exit, done.error) == (6, "IntegrityError")
    assert bench.listed() == []
    assert bench.ask("hf_find", file=FILE).result is None
    bench.hub.forget()
    again = bench.pull()
    assert again.exit == 0
    assert Path(again.result).read_bytes() == MODEL


def test_damaged_copy_of_another_tool(bench: Bench) -> None:
    """A blob that another tool has left damaged is set aside; one that is cut short is completed, not fetched anew."""
    path = Path(bench.ask("hf_download", file=FILE).result).resolve()
    path.write_bytes(MODEL[:-1] + bytes([MODEL[-1] ^ 1]))
    bench.hub.forget()
    done = bench.pull()
    assert done.exit == 0
    assert len(bench.files("*.damaged")) == 1
    assert path.read_bytes() == MODEL
    path.write_bytes(MODEL[: 2 << 20])
    bench.hub.forget()
    assert bench.pull().exit == 0
    assert path.read_bytes() == MODEL
    assert bench.hub.seen["cdn"].bytes == len(MODEL) - (2 << 20)


def test_no_promise_no_pull(bench: Bench) -> None:
    """A file for which the hub gives no sha256 can't be verified, so it is refused."""
    bench.hub.add("user/small", {FILE: MODEL}, lfs=False)
    assert bench.pull("user/small").exit == 6


# --- hostile


@pytest.mark.parametrize(
    "faults",
    [
        {"etag": "../../../../x"},
        {"etag": "/tmp/llmrun-was-here"},
        {"etag": "0" * 64},
        {"commit": "../../../../x"},
        {"commit": "main"},
        {"filename": "../../../../x-Q4_K_M.gguf"},
        {"filename": "/tmp/llmrun-was-here-Q4_K_M.gguf"},
        {"filename": "a/../../../b-Q4_K_M.gguf"},
        {"filename": "a\\..\\b-Q4_K_M.gguf"},
        {"filename": "\x1b[31mred-Q4_K_M.gguf"},
        {"filename": "nul\0-Q4_K_M.gguf"},
        {"sha256": "../../../../x"},
        {"sha256": "A" * 64},
        {"size": -5},
    ],
    ids=repr,
)
def test_hostile_hub(bench: Bench, faults: dict[str, object]) -> None:
    """Whatever it says, nothing is written outside the store, nothing becomes a model, and no control byte is shown."""
    for name, value in faults.items():
        setattr(bench.hub.faults, name, value)
    before = set(bench.home.parent.rglob("*"))
    done = bench.pull()
    assert done.exit in (4, 6), done.message
    assert done.message.isprintable()
    new = set(bench.home.parent.rglob("*")) - before
    assert [path for path in new if bench.home not in path.parents and path != bench.home] == []
    assert [path for path in new if path.is_file() and bench.cache in path.parents and path.suffix != ".lock"] == []
    assert not list(Path("/tmp").glob("llmrun-was-here*"))
    assert bench.listed() == []


@pytest.mark.parametrize(
    "location",
    ["http://[bad", "ftp://127.0.0.1/x", "file:///etc/passwd", "http://127.0.0.1:99999/x", "http://a b/", "/"],
)
def test_hostile_address(bench: Bench, location: str) -> None:
    """An address that is none, or is not the web's, ends in a clear error."""
    bench.hub.faults.location = location
    done = bench.pull()
    assert done.exit in (4, 5), done.message
    assert bench.listed() == [] and bench.partials() == []


def test_planted_link_is_not_followed(bench: Bench) -> None:
    """A link under the partial's name leads nowhere: what it points to is not written."""
    sha256, _ = bench.hub.repos[REPO].files[FILE]
    blobs = bench.cache / "models--user--model" / "blobs"
    blobs.mkdir(parents=True)
    victim = bench.home / "victim"
    victim.write_text("mine")
    (blobs / f"{sha256}.partial").symlink_to(victim)
    assert bench.pull().exit == 7
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("model.gguf", True),
        ("BF16/model-00001-of-00002.gguf", True),
        ("", False),
        ("/model.gguf", False),
        ("a//b", False),
        ("./a", False),
        ("a/..", False),
        ("C:/a", False),
        ("a\nb", False),
        ("\u202egnp.fugg", False),
        ("a" * 300, False),
    ],
)
def test_safe_names(name: str, safe: bool) -> None:
    """A name is taken only if it stays inside its folder on every system and shows what it is."""
    assert is_safe_name(name) is safe


# --- several at once


def test_eight_at_once(bench: Bench) -> None:
    """Eight processes want one file: one transfer, eight successes, and those who wait say so."""
    clients = [bench.new_client() for _ in range(8)]
    try:
        outcomes = pull_together(bench.hub, clients, REPO)
    finally:
        for client in clients:
            client.__exit__()
    assert [done.exit for done in outcomes] == [0] * 8
    assert bench.hub.seen["cdn"].bytes == len(MODEL)
    assert sum(bool(done.of("PullWaiting")) for done in outcomes) == 7
    assert sum(done.of("PullFinished")[0]["fetched"] for done in outcomes) == len(MODEL)


def test_waiter_takes_over(bench: Bench) -> None:
    """The process that pulls is killed: the one that waits goes on from where it was."""
    bench.hub.faults.cuts = [Cut("stall", 600_000)]
    with bench.new_client() as first, bench.new_client() as second:
        first.send("pull", repo=REPO, patience=FOR_EVER)
        until(lambda: any(path.stat().st_size > 500_000 for path in bench.partials()), "half a megabyte")
        second.send("pull", repo=REPO)
        next(event for event in second.events() if event["event"] == "PullWaiting")
        first.process.kill()
        done = second.outcome()
    assert done.exit == 0
    assert done.of("PullStarted")[0]["resumed_at"] > 400_000


# --- the disk


def test_file_size_limit(bench: Bench) -> None:
    """A limit on file size in the middle: exit 7, what fits is kept, and without the limit only the rest comes."""
    with bench.new_client() as client:
        done = client.ask("pull", repo=REPO, file_limit=1 << 20)
    assert (done.exit, done.error) == (7, "DiskError")
    assert "ulimit" in done.message
    assert bench.partials()[0].stat().st_size == 1 << 20
    assert bench.listed() == []
    bench.hub.forget()
    assert bench.pull().exit == 0
    assert bench.hub.seen["cdn"].bytes == len(MODEL) - (1 << 20)


def test_refused_before_the_first_byte(bench: Bench) -> None:
    """Less free than is missing: exit 7 with both numbers, and no byte is asked for."""
    bench.hub.faults.size = 1 << 60
    done = bench.pull()
    assert done.exit == 7
    assert "TiB" in done.message and "free" in done.message
    assert bench.hub.seen["cdn"].requests.total() == 0


def test_full_disk(bench: Bench) -> None:
    """A disk that fills up in the middle: exit 7, the store still loads, and with space again the pull goes on."""
    mount = bench.home / "small"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        # The check before the pull must not see it: the disk fills while the pull runs.
        bench.hub.faults.throttle_bps = 200_000
        subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
        with bench.new_client() as client:
            client.send("pull", home=mount, repo=REPO)
            next(event for event in client.events() if event["event"] == "PullProgress" and event["done"] > 100_000)
            subprocess.run(["mount", "-o", "remount,size=1500k", str(mount)], check=True)
            bench.hub.faults.throttle_bps = 0
            done = client.outcome()
            assert done.exit == 7, done
            assert "full" in done.message
            assert client.ask("list", home=mount).result == []
            early = client.ask("pull", home=mount, repo=REPO)
            assert early.exit == 7 and "free" in early.message
            subprocess.run(["mount", "-o", "remount,size=8m", str(mount)], check=True)
            bench.hub.forget()
            assert client.ask("pull", home=mount, repo=REPO).exit == 0
            assert bench.hub.seen["cdn"].bytes < len(MODEL)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_read_only_store(bench: Bench) -> None:
    """A folder that can't be written is exit 7, not a traceback."""
    (bench.home / "hf").write_text("a file where a folder should be")
    for env in ({"HF_TOKEN": ""}, {"HF_TOKEN": TOKEN}):  # without one, HF_HOME is where it is looked for
        with bench.new_client(**env) as client:
            done = client.ask("pull", repo=REPO)
            assert (done.exit, done.error) == (7, "DiskError"), done
            assert "hf/" in done.message
            assert client.ask("search", words=["model"]).exit == (0 if env["HF_TOKEN"] else 7)


# --- models in parts, and no models


def test_split_models(bench: Bench) -> None:
    """Naming any part brings all; the first part's path is what is returned."""
    parts = split_gguf(400_000, 3)
    bench.hub.add("user/big", parts)
    second = list(parts)[1]
    done = bench.pull("user/big", file=second)
    assert done.exit == 0, done.message
    first = Path(done.result)
    assert first.name == next(iter(parts))
    assert {path.name: path.read_bytes() for path in first.parent.iterdir()} == parts
    (model,) = bench.ask("list").result
    assert model["n_parts"] == 3 and model["complete"]
    assert model["n_params"] > 250_000


def test_split_model_appears_whole(bench: Bench) -> None:
    """While parts are missing nothing is listed; what is here already is not fetched again."""
    parts = split_gguf(400_000, 3)
    third = list(parts)[2]
    parts[third] = split_gguf(800_000, 3)[third]
    bench.hub.add("user/big", parts)
    bench.hub.faults.cuts = [Cut("close", len(parts[third]) - 1, times=99)]  # where the other two have no byte
    failed = bench.pull("user/big")
    assert failed.exit == 5
    assert bench.listed() == []
    assert {item["kind"] for item in bench.ask("leftovers").result} == {"partial", "orphan"}
    bench.hub.forget()
    assert bench.pull("user/big").exit == 0
    assert bench.listed() == ["user/big:Q4_K_M"]
    assert bench.hub.seen["cdn"].bytes <= sum(map(len, parts.values())) - 400_000
    assert bench.ask("leftovers").result == []


def test_finished_parts_of_a_pull_are_not_freed(bench: Bench) -> None:
    """`rm --partials` while a split model is pulled: the parts that are done and have no name yet stay."""
    bench.hub.add("user/big", split_gguf(400_000, 3))
    bench.hub.faults.throttle_bps = 100_000
    with bench.new_client() as client:
        client.send("pull", repo="user/big")
        started = (event for event in client.events() if event["event"] == "PullStarted")
        next(started), next(started)
        bench.hub.faults.throttle_bps = 10_000
        assert {item["kind"] for item in bench.ask("leftovers").result} == {"partial", "orphan"}
        assert bench.ask("free").result == 0
        bench.hub.faults.throttle_bps = 0
        assert client.outcome().exit == 0
    assert bench.listed() == ["user/big:Q4_K_M"]


def test_missing_part(bench: Bench) -> None:
    """A repository that lacks a part is refused before anything is fetched."""
    parts = split_gguf(400_000, 3)
    parts.pop(list(parts)[1])
    bench.hub.add("user/big", parts)
    done = bench.pull("user/big")
    assert done.exit == 4
    assert "lacks 1 of 3 parts" in done.message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>" * 100, "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS pointer"),
        (tiny_gguf(1 << 20)[:-4096], "cut short"),
    ],
    ids=["html", "lfs", "cut-short"],
)
def test_right_bytes_but_no_model(bench: Bench, content: bytes, said: str) -> None:
    """The bytes are what the hub promised and still no model: exit 8 saying what they are, and nothing stays."""
    bench.hub.add("user/odd", {FILE: content})
    done = bench.pull("user/odd")
    assert (done.exit, done.error) == (8, "BadModel")
    assert said in done.message
    assert bench.listed() == [] and not (bench.cache / "models--user--odd").exists()
    assert bench.ask("hf_scan").result["warnings"] == []


def test_bad_header_is_found_early(bench: Bench, tmp_path: Path) -> None:
    """A large model that can't run is refused after a few MB, not after all of them."""
    large = tmp_path / "large.gguf"
    with large.open("wb") as file:
        file.write(MODEL.replace(b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama", b"x" * 45))
        file.truncate(200 << 20)
    bench.hub.add("user/large", {FILE: large})
    done = bench.pull("user/large")
    assert done.exit == 8
    assert max((event["done"] for event in done.of("PullProgress")), default=0) < 64 << 20
    assert bench.partials() == []


# --- looking


@pytest.mark.parametrize("no_ranges", [False, True])
def test_remote_header(bench: Bench, no_ranges: bool) -> None:
    """A header is read without the file: by ranges, or from the beginning of a server that knows none."""
    bench.hub.faults.no_ranges = no_ranges
    bench.hub.faults.expired_urls = 1
    bench.hub.faults.get_status, bench.hub.faults.get_times = 503, 1
    done = bench.ask("header")
    assert done.exit == 0, done.message
    assert done.result["n_params"] > SIZE // 4 - 5000
    assert no_ranges or bench.hub.seen["cdn"].bytes == 1 << 20


def test_search(bench: Bench) -> None:
    """Repositories with the quantizations and sizes in each; one the hub won't open or lies about does no harm."""
    bench.hub.add("user/model-split", {**split_gguf(300_000, 2), "x-Q8_0.gguf": b"0" * 1000})
    bench.hub.add("user/model-hidden", {FILE: MODEL}, access="private")
    hits = bench.ask("search", words=["model"]).result
    assert [hit["repo"] for hit in hits] == ["user/model", "user/model-split"]
    assert [(each["quant"], each["n_files"]) for each in hits[1]["quants"]] == [("Q8_0", 1), ("Q4_K_M", 2)]
    bench.hub.add("user/model-odd", {FILE: MODEL}).commit = "none at all"
    hits = bench.ask("search", words=["model"]).result
    assert {hit["repo"]: bool(hit["quants"]) for hit in hits} == {
        "user/model": True,
        "user/model-split": True,
        "user/model-odd": False,
    }
    bench.hub.faults.api_status, bench.hub.faults.api_times = 500, 99
    assert bench.ask("search", words=["model"]).exit == 5


def test_hub_can_be_used_by_hand(tmp_path: Path) -> None:
    """`python tests/hub_server.py FOLDER` serves a folder and prints the environment for it."""
    (tmp_path / "me" / "repo").mkdir(parents=True)
    (tmp_path / "me" / "repo" / FILE).write_bytes(MODEL)
    script = ROOT / "tests" / "hub_server.py"
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = [server.stdout.readline() for _ in range(3)]
        server.send_signal(signal.SIGINT)
        server.wait(timeout=HANGS_S)
    assert "me/repo" in said[0]
    assert any(line.startswith("export HF_ENDPOINT=http://127.0.0.1:") for line in said)
