"""A server that says what a script says, for what a real one does seldom: to be busy, to break off, to be another."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

BREAKS_OFF = "breaks off"
MODELS = {"data": [{"id": "tiny", "meta": {"n_ctx": 1024, "n_ctx_train": 1024, "template": "{{ messages }}"}}]}
PROPS = {"version": "1.2.3", "models": [], "default_generation_settings": {"tiny": {"temperature": 0.5, "top_k": 7}}}


@dataclass
class Reply:
    """Attributes:
    chunks: of a stream, as it is sent; `BREAKS_OFF` is a reset of the connection.
    """

    status: int = 200
    document: Any = None
    chunks: Iterable[Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)


class ScriptedServer:
    """Attributes:
    replies: by path; of several one after the other, the last one again and again.
    bodies: what was asked of each path, in order.
    """

    def __init__(self, **to_chat: Any) -> None:
        self.replies: dict[str, Reply | list[Reply]] = {
            "/props": Reply(document=PROPS),
            "/v1/models": Reply(document=MODELS),
        }
        self.replies["/v1/chat/completions"] = Reply(**to_chat)
        self.bodies: dict[str, list[Any]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._reply()

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                outer.bodies.setdefault(self.path, []).append(json.loads(data))
                self._reply()

            def _reply(self) -> None:
                missing = Reply(404, {"error": {"message": f"no {self.path}"}})
                found = outer.replies.get(self.path, missing)
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                reply = found
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if reply.chunks is None:
                    self.wfile.write(json.dumps(reply.document).encode())
                for chunk in reply.chunks or ():
                    if chunk == BREAKS_OFF:
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    line = chunk if isinstance(chunk, str) else json.dumps(chunk)
                    self.wfile.write(f"data: {line}\n\n".encode())

            def log_message(self, format: str, *arguments: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> ScriptedServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()


def chunk(text: str = "", n_made: int = 0, *, finish: str | None = None, n_prompt: int = 9, **more: Any) -> Any:
    """Of an answer, as a server of ours writes it."""
    details = {"prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 0}}
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_made, **details}
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return {"choices": [choice], "usage": usage, **more}
