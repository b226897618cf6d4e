"""What llama.cpp can compute on, here and at the workers of other machines, asked in a child process.

Where no worker answers, llama.cpp aborts: that is what the child is for, and why a failure is looked into afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.machinery import PathFinder
from pathlib import Path

from llmrun.engine.channel import Channel
from llmrun.engine.process import Child, Death
from llmrun.engine.protocol import NO_REQUEST, Devices, Failed, FindDevices, Ready
from llmrun.errors import Act, EngineCrashed, LlmrunError, NetworkError, OutOfMemory, UsageError, WorkerLost
from llmrun.machine.backends import missing_library
from llmrun.machine.device import Device
from llmrun.machine.gpus import clone_folder
from llmrun.text import printable
from llmrun.units import duration

START_S = 120
"""From the child's start to its first words, and for drivers to start: from a cold disk, on a busy machine."""
ANSWER_S = 20
"""For one worker to answer. One that is serving somebody else does not, for as long as that takes."""
_LOOK_S = 3


@dataclass(frozen=True)
class Found:
    """Everything that llama.cpp sees.

    Attributes:
        devices: in ggml's order, those of the workers last.
        system_info: the flags that llama.cpp was built with, in its own words.
        versions: what ggml says of itself: {"ggml": "0.25.3"}.
    """

    devices: list[Device]
    system_info: str
    versions: dict[str, str]


def find_devices(rpc: Sequence[str] = (), *, answer_s: float = ANSWER_S) -> Found:
    """The devices here and those of the workers at "host:port" (checked: `parse_endpoints`).

    Raises `NetworkError` where no worker answers, `EngineCrashed` where llama.cpp itself does not start; `UsageError`
    where this build knows no RPC; `OutOfMemory`.
    """
    with contextlib.closing(Channel(Child("child.main"))) as channel:
        return ask(channel, rpc, answer_s=answer_s)


def ask(channel: Channel, rpc: Sequence[str] = (), *, start_s: float = START_S, answer_s: float = ANSWER_S) -> Found:
    """Wait until a new child is there, and ask it; the workers are known to it afterwards. Raises as `find_devices`.

    After an error the child is of no use any more: it is dead, or waits for a worker.
    """
    before, channel.of_death = channel.of_death, _why_dead
    try:
        ready = channel.answer_within(NO_REQUEST, start_s)
        if not isinstance(ready, Ready):
            too_long = f"was still starting after {duration(start_s)}"
            raise channel.ended(f"sent {type(ready).__name__} while starting" if ready else too_long)
        found = _asked(channel, FindDevices([]), START_S)
        if found is None:
            raise EngineCrashed(f"the devices of this machine did not answer within {START_S} s")
        for endpoint in rpc:  # one at a time: who does not answer is then known
            channel.of_death = partial(_unreached, endpoint)
            found = _asked(channel, FindDevices([endpoint]), answer_s)
            if found is None:
                raise _silent(endpoint, answer_s)
    finally:
        channel.of_death = before
    return Found(found.devices, ready.system_info, found.versions)


def _asked(channel: Channel, question: FindDevices, timeout_s: float) -> Devices | None:
    match channel.answer_within(channel.request(question), timeout_s):
        case None | Devices() as answer:
            return answer
        case Failed(kind="usage", message=message):
            raise UsageError(printable(message))
        case Failed(message=message):
            raise EngineCrashed(printable(message))
        case other:
            raise channel.ended(f"sent {type(other).__name__} instead of its devices")


def _why_dead(death: Death) -> LlmrunError:
    if death.out_of_memory:
        return OutOfMemory(f"out of memory: the engine {death.reason}")
    return does_not_start(death) or EngineCrashed(f"the engine {death.reason}", hint=Act("doctor"), log=death.log)


def does_not_start(death: Death) -> EngineCrashed | None:
    """The error for a child that could not load llama.cpp for want of a library; None where that is not why it died."""
    missing = missing_library(death.last_line)
    if missing is None:
        return None
    return EngineCrashed(missing.message, remedies=missing.remedies(clone_folder()), log=death.log)


def _look(endpoint: str) -> OSError | None:
    """Why nobody can be reached there; None: somebody listens."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_LOOK_S).close()
    except OSError as error:
        return error
    return None


def _unreached(endpoint: str, death: Death) -> LlmrunError:
    """Why the child has died of asking a worker, found out by a look of our own."""
    if death.killer in (signal.SIGKILL, signal.SIGTERM):  # not by what it was told there
        return _why_dead(death)
    if error := _look(endpoint):
        hint = Act("worker", fields={"port": endpoint.rpartition(":")[2]}, note="on that machine")
        return NetworkError(f"no worker answers at {endpoint}: {_why(error)}", hint=hint)
    no_worker = f"what listens at {endpoint} is no worker of this version of llama.cpp: asking it, the engine"
    return EngineCrashed(f"{no_worker} {death.reason}", hint="install the same version on both machines", log=death.log)


def _silent(endpoint: str, after_s: float) -> NetworkError:
    error, why = _look(endpoint), "it may be serving somebody else, and serves one at a time"
    if error:
        is_refused = isinstance(error, ConnectionRefusedError)
        why = _why(error) + ("" if is_refused else "; or it is serving somebody else, and serves one at a time")
    return NetworkError(f"the worker at {endpoint} did not answer within {after_s:g} s: {why}")


def _why(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "there is no such host"
    if isinstance(error, TimeoutError):
        return "the host does not answer"
    with contextlib.suppress(ValueError, TypeError):
        return os.strerror(error.errno or 0).lower()
    return str(error)


def lost(endpoints: Sequence[str], death: Death) -> WorkerLost:
    """A worker ended while it was in use: the one that nobody listens at any more, where that can be seen."""
    gone = [f"{endpoint} ({_why(error)})" for endpoint in endpoints if (error := _look(endpoint))]
    which = " and ".join(gone) or " or ".join(endpoints)
    hint = Act("worker", note="on that machine")
    return WorkerLost(f"the worker at {which} broke off during the run", hint=hint, log=death.log)


def variants() -> list[str]:
    """Of ggml's CPU backend, by name, where the build has it for several generations of CPUs; else none."""
    return sorted(name.removeprefix("cpu-") for name in built() if name.startswith("cpu-"))


def built(folders: Sequence[Path] | None = None) -> set[str]:
    """The backends of ggml that the build has, by the names of their libraries: {"cpu", "rpc", "vulkan"}."""
    if folders is None:
        spec = PathFinder.find_spec("llama_cpp")  # on the disk, whatever is imported under that name
        folders = [Path(each, "lib") for each in (spec.submodule_search_locations or ())] if spec else []
    found = (path.name for folder in folders for path in folder.glob("*ggml-*"))
    return {name.partition("ggml-")[2].partition(".")[0] for name in found} - {"base"}
