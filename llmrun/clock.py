"""What time it is, and names made of it."""

from __future__ import annotations

from datetime import datetime, timezone


def utc(now: datetime | None = None) -> str:
    """`now`, or the time it is, in UTC and ISO 8601 to the second: "2026-11-20T09:30:00Z"."""
    return f"{now or datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def utc_of(at_s: float) -> str:
    """The same of a file's time."""
    return utc(datetime.fromtimestamp(at_s, timezone.utc))


def age_s(then: str, now: datetime | None = None) -> float | None:
    """Seconds since a time as `utc` writes it; None where that is not to be understood, or lies ahead."""
    try:
        begin = datetime.strptime(then, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None
    age = ((now or datetime.now(timezone.utc)) - begin).total_seconds()
    return age if age >= 0 else None


def new_id(now: datetime | None = None) -> str:
    """A name that sorts by time and is taken by nobody else: "20261120-093000-3fa2"."""
    import secrets  # 4 ms, which few commands need

    return f"{now or datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
