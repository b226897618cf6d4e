"""A server's model as an engine: what is asked of it, what comes back, and what its errors are to who types."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ENDLESS_PROMPT, RunLlmrun
from scripted_server import BREAKS_OFF, MODELS, Reply, ScriptedServer, chunk
from serving import Server, serving
from terminal import Terminal
from waiting import HANGS_S, until

from llmrun.bench.chat_stream import Timings
from llmrun.chat.answer_options import AnswerOptions
from llmrun.constrain import output_format
from llmrun.engine.engine import ChildEngine
from llmrun.engine.interface import Messages
from llmrun.engine.protocol import PromptOptions
from llmrun.errors import EngineCrashed, NetworkError, PromptTooLong, UsageError
from llmrun.options.sampling import SamplingConfig
from llmrun.server.client import Client, address_of
from llmrun.server.remote import Facts, Listed, RemoteEngine, ServerTiming, opened
from llmrun.server.remote import _meant as meant
from llmrun.wire import openai
from llmrun.wire.request import Function, tools_of

QUESTION = "What do GPU layers do?"
SCHEMA = '{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}'
HI: Messages = [{"role": "user", "content": "Hi"}]
ENDS = [chunk("A ", 1), chunk("b.", 3), chunk("", 3, finish="stop", timings={"predicted_ms": 20.0}), "[DONE]"]


# -- addresses and names ---


@pytest.mark.parametrize(
    ("typed", "address"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("127.0.0.1:8081", "http://127.0.0.1:8081"),
        (":8081", "http://127.0.0.1:8081"),
        ("8081", "http://127.0.0.1:8081"),
        ("localhost", "http://localhost:8080"),
        ("http://localhost/", "http://localhost"),
        ("https://a.example/llm/v1/", "https://a.example/llm"),
        ("[::1]:80", "http://[::1]:80"),
    ],
)
def test_addresses(typed: str, address: str) -> None:
    assert address_of(typed) == address


@pytest.mark.parametrize("typed", ["", " ", "ftp://x", "http://", "a:b", ":99999", "http://u:p@x", "x?y=1", "a b"])
def test_what_is_no_address(typed: str) -> None:
    with pytest.raises(UsageError, match="is not an address"):
        address_of(typed)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("TINY", "tiny"),
        ("qwen3:4b", "qwen3:4b:Q5_K_M"),
        ("qwen3:4b@q5_k_m", "qwen3:4b:Q5_K_M"),
        ("qwen3:4b:Q8_0", None),
        ("./models/mine.gguf", "mine.gguf"),
        ("user/repo:Q8_0", "user/repo"),
        ("two/levels", None),
        ("two/levels:Q8_0", "two/levels:Q8_0"),
        ("unknown", None),
        ("a/b:Q8_0", "a/b"),
        ("a/b:Q4_0", None),
    ],
)
def test_names(name: str, found: str | None) -> None:
    """As they are typed for a model that is loaded here; a level that is named is that level or none."""
    ids = ("tiny", "qwen3:4b:Q5_K_M", "mine.gguf", "user/repo", "two/levels:Q8_0", "two/levels:Q4_0")
    model = meant([*map(Listed, ids), Listed("a/b", Facts(level="Q8_0"))], name)
    assert (model.id if model else None) == found


# -- what is asked ---


def remote(server: ScriptedServer | Server, *formats: output_format.OutputFormat) -> RemoteEngine:
    return opened(Client(server.address), "tiny", formats)


@pytest.mark.parametrize(
    "form", [None, output_format.of_json(), output_format.of_schema(SCHEMA), output_format.of_choices(['a"b', "c\\d"])]
)
def test_everything_is_asked_for(form: output_format.OutputFormat | None) -> None:
    """A server reads the body as what it was made of, to the last option."""
    sampling = SamplingConfig(
        max_tokens=5,
        temperature=0.3,
        stop=("x", "y"),
        ignore_eos=True,
        seed=3,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=9,
        presence_penalty=0.2,
        frequency_penalty=0.4,
        logit_bias={7: -math.inf, 8: 2.5},
    )
    answers = AnswerOptions(think_budget=7, output_format=form)
    with ScriptedServer(chunks=ENDS) as server:
        engine = remote(server, *([form] if form else []))
        said = [{"role": "system", "content": "Be brief."}, *HI]
        answer = engine.generate(said, sampling, options=answers.for_prompt())
        assert "".join(answer) == "A b."
        (body,) = server.bodies["/v1/chat/completions"]
    read = openai.request_of(json.dumps(body).encode(), openai.CHAT, SamplingConfig(), AnswerOptions(), live=True)
    assert read.asked == said and read.model == "tiny" and read.streams
    assert read.sampling == replace(sampling, logit_bias={7: -1e6, 8: 2.5})
    assert read.answers.think_budget == 7 and read.answers.thinks
    wanted = read.answers.output_format
    assert (wanted is None) == (form is None)
    if form is not None and wanted is not None:
        right = {"json": "[1]", "json_schema": '{"n": 3}', "choice": 'a"b'}[form.kind]
        assert wanted.problem(right) is None and wanted.problem("no") is not None


def test_a_grammar_is_asked_for_as_it_was_given() -> None:
    form = output_format.of_grammar('root ::= "yes" | "no"')
    assert openai.format_fields(form) == {"grammar": 'root ::= "yes" | "no"'}


def test_habits_of_the_server(llmrun: RunLlmrun) -> None:
    """What nobody sets is as the server has it, and said; what is set here counts."""
    with ScriptedServer(chunks=ENDS) as server:
        done = llmrun("run", "tiny", "Hi", "--server", server.address, "--top-p", "0.25", "--think", "off", "--json")
        settings = json.loads(done.stdout)["settings"]
        (body,) = server.bodies["/v1/chat/completions"]
    for found in (settings, body):
        assert (found["temperature"], found["top_k"], found["top_p"]) == (0.5, 7, 0.25)
    assert body["chat_template_kwargs"] == {"enable_thinking": False} and "seed" not in body


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-ngl", "1"], "-ngl"),
        (["-t", "1"], "-t"),
        (["-c", "512"], "-c"),
        (["--draft", "off"], "--draft"),
        (["--no-tune"], "--no-tune"),
        (["--no-prompt-cache"], "--no-prompt-cache"),
        (["--chat-template", "{{ messages }}"], "--chat-template"),
        (["--special"], "--special"),
    ],
)
def test_refused_by_name(llmrun: RunLlmrun, arguments: list[str], named: str) -> None:
    """Before anything is asked: nobody listens there."""
    done = llmrun("chat", "tiny", "--server", ":1", *arguments)
    assert done.returncode == 2 and named in done.stderr and "127.0.0.1:1" in done.stderr, done.stderr


def test_settings_about_loading_are_not_about_a_server(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Of `config.toml`: they stay for what is loaded here; how to sample counts."""
    (tmp_path / "config.toml").write_text('[defaults]\nn-gpu-layers = 0\ntemp = 0.125\nchat-template = "{{ x }}"\n')
    env = {"LLMRUN_CONFIG_DIR": str(tmp_path), "LLMRUN_HOME": str(tmp_path)}
    with ScriptedServer(chunks=ENDS) as server:
        done = llmrun("run", "tiny", "Hi", "--server", server.address, env=env)
        assert done.returncode == 0, done.stderr
        assert server.bodies["/v1/chat/completions"][0]["temperature"] == 0.125


