"""`llmrun worker` with the real server of llama.cpp, real clients in processes of their own, on loopback only."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, RunLlmrun
from waiting import HANGS_S, until_gone

from llmrun.engine.devices import find_devices
from llmrun.engine.rpc.host import Offer, is_loopback
from llmrun.errors import EngineCrashed, NetworkError, UsageError
from llmrun.options.endpoints import MAX_ENDPOINTS, parse_endpoints

MIB = 1 << 20
StartWorker = Callable[..., str]

# What a client that lends memory does: takes and gives back buffers in the order told, and says what it got.
_CLIENT = """
import json, sys
from llmrun.engine.child import ggml
assert ggml.add_server(sys.argv[1])
device = ggml.by_name("RPC0")
where = ggml.buffer_type(device)
held, said = [], []
for step in json.loads(sys.argv[2]):
    if step == "free":
        ggml.free(held.pop())
    else:
        buffer = ggml.allocate(where, step)
        if buffer:
            held.append(buffer)
        said.append(bool(buffer))
    said.append(ggml.describe(device).free_bytes)
print(json.dumps([ggml.describe(device).total_bytes, *said]))
"""


def take(endpoint: str, *steps: int | str) -> list[int | bool]:
    """The total that the worker tells, then per step whether it was granted (no word for "free") and what is free."""
    done = subprocess.run(
        [sys.executable, "-c", _CLIENT, endpoint, json.dumps(steps)],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.fixture
def talking() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """A worker whose stderr is read: `start(...)` is its process and the line that it prints when it listens."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "llmrun", "worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(worker)
        assert worker.stderr
        return worker, worker.stderr.readline()

    yield start
    for worker in started:
        worker.kill()
        worker.communicate()


def port_of(line: str) -> int:
    found = re.search(r"on 127\.0\.0\.1:(\d+)", line)
    assert found, line
    return int(found[1])


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def crash(port: int) -> None:
    """A greeting, then the announcement of 2^63 bytes: more than a vector can hold, which the server does not catch."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS_S) as client:
        client.sendall(struct.pack("<BQ", 14, 24) + bytes(24))
        client.recv(64)
        client.sendall(struct.pack("<BQ", 6, 1 << 63))
        client.settimeout(HANGS_S)
        try:
            client.recv(1)
        except OSError:
            pass  # reset by a process that died


def test_listens(rpc_worker: StartWorker) -> None:
    """What it offers is what a client sees, after the client's own devices."""
    found = find_devices([rpc_worker()]).devices
    assert [device.name for device in found][-1] == "RPC0"
    own, lent = found[0], found[-1]
    assert own.kind == "cpu" and lent.total_bytes == own.total_bytes
    assert lent.total_bytes and lent.free_bytes and lent.free_bytes <= lent.total_bytes


def test_memory_is_a_limit(rpc_worker: StartWorker) -> None:
    """Of 64 MiB, 40 leave 24: 25 more are refused, 24 granted; what is given back can be had again."""
    endpoint = rpc_worker(memory=64 / 1024)
    steps = (40 * MIB, 25 * MIB, 24 * MIB, 1, "free", "free", 64 * MIB, 1)
    granted = [True, 24 * MIB, False, 24 * MIB, True, 0, False, 0, 24 * MIB, 64 * MIB, True, 0, False, 0]
    assert take(endpoint, *steps) == [64 * MIB, *granted]


def test_memory_of_a_client_that_went(rpc_worker: StartWorker) -> None:
    """What a client held is free again when it has gone, however it went."""
    endpoint = rpc_worker(memory=64 / 1024)
    for _ in range(2):
        assert take(endpoint, 64 * MIB) == [64 * MIB, True, 0]


def test_without_a_limit_ram_is_the_limit(rpc_worker: StartWorker) -> None:
    """More than the machine has is refused: Linux would grant it, and kill somebody later."""
    total, granted, _ = take(rpc_worker(), 1 << 45)
    assert total < 1 << 45 and granted is False


def test_says_when_it_listens_and_who_comes(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """One line with the real port, at which it answers from then on; one when a client comes, one when it goes."""
    worker, line = talking("--port", "0", "--memory", "0.25")
    port = port_of(line)
    assert line == (
        f"serving CPU (256 MiB) on 127.0.0.1:{port}; use it with: llmrun run MODEL --rpc 127.0.0.1:{port}\n"
    )
    find_devices([f"127.0.0.1:{port}"])
    assert worker.stderr
    assert [worker.stderr.readline() for _ in range(2)] == ["a client is connected\n", "the client is gone\n"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ends_at_once(talking: Callable[..., tuple[subprocess.Popen[str], str]], number: int, code: int) -> None:
    """With nothing left: not the process, not the port, even in the middle of a client. How soon:
    scripts/fault_engine.py."""
    worker, line = talking("--port", "0", "-t", "1")
    children = children_of(worker.pid)
    assert children
    with socket.create_connection(("127.0.0.1", port_of(line)), timeout=HANGS_S):
        worker.send_signal(number)
        assert worker.wait(HANGS_S) == code
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(line)), timeout=HANGS_S)


