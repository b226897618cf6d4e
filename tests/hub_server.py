"""A model hub on loopback that serves what the real client asks for, and misbehaves on demand.

Two servers on two ports, as in reality: the *hub* answers questions about repositories and sends a client on, with a
signed URL, to the *CDN*, a different origin that has the bytes and must never see a token. Both count what they see.

    with Hub() as hub, Client(hub, home) as client:
        hub.add("user/repo", {"model-Q4_K_M.gguf": tiny_gguf(1 << 20)})
        hub.faults.cuts = [Cut("reset", at=500_000)]
        assert client.ask("pull", repo="user/repo").exit == 0

By hand: `python tests/hub_server.py FOLDER` serves every FOLDER/user/repo/*.gguf and prints the environment to set.
`curl -X POST $HF_ENDPOINT/_/faults -d '{"throttle_bps": 100000}'` switches faults while it runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_a_token_for_tests_only"
_PIECE_BYTES = 16 << 10
_NOISE_BYTES = 16 << 20


# --- what can go wrong ------------------------------------------------------------------------------------------------


@dataclass
class Cut:
    """The connection breaks when byte `at` of the file is reached: closed, reset, or silent but open ("stall")."""

    kind: str
    at: int
    times: int = 1


@dataclass
class Faults:
    """What goes wrong from now on. Counters count down to 0; None and 0 are "nothing"."""

    throttle_bps: int = 0
    cuts: list[Cut] = field(default_factory=list)
    api_status: int = 0
    """Status for questions about repositories, `api_times` times."""
    api_times: int = 0
    api_location: str | None = None
    """Questions are sent on to there."""
    head_status: int = 0
    head_times: int = 0
    get_status: int = 0
    """Status of the CDN, `get_times` times."""
    get_times: int = 0
    hang_s: float = 0
    """Seconds before the hub answers anything."""
    corrupt_at: int | None = None
    """One bit of this byte is flipped, the size stays."""
    swap_after: int | None = None
    """After so many answers with bytes the CDN serves other content of the same size."""
    short_to: int | None = None
    """The file ends after so many bytes, without Content-Length, as if that were all."""
    longer_by: int = 0
    """So many bytes more than promised, with an honest Content-Length."""
    no_ranges: bool = False
    """Range is ignored: 200 and the whole file."""
    wrong_range: bool = False
    """206 with a Content-Range that begins elsewhere."""
    refuse_ranges: int = 0
    """416 to so many requests with Range."""
    expired_urls: int = 0
    """So many signed URLs have already expired when they are given out (403)."""
    compress: bool = False
    """Says Content-Encoding: gzip although nobody asked."""
    etag: str | None = None
    commit: str | None = None
    filename: str | None = None
    """Lies: the ETag (sha256) and commit of a file, the name of the first file of a repository."""
    sha256: str | None = None
    size: int | None = None
    """Lies of the API about every file."""
    location: str | None = None
    """A lie about where the bytes are."""
    same_origin: bool = False
    """The hub serves the bytes itself, with no redirect."""
    redirects: int = 0
    """The CDN sends on so many times before it serves."""


# --- what is served ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Blob:
    """A file's content: bytes in memory or a path (large files, sent with sendfile)."""

    content: bytes | Path

    @property
    def size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    def digest(self) -> str:
        sha = hashlib.sha256()
        with self.open() as file:
            while chunk := file.read(1 << 20):
                sha.update(chunk)
        return sha.hexdigest()


@dataclass
class Repo:
    name: str
    commit: str
    files: dict[str, tuple[str, Blob]]  # name -> (sha256, content)
    access: str = "open"  # "gated", "private"
    lfs: bool = True  # False: the files are ordinary git files, without a sha256
    revisions: set[str] = field(default_factory=lambda: {"main"})
    older: dict[str, dict[str, tuple[str, Blob]]] = field(default_factory=dict)  # commit -> files

    def at(self, revision: str) -> tuple[str, dict[str, tuple[str, Blob]]] | None:
        if revision in self.revisions or revision == self.commit:
            return self.commit, self.files
        return (revision, self.older[revision]) if revision in self.older else None