def test_a_schema_for_a_text_that_is_continued(llmrun: RunLlmrun) -> None:
    with ScriptedServer() as server:
        done = llmrun("run", "tiny", "Hi", "--raw", "--json-schema", SCHEMA, "--server", server.address)
    assert done.returncode == 2 and "--json-schema" in done.stderr and "with messages" in done.stderr


# -- what comes back ---


def test_figures_are_the_servers() -> None:
    """10 tokens have nine gaps; theirs is the time, and one gap alone is not known."""
    said = Timings(prompt_ms=50.0, prompt_per_second=100.0, predicted_ms=90.0, predicted_per_second=100.0)
    timing = ServerTiming(None, 9, 4, 0.05, 0.2, (), 10, None, None, said=said)
    assert (timing.pp_tps, timing.tg_tps, timing.decode_s, timing.n_steps) == (100.0, 100.0, 0.09, 9)
    assert timing.gap_s(0.5) is None
    unknown = replace(timing, said=None)
    assert (unknown.pp_tps, unknown.tg_tps, unknown.n_steps) == (None, None, 0)


def test_an_answer_of_a_script() -> None:
    """Thinking, calls, tokens and the end, as they are told."""
    thought = chunk("", 1)
    thought["choices"][0]["delta"] = {"reasoning_content": "Hm."}
    call = chunk("", 2)
    call["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": '{"a"'}}]}
    more = chunk("", 3)
    more["choices"][0]["delta"] = {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]}
    with ScriptedServer(chunks=[thought, call, more, chunk("", 4, finish="tool_calls"), "[DONE]"]) as server:
        answer = remote(server).generate(HI, SamplingConfig())
        assert [*answer.pieces()] == [("", "Hm.")]
    assert [*map(tuple, answer.calls)] == [("f", '{"a": 1}')]
    timing = answer.timing
    assert (answer.stop_reason, timing.n_prompt, timing.n_cached, timing.n_generated) == ("end", 9, 4, 4)
    assert timing.ttft_s is not None and timing.ttft_s > 0