def test_a_killed_server_is_an_error(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """Killed from outside it is not started again: exit 9."""
    worker, _ = talking("--port", "0")
    os.kill(children_of(worker.pid)[0], signal.SIGKILL)
    _, said = worker.communicate(timeout=HANGS_S)
    assert worker.returncode == 9 and "SIGKILL" in said and "Traceback" not in said


def test_a_killed_command_leaves_nothing(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """Even SIGKILL: the server ends by itself."""
    worker, _ = talking("--port", "0")
    (child,) = children_of(worker.pid)
    worker.kill()
    worker.wait(HANGS_S)
    until_gone(child)


def test_survives_malformed_messages(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """It serves again at the same port and says so; at the fifth crash within a minute it gives up."""
    worker, line = talking("--port", "0", "-t", "1")
    port = port_of(line)
    assert worker.stderr
    for _ in range(4):
        crash(port)
        said = worker.stderr.readline()
        if said == "a client is connected\n":  # if it lived long enough to say so
            said = worker.stderr.readline()
        assert said.startswith("the server crashed") and "SIGABRT" in said
    assert find_devices([f"127.0.0.1:{port}"]).devices[-1].name == "RPC0"
    crash(port)
    _, rest = worker.communicate(timeout=HANGS_S)
    assert worker.returncode == 9 and "crashed 5 times" in rest


def test_a_message_larger_than_ram(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """Announced but not sent, it costs its client the connection, and nobody any memory."""
    worker, line = talking("--port", "0", "-t", "1")
    with socket.create_connection(("127.0.0.1", port_of(line)), timeout=HANGS_S) as client:
        client.sendall(struct.pack("<BQ", 14, 24) + bytes(24))
        client.recv(64)
        client.sendall(struct.pack("<BQ", 6, 1 << 40))
        client.settimeout(HANGS_S)
        while client.recv(64):
            pass
    assert worker.stderr
    assert [worker.stderr.readline() for _ in range(2)] == ["a client is connected\n", "the client is gone\n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "others could reach it"),
        (["--host", "8.8.8.8", "--allow-remote"], "does not have that address"),
        (["--host", "::1"], "IPv4 only"),
        (["--host", "no.such.invalid"], "no such host"),
        (["--port", "70000"], "--port: 70000 is outside"),
        (["--port", "-1"], "--port: -1 is outside"),
        (["--memory", "0"], "--memory 0"),
        (["--memory", "nan"], "--memory: nan"),
        (["--memory", "0.001"], "--memory: no model fits into less"),
        (["-t", "0"], "--threads: 0 is outside"),
        (["-t", "100000"], "--threads: 100000 is outside"),
        (["--port", "0", "--device", "CUDA7"], "no device 'CUDA7'; there is CPU"),
        (["--port", "0", "--device", "CPU,RPC0"], "llmrun devices"),
    ],
)
def test_refused(llmrun: RunLlmrun, arguments: list[str], message: str) -> None:
    """Exit 2 and a sentence, before anything listens."""
    done = llmrun("worker", *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_port_in_use(llmrun: RunLlmrun, rpc_worker: StartWorker) -> None:
    port = rpc_worker().rpartition(":")[2]
    done = llmrun("worker", "--port", port)
    assert done.returncode == 2 and f"port {port} is in use" in done.stderr


def test_open_to_others(talking: Callable[..., tuple[subprocess.Popen[str], str]]) -> None:
    """With the flag it listens, after the warning, which names its source."""
    worker, first = talking("--port", "0", "--host", "0.0.0.0", "--allow-remote")
    assert worker.stderr
    said = first + "".join(worker.stderr.readline() for _ in range(3))
    assert "never to run it on an open" in said and "tools/rpc/README.md" in said
    assert "serving CPU" in said and "ADDRESS-OF-THIS-MACHINE:" in said


def test_nobody_answers() -> None:
    """Refused is told from silent: a bound port that nobody accepts at, and one that nobody listens at."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NetworkError, match="no worker answers at .*: connection refused"):
            find_devices([endpoint])
        silent.listen(4)
        with pytest.raises(NetworkError, match="serving somebody else"):
            find_devices([endpoint], answer_s=0.5)


def test_one_client_at_a_time(rpc_worker: StartWorker) -> None:
    """Who comes second waits, is told so, and is served when the first has gone."""
    endpoint = rpc_worker()
    with socket.create_connection(("127.0.0.1", int(endpoint.rpartition(":")[2])), timeout=HANGS_S) as first:
        first.sendall(struct.pack("<BQ", 14, 24) + bytes(24))
        assert first.recv(64)
        with pytest.raises(NetworkError, match="did not answer within 0.3 s: it may be serving somebody else"):
            find_devices([endpoint], answer_s=0.3)
    assert find_devices([endpoint]).devices[-1].name == "RPC0"


def test_no_worker_at_all() -> None:
    """Something that speaks another language is told from nobody."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(4)

        def answer() -> None:
            for _ in range(2):  # the engine, and the look at what it died of
                client, _ = other.accept()
                with client:
                    client.recv(9)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(EngineCrashed, match="no worker of this version"):
            find_devices([f"127.0.0.1:{other.getsockname()[1]}"], answer_s=HANGS_S)
        thread.join(HANGS_S)


@pytest.mark.parametrize(
    "text",
    [
        "localhost",
        "localhost:",
        ":50052",
        "host:0",
        "host:65536",
        "host:5x",
        "host:٣",
        "::1:50052",
        "[::1]:50052",
        "a:1,",
        "a:1,A:1",
        "localhost:1,127.0.0.1:1",
        "ho st:1",
        "host\n:1",
        ",".join(f"h{i}:1" for i in range(MAX_ENDPOINTS + 1)),
    ],
)
def test_endpoints_refused(text: str) -> None:
    """Whatever llama.cpp can't parse, or would wait for without end, never gets there."""
    with pytest.raises(UsageError):
        parse_endpoints(text)


def test_endpoints() -> None:
    assert parse_endpoints("") == ()
    assert parse_endpoints("127.0.0.1:50052, my-box.local:1") == ("127.0.0.1:50052", "my-box.local:1")


def test_loopback() -> None:
    assert is_loopback("localhost") and is_loopback("127.3.2.1")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.7")
    with pytest.raises(UsageError):
        Offer(port=65536)
