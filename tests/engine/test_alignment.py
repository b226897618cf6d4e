"""Memory that ggml computes in: where it begins."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from llmrun.engine.child.alignment import align_work_memory, imports

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="ELF")

CHILD = """
import ctypes, json
from llmrun.engine.child import alignment, native

def called(path, base):
    return [ctypes.c_void_p.from_address(base + at).value for at in alignment.imports(path.read_bytes(), b"_Znam")]

valloc = alignment._address(ctypes.CDLL(None), "valloc")
found = [each == valloc for place in alignment._loaded("ggml-cpu") for each in called(*place)]
print(json.dumps([found, alignment.align_work_memory()]))
"""


@LINUX
@pytest.mark.parametrize("wanted", [True, False])
def test_of_the_real_library(wanted: bool) -> None:
    """Every import of the operator is C's valloc once the library is loaded, and is not changed a second time; none,
    where that is not wanted."""
    environment = {**os.environ, "LLMRUN_ALIGN": "on" if wanted else "off"}
    done = subprocess.run([sys.executable, "-c", CHILD], check=True, capture_output=True, text=True, env=environment)
    found, changed = json.loads(done.stdout)
    assert found and set(found) == {wanted} and changed == 0


@LINUX
def test_what_is_imported() -> None:
    """By this interpreter's own extension modules: what they import is found, what they don't is not."""
    path = next(Path(each) for each in sorted(map(str, Path(ctypes.__file__).parents[1].rglob("_ctypes.*.so"))))
    elf = path.read_bytes()
    assert imports(elf, b"PyErr_SetString") and not imports(elf, b"_Znam")


def test_what_is_no_library() -> None:
    assert imports(b"", b"_Znam") == [] and imports(b"MZ" + bytes(100), b"_Znam") == []
    with pytest.raises(struct.error):
        imports(b"\x7fELF\x02\x01" + bytes(20), b"_Znam")


def test_nothing_to_change_here() -> None:
    """The parent has not loaded ggml."""
    assert align_work_memory() == 0
