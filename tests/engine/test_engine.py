"""The engine with real children: what it says, and how it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ENDLESS, ENDLESS_PROMPT, EXACT, PATIENT
from waiting import HANGS_S, until_gone, until_it_sleeps, until_worked

from llmrun.api import open_model
from llmrun.engine.engine import ChildEngine, plan_load
from llmrun.engine.generation import ChildGeneration
from llmrun.engine.limits import Limits
from llmrun.engine.process import Child
from llmrun.engine.protocol import Buffer, Count
from llmrun.errors import BadModel, EngineCrashed, LlmrunError, PromptTooLong, UsageError
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.models.resolve import find_model
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0, max_tokens=20)


def ask(engine: ChildEngine, prompt: str, sampling: SamplingConfig = GREEDY) -> str:
    return "".join(engine.generate(prompt, sampling))


def open_file(path: Path, config: LoadConfig | None = None, limits: Limits | None = None) -> ChildEngine:
    return ChildEngine(path, open_header(path), config, limits=limits or PATIENT)


# -- answers ---


def test_greedy_is_repeatable(engine: ChildEngine) -> None:
    """Temperature 0 gives the same text from the same prompt, whatever the seed."""
    first = ask(engine, "Once upon a time")
    other_seed = ask(engine, "Once upon a time", SamplingConfig(temperature=0, max_tokens=20, seed=7))
    assert first == other_seed and len(first) > 20


def test_a_longer_prompt_in_the_same_cells(exact: Path) -> None:
    """A context for 12 tokens has 256 cells, and a batch of 12: the next prompt of 200 is no reason to die."""
    with open_file(exact, EXACT) as engine:
        short = SamplingConfig(temperature=0, max_tokens=2)
        ask(engine, "hello", short)
        again = ask(engine, "x " * 100, short)
    with open_file(exact, EXACT) as engine:
        assert ask(engine, "x " * 100, short) == again


def test_seed_decides(engine: ChildEngine) -> None:
    """The same seed gives the same story; another seed another one."""
    told = [ask(engine, "Once", SamplingConfig(temperature=1.5, seed=seed, max_tokens=30)) for seed in (1, 1, 2)]
    assert told[0] == told[1] != told[2]


def test_random_seed_is_reported(engine: ChildEngine) -> None:
    """A seed that was picked can be used again."""
    generation = engine.generate("Once", SamplingConfig(max_tokens=20))
    again = ask(engine, "Once", SamplingConfig(max_tokens=20, seed=generation.seed))
    assert "".join(generation) == again


def test_max_tokens_is_never_exceeded(engine: ChildEngine) -> None:
    for n in (0, 1, 2, 7):
        generation = engine.generate("Once upon a time", SamplingConfig(temperature=0, max_tokens=n))
        list(generation)
        assert len(generation.token_ids) == n == generation.timing.n_generated
        assert generation.stop_reason == "length"


def test_chat_ends_by_itself(engine: ChildEngine) -> None:
    """The embedded model ends its turn, and the end token is no text."""
    generation = engine.generate([{"role": "user", "content": "What is the KV cache?"}], SamplingConfig(temperature=0))
    text = "".join(generation)
    assert generation.stop_reason == "end"
    assert "<" not in text and len(text) > 20


def test_stop_text_across_tokens(engine: ChildEngine) -> None:
    """A stop text that no token contains as a whole ends the answer before it, and none of it is shown."""
    whole = ask(engine, "Once upon a time", SamplingConfig(temperature=0, max_tokens=40))
    stop = whole[15:27]
    sampling = SamplingConfig(temperature=0, max_tokens=40, stop=("never said", stop))
    generation = engine.generate("Once upon a time", sampling)
    assert "".join(generation) == whole[: whole.index(stop)]
    assert generation.stop_reason == "stop"


def test_stop_text_that_almost_comes(engine: ChildEngine) -> None:
    """What looked like the beginning of a stop text is shown when it turns out to be none."""
    whole = ask(engine, "Once upon a time", SamplingConfig(temperature=0, max_tokens=40))
    almost = whole[10:20] + "\x00"
    assert ask(engine, "Once upon a time", SamplingConfig(temperature=0, max_tokens=40, stop=(almost,))) == whole


def test_logit_bias_forbids_and_forces(engine: ChildEngine) -> None:
    plain = engine.generate("Once upon a time", GREEDY)
    list(plain)
    first = plain.token_ids[0]
    banned = engine.generate("Once upon a time", SamplingConfig(temperature=0, max_tokens=1, logit_bias={first: -1e5}))
    list(banned)
    assert banned.token_ids[0] != first
    forced = SamplingConfig(temperature=0, max_tokens=3, logit_bias={first: 1e5})
    generation = engine.generate("Once upon a time", forced)
    list(generation)
    assert generation.token_ids == [first] * 3


def test_penalties_change_the_answer(micro: Path) -> None:
    """A model that repeats itself does so less when that costs."""
    with open_file(micro) as engine:
        plain = engine.generate("a a a", SamplingConfig(temperature=0, max_tokens=60))
        list(plain)
        for penalty in (
            SamplingConfig(temperature=0, max_tokens=60, repeat_penalty=2.0),
            SamplingConfig(temperature=0, max_tokens=60, presence_penalty=20.0),
            SamplingConfig(temperature=0, max_tokens=60, frequency_penalty=20.0),
        ):
            fresh = engine.generate("a a a", penalty)
            list(fresh)
            assert len(set(fresh.token_ids)) > len(set(plain.token_ids)), penalty


def test_top_k_one_is_greedy(engine: ChildEngine) -> None:
    """Each filter at its narrowest leaves the likeliest token, at any temperature."""
    greedy = ask(engine, "Once upon a time")
    for narrow in (
        SamplingConfig(temperature=5, max_tokens=20, top_k=1),
        SamplingConfig(temperature=5, max_tokens=20, top_p=0.0),
        SamplingConfig(temperature=5, max_tokens=20, min_p=1.0),
    ):
        assert ask(engine, "Once upon a time", narrow) == greedy, narrow


@pytest.mark.parametrize("text", ["naïve 🙂 漢字", "עברית \u202e\x00", "\U0010ffff tabs\tand\nlines", "a  b   c"])
def test_any_utf8_round_trips(engine: ChildEngine, text: str) -> None:
    """Byte fallback: text that the vocabulary has never seen is tokens, and the same text when they are forced out."""
    code = (
        "import sys; from llmrun.engine.child.native import Vocab, llama; llama.llama_backend_init();"
        "p = llama.llama_model_default_params(); p.vocab_only = True;"
        "v = Vocab(llama.llama_model_load_from_file(sys.argv[1].encode(), p));"
        "ids = v.tokenize(sys.stdin.read(), add_special=False);"
        "sys.stdout.buffer.write(b''.join(v.piece(i) for i in ids))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(engine.path)], input=text.encode(), capture_output=True)
    assert done.stdout.decode().removeprefix(" ") == text
    ask(engine, text).encode("utf-8")


def test_invalid_bytes_become_replacement_characters(micro: Path) -> None:
    """Forced byte tokens that are no UTF-8 arrive as U+FFFD, and whole characters as themselves."""
    with open_file(micro) as engine:
        byte = {value: 3 + value for value in range(256)}  # the synthetic vocabulary's byte tokens
        for value, n_shown in ((0xFF, 3), (0xE2, 2)):  # the last 0xE2 may begin a character, which is cut away
            lonely = SamplingConfig(temperature=0, max_tokens=3, logit_bias={byte[value]: 1e5})
            assert ask(engine, "a", lonely) == "\ufffd" * n_shown


def test_tokens_longer_than_32_bytes(tmp_path: Path) -> None:
    """A token's text may be of any length."""
    vocab = synth.vocabulary(512)
    vocab[0][400] = b"x" * 300
    path = tmp_path / "long.gguf"
    synth.write(path, synth.SHAPES["micro"], "F16", vocab=vocab)
    with open_file(path) as engine:
        forced = SamplingConfig(temperature=0, max_tokens=2, logit_bias={400: 1e5})
        assert ask(engine, "a", forced) == "x" * 600


