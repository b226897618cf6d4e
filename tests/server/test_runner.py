"""An engine on a thread of its own: answers side by side, the queue, questions, crashes, and the end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS, EXACT, PATIENT
from waiting import until_gone

from llmrun.chat.answer_options import AnswerOptions
from llmrun.engine.engine import ChildEngine
from llmrun.engine.limits import Limits
from llmrun.engine.protocol import Decode, Decoded, Encode, Encoded, PromptOptions
from llmrun.errors import BadModel, EngineCrashed, NotFound, OutOfMemory, PromptTooLong
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.server.pool import Pool, Served
from llmrun.server.runner import Busy, Runner, Stopping, Stream, Width

GREEDY = SamplingConfig(temperature=0, max_tokens=24)
OPTIONS = PromptOptions(reuse=True)


def opener(path: Path, config: LoadConfig = LoadConfig()) -> Callable[[], ChildEngine]:  # noqa: B008  # frozen
    header = open_header(path)
    return lambda: ChildEngine(path, header, config, limits=PATIENT)


def width(n_seq: int, n_ctx: int = 512) -> Callable[[ChildEngine], Width]:
    return lambda _: Width(n_seq, n_ctx, n_ctx)


def run(work: Awaitable[None]) -> None:
    asyncio.run(work)  # type: ignore[arg-type]


async def text_of(stream: Stream) -> str:
    return "".join([piece.text async for piece in stream])


def test_as_alone(exact: Path) -> None:
    """More requests than places, of different lengths: each has the answer that it has alone."""
    prompts = [f"{'b c ' * (i % 5)}{chr(97 + i)} d e" for i in range(10)]
    asked = [replace(GREEDY, max_tokens=6 + 4 * (i % 4), ignore_eos=True) for i in range(10)]
    with opener(exact, EXACT)() as engine:
        alone = ["".join(engine.generate(prompt, each)) for prompt, each in zip(prompts, asked, strict=True)]

    async def work() -> None:
        runner = Runner("exact", opener(exact, EXACT), width(3))
        streams = [runner.submit(prompt, each, OPTIONS) for prompt, each in zip(prompts, asked, strict=True)]
        assert await asyncio.gather(*map(text_of, streams)) == alone
        assert runner.totals.n_answers == 10 and runner.totals.n_generated == sum(each.max_tokens for each in asked)
        assert runner.is_idle
        await runner.close()
        assert runner.state == "closed"

    run(work())


def test_who_leaves_makes_room(busy: Path) -> None:
    """One that waits is gone from the queue; one that is being made ends, and the next one is answered."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1))
        endless, second = (runner.submit(text, ENDLESS, OPTIONS) for text in "ab")
        third = runner.submit("c", replace(ENDLESS, max_tokens=2), OPTIONS)
        await endless.begun()
        assert (runner.n_active, runner.n_waiting) == (1, 2)
        second.cancel()
        assert runner.n_waiting == 1
        endless.cancel()
        with pytest.raises(Stopping):
            await text_of(endless)
        await text_of(third)
        third.cancel()  # too late: of no effect
        await runner.close()

    run(work())


def test_questions_wait_for_nobody(busy: Path) -> None:
    """Tokens are told while an answer is made that does not end."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(2))
        early = asyncio.create_task(runner.ask(Encode("a b")))
        endless = runner.submit("a", ENDLESS, OPTIONS)
        await endless.begun()
        found = await runner.ask(Encode("a b"))
        assert isinstance(found, Encoded) and found == await early
        text = await runner.ask(Decode(found.ids))
        assert isinstance(text, Decoded) and text.text == "a b" == b"".join(found.pieces).decode().lstrip()
        with pytest.raises(Exception, match="there is no token"):
            await runner.ask(Decode([1 << 30]))
        assert endless.answer and endless.answer.stop_reason is None
        endless.cancel()
        await runner.close()

    run(work())


def test_no_queue_after_a_crash(busy: Path) -> None:
    """Who asks first while it is loaded again has a place, though nobody may wait for one."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1), most_waiting=0)
        short = replace(ENDLESS, max_tokens=2)
        await text_of(runner.submit("a", short, OPTIONS))
        assert runner.engine
        os.kill(pid := runner.engine.pid, signal.SIGKILL)
        await asyncio.to_thread(until_gone, pid)
        again = runner.submit("a", short, OPTIONS)
        with pytest.raises(Busy, match="wait already|none may wait"):
            runner.submit("b", short, OPTIONS)
        await text_of(again)
        await runner.close()

    run(work())


