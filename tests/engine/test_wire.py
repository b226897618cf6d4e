"""One line a message: what comes out is what was declared, or nothing does."""

from __future__ import annotations

import pytest

from llmrun.codec import Malformed
from llmrun.engine.protocol import Cancel, Devices, Done, Message, Prepare, Tokens, decode, encode, out_of_memory
from llmrun.machine.device import Device


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"[]", b"{}", b"nonsense", b"[" * 100_000, b"\xff", b'[1, "Cancel"]', b'[1, "Cancel", {}, 2]'),
        *(b'[1, "Evil", {}]', b'["1", "Cancel", {}]', b'[true, "Cancel", {}]', b"[1, 2, {}]", b'[1, "Cancel", []]'),
        b'[1, "Tokens", {"ids": "x", "at_s": [1], "text": ""}]',
        b'[1, "Tokens", {"ids": [true], "at_s": [1], "text": ""}]',
        b'[1, "Tokens", {"ids": [1], "at_s": [NaN], "text": ""}]',
        b'[1, "Tokens", {"ids": [1], "at_s": [1]}]',
        b'[1, "Tokens", {"ids": ["\\udc00"], "at_s": [1], "text": ""}]',
        b'[1, "Tokens", {"ids": [1], "at_s": [1], "text": "\\udc00}]',
        b'[1, "Devices", {"devices": [{"name": "CPU"}]}]',
        b'[1, "Done", {"stop_reason": "bored", "peak_rss_bytes": 1, "rss_bytes": 1, "anonymous_bytes": 1}]',
    ],
)
def test_what_is_no_message(line: bytes) -> None:
    """Only messages of ours, with fields of the right types, come out of a line."""
    with pytest.raises(Malformed, match="not a message"):
        decode(line)


@pytest.mark.parametrize(
    "message",
    [
        Tokens([1, 2], [0.5, 0.75], "\u2028 text\n"),
        Done("end", 1, None, 3),
        Cancel(),
        Prepare([{"role": "user", "content": "half of a pair: \ud83d, all of one: \U0001f600"}]),
        Devices([Device("CPU", "Some CPU", "cpu", "CPU", 2, 1, {"AVX2": "1"})], {"ggml": "1"}),
    ],
    ids=lambda message: type(message).__name__,
)
def test_messages_survive_the_pipe(message: Message) -> None:
    """With the number of their request, on one line."""
    line = encode(7, message)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert decode(line.removesuffix(b"\n")) == (7, message)


@pytest.mark.parametrize(
    "log",
    [
        "ggml_vulkan: Device memory allocation of size 1048576 failed.",
        "what():  vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
        "terminate called after throwing an instance of 'vk::OutOfHostMemoryError'",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
        "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
        "alloc_tensor_range: failed to allocate Vulkan0 buffer of size 1048576",
    ],
)
def test_memory_that_could_not_be_had(log: str) -> None:
    """In the words of every backend."""
    assert out_of_memory(log) and not out_of_memory("ErrorDeviceLost")