def test_context_full_ends_the_answer(micro: Path) -> None:
    """Prompt and answer together never exceed the context that was asked for, even a tiny one."""
    with open_file(micro, LoadConfig(n_ctx=40)) as engine:
        generation = engine.generate("a b c", SamplingConfig(temperature=0, logit_bias={2: float("-inf")}))
        list(generation)
        assert generation.stop_reason == "context" and generation.n_ctx == 40
        # The last token needs no place of its own: nothing is computed behind it.
        assert generation.timing.n_prompt + generation.timing.n_generated == 41


def test_prompt_longer_than_context(micro: Path) -> None:
    with open_file(micro, LoadConfig(n_ctx=300)) as engine:
        with pytest.raises(PromptTooLong, match=r"the prompt has \d{3,4} tokens, the context holds 300"):
            ask(engine, "b" * 999)
        assert ask(engine, "a")  # and the engine lives on


def test_context_grows_with_the_prompt(tmp_path: Path) -> None:
    """Without -c the context is what prompt and answer need, 4096 if that is open, at most what it was trained on."""
    path = tmp_path / "long.gguf"
    synth.write(path, replace(synth.SHAPES["micro"], n_ctx_train=1 << 13), "Q8_0")
    with open_file(path) as engine:
        for n_prompt in (10, 6000, 100):
            generation = engine.generate("b" * (n_prompt - 2), GREEDY)
            list(generation)
            assert generation.timing.n_prompt == n_prompt
            assert generation.n_ctx == n_prompt + 20
        unbounded = engine.generate("b", SamplingConfig(temperature=0, stop=("b", "e", "a")))
        list(unbounded)
        assert unbounded.n_ctx == 4096
        with pytest.raises(PromptTooLong, match="the context holds 8192"):
            ask(engine, "b" * 9000)


