"""A control group with a limit of memory, in both versions' files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrun.errors import EngineCrashed
from llmrun.experiments.memory_box import memory_box, put


def test_both_versions(tmp_path: Path) -> None:
    """The limit stands in the file of the version that there is, a process in `cgroup.procs`."""
    (tmp_path / "v2").mkdir()
    with memory_box(1 << 28, v1=tmp_path / "none", v2=tmp_path / "v2") as group:
        assert (group / "memory.max").read_text() == str(1 << 28)
        put(group, 4711)
        assert (group / "cgroup.procs").read_text() == "4711"
    (tmp_path / "v1").mkdir()
    with memory_box(1 << 27, v1=tmp_path / "v1", v2=tmp_path / "v2") as group:
        assert (group / "memory.limit_in_bytes").read_text() == str(1 << 27)


def test_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(EngineCrashed, match="no control group"), memory_box(1, v1=tmp_path / "a", v2=tmp_path / "b"):
        pass