@dataclass
class Seen:
    """What one origin has seen: requests by method, bytes of files sent, Authorization headers, Range headers."""

    requests: Counter[str] = field(default_factory=Counter)
    bodies: int = 0
    bytes: int = 0
    authorizations: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)


class Hub:
    """Both servers. All state may be changed while they run."""

    def __init__(self, *, hub_port: int = 0, cdn_port: int = 0) -> None:
        self.faults = Faults()
        self.repos: dict[str, Repo] = {}
        self.seen = {"hub": Seen(), "cdn": Seen()}
        self.lock = threading.Lock()
        self.signatures: dict[str, bool] = {}  # signature -> still valid
        self._servers = [_Server(self, _HubHandler, hub_port), _Server(self, _CdnHandler, cdn_port)]
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True) for s in self._servers]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def __enter__(self) -> Hub:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def env(self, home: Path | str, *, token: str | None = None) -> dict[str, str]:
        """Environment of a client that uses this hub and keeps all it has below `home`."""
        home = Path(home)
        env = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "LLMRUN_HOME": str(home / "llmrun"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return {**env, "HF_TOKEN": token} if token else env

    def add(
        self, name: str, files: Mapping[str, bytes | Path], *, access: str = "open", lfs: bool = True, commit: str = ""
    ) -> Repo:
        """Adds a repository, or a new commit to one."""
        blobs = {n: Blob(c) for n, c in files.items()}
        content = {n: (b.digest(), b) for n, b in blobs.items()}
        commit = commit or hashlib.sha1(repr([(n, s) for n, (s, _) in content.items()]).encode()).hexdigest()
        repo = Repo(name, commit, content, access, lfs)
        if (previous := self.repos.get(name)) is not None:
            repo.older = {**previous.older, previous.commit: previous.files}
        self.repos[name] = repo
        return repo

    def forget(self) -> None:
        """Faults off, counters to zero."""
        self.faults = Faults()
        self.seen = {"hub": Seen(), "cdn": Seen()}

    def take(self, counter: str) -> bool:
        """Whether a fault that counts down happens now."""
        with self.lock:
            left = int(getattr(self.faults, counter))
            if left > 0:
                setattr(self.faults, counter, left - 1)
            return left > 0

    def sign(self) -> str:
        with self.lock:
            signature = f"{len(self.signatures):08x}"
        self.signatures[signature] = not self.take("expired_urls")
        return signature


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Hub, handler: type[_Handler], port: int) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", port), handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are what this server is for: not a word about them."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    origin = ""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def count(self) -> None:
        seen = self.hub.seen[self.origin]
        with self.hub.lock:
            seen.requests[self.command] += 1
            if authorization := self.headers.get("Authorization"):
                seen.authorizations.append(authorization)
            if wanted := self.headers.get("Range"):
                seen.ranges.append(wanted)

    def answer(self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, data: object) -> None:
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(data).encode())

    def refuse(self, status: int, code: str, message: str = "") -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message or code})

    # --- the bytes of a file, by either origin

    def serve(self, blob: Blob, extra: Mapping[str, str] | None = None) -> None:
        hub, faults, size = self.hub, self.hub.faults, blob.size
        if hub.take("get_times"):
            return self.answer(faults.get_status, {"Retry-After": "0"})
        first, last, partial = 0, size - 1, False
        wanted = self.headers.get("Range")
        if wanted and not faults.no_ranges:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last, partial = int(start), min(int(end) if end else size - 1, size - 1), True
            short = faults.short_to if faults.short_to is not None else size
            if first >= min(size, short) or hub.take("refuse_ranges"):
                return self.answer(416, {"Content-Range": f"bytes */{size}"})
        headers = {"Accept-Ranges": "bytes", **(extra or {})}
        if faults.compress:
            headers["Content-Encoding"] = "gzip"
        if partial:
            claimed = 0 if faults.wrong_range else first
            headers["Content-Range"] = f"bytes {claimed}-{last}/{size}"
        endless = faults.short_to is not None
        if endless:
            last = min(last, int(faults.short_to or 0) - 1)
            headers["Connection"] = "close"
            self.close_connection = True
        length = last - first + 1 + faults.longer_by
        self.send_response(206 if partial else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        if not endless:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.send_bytes(blob, first, last + 1)
            self.wfile.write(b"x" * faults.longer_by)
        return None

    def send_bytes(self, blob: Blob, first: int, end: int) -> None:
        faults, seen = self.hub.faults, self.hub.seen[self.origin]
        with self.hub.lock:
            seen.bodies += 1
            swapped = faults.swap_after is not None and seen.bodies > faults.swap_after
        with blob.open() as file:
            plain = not (faults.throttle_bps or faults.cuts or swapped or faults.corrupt_at is not None)
            if plain and isinstance(blob.content, Path):
                self.wfile.flush()
                self.connection.sendfile(file, first, end - first)
                seen.bytes += end - first
                return None
            file.seek(first)
            at, began = first, time.monotonic()
            while at < end:
                n = min(_PIECE_BYTES, end - at)
                cut = self.next_cut(at, at + n)
                if cut is not None:
                    n = cut.at - at
                piece = bytearray(file.read(n))
                if swapped:
                    piece = bytearray(byte ^ 0x55 for byte in piece)
                if faults.corrupt_at is not None and at <= faults.corrupt_at < at + n:
                    piece[faults.corrupt_at - at] ^= 1
                self.wfile.write(piece)
                at += n
                seen.bytes += n
                if cut is not None:
                    return self.break_off(cut)
                if faults.throttle_bps:
                    ahead = (at - first) / faults.throttle_bps - (time.monotonic() - began)
                    if ahead > 0:
                        time.sleep(ahead)
        return None

    def next_cut(self, first: int, end: int) -> Cut | None:
        with self.hub.lock:
            for cut in self.hub.faults.cuts:
                if cut.times > 0 and first <= cut.at < end:
                    cut.times -= 1
                    return cut
        return None

    def break_off(self, cut: Cut) -> None:
        self.wfile.flush()
        self.close_connection = True
        if cut.kind == "stall":
            # Silence until the client has had enough and closes its side.
            self.connection.settimeout(60)
            with contextlib.suppress(OSError):
                self.connection.recv(1)
        elif cut.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


class _HubHandler(_Handler):
    origin = "hub"

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/_/faults":
            return self.set_faults(json.loads(body or b"{}"))
        return self.route(body)

    def set_faults(self, wanted: dict[str, object]) -> None:
        if isinstance(cuts := wanted.get("cuts"), list):
            wanted["cuts"] = [Cut(**cut) for cut in cuts]
        known = {f.name for f in fields(Faults)}
        if wanted.keys() - known:
            return self.answer(400, body=f"no such fault: {sorted(wanted.keys() - known)}\n".encode())
        self.hub.faults = Faults(**wanted)  # type: ignore[arg-type]
        return self.answer_json({name: repr(getattr(self.hub.faults, name)) for name in sorted(known)})

    def route(self, body: bytes = b"") -> None:
        self.count()
        if self.hub.faults.hang_s:
            time.sleep(self.hub.faults.hang_s)
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        if parts == ["_", "seen"]:
            return self.answer_json({name: {**vars(seen)} for name, seen in self.hub.seen.items()})
        if parts[:2] == ["api", "models"]:
            if elsewhere := self.hub.faults.api_location:
                return self.answer(302, {"Location": elsewhere})
            if self.hub.take("api_times"):
                return self.refuse(self.hub.faults.api_status, "")
            return self.api(parts[2:], parse_qs(url.query), body)
        if len(parts) >= 5 and parts[2] == "resolve":
            if self.command == "HEAD" and self.hub.take("head_times"):
                return self.refuse(self.hub.faults.head_status, "")
            return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        return self.refuse(404, "RepoNotFound")

    def repo(self, name: str, *, listing: bool = False) -> Repo | None:
        """The repository, if this client may see it; else the refusal has been sent."""
        repo = self.hub.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.access == "private" and not known):
            # As the real hub has it: what you may not see looks like what is not there; 401 without a token.
            self.refuse(404 if known else 401, "RepoNotFound", "Repository not found")
            return None
        if repo.access == "gated" and not known and not listing:
            self.refuse(401 if "Authorization" not in self.headers else 403, "GatedRepo", "Access is restricted")
            return None
        return repo

    def api(self, parts: list[str], query: dict[str, list[str]], body: bytes) -> None:
        if not parts or not parts[0]:
            return self.search(query)
        repo = self.repo("/".join(parts[:2]), listing=True)
        if repo is None:
            return None
        action, rest = (parts[2], parts[3:]) if len(parts) > 2 else ("revision", ["main"])
        found = repo.at("/".join(rest)) if action == "revision" else repo.at(rest[0]) if rest else None
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        if action == "revision":
            return self.answer_json(self.info(repo, commit, files, blobs="blobs" in query))
        entries = [self.entry(repo, name, sha, blob) for name, (sha, blob) in files.items()]
        if action == "paths-info":
            wanted = parse_qs(body.decode()).get("paths", [])
            return self.answer_json([entry for entry in entries if entry["path"] in wanted])
        return self.answer_json(entries) if action == "tree" else self.refuse(404, "EntryNotFound")

    def search(self, query: dict[str, list[str]]) -> None:
        words = " ".join(query.get("search", [])).lower().split()
        hits = [r for n, r in self.hub.repos.items() if all(w in n.lower() for w in words) and r.access != "private"]
        limit = int(query.get("limit", ["100"])[0])
        self.answer_json([self.info(repo, repo.commit, {}, blobs=False) for repo in hits[:limit]])

    def info(self, repo: Repo, commit: str, files: dict[str, tuple[str, Blob]], *, blobs: bool) -> dict[str, object]:
        faults = self.hub.faults
        siblings: list[dict[str, object]] = []
        for i, (name, (sha, blob)) in enumerate(files.items()):
            shown = faults.filename if faults.filename is not None and i == 0 else name
            entry = self.entry(repo, name, sha, blob)
            sibling: dict[str, object] = {"rfilename": shown}
            if blobs:
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if isinstance(lfs := entry.get("lfs"), dict):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        return {
            "_id": "0",
            "id": repo.name,
            "modelId": repo.name,
            "sha": faults.commit if faults.commit is not None else commit,
            "private": repo.access == "private",
            "gated": "manual" if repo.access == "gated" else False,
            "downloads": 1000 - 10 * sorted(self.hub.repos).index(repo.name),
            "likes": 7,
            "tags": ["gguf", "license:mit"],
            "cardData": {"license": "mit"},
            "siblings": siblings,
        }

    def entry(self, repo: Repo, name: str, sha: str, blob: Blob) -> dict[str, object]:
        faults, size = self.hub.faults, self.hub.faults.size or blob.size
        entry: dict[str, object] = {"type": "file", "path": name, "size": size, "oid": sha[:40]}
        if repo.lfs:
            oid = faults.sha256 if faults.sha256 is not None else sha
            entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
        return entry

    def resolve(self, name: str, revision: str, filename: str) -> None:
        repo = self.repo(name)
        if repo is None:
            return None
        found = repo.at(revision)
        if found is None:
            return self.refuse(404, "RevisionNotFound")
        commit, files = found
        if filename not in files:
            return self.refuse(404, "EntryNotFound")
        sha, blob = files[filename]
        faults = self.hub.faults
        etag = faults.etag if faults.etag is not None else sha if repo.lfs else sha[:40]
        about = {
            "X-Repo-Commit": faults.commit if faults.commit is not None else commit,
            "X-Linked-Etag": f'"{etag}"',
            "ETag": f'"{etag}"',
            "X-Linked-Size": str(blob.size),
        }
        if faults.same_origin or not repo.lfs:
            return self.serve(blob, about)
        location = faults.location or f"{self.hub.cdn_url}/{sha}?signature={self.hub.sign()}"
        return self.answer(302, {**about, "Location": location})