def test_prefill_in_batches_gives_the_same(exact: Path) -> None:
    """n_batch and n_ubatch change how the prompt is computed, not what comes of it."""
    seen, texts = [], set()
    for n_batch, n_ubatch in ((2048, 512), (7, 3), (64, 64)):
        with open_file(exact, replace(EXACT, n_batch=n_batch, n_ubatch=n_ubatch)) as engine:
            generation = engine.generate("b c d " * 30, GREEDY, on_prefill=lambda done, of: seen.append((done, of)))
            texts.add("".join(generation))
            assert seen[-1][0] == seen[-1][1] == generation.timing.n_prompt
    assert len(texts) == 1 and len(seen) > 20


def test_settings_do_not_change_the_answer() -> None:
    """Repacking, flash attention and threads are about speed. Asked what it has learned by heart: its best two logits
    are 5 apart all the way, where the ones of a story are 0.002."""
    question, texts = [{"role": "user", "content": "What is a token?"}], set()
    for config in (
        LoadConfig(repack="on"),
        LoadConfig(repack="off"),
        LoadConfig(flash_attn="off"),
        LoadConfig(n_threads=1, n_threads_batch=2),
    ):
        with open_model("tiny", config) as engine:
            texts.add("".join(engine.generate(question, SamplingConfig(temperature=0, max_tokens=30))))
    assert len(texts) == 1


def test_buffers_are_those_of_the_log(micro: Path) -> None:
    """The KV cache of 512 f16 tokens: 2 layers × 2 heads × (64 + 64) elements × 2 bytes."""
    with open_file(micro, LoadConfig(n_ctx=512)) as engine:
        generation = engine.generate("a", GREEDY)
        list(generation)
        assert Buffer("CPU", "KV", 512 * 2 * 2 * 128 * 2) in generation.buffers
        assert any(buffer.kind == "model" for buffer in generation.buffers)


# -- the meter on real events ---


def test_timing_of_a_real_run(engine: ChildEngine) -> None:
    """Every part is there, in order, and the parts don't exceed the whole: both clocks are one."""
    begin = time.perf_counter()
    generation = engine.generate("Once upon a time", GREEDY)
    list(generation)
    wall = time.perf_counter() - begin
    timing = generation.timing
    assert timing.n_generated == 20 and len(timing.step_s) == 19
    assert timing.prefill_s and timing.ttft_s and timing.load_s
    assert 0 < timing.prefill_s <= timing.ttft_s
    assert timing.ttft_s + timing.decode_s <= wall
    assert timing.peak_rss_bytes and timing.peak_rss_bytes > 5 << 20
    assert timing.pp_tps == timing.n_prompt / timing.prefill_s


# -- cancel ---