@pytest.mark.parametrize(
    ("finish", "sampling", "reason"),
    [
        ("stop", SamplingConfig(), "end"),
        ("stop", SamplingConfig(stop=("x",)), "stop"),
        ("length", SamplingConfig(max_tokens=3), "length"),
        ("length", SamplingConfig(max_tokens=4), "context"),
        ("length", SamplingConfig(), "context"),
    ],
)
def test_why_it_ended(finish: str, sampling: SamplingConfig, reason: str) -> None:
    """ "length" is of two limits: whichever was reached."""
    with ScriptedServer(chunks=[chunk("abc", 3), chunk("", 3, finish=finish), "[DONE]"]) as server:
        answer = remote(server).generate(HI, sampling)
        assert "".join(answer) == "abc" and answer.stop_reason == reason


@pytest.mark.parametrize(
    ("reply", "exit_code", "said"),
    [
        (Reply(401, {"error": {"message": "no"}}), 2, "LLMRUN_API_KEY"),
        (Reply(429, {"error": {"message": "3 requests wait"}}, headers={"Retry-After": "7"}), 5, "again in 7 s"),
        (Reply(503, {"error": {"message": "it stops"}}), 5, "can't answer now: it stops"),
        (Reply(503, {"error": {"message": "died", "code": "engine_crashed"}}), 9, "died"),
        (Reply(503, {"error": {"message": "full", "code": "out_of_memory"}}), 10, "full"),
        (Reply(400, {"error": {"message": "too long", "code": "context_length_exceeded"}}), 11, "too long"),
        (Reply(400, {"error": {"message": "top_k: wrong"}}), 2, "refuses it: top_k: wrong"),
        (Reply(500, "<html>\x1b[2J"), 5, "failed with 500"),
        (Reply(chunks=[BREAKS_OFF]), 5, "broke off"),
        (Reply(chunks=["{"]), 5, "error: "),
        (Reply(chunks=["[DONE]"]), 5, "without an end"),
        (Reply(chunks=[{"error": {"message": "it stops", "code": "stopping"}}]), 5, "ended the answer: it stops"),
        (Reply(chunks=[{"error": {"message": "died", "code": "engine_crashed"}}]), 9, "died"),
    ],
)
def test_errors(llmrun: RunLlmrun, reply: Reply, exit_code: int, said: str) -> None:
    with ScriptedServer() as server:
        server.replies["/v1/chat/completions"] = reply
        done = llmrun("run", "tiny", "Hi", "--server", server.address)
    assert (done.returncode, done.stdout) == (exit_code, ""), done.stderr
    assert said in done.stderr and "\x1b" not in done.stderr and "Traceback" not in done.stderr


def test_another_server(llmrun: RunLlmrun) -> None:
    """One that is none of ours promises nothing of what is asked."""
    with ScriptedServer() as server:
        server.replies["/props"] = Reply(document={"default_generation_settings": {}})
        other = llmrun("run", "tiny", "Hi", "--server", server.address)
        server.replies["/v1/models"] = Reply(document=MODELS)
        del server.replies["/props"]
        none = llmrun("run", "tiny", "Hi", "--server", server.address)
    for done in (other, none):
        assert done.returncode == 2 and "is no server of llmrun" in done.stderr
    nobody = llmrun("run", "tiny", "Hi", "--server", ":1")
    assert nobody.returncode == 5 and "nothing listens at http://127.0.0.1:1" in nobody.stderr


