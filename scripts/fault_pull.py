"""Everything that a pull must survive, at length, with its figures: `python scripts/fault_pull.py [--only WORD]`.

Real processes pull from the loopback hub of the tests while they are killed, interrupted, cut off and lied to. Prints a
markdown table, one line per fault; exit 1 if a line misses its bar. Takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from hub_server import STALLS, Client, Cut, Hub, Outcome, pull_together, tiny_gguf  # noqa: E402

from llmrun.models.store import listing, partial, verify  # noqa: E402

REPO, FILE = "user/model", "model-Q4_K_M.gguf"
SMALL = tiny_gguf(3 << 20)
LARGE = tiny_gguf(30_000_000)
HUGE = tiny_gguf(60_000_000)
MAX_LOSS = 10 << 20


class Trial:
    """A hub, a home that can be emptied, and a random number generator that repeats itself."""

    def __init__(self, hub: Hub, home: Path) -> None:
        self.hub, self.home = hub, home
        self.chance = random.Random(2024)
        os.environ.update({k: v for k, v in hub.env(home).items() if k in ("HF_HOME", "LLMRUN_HOME")})

    def fresh(self, content: bytes = SMALL) -> None:
        for name in ("hf", "llmrun"):
            shutil.rmtree(self.home / name, ignore_errors=True)
        self.hub.forget()
        self.hub.repos.clear()
        self.hub.add(REPO, {FILE: content})

    def client(self, **env: str) -> Client:
        return Client(self.hub, self.home, **env)

    def partials(self) -> list[Path]:
        return list((self.home / "hf").rglob("*.partial"))

    def on_disk(self) -> int:
        return sum(map(partial.bytes_here, self.partials()))

    def corrupt(self) -> int:
        """Listed models whose bytes are not what their names promise."""
        return sum(verdict.ok is not True for verdict in verify.verify_models(listing.list_models()))

    @property
    def sent(self) -> int:
        return int(self.hub.seen["cdn"].bytes)


Line = tuple[str, bool]
"""What was seen, and whether it meets the bar."""


def kills(t: Trial) -> Line:
    """kill −9 at 50 random points of a throttled 30 MB pull"""
    t.fresh(LARGE)
    t.hub.faults.throttle_bps = 2_500_000
    n, corrupt, worst, most, lost = 0, 0, 0, 0, 0
    while n < 50:
        before = t.on_disk()
        with t.client() as client:
            client.send("pull", repo=REPO)
            started = next(client.events(), None)
            if started is None or started["event"] != "PullStarted":
                break
            lost = before - started["resumed_at"]
            worst = max(worst, lost)
            time.sleep(t.chance.uniform(0, 0.4))
            client.process.kill()
            client.process.wait()
        n += 1
        corrupt += t.corrupt()
        most = max(most, len(t.partials()))
    kept = t.on_disk()
    t.hub.forget()
    with t.client() as client:
        done = client.ask("pull", repo=REPO)
    fetched_last = t.sent
    good = n == 50 and corrupt == 0 and worst <= MAX_LOSS and most <= 1 and done.exit == 0
    seen = f"{n} kills: {corrupt} corrupt models, at most {most} partial, at most {worst:,} bytes fetched again; "
    return seen + f"the last pull fetched {fetched_last:,} of {len(LARGE):,} bytes ({kept:,} were here)", good


def kills_of_four(t: Trial) -> Line:
    """kill −9 at 30 random points of a throttled 60 MB pull with four ranges open"""
    t.fresh(HUGE)
    n, corrupt, worst, most, holes = 0, 0, 0, 0, 0
    t.hub.faults.throttle_bps = 1_000_000
    while n < 30:
        told = 0
        with t.client() as client:
            client.send("pull", repo=REPO, connections=4)
            until = None
            for event in client.events():
                told = max(told, event.get("resumed_at", 0), event.get("done", 0))
                until = until or time.monotonic() + t.chance.uniform(0, 0.4)
                if event["event"] == "Outcome" or time.monotonic() > until:
                    break
            client.process.kill()
            client.process.wait()
        n += 1
        corrupt += t.corrupt()
        most = max(most, len(t.partials()))
        here = [extent for path in t.partials() for extent in partial.extents_of(path)]
        holes += len(here) > 1
        worst = max(worst, told - sum(end - begin for begin, end in here))
    kept = t.on_disk()
    t.hub.forget()
    with t.client() as client:
        done = client.ask("pull", repo=REPO, connections=4)
    again = sum(event["fetched"] for event in done.of("PullFinished")) - (len(HUGE) - kept)
    good = n == 30 and not corrupt and worst <= 4 * MAX_LOSS and most <= 1 and done.exit == 0 and again == 0
    seen = f"{n} kills, {holes} with holes: {corrupt} corrupt models, at most {most} partial, at most {worst:,} bytes "
    seen += (
        f"of what it had told of came again, of all four together; {kept:,} of {len(HUGE):,} bytes were here at the "
    )
    return seen + f"end, of which the last pull fetched {again:,}", good


def kills_at_the_end(t: Trial) -> Line:
    """kill −9 at 40 random points around verify, rename and link"""
    n, corrupt, failed, finished = 0, 0, 0, 0
    t.fresh()
    while n < 40:
        with t.client() as client:
            client.send("pull", repo=REPO)
            next(event for event in client.events() if event["event"] in ("PullStarted", "PullFinished"))
            time.sleep(t.chance.uniform(0, 0.2))
            client.process.kill()
            client.process.wait()
        n += 1
        corrupt += t.corrupt()
        finished += bool(listing.list_models())
        if n % 4 == 0 or listing.list_models():
            with t.client() as client:
                failed += client.ask("pull", repo=REPO).exit != 0
            corrupt += t.corrupt()
            t.fresh()
    return f"{n} kills, {finished} after the link: {corrupt} corrupt, {failed} later pulls failed", not corrupt + failed


def signals(t: Trial) -> Line:
    """SIGINT and SIGTERM mid-pull, 20 each, a third of them while the network is silent"""
    slowest, wrong, failed = 0.0, 0, 0
    for i in range(40):
        signum = signal.SIGINT if i % 2 else signal.SIGTERM
        t.fresh()
        t.hub.faults.throttle_bps = 2 << 20
        t.hub.faults.cuts = [Cut("stall", 300_000)] if i % 3 == 0 else []
        with t.client() as client:
            client.send("pull", repo=REPO, patience={"read_s": 30.0})
            next(event for event in client.events() if event["event"] == "PullProgress")
            time.sleep(t.chance.uniform(0.05, 0.5))
            client.process.send_signal(signum)
            began = time.monotonic()
            wrong += client.process.wait(timeout=20) != 128 + signum
            slowest = max(slowest, time.monotonic() - began)
        t.hub.forget()
        with t.client() as client:
            failed += client.ask("pull", repo=REPO).exit != 0
    return f"40 signals: slowest exit {slowest:.2f} s, {wrong} wrong exit codes, {failed} later pulls failed", (
        slowest < 1 and not wrong and not failed
    )


def broken(t: Trial) -> Line:
    """connection closed, reset, stalled at 20 offsets each"""
    exits: list[int] = []
    corrupt = 0
    with t.client() as client:
        for kind in ("close", "reset", "stall"):
            patience = STALLS if kind == "stall" else {}
            for _ in range(20):
                t.fresh()
                t.hub.faults.cuts = [Cut(kind, t.chance.randrange(len(SMALL)))]
                exits.append(client.ask("pull", repo=REPO, patience=patience).exit)
                corrupt += t.corrupt()
    completed = exits.count(0)
    good = completed + exits.count(5) == 60 and not corrupt
    return f"60 breaks: {completed} completed, {exits.count(5)} exit 5, {corrupt} corrupt", good


def wrong_bytes(t: Trial) -> Line:
    """same-size corruption, content swap, short body, 20 each"""
    exits: list[int] = []
    listed, failed = 0, 0
    with t.client() as client:
        for i in range(60):
            t.fresh()
            at = t.chance.randrange(1, len(SMALL))
            if i < 20:
                t.hub.faults.corrupt_at = at
            elif i < 40:
                t.hub.faults.swap_after, t.hub.faults.cuts = 1, [Cut("close", at)]
            else:
                t.hub.faults.short_to = at
            exits.append(client.ask("pull", repo=REPO).exit)
            listed += len(listing.list_models())
            t.hub.forget()
            failed += client.ask("pull", repo=REPO).exit != 0
    good = exits == [6] * 60 and not listed and not failed
    return f"60 pulls: {exits.count(6)} exit 6, {listed} listed, {failed} later pulls failed", good


def together(t: Trial) -> Line:
    """8 concurrent pulls of one file, 5 times"""
    transfers: list[float] = []
    succeeded, waited = 0, 0
    for _ in range(5):
        t.fresh()
        with ExitStack() as stack:
            outcomes = pull_together(t.hub, [stack.enter_context(t.client()) for _ in range(8)], REPO)
        succeeded += sum(done.exit == 0 for done in outcomes)
        waited += sum(bool(done.of("PullWaiting")) for done in outcomes)
        transfers.append(t.sent / len(SMALL))
    seen = f"{succeeded} of 40 succeeded, {waited} of 35 said that they wait; "
    return seen + f"the file was sent {max(transfers):.2f} times at most", (
        succeeded == 40 and waited == 35 and max(transfers) == 1.0
    )


def killed_holders(t: Trial) -> Line:
    """8 concurrent pulls, each one that pulls is killed −9 until one is left"""
    t.fresh(LARGE)
    t.hub.faults.throttle_bps = 4 << 20
    pulling: SimpleQueue[Client] = SimpleQueue()

    def listen(client: Client) -> Outcome:
        return client.outcome(lambda event: pulling.put(client) if event["event"] == "PullStarted" else None)

    deaths = 0
    with ExitStack() as stack, ThreadPoolExecutor(max_workers=8) as pool:
        clients = [stack.enter_context(t.client()) for _ in range(8)]
        for client in clients:
            client.send("pull", repo=REPO)
        outcomes = {id(client): pool.submit(listen, client) for client in clients}
        for _ in range(7):
            holder, before, until = pulling.get(timeout=20), t.on_disk(), time.monotonic() + 5
            # Whoever pulls now has brought something before it dies.
            while t.on_disk() < before + 100_000 and time.monotonic() < until:
                time.sleep(0.01)
            holder.process.kill()
            holder.process.wait()
            deaths += 1
        done = outcomes[id(pulling.get(timeout=20))].result()
    seen = f"{deaths} killed, the last one: exit {done.exit}, {t.sent:,} bytes sent for {len(LARGE):,}"
    return seen, done.exit == 0 and not t.corrupt() and t.sent < len(LARGE) + 8 * MAX_LOSS


def file_limit(t: Trial) -> Line:
    """a limit on file size at 20 random points"""
    exits: list[int] = []
    again, failed = 0, 0
    for _ in range(20):
        t.fresh()
        limit = t.chance.randrange(100_000, len(SMALL))
        with t.client() as client:
            exits.append(client.ask("pull", repo=REPO, file_limit=limit).exit)
        listing.list_models()
        t.hub.forget()
        with t.client() as client:
            failed += client.ask("pull", repo=REPO).exit != 0
        again = max(again, t.sent - (len(SMALL) - limit))
    good = exits == [7] * 20 and not failed
    return f"{exits.count(7)} of 20 exit 7; later pulls: {failed} failed, {again:,} bytes fetched twice", good


@contextmanager
def _tmpfs(folder: Path) -> Iterator[Callable[[str], None] | None]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    try:
        yield resize if made.returncode == 0 else None
    finally:
        if made.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(t: Trial) -> Line:
    """a tmpfs that fills up mid-pull, and one too small from the start, 5 times"""
    during, early, store_loads, failed = 0, 0, 0, 0
    for i in range(5):
        t.fresh()
        with _tmpfs(t.home / f"small-{i}") as resize:
            if resize is None:
                return "not tried: mounting is not allowed here", True
            home = t.home / f"small-{i}"
            t.hub.faults.throttle_bps = 2 << 20
            with t.client() as client:
                client.send("pull", home=home, repo=REPO)
                next(event for event in client.events() if event["event"] == "PullProgress" and event["done"] > 100_000)
                resize("1500k")
                during += client.outcome().exit == 7
                store_loads += client.ask("list", home=home).exit == 0
                asked = t.hub.seen["cdn"].requests.total()
                refused = client.ask("pull", home=home, repo=REPO)
                early += refused.exit == 7 and t.hub.seen["cdn"].requests.total() == asked
                resize("16m")
                t.hub.forget()
                failed += client.ask("pull", home=home, repo=REPO).exit != 0
    seen = f"during: {during} of 5 exit 7; too small: {early} of 5 refused without a byte; "
    return seen + f"the store loaded {store_loads} times; {failed} later pulls failed", (
        during == early == store_loads == 5 and not failed
    )


def hostile(t: Trial) -> Line:
    """hostile ETag, commit, file name, sha256"""
    paths = ("../../../../x", "/tmp/llmrun-was-here", "..", "a/../../b", "a\\..\\b", "\x1b[2J", "nul\0", "x" * 5000)
    lies: list[dict[str, Any]] = [{what: path} for what in ("etag", "commit", "sha256") for path in paths]
    lies += [{"filename": f"{path}-Q4_K_M.gguf"} for path in paths]
    outside, exits = 0, []
    with t.client() as client:
        for lie in lies:
            t.fresh()
            for name, value in lie.items():
                setattr(t.hub.faults, name, value)
            before = {path for path in t.home.rglob("*") if "hf" not in path.parts and "llmrun" not in path.parts}
            exits.append(client.ask("pull", repo=REPO).exit)
            after = {path for path in t.home.rglob("*") if "hf" not in path.parts and "llmrun" not in path.parts}
            outside += len(after - before) + len(list(Path("/tmp").glob("llmrun-was-here*")))
            outside += sum(1 for path in t.home.parent.iterdir() if path != t.home)
    refused = sum(code in (4, 5, 6) for code in exits)
    return f"{len(lies)} lies: {refused} refused, {outside} files outside the store", refused == len(
        lies
    ) and not outside


def flipped(t: Trial) -> Line:
    """one byte flipped in each of 100 stored blobs"""
    t.fresh()
    n = 100
    for i in range(n):
        t.hub.add(f"user/m{i}", {f"m-{i}-Q8_0.gguf": tiny_gguf(200_000, seed=i)})
    with t.client() as client:
        for i in range(n):
            assert client.ask("pull", repo=f"user/m{i}").exit == 0
    for model in listing.list_models():
        blob = model.path.resolve()
        content = bytearray(blob.read_bytes())
        content[t.chance.randrange(len(content))] ^= 1 << t.chance.randrange(8)
        blob.write_bytes(content)
    verdicts = verify.verify_models(listing.list_models())
    found = sum(verdict.ok is False for verdict in verdicts)
    left = len(listing.list_models())
    with t.client() as client:
        again = sum(client.ask("pull", repo=f"user/m{i}").exit == 0 for i in range(n))
    seen = f"{found} of {n} found, {left} still listed, {again} pulled again"
    return seen, found == again == n and left == 0


LINES = (kills, kills_of_four, kills_at_the_end, signals, broken, wrong_bytes, together, killed_holders, file_limit,
         full_disk, hostile, flipped)  # fmt: skip


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", default="", help="only the lines whose name contains this")
    chosen = arguments.parse_args()
    missed = 0
    print("| inject | seen | bar met | seconds |\n|---|---|---|---|")
    for line in LINES:
        if chosen.only not in line.__name__:
            continue
        with tempfile.TemporaryDirectory(prefix="fault-pull-") as folder, Hub() as hub:
            home = Path(folder) / "home"
            home.mkdir()
            began = time.monotonic()
            seen, good = line(Trial(hub, home))
        missed += not good
        seconds = time.monotonic() - began
        print(f"| {line.__doc__} | {seen} | {'yes' if good else '**no**'} | {seconds:.0f} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