def test_cancel_keeps_the_engine(busy: Path) -> None:
    """Leaving the loop early ends an answer without end; the same engine gives the next one, undisturbed."""
    with open_file(busy) as engine:
        pid = engine.pid
        expected = ask(engine, "a b c", SamplingConfig(temperature=0, max_tokens=3))
        for _ in range(3):
            generation = engine.generate("a b c", ENDLESS)
            next(iter(generation))
            generation.close()
            assert generation.stop_reason == "cancelled" and len(generation.token_ids) < ENDLESS.max_tokens
            assert engine.alive and engine.pid == pid
        assert ask(engine, "a b c", SamplingConfig(temperature=0, max_tokens=3)) == expected


def test_an_engine_that_does_not_stop_is_ended(micro: Path) -> None:
    """Whoever wants no more does not wait for a child that does not hear: after `cancel_s` it is killed."""
    with open_file(micro, limits=Limits(cancel_s=0.1)) as engine:
        generation = engine.generate("a", ENDLESS)
        next(iter(generation))
        os.kill(engine.pid, signal.SIGSTOP)
        generation.close()
        assert generation.stop_reason == "cancelled" and not engine.alive


def test_ctrl_c_in_prefill(busy: Path) -> None:
    """A prompt of tens of thousands of tokens takes minutes; Ctrl-C in the middle of it leaves nothing."""
    engine = open_file(busy, limits=Limits())
    pid = engine.pid
    seen: list[int] = []

    def interrupt(n_done: int, n_prompt: int) -> None:
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(n_prompt - n_done)

    with pytest.raises(KeyboardInterrupt), engine:
        list(engine.generate(ENDLESS_PROMPT, ENDLESS, on_prefill=interrupt))
    assert len(seen) <= 1 and not engine.alive
    until_gone(pid)


def test_leaving_early_does_not_leak_into_the_next(engine: ChildEngine) -> None:
    """`break` leaves a generation in the middle; the next question gets its own answer."""
    expected = ask(engine, "The dog")
    left = engine.generate("Once upon a time", SamplingConfig(temperature=0))
    for _ in left:
        break
    assert ask(engine, "The dog") == expected
    assert left.stop_reason == "cancelled" and list(left) == []


def test_one_generation_at_a_time(engine: ChildEngine) -> None:
    """A second thread that asks meanwhile is told so, and disturbs nothing."""
    expected = ask(engine, "Once upon a time", SamplingConfig(temperature=0, max_tokens=60))
    refused: list[LlmrunError] = []
    inside, tried = threading.Event(), threading.Event()

    def on_prefill(_done: int, _of: int) -> None:  # called while the generation runs
        inside.set()
        assert tried.wait(HANGS_S)

    def intrude() -> None:
        inside.wait(HANGS_S)
        try:
            ask(engine, "The dog")
        except LlmrunError as error:
            refused.append(error)
        tried.set()

    thread = threading.Thread(target=intrude)
    thread.start()
    generation = engine.generate(
        "Once upon a time", SamplingConfig(temperature=0, max_tokens=60), on_prefill=on_prefill
    )
    assert "".join(generation) == expected
    thread.join()
    assert [error.exit_code for error in refused] == [2]


def test_engine_outlives_the_thread_that_opened_it(micro: Path) -> None:
    """The child lives as long as its parent does, which for Linux can be the thread that made it (PDEATHSIG)."""
    box: list[ChildEngine] = []
    thread = threading.Thread(target=lambda: box.append(open_file(micro)))
    thread.start()
    thread.join()
    until_it_sleeps(box[0].pid)  # it has had the time to look who its parent is
    with box[0] as engine:
        assert ask(engine, "a")


def test_cancel_right_behind_the_request(micro: Path) -> None:
    """A Cancel that arrives before the request is served is not lost, and costs no engine."""
    with open_file(micro) as engine:
        for _ in range(20):
            generation = engine.generate("b " * 200, SamplingConfig(temperature=0))
            generation.cancel()
            list(generation)
            assert generation.stop_reason == "cancelled"
        assert ask(engine, "a")