def test_a_stream_that_breaks_off(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """What had come is on stdout, in the document, and in the conversation; what did not is said."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    with ScriptedServer(chunks=[chunk("Once ", 1), chunk("upon", 2), BREAKS_OFF]) as server:
        plain = llmrun("run", "tiny", "Hi", "--server", server.address, "--save", env=env)
        document = llmrun("run", "tiny", "Hi", "--server", server.address, "--json")
        chat = llmrun("chat", "tiny", "--server", server.address, input="Hi\n", env=env)
    for done in (plain, document, chat):
        assert done.returncode == 5 and "2 tokens of the answer had come" in done.stderr
    assert plain.stdout == "Once upon\n" and chat.stdout == "Once upon"
    assert json.loads(document.stdout)["answer"] == "Once upon"
    for which in json.loads(llmrun("history", "list", "--json", env=env).stdout):
        kept = json.loads(llmrun("history", "show", which["id"], "--json", env=env).stdout)
        assert [each["content"] for each in kept["messages"]] == ["Hi", "Once upon"]


# -- a real one ---


def test_the_same_answer(tiny_server: Server, llmrun: RunLlmrun) -> None:
    """As of a model that is loaded here; the line says whose figures they are, and nothing of this process."""
    local = llmrun("run", "tiny", QUESTION, "--temp", "0")
    done = llmrun("run", "tiny", QUESTION, "--server", tiny_server.address.removeprefix("http://"))
    assert done.returncode == 0 and done.stdout == local.stdout
    (line,) = done.stderr.splitlines()
    assert f"says {tiny_server.address}" in line and "seen from here" in line and "–" not in line
    assert "RAM" not in line and "GB/s" not in line
    again = json.loads(llmrun("run", "tiny", QUESTION, "--server", tiny_server.address, "--json").stdout)
    here = json.loads(llmrun("run", "tiny", QUESTION, "--temp", "0", "--json").stdout)
    assert {*here} < {*again} and again["server"] == tiny_server.address
    for name in ("answer", "thinking", "stop_reason"):
        assert again[name] == here[name]
    assert again["timing"]["n_cached"] > 0 and again["timing"]["tg_tps"] > 0
    assert again["timing"]["n_generated"] == here["timing"]["n_generated"] and again["memory"] is None
    assert "by whose clock" in llmrun("run", "tiny", QUESTION, "--server", tiny_server.address, "-v").stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--json-schema", SCHEMA],
        ["--json-mode", "-n", "200"],
        ["--choice", "yes,no"],
        ["--raw", "--choice", "yes,no"],
        ["--raw", "-n", "9", "--seed", "5", "--temp", "1"],
        ["-n", "5", "--stop", "tiny", "--system", "Be brief."],
    ],
)
def test_held(tiny_server: Server, llmrun: RunLlmrun, options: list[str]) -> None:
    """The same as here, whatever is asked for."""
    temp = [] if "--temp" in options else ["--temp", "0"]
    local = llmrun("run", "tiny", "Hi", "-q", *temp, *options)
    done = llmrun("run", "tiny", "Hi", "-q", *options, "--server", tiny_server.address)
    assert (done.returncode, done.stdout) == (local.returncode, local.stdout), done.stderr


def test_control_tokens_of_a_text_that_is_continued(tiny_server: Server, engine: ChildEngine) -> None:
    """Who writes the whole prompt writes its control tokens, here and there."""
    text = "<|user|>Hi<|end|><|assistant|>"
    there = remote(tiny_server).generate(text, SamplingConfig(max_tokens=2, temperature=0))
    here = engine.generate(text, SamplingConfig(max_tokens=2, temperature=0))
    assert "".join(there) == "".join(here) and there.timing.n_prompt == here.timing.n_prompt
    assert here.timing.n_prompt < engine.count(text, special=False)


@pytest.mark.parametrize("prompt", [[{"role": "user", "content": QUESTION}], "Once upon a"])
def test_an_answer_that_is_begun(tiny_server: Server, engine: ChildEngine, prompt: str | Messages) -> None:
    """It goes on there as it does here."""
    options, greedy = PromptOptions(assistant_prefix="GPU layers"), SamplingConfig(max_tokens=12, temperature=0)
    there = "".join(remote(tiny_server).generate(prompt, greedy, options=options))
    assert there and there == "".join(engine.generate(prompt, greedy, options=options))


def test_tokens_are_counted_as_here(tiny_server: Server, engine: ChildEngine) -> None:
    there = remote(tiny_server)
    (tool,) = tools_of([Function("weather", "Tells it.", {"type": "object", "properties": {}})], "tools")
    call = openai.call_of("abcdefghi", "weather", '{"city":"Oslo"}')  # as a server writes it again
    said: Messages = [
        {"role": "system", "content": "Be brief."},
        *HI,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Rain.", "tool_call_id": "abcdefghi"},
    ]
    for messages, tools in ((HI, []), (said[:2], [tool]), (said, [tool])):
        assert there.count(messages, tools=tools) == engine.count(messages, tools=tools)
    assert there.count("Hello there") == engine.count("Hello there") - engine.count("")


def test_calls_of_tools(tiny_server: Server) -> None:
    """Demanded of a real model: a call that keeps to its schema comes back, and its result is read."""
    days = {"enum": [1, 2, 3]}
    parameters = {"type": "object", "properties": {"days": days}, "required": ["days"]}
    (tool,) = tools_of([Function("weather", "Tells it.", parameters)], "tools")
    engine = remote(tiny_server)
    options = AnswerOptions().for_prompt(tools=[tool], must_call=True, several_calls=False)
    asked = engine.generate(HI, SamplingConfig(temperature=0, max_tokens=200), options=options)
    assert [*asked] == [] and asked.stop_reason == "end"
    (call,) = asked.calls
    assert call.name == "weather" and json.loads(call.arguments)["days"] in (1, 2, 3)
    made = openai.call_of("abcdefghi", *call)
    told = {"role": "tool", "content": "Rain.", "tool_call_id": "abcdefghi"}
    said: Messages = [*HI, {"role": "assistant", "content": "", "tool_calls": [made]}, told]
    options = AnswerOptions().for_prompt(tools=[tool])
    assert "".join(engine.generate(said, SamplingConfig(temperature=0, max_tokens=8), options=options))


def test_too_long(tiny_server: Server) -> None:
    with pytest.raises(PromptTooLong, match="1024"):
        "".join(remote(tiny_server).generate("word " * 3000))


def test_a_model_that_is_not_there(tiny_server: Server, llmrun: RunLlmrun) -> None:
    done = llmrun("run", "qwen3:4b", "Hi", "--server", tiny_server.address)
    assert done.returncode == 4 and "it serves tiny" in done.stderr


def test_a_key(llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Of the environment, or of a file, which goes before; and `auto` finds the one that runs, but not of two."""
    (tmp_path / "keys").write_text("# mine\nright\n")
    home = {"LLMRUN_HOME": str(tmp_path / "home")}
    none = llmrun("run", "tiny", "Hi", "--server", "auto", env=home)
    assert none.returncode == 4 and "no server runs" in none.stderr
    asked = ("run", "tiny", "Hi", "-n", "3", "--server", "auto")
    with serving("tiny", env={"LLMRUN_API_KEY": "right"}, home=tmp_path / "home") as server:
        server.ready()
        without, wrong = llmrun(*asked, env=home), llmrun(*asked, env={**home, "LLMRUN_API_KEY": "wrong"})
        assert without.returncode == wrong.returncode == 2
        assert "needs a key" in without.stderr and "another key" in wrong.stderr
        assert llmrun(*asked, env={**home, "LLMRUN_API_KEY": "right"}).returncode == 0
        of_file = (*asked, "--api-key-file", str(tmp_path / "keys"))
        assert llmrun(*of_file, env={**home, "LLMRUN_API_KEY": "wrong"}).returncode == 0
        with serving("tiny", home=tmp_path / "home") as other:
            two = llmrun(*asked, env=home)
        assert two.returncode == 2 and server.address in two.stderr and other.address in two.stderr
    alone = llmrun("run", "tiny", "Hi", "--api-key-file", str(tmp_path / "keys"))
    assert alone.returncode == 2 and "no server is asked" in alone.stderr


def test_a_conversation(tiny_server: Server, llmrun: RunLlmrun, tmp_path: Path) -> None:
    """Turns, /regen, /undo and what is kept are as with a model of one's own; it goes on with or without the server."""
    env = {"LLMRUN_HOME": str(tmp_path)}
    typed = f"{QUESTION}\n/regen\nHi\n/undo\n/set format json\nHi\n/tokens\n/show\n/stats\n"
    done = llmrun("chat", "tiny", "--server", tiny_server.address, "-n", "60", input=typed, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("GPU layers say how many") == 3  # an answer, another, and /tokens
    assert f"server        {tiny_server.address}" in done.stdout and "seen from here" in done.stdout
    kept = json.loads(llmrun("history", "show", "last", "--json", env=env).stdout)["messages"]
    assert [each["content"] for each in kept if each["role"] == "user"] == [QUESTION, "Hi"]
    assert kept[1]["timing"]["tg_tps"] > 0 and kept[3]["content"].lstrip()[:1] in ("{", "[")
    for more in (["--server", tiny_server.address], ["--temp", "0"]):
        went_on = llmrun("chat", "--continue", *more, input="Hi\n", env=env)
        assert went_on.returncode == 0 and went_on.stdout.strip() and " turns, " in went_on.stderr, went_on.stderr


def active(server: Server) -> int:
    return sum(each["n_active"] for each in server.get("/props")[1]["models"])


def test_ctrl_c(busy: Path, tmp_path: Path) -> None:
    """It ends the answer and frees its place, in a run and in a chat, which goes on."""
    with serving(str(busy), "--ignore-eos", "-np", "1", "-c", "100000", home=tmp_path) as server:
        server.ready()
        asked = [sys.executable, "-m", "llmrun", "run", busy.name, "a", "--server", server.address]
        env = {**os.environ, "LLMRUN_HOME": str(tmp_path)}
        with subprocess.Popen(asked, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env) as run:
            assert run.stdout and run.stdout.read(1)
            assert active(server) == 1
            run.send_signal(signal.SIGINT)
            run.stdout.read()
            assert run.wait(HANGS_S) == 130
        until(lambda: active(server) == 0, "the place is free")
        command = ("chat", busy.name, "--server", server.address, "--system", ENDLESS_PROMPT[:50])
        with Terminal(*command, columns=120, env={"LLMRUN_HOME": str(tmp_path)}) as terminal:
            terminal.wait_for(">>>")
            terminal.type("a\r")
            terminal.wait_for(f"at {server.address}")
            terminal.wait_for("TTFT")  # there is something that stays
            assert active(server) == 1
            terminal.type("\x03")
            terminal.wait_for("stopped")
            until(lambda: active(server) == 0, "the place is free")
            terminal.type("/set n-predict 3\r")
            terminal.wait_for("n-predict is 3")
            terminal.type("b\r")
            terminal.wait_for("3 tokens are reached")


def test_left_in_the_middle_and_cancelled(busy: Path, tmp_path: Path) -> None:
    """Closing an answer and cancelling it both free its place, also before the first token."""
    with serving(str(busy), "--ignore-eos", "-np", "1", "-c", "100000", home=tmp_path) as server:
        server.ready()
        engine = opened(Client(server.address), str(busy))
        answer = engine.generate(ENDLESS_PROMPT[:2000])
        pieces = answer.pieces()
        next(pieces)
        waiting = engine.generate("b")
        waiting.cancel()
        assert [*waiting] == [] and waiting.stop_reason == "cancelled"
        answer.close()
        assert answer.stop_reason == "cancelled"
        until(lambda: active(server) == 0, "the place is free")


def test_the_engine_of_the_server_dies(busy: Path, tmp_path: Path) -> None:
    """It is told as a crash, and the same engine answers the next one."""
    import psutil

    with serving(str(busy), "--ignore-eos", "-np", "1", home=tmp_path) as server:
        server.ready()
        engine = opened(Client(server.address), str(busy))
        answer = engine.generate("a")
        pieces = answer.pieces()
        next(pieces)
        (child,) = [
            each for each in psutil.Process(server.process.pid).children() if "child.main" in " ".join(each.cmdline())
        ]
        child.kill()
        with pytest.raises(EngineCrashed, match="SIGKILL") as crash:
            "".join(text for text, _ in pieces)
        assert "tokens of the answer had come" in crash.value.message
        assert "".join(engine.generate("a", SamplingConfig(max_tokens=2)))


def test_nobody_reads_a_key(tmp_path: Path) -> None:
    """A key with a line break is no header, and an error."""
    with ScriptedServer() as server, pytest.raises(NetworkError):
        Client(server.address, "a\r\nX: y").get("/props", Facts)
