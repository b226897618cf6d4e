"""Python packages: which versions are installed, and which llmrun asks for."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def requirements() -> list[Requirement]:
    """What llmrun needs here: without its extras, and what is only for other versions of Python or other systems."""
    from packaging.requirements import Requirement

    try:
        listed = requires("llmrun-cli") or []
    except PackageNotFoundError:
        listed = []
    return applicable(map(Requirement, listed))


def applicable(wanted: Iterable[Requirement]) -> list[Requirement]:
    """Those whose marker holds in this Python, without extras."""
    return [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
