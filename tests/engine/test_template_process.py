"""The process that renders templates: its limits are its own, and it tells what it died of."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from waiting import HANGS_S

from llmrun.engine.child.chat_template import TemplateError
from llmrun.engine.child.reasoning import THINK, Tags
from llmrun.engine.child.template_process import TemplateProcess, TemplateProcessDied

USER = [{"role": "user", "content": "U"}]
EACH = "{% for m in messages %}{{ bos_token }}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


def render(process: TemplateProcess, template: str, *, enable_thinking: bool = True) -> tuple[str, Tags | None]:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return process.render(template, USER, special, enable_thinking=enable_thinking)[:2]


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    made = TemplateProcess(cpu_s=0.5)
    yield made
    made.close()


def test_text_and_tags(process: TemplateProcess) -> None:
    """One answer for each question, as often as asked."""
    for _ in range(2):
        assert render(process, EACH) == ("<s>[user]U</s>", None)
    assert render(process, EACH + "<think>", enable_thinking=False) == ("<s>[user]U</s><think>", THINK)


def test_text_that_is_no_text(process: TemplateProcess) -> None:
    """Half of a surrogate pair, as an argument that is not UTF-8 has it, is what the tokenizer makes of it."""
    messages = [{"role": "user", "content": "a\udcffb"}]
    assert process.render(EACH, messages, {})[0] == "[user]a?b"


def test_a_template_that_fills_memory() -> None:
    """It is stopped there, in words; the process goes on, and this one never had a limit."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    process = TemplateProcess(cpu_s=HANGS_S)  # to fill it takes half a second
    with pytest.raises(TemplateError, match="512 MiB"):
        render(process, "{{ '%999999999d'|format(1) }}")
    with pytest.raises(TemplateError, match="512 MiB"):
        render(
            process,
            "{% set x = namespace(t='A' * 9999999) %}{% for i in range(99) %}{% set x.t = x.t ~ x.t %}{% endfor %}",
        )
    assert render(process, EACH)[0] and resource.getrlimit(resource.RLIMIT_AS) == before
    process.close()


def test_a_template_without_end(process: TemplateProcess) -> None:
    """It has so much time of a processor, then the process is ended, and says so each time it is asked."""
    with pytest.raises(TemplateProcessDied, match=r"^took more than 0.5 s and was ended$"):
        render(process, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(TemplateProcessDied, match="has been ended"):
        render(process, EACH)


def test_what_is_nested_too_deeply(process: TemplateProcess) -> None:
    """Arguments of a call are read as JSON: an error for whoever sent them, and the process goes on."""
    template = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    template += """{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": """
    template += "{{ c.function.arguments | tojson }}}</tool_call>{% endfor %}{% endfor %}"

    def called(arguments: str) -> str:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return process.render(template, [*USER, {"role": "assistant", "content": "", "tool_calls": [call]}], {})[0]

    assert '"arguments": [[1]]}' in called("[[1]]")
    for n in (700, 100_000):
        with pytest.raises(TemplateError, match=r"RecursionError|nested too deeply"):
            called("[" * n + "]" * n)
    assert '"arguments": [[1]]}' in called("[[1]]")


def test_a_process_that_was_killed(process: TemplateProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(TemplateProcessDied, match="signal 9"):
        render(process, EACH)


def test_it_ends_with_the_one_that_started_it() -> None:
    """The end of the pipe is its end, however it came."""
    code = (
        "import os, signal; from llmrun.engine.child.template_process import TemplateProcess;"
        "print(TemplateProcess().pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        while process.status() != psutil.STATUS_ZOMBIE:  # of nobody who waits for it
            time.sleep(0.01)
