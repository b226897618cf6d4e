"""Questions to the hub: huggingface_hub's client with time limits, tried again, its errors translated into llmrun's.

huggingface_hub is imported inside functions: it takes long.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llmrun import fs
from llmrun.errors import Act, NetworkError, NotFound, NotInStore
from llmrun.text import printable

_LOG_IN = "set HF_TOKEN or run: hf auth login"


@dataclass(frozen=True)
class Patience:
    """How long a pull waits, in seconds, and how often it tries again.

    Attributes:
        connect_s: for a connection.
        answer_s: for the hub's answer to a question; HF_HUB_ETAG_TIMEOUT, if set.
        read_s: for the next bytes of a file; HF_HUB_DOWNLOAD_TIMEOUT, if set.
        attempts: in a row without progress before giving up.
        pause_s: before the second attempt; doubles up to `max_pause_s`.
        window_bytes: the most that one request asks for; the hub's CDN does not serve more than 50 GB at once.
    """

    connect_s: float = 4.0
    answer_s: float = 6.0
    read_s: float = 10.0
    attempts: int = 5
    pause_s: float = 0.5
    max_pause_s: float = 8.0
    window_bytes: int = 32 << 30

    @classmethod
    def from_environment(cls) -> Patience:
        variables = {"answer_s": "HF_HUB_ETAG_TIMEOUT", "read_s": "HF_HUB_DOWNLOAD_TIMEOUT"}
        found: dict[str, float] = {}
        for name, variable in variables.items():
            with suppress(ValueError):
                found[name] = max(0.1, float(os.environ.get(variable, "")))
        return cls(**found)  # type: ignore[arg-type]  # the fields named above are floats

    @property
    def answer_timeout(self) -> Any:
        """In the form that the HTTP client takes: connect, read, write, pool."""
        return (min(self.connect_s, self.answer_s), self.answer_s, self.answer_s, self.answer_s)

    def pause(self, failures: int) -> float:
        return min(self.pause_s * 2.0 ** (failures - 1), self.max_pause_s)


def is_offline(offline: bool = False) -> bool:
    """Whether the network may not be used: asked for, or by HF_HUB_OFFLINE."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return offline or value.upper() in {"1", "ON", "YES", "TRUE"}


def session(patience: Patience) -> Any:
    """huggingface_hub's HTTP client with time limits, which by itself it lacks for some calls. Raises `NotFound`."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import logging

    _check_token()
    # Its warnings repeat what a server says, control bytes and all; what matters comes as an error.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    client = get_session()
    client.timeout = (patience.connect_s, patience.read_s, patience.read_s, patience.read_s)
    return client


def _check_token() -> None:
    """Reads the token before the client does, which would blame the hub for it. Raises `DiskError`, `NotFound`."""
    from huggingface_hub import constants, get_token

    named = (name for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if os.environ.get(name))
    where = next(named, printable(constants.HF_TOKEN_PATH, 200))
    hint = "set HF_TOKEN to one that works, or run: hf auth login"
    try:
        token = get_token()
    except OSError as error:
        raise fs.disk_error(error, f"reading the hub's token {where}") from error
    except UnicodeError as error:
        raise NotFound(f"the token in {where} is not text", hint=hint) from error
    if token and not re.fullmatch(r"[!-~]+", token):
        raise NotFound(f"the token in {where} has characters that no token has", hint=hint)


def http_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    # huggingface_hub 1 is built on httpx, 2 on httpx2: so the client's errors are found and not named.
    from huggingface_hub.errors import HfHubHTTPError

    root = HfHubHTTPError.__bases__[0]
    library = sys.modules[root.__module__.partition(".")[0]]
    return root, library.InvalidURL, *more


def with_retry(ask: Callable[[], Any], patience: Patience) -> Any:
    """A question to the hub; twice more after a server's own failure, once more when there is no answer at all."""
    for failures in range(1, 4):
        try:
            return ask()
        except http_errors(OSError) as error:
            answered = hasattr(error, "response")
            if failures == (3 if answered else 2) or not _worth_retrying(error):
                raise
            time.sleep(max(patience.pause(failures), retry_after(getattr(error, "response", None))))
    raise AssertionError("unreachable")


def _worth_retrying(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, OfflineModeIsEnabled)


def retry_after(response: Any, at_most_s: float = 30.0) -> float:
    """What a busy server asks for, in seconds and within reason."""
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(float(asked), at_most_s) if asked.isascii() and asked.isdigit() else 0.0


@contextmanager
def hub_errors(repo: str, revision: str | None = None, file: str | None = None) -> Iterator[None]:
    """Translates what huggingface_hub and its HTTP client raise into our errors, at this one seam."""
    from huggingface_hub import errors as hf

    try:
        yield
    except hf.OfflineModeIsEnabled as error:
        raise NotInStore(f"{repo} is not on this machine, and the network may not be used") from error
    except hf.HFValidationError as error:
        raise NotFound(f"'{printable(repo, 120)}' can't be the name of a repository: it is like user/name") from error
    except hf.GatedRepoError as error:
        hint = f"accept them on {endpoint()}/{repo}, then {_LOG_IN}"
        raise NotFound(f"{repo} is gated: its terms must be accepted first", hint=hint) from error
    except hf.RevisionNotFoundError as error:
        raise NotFound(f"{repo} has no revision '{printable(revision or 'main')}'", hint=Act("show", repo)) from error
    except hf.RepositoryNotFoundError as error:
        remedies = (Act("search", repo.rpartition("/")[2]), f"if it is private, {_LOG_IN}")
        raise NotFound(f"the hub knows no {repo}, or shows it only to some", remedies=remedies) from error
    except hf.EntryNotFoundError as error:
        raise NotFound(f"{repo} has no file {printable(file or '')}", hint=Act("show", repo)) from error
    except hf.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise NotFound(f"the hub refuses access to {repo} ({status})", hint=_LOG_IN) from error
        raise NetworkError(f"the hub answers with an error about {repo} ({status})", hint="try again later") from error
    except http_errors(ConnectionError, TimeoutError) as error:
        raise _network_error(error) from error
    except OSError as error:
        # The client's own files: certificates, the folder of the login.
        raise fs.disk_error(error, f"asking the hub about {repo}") from error
    except UnicodeEncodeError:
        raise  # about what was asked, which is not UTF-8, not about the answer
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        # Not JSON, or not the fields that it must have: a captive portal, or no hub at all.
        raise NetworkError(f"the hub's answer about {repo} can't be understood ({type(error).__name__})") from error


def _network_error(error: Exception) -> NetworkError:
    if not re.match(r"https?://[^/]", endpoint()):
        where = printable(endpoint(), 120)
        return NetworkError(f"HF_ENDPOINT is '{where}', which is not a web address", hint="unset HF_ENDPOINT")
    said = f"the hub ({urlsplit(endpoint()).netloc}) can not be reached: {reason_of(error)}"
    return NetworkError(said, remedies=("check the network", Act("list")))


def reason_of(error: BaseException) -> str:
    text = printable(str(error).strip().partition("\n")[0], 120)
    kind = type(error).__name__
    known = {
        "ConnectTimeout": "no connection in time",
        "ReadTimeout": "it went silent",
        "RemoteProtocolError": "the connection was closed early",
        "ReadError": "the connection broke",
    }
    return known.get(kind) or text or kind


def endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
