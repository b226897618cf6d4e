"""Bytes of files on the hub, by ranges: the requests of a pull, and headers without a pull."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

from llmrun import __version__
from llmrun.errors import Act, IntegrityError, NetworkError
from llmrun.gguf.reader import Header, naming, read_header
from llmrun.gguf.rules import whole_header
from llmrun.models.hub.http import Patience, endpoint, http_errors, hub_errors, reason_of, retry_after, session
from llmrun.models.hub.info import RepoFile, Resolved
from llmrun.text import printable

HEADER_STEPS = (1 << 20, 2 << 20, 4 << 20, 8 << 20)
"""A header is asked for, or looked for in a file that grows, at steps of so many bytes."""
_MAX_REDIRECTS = 5
_FRESH_S = 20.0
"""For so long connections share what the hub said of where the bytes are."""


class AttemptFailed(Exception):
    """An attempt failed in a way that the next may not.

    `short`: the server said clearly that what it has is not as long as the hub promised.
    """

    def __init__(self, reason: str, *, pause_s: float = 0.0, short: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.pause_s, self.short = reason, pause_s, short


class Refused(AttemptFailed):
    """The server answers, but not with bytes: perhaps it has given enough to others of ours."""


class RangeRefused(Refused):
    """The server does not go on where we are."""


class RemoteFile:
    """One file on the hub, at the pinned commit: where its bytes are now, and the requests for them."""

    def __init__(self, resolved: Resolved, file: RepoFile, patience: Patience) -> None:
        self._resolved, self._file, self._patience = resolved, file, patience
        self._lock = threading.Lock()
        self._url, self._asked_s = "", 0.0
        self._failure, self._failed_s = "", 0.0

    def locate(self) -> str:
        """Asks the hub, at the pinned commit, where the bytes are, and that they still are what it promised.

        A signed URL, so good for minutes only: asked for again by who comes later than some seconds, and after
        `forget`. Of several who ask at once one does, for all. Raises `NetworkError` where asking again may help.
        """
        began_s = time.monotonic()
        with self._lock:
            if self._failure and self._failed_s > began_s:
                raise NetworkError(self._failure)
            if not self._url or began_s - self._asked_s > _FRESH_S:
                try:
                    self._url = self._located()
                except NetworkError as error:
                    self._failure, self._failed_s = error.message, time.monotonic()
                    raise
                self._asked_s = time.monotonic()
            return self._url

    def forget(self) -> None:
        """An attempt failed: the address may be good no longer."""
        self._url = ""

    def _located(self) -> str:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        resolved, file = self._resolved, self._file
        with hub_errors(resolved.repo, resolved.commit, file.name):
            session(self._patience)
            url = hf_hub_url(resolved.repo, file.name, revision=resolved.commit)
            found = get_hf_file_metadata(
                url, timeout=self._patience.answer_timeout, library_name="llmrun", library_version=__version__
            )
        size = found.size if found.size is not None else file.size
        for what, said, before in (
            ("commit", found.commit_hash, resolved.commit),
            ("sha256", found.etag, file.sha256),
            ("size", f"{size:,}", f"{file.size:,}"),
        ):
            if said != before:
                raise IntegrityError(
                    f"the hub contradicts itself about {printable(file.name)}: "
                    f"{what} {printable(str(said), 40)}, a moment ago {printable(str(before), 40)}",
                    hint=Act("pull", resolved.name),
                )
        return urljoin(url, found.location)

    @contextmanager
    def body(self, url: str, first: int, end: int) -> Iterator[tuple[Any, int]]:
        """A response with the bytes of the file from `first` up to (at most) `end`, and the offset of its first byte.

        Raises `AttemptFailed`. The answer may begin at 0 instead, when the server does not do ranges. What it says of
        the file's length is compared with the promise before a byte of it is taken.
        """
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers(library_name="llmrun", library_version=__version__)
        headers["Accept-Encoding"] = "identity"
        if first > 0 or end < self._file.size:
            headers["Range"] = f"bytes={first}-{end - 1}"
        client = session(self._patience)
        for _ in range(_MAX_REDIRECTS + 1):
            if _origin(url) != _origin(endpoint()):
                # A signed URL needs no token, and another host must not see it.
                headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            with client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                if response.status_code in (301, 302, 303, 307, 308):
                    url = urljoin(url, response.headers.get("Location", ""))
                    continue
                yield response, self._checked_start(response, first)
                return
        raise AttemptFailed("the server sends from one address to the next")

    def _checked_start(self, response: Any, first: int) -> int:
        """Offset of the answer's first byte."""
        status, headers, size = response.status_code, response.headers, self._file.size
        if status == 416:
            raise RangeRefused(f"the server refuses to go on at byte {first:,}", short=True)
        if status in (401, 403, 404, 410):
            raise AttemptFailed(f"the address that the hub gave no longer works ({status})")
        if status not in (200, 206):
            raise Refused(f"the server answers {status}", pause_s=retry_after(response))
        if headers.get("Content-Encoding", "identity") != "identity":
            raise AttemptFailed("the server compresses what must come as it is")
        if status == 200:
            length = headers.get("Content-Length", str(size))
            if length != str(size):
                raise AttemptFailed(f"the server's file has {printable(length, 20)} bytes, not {size:,}", short=True)
            return 0
        found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", headers.get("Content-Range", ""))
        if not found or int(found[1]) != first:
            raise RangeRefused(f"the server does not go on at byte {first:,}")
        if found[3] not in ("*", str(size)):
            raise AttemptFailed(f"the server's file has {int(found[3]):,} bytes, not {size:,}", short=True)
        return first


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a web address. Raises `AttemptFailed`."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"https": 443, "http": 80}[parts.scheme]
    except (ValueError, KeyError):
        raise AttemptFailed(f"the hub gave an address that can't be used: {printable(url)}") from None
    return parts.scheme, parts.hostname or "", port