def test_an_engine_that_does_nothing(busy: Path) -> None:
    """It is ended, and who asks next has a new one; nobody waits for it for ever."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1))
        endless = runner.submit("a", ENDLESS, OPTIONS)
        await endless.begun()
        assert runner.engine
        os.kill(runner.engine.pid, signal.SIGSTOP)
        runner.engine.connection.limits = Limits(idle_s=0.5)  # not before: any child may get nothing so long
        with pytest.raises(EngineCrashed, match=r"did nothing for 500 ms"):
            await text_of(endless)
        await text_of(runner.submit("b", replace(ENDLESS, max_tokens=2), OPTIONS))
        assert runner.totals.n_crashes == 1
        await runner.close()

    run(work())


def test_a_message_longer_than_the_pipe(busy: Path) -> None:
    """An engine that does not read it holds up nobody but who asked; then it goes on where it was."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1))
        await runner.ready()
        assert runner.engine
        os.kill(runner.engine.pid, signal.SIGSTOP)
        asked = [asyncio.ensure_future(runner.ask(Encode("a b " * n))) for n in (1 << 17, 1)]
        await asyncio.sleep(0.05)
        os.kill(runner.engine.pid, signal.SIGCONT)
        long, short = await asyncio.gather(*asked)
        assert isinstance(long, Encoded) and isinstance(short, Encoded) and len(long.ids) > 1000 * len(short.ids)
        os.kill(runner.engine.pid, signal.SIGSTOP)
        lost = asyncio.ensure_future(runner.ask(Encode("a b " * (1 << 17))))
        await asyncio.sleep(0.05)
        os.kill(runner.engine.pid, signal.SIGKILL)
        assert isinstance(await lost, Encoded) and runner.totals.n_crashes == 1
        await runner.close()

    run(work())