class _CdnHandler(_Handler):
    origin = "cdn"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.count()
        url = urlsplit(self.path)
        sha = url.path.strip("/")
        signature = parse_qs(url.query).get("signature", [""])[0]
        if not self.hub.signatures.get(signature):
            return self.answer(403, body=b"<?xml version='1.0'?><Error><Message>Request has expired</Message></Error>")
        if self.hub.take("redirects"):
            return self.answer(HTTPStatus.TEMPORARY_REDIRECT, {"Location": self.path})
        for repo in list(self.hub.repos.values()):
            for files in (repo.files, *repo.older.values()):
                for known, blob in files.values():
                    if known == sha:
                        return self.serve(blob)
        return self.answer(404)


# --- models to serve --------------------------------------------------------------------------------------------------


def tiny_gguf(
    n_bytes: int, *, seed: int = 0, name: str = "tiny", extra: Mapping[str, int] | None = None, tokens: int = 300
) -> bytes:
    """A GGUF file of about `n_bytes`, complete as llama.cpp sees it, whose weights are noise."""
    n_embd, n_ctx = 64, 512
    shapes = _llama_shapes(n_embd, tokens, 64)
    fixed = sum(4 * a * b for a, b in shapes.values())
    n_ff = max(1, (n_bytes - fixed) // (3 * 4 * n_embd) + 64)
    texts = [b"<unk>", b"<s>", b"</s>", *(f"<0x{i:02X}>".encode() for i in range(256))]
    texts += [f"w{i}".encode() for i in range(tokens - len(texts))]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (tokens - 259)]
    keys = [
        _key_str("general.architecture", "llama"),
        _key_str("general.name", name),
        _key_u32("general.file_type", 0),
        _key_u32("llama.block_count", 1),
        _key_u32("llama.context_length", n_ctx),
        _key_u32("llama.embedding_length", n_embd),
        _key_u32("llama.feed_forward_length", n_ff),
        _key_u32("llama.attention.head_count", 4),
        _key_u32("llama.attention.head_count_kv", 4),
        _key_u32("llama.rope.dimension_count", 16),
        _key_u32("llama.vocab_size", tokens),
        _string(b"llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
        _key_str("tokenizer.ggml.model", "llama"),
        _array("tokenizer.ggml.tokens", 8, [_string(text) for text in texts]),
        _array("tokenizer.ggml.scores", 6, [struct.pack("<f", -float(i)) for i in range(tokens)]),
        _array("tokenizer.ggml.token_type", 5, [struct.pack("<i", kind) for kind in kinds]),
        _key_u32("tokenizer.ggml.bos_token_id", 1),
        _key_u32("tokenizer.ggml.eos_token_id", 2),
        *(_key_u32(key, value) for key, value in (extra or {}).items()),
    ]
    return _gguf(keys, _llama_shapes(n_embd, tokens, n_ff), seed)


def split_gguf(n_bytes: int, n_parts: int, *, seed: int = 0) -> dict[str, bytes]:
    """A model in `n_parts` files of about `n_bytes` each, as llama-gguf-split leaves them; the first has the keys."""
    n_tensors = n_parts + 10
    first = tiny_gguf(
        n_bytes, seed=seed, extra={"split.no": 0, "split.count": n_parts, "split.tensors.count": n_tensors}
    )
    parts = [first]
    for i in range(1, n_parts):
        about = {"split.no": i, "split.count": n_parts, "split.tensors.count": n_tensors}
        parts.append(_gguf([_key_u32(k, v) for k, v in about.items()], {f"more.{i}": (64, n_bytes // 256)}, seed + i))
    return {f"big-Q4_K_M-{i + 1:05d}-of-{n_parts:05d}.gguf": part for i, part in enumerate(parts)}


def _llama_shapes(n_embd: int, n_vocab: int, n_ff: int) -> dict[str, tuple[int, int]]:
    square = (n_embd, n_embd)
    return {
        "token_embd.weight": (n_embd, n_vocab),
        "output_norm.weight": (n_embd, 1),
        "blk.0.attn_norm.weight": (n_embd, 1),
        **{f"blk.0.attn_{which}.weight": square for which in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": (n_embd, 1),
        "blk.0.ffn_gate.weight": (n_embd, n_ff),
        "blk.0.ffn_up.weight": (n_embd, n_ff),
        "blk.0.ffn_down.weight": (n_ff, n_embd),
    }


def _gguf(keys: list[bytes], shapes: Mapping[str, tuple[int, int]], seed: int) -> bytes:
    tensors, offset = b"", 0
    for name, (ne0, ne1) in shapes.items():
        dims = [ne0] if ne1 == 1 else [ne0, ne1]
        tensors += _string(name.encode()) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, 0, offset)
        offset += (4 * ne0 * ne1 + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(keys)) + b"".join(keys) + tensors
    noise = random.Random(seed)
    data = [noise.randbytes(min(_NOISE_BYTES, offset - at)) for at in range(0, offset, _NOISE_BYTES)]
    return b"".join([head, bytes(-len(head) % 32), *data])


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _key_str(key: str, value: str) -> bytes:
    return _string(key.encode()) + struct.pack("<I", 8) + _string(value.encode())


def _key_u32(key: str, value: int) -> bytes:
    # The three split keys are u16, u16 and i32 in llama.cpp's own files; the readers take any integer for them but one.
    kinds = {"split.no": (2, "<IH"), "split.count": (2, "<IH"), "split.tensors.count": (5, "<Ii")}
    kind, layout = kinds.get(key, (4, "<II"))
    return _string(key.encode()) + struct.pack(layout, kind, value)


def _array(key: str, kind: int, items: list[bytes]) -> bytes:
    return _string(key.encode()) + struct.pack("<IIQ", 9, kind, len(items)) + b"".join(items)


# --- a client, as a process of its own --------------------------------------------------------------------------------
#
# huggingface_hub reads its environment when it is imported, and a kill must be a real one: so pulls run in a child that
# reads requests and writes events and outcomes, one JSON object a line.


@dataclass(frozen=True)
class Outcome:
    """How a request ended: `exit` as the command line would have it, and either a result or what the error said."""

    exit: int
    result: Any = None
    error: str = ""
    message: str = ""
    hint: str | None = None
    events: tuple[dict[str, Any], ...] = ()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind."""
        return [event for event in self.events if event["event"] == kind]


QUICK: dict[str, Any] = {"connect_s": 2.0, "read_s": 0.6, "attempts": 5, "pause_s": 0.02, "max_pause_s": 0.1}
"""Patience for tests."""


class Client:
    """A child process that pulls. One child may serve many requests; `home` may differ from one to the next."""

    def __init__(self, hub: Hub, home: Path, **env: str) -> None:
        self._home, self._hub = home, hub
        root = Path(__file__).resolve().parent.parent
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **hub.env(home), "PYTHONPATH": str(root), **env},
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def send(
        self, do: str, *, home: Path | None = None, env: Mapping[str, str] | None = None, **arguments: Any
    ) -> None:
        home_env = {k: v for k, v in self._hub.env(home or self._home).items() if k in ("HF_HOME", "LLMRUN_HOME")}
        request = {"do": do, "env": {**home_env, **(env or {})}, "patience": {}, **arguments}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def events(self) -> Iterator[dict[str, Any]]:
        """What the child says, as it says it, up to and with the outcome, or until it dies."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said: dict[str, Any] = json.loads(line)
            yield said
            if said["event"] == "Outcome":
                return

    def outcome(self) -> Outcome:
        events = list(self.events())
        if not events or events[-1].pop("event") != "Outcome":
            return Outcome(self.process.wait(), events=tuple(events))
        return Outcome(**events[-1], events=tuple(events[:-1]))

    def ask(self, do: str, **arguments: Any) -> Outcome:
        self.send(do, **arguments)
        return self.outcome()


def _client() -> None:
    from llmrun.errors import LlmrunError

    def say(event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, default=str), flush=True)

    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request.pop("env"))
        try:
            result = _serve_client(request, say)
        except LlmrunError as error:
            say("Outcome", exit=error.exit_code, error=type(error).__name__, message=error.message, hint=error.hint)
        except KeyboardInterrupt:
            sys.exit(130)
        else:
            say("Outcome", exit=0, result=result)


def _serve_client(request: dict[str, Any], say: Callable[..., None]) -> Any:
    from llmrun import hub, store
    from llmrun.catalog import HubFile

    do, patience = request["do"], hub.Patience(**{**QUICK, **request["patience"]})
    if limit := request.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    wanted = [request.get(field) for field in ("quant", "file", "revision")]
    ref = HubFile(request.get("repo", ""), wanted[0], wanted[1], wanted[2], request.get("repo", ""))
    if do == "list":
        return [{**vars(m), "name": m.name, "complete": m.complete} for m in store.list_models()]
    if do == "leftovers":
        return [vars(item) for item in store.list_leftovers()]
    if do == "find":
        found = store.find(ref)
        return found and {**vars(found), "name": found.name}
    if do == "search":
        return [dataclasses.asdict(hit) for hit in hub.search(request["words"])]
    if do.startswith("hf_"):
        import huggingface_hub

        cache = str(store.cache_dir())
        if do == "hf_scan":
            scan = huggingface_hub.scan_cache_dir(cache)
            return {"repos": [repo.repo_id for repo in scan.repos], "warnings": [str(w) for w in scan.warnings]}
        if do == "hf_find":
            return huggingface_hub.try_to_load_from_cache(ref.repo, request["file"], cache_dir=cache)
        return huggingface_hub.hf_hub_download(ref.repo, request["file"], cache_dir=cache)
    resolved = hub.resolve(ref, offline=request.get("offline", False))
    if do == "resolve":
        return {**dataclasses.asdict(resolved), "missing": hub.missing_bytes(resolved), "total": resolved.total_bytes}
    if do == "header":
        return {"n_params": hub.open_remote_header(resolved, patience=patience).n_params}
    assert do == "pull"
    return hub.pull(
        resolved,
        lambda event: say(type(event).__name__, **vars(event)),
        offline=request.get("offline", False),
        patience=patience,
    )


# --- by hand ----------------------------------------------------------------------------------------------------------


def _repos_below(folder: Path) -> Iterator[tuple[str, dict[str, bytes | Path]]]:
    for repo in sorted(folder.glob("*/*")):
        if repo.is_dir():
            yield (
                repo.relative_to(folder).as_posix(),
                {file.relative_to(repo).as_posix(): file for file in sorted(repo.rglob("*")) if file.is_file()},
            )


def main(folder: Path) -> None:
    with Hub() as hub:
        for name, files in _repos_below(folder):
            repo = hub.add(name, files)
            print(f"# {name} at {repo.commit}: {', '.join(files)}")
        for name, value in hub.env(Path(tempfile.gettempdir()) / "llmrun-by-hand").items():
            print(f"export {name}={value}")
        print(f"# faults: curl -X POST {hub.url}/_/faults -d '{{\"throttle_bps\": 100000}}'", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1:] == ["--client"]:
        _client()
        sys.exit()
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