class _RemoteSource:
    """A remote file for `read_header`, by ranges that grow from 1 to 8 MiB: a header costs a few MB and requests."""

    def __init__(self, resolved: Resolved, file: RepoFile, patience: Patience) -> None:
        self.size: int | None = file.size
        self._remote = RemoteFile(resolved, file, patience)
        self._file, self._patience = file, patience
        self._buffer = memoryview(b"")
        self._at, self._step = 0, HEADER_STEPS[0]

    def read(self, n: int, /) -> bytes:
        if not self._buffer and self._at < self._file.size:
            self._buffer = memoryview(self._fetched(self._at, min(self._at + self._step, self._file.size)))
            self._at += len(self._buffer)
            self._step = min(2 * self._step, HEADER_STEPS[3])
        data, self._buffer = self._buffer[:n], self._buffer[n:]
        return bytes(data)

    def _fetched(self, first: int, end: int) -> bytes:
        for failures in range(1, self._patience.attempts + 1):
            try:
                with self._remote.body(self._remote.locate(), first, end) as (response, at):
                    return _slice_of(response, at, first, end)
            except http_errors(NetworkError, AttemptFailed) as error:
                self._remote.forget()
                reason = error.message if isinstance(error, NetworkError) else reason_of(error)
                if failures == self._patience.attempts:
                    raise NetworkError(f"{printable(self._file.name)}: {reason}", hint="try again later") from None
                time.sleep(self._patience.pause(failures))
        raise AssertionError("unreachable")


def _slice_of(response: Any, at: int, first: int, end: int) -> bytes:
    """The bytes from `first` to `end` of an answer that begins at `at`."""
    taken = bytearray()
    for chunk in response.iter_raw():
        taken += chunk[max(0, first - at) : max(0, end - at)]
        at += len(chunk)
        if at >= end:
            break
    if len(taken) < end - first:
        raise AttemptFailed(f"the server ends the file after {at:,} bytes")
    return bytes(taken)


def open_remote_header(resolved: Resolved, index: int = 0, *, patience: Patience | None = None) -> Header:
    """The header of a file on the hub (the `index`-th part of a split one), without fetching the file.

    Raises `BadModel`, and what `pull` raises about the network.
    """
    file = resolved.files[index]
    with naming(f"{printable(file.name)} of {resolved.repo}"):
        return read_header(_RemoteSource(resolved, file, patience or Patience.from_environment()))


def remote_header(resolved: Resolved) -> Header:
    """The header of all parts of a model on the hub together, by range requests. Raises `BadModel`, `NetworkError`."""
    parts = [(file.name, open_remote_header(resolved, index)) for index, file in enumerate(resolved.files)]
    with naming(resolved.name):
        return whole_header(parts)
