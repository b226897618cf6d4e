"""Searches the hub for repositories with GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmrun import __version__
from llmrun.errors import Act, IntegrityError, NetworkError, NotFound, NotInStore
from llmrun.models.hub.http import Patience, endpoint, hub_errors, is_offline, session, with_retry
from llmrun.models.hub.info import QuantFiles, model_info, quants_of


@dataclass(frozen=True)
class SearchResult:
    """A repository that a search found; `quants` from small to large, empty where the hub did not say."""

    repo: str
    downloads: int | None
    licence: str | None
    gated: bool
    quants: tuple[QuantFiles, ...]


def search(words: Sequence[str], limit: int = 10) -> list[SearchResult]:
    """Repositories with GGUF files whose names have all the words, most downloaded first. Raises `NetworkError`."""
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    if is_offline():
        raise NotInStore("searching needs the network, and it may not be used", hint=Act("list"))
    patience = Patience.from_environment()

    def ask() -> list[str]:
        # Not HfApi.list_models: it goes on for 24 s when the hub answers with errors.
        response = session(patience).get(
            f"{endpoint()}/api/models",
            params={"search": " ".join(words), "filter": "gguf", "sort": "downloads", "limit": limit},
            headers=build_hf_headers(library_name="llmrun", library_version=__version__),
            timeout=patience.answer_timeout,
        )
        hf_raise_for_status(response)
        return [str(found["id"]) for found in response.json()]

    with hub_errors("the search"):
        repos = with_retry(ask, patience)
    with ThreadPoolExecutor(max_workers=6) as pool:
        return [found for found in pool.map(_result, repos) if found is not None]


def _result(repo: str) -> SearchResult | None:
    try:
        info = model_info(repo)
    except NotFound:
        return None  # gone since, or private
    except (NetworkError, IntegrityError):
        return SearchResult(repo, None, None, False, ())  # one that the hub can't tell about must not end the search
    return SearchResult(info.repo, info.downloads, info.licence, info.gated, quants_of(info))