def test_slow_reader_does_not_slow_the_meter(exact: Path) -> None:
    """Who reads nothing holds nothing up: more than a pipe takes is computed meanwhile, and by the child's clock."""
    with open_file(exact, LoadConfig(n_threads=1)) as engine:
        begin = time.perf_counter()
        generation = engine.generate("a", SamplingConfig(temperature=0, max_tokens=4000, ignore_eos=True))
        next(iter(generation))
        until_it_sleeps(engine.pid)  # all is said, and nobody has listened yet
        listened = time.perf_counter()
        list(generation)
        timing = generation.timing
        assert timing.n_generated == 4000 and timing.ttft_s and timing.decode_s
        assert timing.ttft_s + timing.decode_s < listened - begin


def test_penalties_see_the_prompt(micro: Path) -> None:
    """A token of the prompt is penalized from the first step on, as in llama.cpp's own tools."""
    letter_b = synth.vocabulary(512)[0].index(b"b")
    favoured = SamplingConfig(temperature=0, max_tokens=1, logit_bias={letter_b: 50.0})
    with open_file(micro) as engine:
        for sampling, says_b in ((favoured, True), (replace(favoured, presence_penalty=90.0), False)):
            generation = engine.generate("bbb", sampling)
            list(generation)
            assert (generation.token_ids == [letter_b]) is says_b


# -- death ---


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_killed_engine_is_an_error(busy: Path, sent: signal.Signals) -> None:
    """A child that dies in the middle of an answer is `EngineCrashed`, naming the signal."""
    with open_file(busy) as engine:
        generation = engine.generate("a", ENDLESS)
        next(iter(generation))
        os.kill(engine.pid, sent)
        with pytest.raises(EngineCrashed, match=sent.name) as caught:
            list(generation)
        assert caught.value.exit_code == 9
        assert not engine.alive


def test_abort_text_is_carried(tmp_path: Path) -> None:
    """llama.cpp aborts on a vocabulary with the same token twice; the error says what it said."""
    vocab = synth.vocabulary(512)
    vocab[0][400] = vocab[0][401]
    twice = tmp_path / "twice.gguf"
    synth.write(twice, synth.SHAPES["micro"], "F16", vocab=vocab)
    with pytest.raises(EngineCrashed, match="GGML_ASSERT|ASSERT") as caught:
        open_file(twice)
    assert caught.value.exit_code == 9


def test_refused_model_gives_llama_cpps_reason(tmp_path: Path, micro: Path) -> None:
    path = tmp_path / "unknown.gguf"
    path.write_bytes(micro.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lxama", 1))
    with pytest.raises(BadModel, match="lxama"):
        open_file(path)


def test_hung_start_is_ended(micro: Path) -> None:
    """A child that is stopped before it is ready is ended at the limit."""
    child = Child("child.main", spins=True)
    os.kill(child.pid, signal.SIGSTOP)
    with pytest.raises(EngineCrashed, match="was still starting after"):
        ChildEngine(micro, open_header(micro), limits=Limits(start_s=0.1), child=child)
    until_gone(child.pid)


def test_hung_load_is_ended(micro: Path, tmp_path: Path) -> None:
    """So is one that stops in the header phase: here at a pipe that nobody writes to, under the model's name."""
    os.mkfifo(tmp_path / "pipe.gguf")
    child = Child("child.main", spins=True)
    with pytest.raises(EngineCrashed, match="was still reading the header after"):
        ChildEngine(tmp_path / "pipe.gguf", open_header(micro), limits=Limits(header_s=0.1), child=child)
    until_gone(child.pid)


def test_hung_decode_is_ended(micro: Path) -> None:
    """A child that does nothing at all for the idle limit is ended; a busy one never is."""
    with open_file(micro) as engine:
        ask(engine, "a")
        engine.connection.limits = Limits(idle_s=0.5)  # not before: on a busy machine any child may get nothing so long
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(EngineCrashed, match="did nothing for"):
            ask(engine, "a")
        until_gone(engine.pid)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ 'A' * 8000000000 }}", "512 MiB"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ '{0} {1}'.format(1) }}", "IndexError"),
        ("{{ 'a'.encode('zz') }}", "LookupError"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('not for you') }}", "not for you"),
    ],
)
def test_bad_template_is_said(tmp_path: Path, template: str, words: str) -> None:
    """A template that fills memory, breaks out or fails is an unusable model, and the engine lives on."""
    with open_file(with_template(tmp_path, template)) as engine:
        with pytest.raises(BadModel, match=words):
            list(engine.generate([{"role": "user", "content": "hello"}]))
        assert ask(engine, "a")


