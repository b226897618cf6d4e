"""One connection of a pull: a request for a range, and what comes of it written where it belongs."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

from llmrun import fs
from llmrun.models.hub.ranges import Range, Ranges
from llmrun.models.hub.remote import AttemptFailed, RemoteFile
from llmrun.models.store.partial import Partial, write_at


class NoRanges(AttemptFailed):
    """The server sends the whole file, whatever it is asked for."""


class Connection(threading.Thread):
    """Fetches one range, and those that follow as far as they fall to it.

    Attributes:
        opened_s: monotonic time.
        n_taken: bytes that it has brought.
        busy_s: CPU time that it has taken.
        ended: it does nothing any more; then `error` is why, None where its bytes are all here.
    """

    def __init__(
        self, remote: RemoteFile, partial: Partial, ranges: Ranges, claimed: Range, wake: threading.Event
    ) -> None:
        super().__init__(daemon=True, name="llmrun-fetch")
        self.opened_s = time.monotonic()
        self.n_taken, self.busy_s, self.ended = 0, 0.0, False
        self.error: Exception | None = None
        self._remote, self._partial, self._ranges, self._claimed, self._wake = remote, partial, ranges, claimed, wake
        self._fd = os.dup(partial.fd)  # its own: whoever closes the file does not wait for it
        self._stopped = False
        self._socket: Any = None
        self.start()

    def stop(self) -> None:
        """Ends it, also where it waits for the network; what it was given in answer is still written or not at all."""
        self._stopped = True
        with suppress(OSError, AttributeError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        try:
            self._fetch()
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread that pulls has to know
            self._remote.forget()
            if self._claimed.at < self._claimed.end:
                self.error = error
        finally:
            self._socket = None
            self._ranges.release(self._claimed)
            os.close(self._fd)
            self.ended = True
            self._wake.set()

    def _fetch(self) -> None:
        claimed, ranges = self._claimed, self._ranges
        with self._remote.body(self._remote.locate(), claimed.at, claimed.asked_end) as (response, first):
            if first != claimed.at:
                raise NoRanges("the server can't go on in the middle of a file")
            if response.status_code == 200:
                claimed.asked_end = ranges.size
            stream = response.extensions.get("network_stream")
            self._socket = stream.get_extra_info("socket") if stream is not None else None
            told = 0
            for chunk in response.iter_raw():
                if self._stopped:
                    return
                n = ranges.room(claimed, len(chunk))
                # At once and not in larger blocks: what has been written survives the death of this process.
                write_at(self._fd, memoryview(chunk)[:n], claimed.at)
                ranges.took(claimed, n)
                self._partial.written(claimed.begin, claimed.at)
                self.n_taken += n
                if self.n_taken - told >= fs.CHUNK_BYTES:
                    told, self.busy_s = self.n_taken, time.thread_time()
                    self._wake.set()
                # An answer that ends here is read to its end, which leaves the connection for the next.
                if not ranges.room(claimed, 1) and (
                    claimed.at < claimed.asked_end or "Content-Length" not in response.headers or n < len(chunk)
                ):
                    return
        if claimed.at < claimed.end and not self._stopped:
            raise AttemptFailed(f"the server ends the file after {claimed.at:,} of {ranges.size:,} bytes", short=True)
