"""Beginnings of prompts on disk: taken as a whole, from the same model, or not at all."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import EXACT
from test_kv_context import text
from waiting import until

from llmrun.engine import prefixes
from llmrun.engine.child.kept_prefixes import is_worth_it
from llmrun.engine.engine import ChildEngine
from llmrun.engine.limits import Limits
from llmrun.engine.protocol import PrefixStore, PromptOptions
from llmrun.gguf import synth
from llmrun.gguf.reader import open_header
from llmrun.options.load import LoadConfig, Offload
from llmrun.options.sampling import SamplingConfig

TOKENS = [*range(1000)]
STATE = memoryview(bytes(range(256)) * 40)
GREEDY = SamplingConfig(temperature=0, max_tokens=12)


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(str(tmp_path / "prompts" / "key"), "key", "a model", 1 << 30)


def kept(store: PrefixStore, n: int = 600) -> Path:
    prefixes.write(store, TOKENS[:n], STATE)
    found = prefixes.longest(store, TOKENS, 0)
    assert found is not None
    return found


def test_written_and_read(store: PrefixStore) -> None:
    path = kept(store)
    found = prefixes.read(store, path, TOKENS)
    assert found.tokens == TOKENS[:600] and found.data[found.offset : found.offset + found.n_bytes] == STATE
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o077 == 0
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_the_longest_that_a_prompt_begins_with(store: PrefixStore) -> None:
    """Token by token; the last one of the prompt is left to be computed."""
    for n in (300, 600, 900):
        kept(store, n)
    prefixes.write(store, [*TOKENS[:700], -1], STATE)  # of another prompt

    def n_found(tokens: list[int], more_than: int = 0) -> int:
        path = prefixes.longest(store, tokens, more_than)
        return int(path.name.partition("-")[0]) if path else 0

    assert n_found(TOKENS) == 900 and n_found(TOKENS[:900]) == 600 and n_found(TOKENS[:601]) == 600
    assert n_found([*TOKENS[:650], 7, 7]) == 600 and n_found([7, *TOKENS]) == 0
    assert n_found(TOKENS, more_than=900) == 0 and n_found([*TOKENS[:700], -1, 3]) == 701


def test_every_damage_is_noticed(store: PrefixStore) -> None:
    """Any bit, any length; a whole file of another key, or under another prompt's name."""
    path = kept(store)
    whole = path.read_bytes()
    chance = random.Random(1)
    places = [0, 1, len(whole) - 1, len(whole) - 32, *(chance.randrange(len(whole)) for _ in range(40))]
    damaged = [bytes([*whole[:i], whole[i] ^ 1 << chance.randrange(8), *whole[i + 1 :]]) for i in places]
    damaged += [whole[:n] for n in (0, 1, 31, 32, 33, 100, len(whole) // 2, len(whole) - 1)] + [
        whole + b"\0",
        whole[1:],
    ]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(prefixes.Damaged):
            prefixes.read(store, path, TOKENS)
    path.write_bytes(whole)
    for other, tokens in ((replace_key(store, "other"), TOKENS), (store, [5, *TOKENS])):
        with pytest.raises(prefixes.Damaged):
            prefixes.read(other, path, tokens)


def replace_key(store: PrefixStore, key: str) -> PrefixStore:
    return PrefixStore(store.folder, key, store.model, store.limit_bytes)


def test_the_oldest_make_room(store: PrefixStore) -> None:
    """By when they were used last; what a dead writer left goes as well, what a living one writes stays."""
    paths = [kept(store, n) for n in (300, 400, 500)]
    for age, path in zip((30, 10, 20), paths, strict=True):
        os.utime(path, (time.time() - age, time.time() - age))
    dead, alive = (Path(store.folder) / f".{pid}-1.part" for pid in (2**22 + 1, os.getpid()))
    dead.touch()
    alive.touch()
    prefixes.make_room(Path(store.folder).parent, sum(path.stat().st_size for path in paths[1:]))
    assert [path.exists() for path in paths] == [False, True, True]
    assert alive.exists() and not dead.exists()
    small = PrefixStore(store.folder, "key", "a model", 20_000)
    prefixes.write(small, TOKENS[:700], STATE)
    assert sum(each.n_bytes for each in prefixes.entries(Path(store.folder).parent)) <= 20_000
    prefixes.write(PrefixStore(store.folder, "key", "a model", 100), TOKENS[:800], STATE)  # larger than all may be
    assert prefixes.longest(store, TOKENS, 700) is None


def test_entries(store: PrefixStore) -> None:
    kept(store, 300)
    (broken := kept(store, 400)).write_bytes(b"?")
    os.utime(broken, (0, 0))
    found = prefixes.entries(Path(store.folder).parent)
    assert [(each.model, each.n_tokens) for each in found] == [("a model", 300), ("", 400)]
    assert len({each.id for each in found}) == 2 and prefixes.entries(Path(store.folder)) == []


def test_a_key_is_of_content(tmp_path: Path) -> None:
    """The same file under another name has the same; a byte anywhere that is looked at, or a setting, another one."""
    one, same, other = (tmp_path / name for name in "abc")
    data = bytearray(random.Random(0).randbytes(100_000))
    one.write_bytes(data)
    same.write_bytes(data)
    data[50_000] ^= 1
    other.write_bytes(data)
    keys = [prefixes.key_of([path], {"a": 1}) for path in (one, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert prefixes.key_of([one], {"a": 2}) != keys[0] != prefixes.key_of([one, same], {"a": 1})


@pytest.mark.parametrize(
    ("n_tokens", "seconds", "n_bytes", "worth"),
    [
        (4000, 16.0, 260_000_000, True),
        (4000, 2.0, 260_000_000, False),  # read in 0.65 s, assumed
        (4000, 0.9, 1000, False),
        (200, 60.0, 1000, False),
    ],
)
def test_what_is_worth_it(n_tokens: int, seconds: float, n_bytes: int, worth: bool) -> None:
    assert is_worth_it(n_tokens, seconds, n_bytes, least_s=1.0) is worth
    assert is_worth_it(300, seconds, n_bytes, least_s=0.0)


# -- with a model ---


KEEPS = replace(Limits(), prefix_s=0.0)
"""Whatever a prompt took."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMRUN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


IN_FULL = ["llama-1.2b", "gemma3-1b", "mamba2-2.7b", "lfm2-1.2b", "deepseek-v2-lite"]


@pytest.mark.parametrize("name", sorted(synth.SHAPES.keys() - {*IN_FULL}))
def test_every_shape(tmp_path: Path, home: Path, name: str) -> None:
    """What is read is as good as computed."""
    path = tmp_path / "model.gguf"
    synth.write(path, replace(synth.small(synth.SHAPES[name], n_embd=64), n_ctx_train=4096), "F32")
    found = []
    for keeps in (None, "m", "m"):
        with ChildEngine(path, open_header(path), EXACT, limits=KEEPS, keeps_prefixes=keeps) as engine:
            generation = engine.generate(text(80), GREEDY)
            found.append("".join(generation))
            engine.flush()
    (entry,) = prefixes.entries()
    assert found[1:] == found[:1] * 2 and generation.timing.n_cached == entry.n_tokens > 150


@pytest.mark.parametrize("name", IN_FULL)
def test_the_next_process_has_it(tmp_path: Path, home: Path, name: str) -> None:
    """Attention, windows, states: as good as computed; a longer prompt and the same again take it from the disk."""
    path = tmp_path / "model.gguf"
    synth.write(path, replace(synth.small(synth.SHAPES[name], n_embd=64), n_ctx_train=4096), "F32")
    header, prompt = open_header(path), text(80)

    def answer(
        asked: str, config: LoadConfig = EXACT, *, keeps: str | None = "m", reuse: bool = False
    ) -> tuple[str, int]:
        """And how many tokens of the prompt were known."""
        with ChildEngine(path, header, config, limits=KEEPS, keeps_prefixes=keeps) as engine:
            generation = engine.generate(asked, GREEDY, options=PromptOptions(reuse=reuse))
            answered = "".join(generation)
            engine.flush()
            notes.extend(engine.notes)
            return answered, generation.timing.n_cached

    notes: list[str] = []
    wanted, longer = answer(prompt, keeps=None), answer(prompt + text(20, 1), keeps=None)
    assert answer(prompt) == wanted and wanted[1] == 0
    (entry,) = prefixes.entries()
    assert entry.path.is_relative_to(home) and entry.model == "m"
    assert answer(prompt) == (wanted[0], entry.n_tokens)
    assert answer(prompt + text(20, 1), reuse=True) == (longer[0], entry.n_tokens)
    assert answer(prompt, keeps=None) == wanted
    for other in (replace(EXACT, type_k="f16", type_v="f16"), replace(EXACT, n_ubatch=64)):
        assert answer(prompt, other)[1] == 0  # another key
    data = bytearray(entry.path.read_bytes())
    data[-100] ^= 1
    entry.path.write_bytes(data)
    notes.clear()
    assert answer(prompt) == wanted and "damaged, and removed" in notes[-1]
    assert entry.path.read_bytes() != data  # computed and kept anew
    assert answer(prompt) == (wanted[0], entry.n_tokens)


def test_written_once_there_is_time(exact: Path, home: Path) -> None:
    """Not beside an answer, which would wait for it; nobody has to ask for it, and what followed is held as before."""
    prompt, reuse = text(90), PromptOptions(reuse=True)
    with ChildEngine(exact, open_header(exact), EXACT, limits=KEEPS, keeps_prefixes="m") as engine:
        answer = engine.generate(prompt, replace(GREEDY, max_tokens=300, ignore_eos=True), options=reuse)
        pieces = [(piece, len(prefixes.entries())) for piece in answer]
        assert len(pieces) > 2 and not any(n for _, n in pieces)
        until(prefixes.entries, "it is written")
        (entry,) = prefixes.entries()
        assert entry.n_tokens == answer.timing.n_prompt - 1
        more = engine.generate(prompt + pieces[0][0], GREEDY, options=reuse)
        list(more)
        assert more.timing.n_cached >= answer.timing.n_prompt


def test_computed_anew(exact: Path, home: Path) -> None:
    """Who asks for it gets nothing of what is known, neither from memory nor from the disk."""
    cached = []
    for anew in (True, False, True):
        with ChildEngine(exact, open_header(exact), EXACT, limits=KEEPS, keeps_prefixes="m") as engine:
            with engine.parallel(2, 1000) as answers:
                for reuse in (not anew, False):
                    made = answers.submit(text(90), GREEDY, options=PromptOptions(reuse=reuse, anew=anew))
                    assert answers.wait() is made
                    cached.append(made.timing.n_cached)
            engine.flush()
    assert cached[:2] == cached[4:] == [0, 0] and min(cached[2:4]) > 0


def test_written_before_it_is_lost(exact: Path, home: Path) -> None:
    """Sequences are given up with those that answered side by side, as where a server unloads a model."""
    with ChildEngine(exact, open_header(exact), EXACT, limits=KEEPS, keeps_prefixes="m") as engine:
        with engine.parallel(2, 1000) as answers:
            made = answers.submit(text(90), GREEDY, options=PromptOptions(reuse=True))
            assert answers.wait() is made
        engine.flush()
    assert [entry.n_tokens for entry in prefixes.entries()] == [made.timing.n_prompt - 1]


def test_on_a_device(micro: Path, home: Path, rpc_worker: Callable[..., str]) -> None:
    """However much of its memory is free: what counts is which layers lie there."""
    endpoint, known = rpc_worker(), []
    for n_layers, share in (("all", 1.0), ("all", 3.0), (1, 3.0)):
        offload = Offload(n_gpu_layers=n_layers, tensor_split=(share,))  # type: ignore[arg-type]
        config = LoadConfig(n_threads=1, rpc=(endpoint,), offload=offload)
        with ChildEngine(micro, open_header(micro), config, limits=KEEPS, keeps_prefixes="m") as engine:
            generation = engine.generate(text(90), GREEDY)
            list(generation)
            engine.flush()
            known.append(generation.timing.n_cached)
    assert known[0] == 0 < known[1] and known[2] == 0


def test_a_row_of_a_batch(exact: Path, home: Path) -> None:
    """Of answers that nobody watches what several prompts begin with is kept, and not each prompt."""
    system = text(100)
    asked = [f"{system} {i} {text(20, i)}" for i in range(1, 5)]  # all of them part at the same token
    cached = []
    for _ in range(2):
        with ChildEngine(exact, open_header(exact), EXACT, limits=KEEPS, keeps_prefixes="m") as engine:
            with engine.parallel(2, 1000) as answers:
                options = PromptOptions(reuse=True, bulk=True)
                made = [answers.submit(prompt, GREEDY, options=options) for prompt in asked]
                while answers.wait():
                    pass
            engine.flush()
            cached.append([each.timing.n_cached for each in made])
    kept_tokens = {each.n_tokens for each in prefixes.entries()}
    assert kept_tokens and all(n < made[0].timing.n_prompt - 10 for n in kept_tokens)
    assert cached[0][0] == 0 < cached[1][0]


def test_the_same_text_the_next_time(micro: Path, home: Path) -> None:
    """To the last bit, in a quantized model of noise too: what is left to be computed is the same as it was then."""
    header, sampling = open_header(micro), SamplingConfig(temperature=0, max_tokens=60, ignore_eos=True)
    found = []
    for _ in range(2):
        with ChildEngine(micro, header, LoadConfig(n_threads=1), limits=KEEPS, keeps_prefixes="m") as engine:
            generation = engine.generate(text(90), sampling)
            list(generation)
            engine.flush()
            found.append((generation.token_ids, generation.timing.n_cached))
    assert found[0][0] == found[1][0] and found[0][1] == 0 < found[1][1]