def test_an_engine_that_died_while_nobody_asked(busy: Path) -> None:
    """Whoever asks next, for an answer or about tokens, has it from a new one."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(2))
        for n_crashes, ask in enumerate((None, "answer", "question")):
            if ask is not None:
                assert runner.engine
                pid = runner.engine.pid
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(until_gone, pid)
            if ask == "question":
                assert isinstance(await runner.ask(Encode("a b")), Encoded)
            else:
                assert await text_of(runner.submit("c", replace(ENDLESS, max_tokens=3), OPTIONS)) is not None
            assert runner.totals.n_crashes == n_crashes and runner.totals.n_errors == 0
        await runner.close()

    run(work())


def test_a_crash_is_an_error_for_those_alone(busy: Path) -> None:
    """Those that were being answered; who waits is answered by a new engine."""

    async def work() -> None:
        told: list[str] = []
        runner = Runner("busy", opener(busy), width(2), on_note=told.append)
        lost = [runner.submit(text, ENDLESS, OPTIONS) for text in "ab"]
        waits = runner.submit("c", replace(ENDLESS, max_tokens=3), OPTIONS)
        for stream in lost:
            await stream.begun()
        assert runner.engine
        os.kill(runner.engine.pid, signal.SIGKILL)
        for stream in lost:
            with pytest.raises(EngineCrashed):
                await text_of(stream)
        assert await text_of(waits) is not None and waits.answer and waits.answer.stop_reason == "length"
        assert runner.totals.n_crashes == 1 and runner.totals.n_errors == 2 and "loaded again" in told[0]
        await runner.close()

    run(work())


def test_no_more_than_may_wait(busy: Path) -> None:
    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1), most_waiting=1)
        first = runner.submit("a", ENDLESS, OPTIONS)
        await first.begun()
        second = runner.submit("b", ENDLESS, OPTIONS)
        with pytest.raises(Busy, match="1 requests wait"):
            runner.submit("c", ENDLESS, OPTIONS)
        await runner.close()
        for stream in (first, second):
            with pytest.raises(Stopping):
                await text_of(stream)
        with pytest.raises(Stopping):
            runner.submit("d", ENDLESS, OPTIONS)

    run(work())


def test_what_runs_may_end(busy: Path) -> None:
    """Closed with time for it, an answer is whole."""

    async def work() -> None:
        runner = Runner("busy", opener(busy), width(1))
        stream = runner.submit("a", replace(ENDLESS, max_tokens=12), OPTIONS)
        await stream.begun()
        closing = asyncio.create_task(runner.close(limit_s=300))
        await text_of(stream)
        assert stream.answer and stream.answer.stop_reason == "length"
        await closing

    run(work())


def test_an_error_is_that_of_its_request(exact: Path) -> None:
    async def work() -> None:
        runner = Runner("exact", opener(exact, replace(EXACT, n_ctx=256)), width(2, 256))
        long, short = runner.submit("a b " * 400, GREEDY, OPTIONS), runner.submit("a", GREEDY, OPTIONS)
        with pytest.raises(PromptTooLong):
            await long.begun()
        assert await text_of(short) is not None
        await runner.close()

    run(work())


def test_what_can_not_be_loaded(micro: Path) -> None:
    """Everybody who waits is told why, and nothing is taken any more."""

    asked = threading.Event()

    def fails() -> ChildEngine:
        asked.wait()
        raise BadModel("it is none")

    async def work() -> None:
        runner = Runner("bad", fails, width(1))
        stream = runner.submit("a", GREEDY, OPTIONS)
        asked.set()
        for wait in (runner.ready, stream.begun, lambda: text_of(stream)):
            with pytest.raises(BadModel, match="it is none"):
                await wait()
        with pytest.raises(BadModel):
            runner.submit("b", GREEDY, OPTIONS)
        assert runner.state == "failed"
        await runner.close()

    run(work())


# -- several models ----------------------------------------------------------------------------------------------------


def served(name: str, path: Path, open_engine: Callable[[], ChildEngine] | None = None, **more: Any) -> Served:
    return Served(name, path, open_engine or opener(path), width(1), SamplingConfig(), AnswerOptions(), **more)


def test_the_least_recently_used_makes_room(micro: Path) -> None:
    """Where a third model finds no memory beside two; not the one that is answering."""

    async def work() -> None:
        pool: Pool

        def third() -> ChildEngine:
            if len([each for each in pool.runners.values() if each.state == "ready"]) > 1:
                raise OutOfMemory("no room for a third")
            return opener(micro)()

        pool = Pool([served("a", micro), served("b", micro), served("c", micro, third)])
        first, second = await pool.runner("a"), await pool.runner("b")
        assert await pool.runner("a") is first
        endless = first.submit("a", replace(GREEDY, max_tokens=-1), OPTIONS)
        await endless.begun()
        found = await pool.runner("c")
        assert sorted(pool.runners) == ["a", "c"] and second.state == "closed" and found.state == "ready"
        endless.cancel()
        await pool.close()
        assert not pool.runners

    run(work())


def test_who_asks_while_room_is_made(micro: Path) -> None:
    """Waits for it too: the first try's error is nobody's."""

    async def work() -> None:
        pool: Pool
        may_fail = threading.Event()

        def second() -> ChildEngine:
            may_fail.wait()
            if pool.is_loaded("a"):
                raise OutOfMemory("no room beside a")
            return opener(micro)()

        pool = Pool([served("a", micro), served("b", micro, second)])
        await pool.runner("a")
        asked = [asyncio.create_task(pool.runner("b")) for _ in range(3)]
        await asyncio.sleep(0)  # all of them wait for the same try
        may_fail.set()
        found = await asyncio.gather(*asked)
        assert len({id(runner) for runner in found}) == 1 and sorted(pool.runners) == ["b"]
        await pool.close()

    run(work())


def test_one_that_never_fits(micro: Path) -> None:
    def never() -> ChildEngine:
        raise OutOfMemory("no room at all")

    async def work() -> None:
        pool = Pool([served("a", micro), served("b", micro, never)])
        await pool.runner("a")
        with pytest.raises(OutOfMemory):
            await pool.runner("b")
        assert not pool.runners, "what made room in vain is loaded again when somebody asks for it"
        assert (await pool.runner("a")).state == "ready"
        await pool.close()

    run(work())


def test_names(micro: Path) -> None:
    async def work() -> None:
        pool = Pool([served("a", micro), served("b", micro)])
        assert pool.named("a").name == pool.named("a:latest").name == "a"
        for name in ("x", None, ""):
            with pytest.raises(NotFound, match="a, b"):
                pool.named(name)
        one = Pool([served("a", micro)])
        assert one.named(None).name == "a"
        with pytest.raises(NotFound):
            one.named("gpt-4o")

    run(work())


def test_unloaded_while_somebody_waits_for_it(micro: Path) -> None:
    """Who asks for a model that is to go gets it: it goes when it is loaded and idle, or is loaded again."""

    async def work() -> None:
        may_load = threading.Event()

        def slow() -> ChildEngine:
            may_load.wait()
            return opener(micro)()

        pool = Pool([served("a", micro, slow)])
        asking = asyncio.create_task(pool.runner("a"))
        await asyncio.sleep(0)
        pool.keep("a", 0)
        await pool.unload_expired()
        may_load.set()
        while not pool.is_loaded("a"):
            await asyncio.sleep(0)
        await pool.unload_expired()  # it is ready, and who asked for it does not know yet
        runner = await asking
        await text_of(runner.submit("b", GREEDY, OPTIONS))
        assert runner.totals.n_answers == 1
        await pool.close()

    run(work())


def test_unloaded_when_it_was_idle_for_so_long(micro: Path) -> None:
    async def work() -> None:
        pool = Pool([served("a", micro)])
        runner = await pool.runner("a")
        pool.keep("a", 1000)
        await pool.unload_expired()
        assert pool.is_loaded("a") and 990 < (pool.expires_s("a") or 0) <= 1000
        pool.keep("a", None)
        assert pool.expires_s("a") is None
        pool.keep("a", 0)
        await pool.unload_expired()
        assert not pool.is_loaded("a") and runner.state == "closed"
        await pool.close()

    run(work())