def test_looping_template_is_ended(tmp_path: Path) -> None:
    """A template without end is ended after its limit of CPU time. How soon: scripts/fault_engine.py."""
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path = with_template(tmp_path, loop)
    with open_file(path) as engine:
        with pytest.raises(EngineCrashed, match="the chat template took more than"):
            list(engine.generate([{"role": "user", "content": "hello"}]))
        assert not engine.alive


def with_template(folder: Path, template: str) -> Path:
    """The micro shape with a chat template."""
    path = folder / "template.gguf"
    synth.write(path, synth.SHAPES["micro"], "F16", chat_template=template)
    return path


def test_template_without_system_role(tmp_path: Path) -> None:
    """Where a template refuses a system message, its text goes before the user's."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    with open_file(with_template(tmp_path, template)) as engine:
        system, user = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
        merged = engine.generate([system, user], GREEDY)
        list(merged)
        plain = engine.generate("S\nU", GREEDY)
        assert merged.text == "".join(plain)


def test_child_dies_with_its_parent(busy: Path) -> None:
    """kill -9 of the parent, in the middle of a prefill, leaves no process behind."""
    code = (
        "import sys; from pathlib import Path; from llmrun.gguf.reader import open_header; "
        "from llmrun.engine.engine import ChildEngine; p = Path(sys.argv[1]); e = ChildEngine(p, open_header(p)); "
        "print(e.pid, flush=True); list(e.generate(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(busy), ENDLESS_PROMPT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        until_worked(pid, 4)  # of which libraries and weights take a fraction
        parent.kill()
    until_gone(pid)


def test_out_of_memory_names_a_smaller_context(tmp_path: Path) -> None:
    """With 900 MB of address space and a context of 200,000 tokens: exit 10, and what -c to take instead."""
    code = (
        "import sys, resource; from pathlib import Path; "
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20)); "
        "from llmrun.__main__ import main; sys.argv = ['llmrun', 'run', sys.argv[1], 'a', '-c', '200000', '-t', '1']; "
        "main()"
    )
    shape_path = tmp_path / "deep.gguf"
    synth.write(shape_path, synth.Shape(8, 1024, 512, 8, 8, 512, n_ctx_train=1 << 20), "Q8_0")
    done = subprocess.run(
        [sys.executable, "-c", code, str(shape_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 10, done.stderr
    assert "-c " in done.stderr and "200000 tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_engine_says_so(engine: ChildEngine) -> None:
    """Use after close is an error, not a crash."""
    engine.close()
    engine.close()
    with pytest.raises(LlmrunError):
        ask(engine, "a")


def test_load_and_unload_leaves_nothing(micro: Path) -> None:
    """Descriptors and children of the parent stay as they were."""
    me = psutil.Process()
    open_file(micro).close()
    before = me.num_fds()
    for _ in range(5):
        open_file(micro).close()
    assert me.num_fds() == before
    assert not [child for child in me.children() if child.status() != psutil.STATUS_ZOMBIE]


def test_user_folder_is_not_imported_from(tmp_path: Path, micro: Path) -> None:
    """A file named json.py where the user works is not run by the child."""
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "llama_cpp.py").write_text("raise SystemExit('hijacked')")
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        with open_file(micro) as engine:
            assert ask(engine, "a")
    finally:
        os.chdir(before)


def test_usage_error_from_the_child(tmp_path: Path, micro: Path) -> None:
    with open_file(micro) as engine, pytest.raises(UsageError, match="no chat template"):
        list(engine.generate([{"role": "user", "content": "hello"}]))


def test_find_model_reads_before_native() -> None:
    model = find_model("TINY")
    assert model.header.architecture == "llama"


def test_logit_bias_beyond_the_vocabulary(micro: Path) -> None:
    with open_file(micro) as engine, pytest.raises(UsageError, match="no token 99999999, the vocabulary has 512"):
        ask(engine, "a", SamplingConfig(logit_bias={99_999_999: 1.0}))


# -- one timeline, and loading again ---


def test_closing_the_pieces_closes_the_generation(busy: Path) -> None:
    """Both kinds of iterators; forgetting one does not end it."""
    with open_file(busy) as engine:
        kinds: list[Callable[[ChildGeneration], Any]] = [iter, ChildGeneration.pieces]
        for iterator in kinds:
            generation = engine.generate("a", ENDLESS)
            next(iterator(generation))
            assert generation.stop_reason is None
            iterator(generation).close()
            assert generation.stop_reason == "cancelled"
        assert ask(engine, "a")


def test_bare_runs_and_preparing_take_turns(engine: ChildEngine) -> None:
    """In the middle of an answer both are refused, and the answer goes on unharmed."""
    expected = ask(engine, "Once upon a time")
    generation = engine.generate("Once upon a time", GREEDY)
    begun = next(iter(generation))
    with pytest.raises(UsageError, match="another generation"):
        engine.trial(4, 4)
    with pytest.raises(UsageError, match="another generation"):
        engine.prepare([{"role": "user", "content": "Hello"}])
    assert begun + "".join(generation) == expected


def test_preparing_is_ended_by_the_next_request(engine: ChildEngine) -> None:
    """Which gets its own answer, whatever kind of request it is."""
    n = engine.count("Once upon a time")
    messages = [{"role": "system", "content": "Be brief. " * 20}]
    for _ in range(3):
        engine.prepare(messages)
        assert engine.count("Once upon a time") == n
    engine.prepare(messages)
    assert len(engine.trial(4, 3).step_s) == 3
    assert ask(engine, "Once upon a time")


def test_left_in_the_middle_of_a_request(engine: ChildEngine) -> None:
    """An interrupt while an answer is waited for: the next request gets its own, and the engine lives on."""
    n = engine.count("Once upon a time")
    engine.connection.begin(Count("The dog"))  # as `ask` leaves it behind at a Ctrl-C
    assert engine.count("Once upon a time") == n and engine.alive


def test_plan_then_load(micro: Path) -> None:
    """A plan made without an engine is what an engine makes, loads as it is, and computes the same."""
    config = LoadConfig(n_ctx=512, n_threads=1)
    plan = plan_load(micro, open_header(micro), config)
    with open_file(micro, config) as engine:
        assert engine.plan.layout == plan.layout and engine.plan.footprint == plan.footprint
        expected = ask(engine, "a")
    with ChildEngine.open(plan, open_header(micro)) as engine:
        assert engine.plan is plan and ask(engine, "a") == expected


def open_for_short_prompts(path: Path, on_progress: Callable[[float], None] | None = None) -> ChildEngine:
    """With a plan for 256 tokens at most: a longer prompt has the model loaded again."""
    plan = plan_load(path, open_header(path), LoadConfig(n_threads=1))
    return ChildEngine.open(replace(plan, n_ctx_most=256), open_header(path), limits=PATIENT, on_progress=on_progress)


def test_a_reload_is_another_process(micro: Path) -> None:
    """What watches the engine, its load time and the meter's are those of the child that computes now."""
    with open_for_short_prompts(micro) as engine:
        pid, before = engine.pid, engine.loaded
        generation = engine.generate("b " * 180, GREEDY)
        list(generation)
        assert engine.notes[-1].endswith("more than was planned for: loaded again")
        after = engine.loaded
        assert engine.pid != pid and after.begin_s > before.end_s
        assert generation.timing.load_s == after.end_s - after.begin_s


def test_a_cancel_during_a_reload_is_kept(micro: Path) -> None:
    """Ctrl-C while the model is loaded again for a longer prompt: nothing is generated, and the engine lives on."""
    running: list[ChildGeneration] = []

    def cancel(_fraction: float) -> None:
        for generation in running:
            generation.cancel()

    with open_for_short_prompts(micro, cancel) as engine:
        running.append(engine.generate("b " * 180, GREEDY))
        assert "".join(running[0]) == "" and running[0].stop_reason == "cancelled"
        assert engine.notes[-1].endswith("loaded again")
        running.clear()
        assert ask(engine, "a")


def test_the_queue_is_seen(engine: ChildEngine) -> None:
    """TTFT counts from when the request was received; what of it was waiting for others is told."""
    generation = engine.generate("Once upon a time", GREEDY)
    list(generation)
    timing = generation.timing
    assert timing.queue_s is not None and timing.ttft_s is not None and 0 <= timing.queue_s < timing.ttft_s
