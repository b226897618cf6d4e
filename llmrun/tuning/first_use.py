"""The choice at the first use of a model: weight layout, decode threads and flash attention, by measuring slices of it
and its attention alone, in a second or two.

    kept for this machine, build and class of models? ─ yes ─► that
                                                      └ no ──► slices of both layouts, interleaved ─┐
                                                               attention of longer prompts alone ───┴► kept

Which layout is faster depends on the CPU, the types and the ratio of prompt to answer: repacked weights decode faster
and prefill slower on one machine, and the other way round, or neither, on the next. What is measured once is kept for
all classes of workloads, so that the same command chooses the same settings, and gives the same text, the next time.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmrun.engine.protocol import Trial
from llmrun.errors import DiskError, LlmrunError
from llmrun.gguf.reader import Header
from llmrun.machine import hardware
from llmrun.machine.others import Others
from llmrun.options.defaults import SMALL_MODEL_BYTES
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import repackable_types
from llmrun.planning.load_plan import wants_repack
from llmrun.tuning import kept
from llmrun.tuning.attention import AttentionCost, costs
from llmrun.tuning.dials import MANY, UBATCH_WITHOUT_FLASH, WORKLOADS, Dials, Layout, Workload, class_of
from llmrun.tuning.kept import Choice, Tried
from llmrun.tuning.search import WORTH_TWICE
from llmrun.tuning.slice_runner import SliceRunner, slices_within

_MOST_SLICE = 3 << 28
_WORTH = 0.03
"""What a setting must gain for the one of before to give way: less may be noise."""
_WORTH_WITHOUT_FLASH = 0.05
"""The same of flash attention: without it scores take memory, and only attention was measured."""
_ROWS, _STEPS, _ROUNDS = 64, 10, 3
_MANY_STEPS = 4
_MOST_WITHOUT_FLASH = 16_384
"""Tokens of context: with more the scores take hundreds of MB."""
_DEEP = ("medium", "long")
"""Classes of prompts behind which attention is a part of a step that counts."""


def is_small(header: Header) -> bool:
    """Whether a model is too small to be worth it, or has too few layers for slices."""
    return header.weight_bytes < SMALL_MODEL_BYTES or (header.n_layer or 0) < 3


def layouts(header: Header, repackable: Iterable[str]) -> tuple[Layout, ...]:
    """What there is to try: all where any of the types can be rearranged, both at once where memory allows."""
    share = sum(each.n_bytes for each in header.tensors if each.type.name in repackable)
    if share * 10 <= header.weight_bytes:
        return ("off",)
    available = hardware.available_memory()
    return ("off", "on", "both") if available is None or available > 2.5 * header.weight_bytes else ("off", "on")


def decode_threads(n: int) -> list[int]:
    """Numbers of threads to try beside the usual one: memory is often busy with fewer than all cores."""
    return [n, *(each for each in (3 * n // 4, n // 2, n // 4) if each >= 2)] if n >= 4 else [n]


@dataclass(frozen=True)
class Measured:
    """Attributes:
    tried: layouts and threads, behind next to no tokens.
    attention: by class of workloads, with flash attention and without; of those that it may matter for.
    """

    tried: Sequence[Tried] = ()
    attention: Mapping[str, tuple[AttentionCost, AttentionCost]] = field(default_factory=dict)


def measured(header: Header, config: LoadConfig, threads: Sequence[int], *, many: bool = False) -> Measured:
    """Every layout that there is to try, with the first number of threads; and the first layout with all of them.
    `many`: many answers at once as well, which takes another second.

    Nothing where layers may lie on devices: what is slow there is not the layout in RAM. Raises `EngineCrashed`,
    `OSError`.
    """
    slices = slices_within(header, _MOST_SLICE)
    with SliceRunner(header, config) as small, SliceRunner(header, config) as large:
        if config.offload.n_gpu_layers != 0 and any(each.kind != "cpu" for each in small.found.devices):
            return Measured()
        repacks = layouts(header, repackable_types(small.found.system_info))
        tries = [Dials(repack, threads[0]) for repack in repacks[:2]] + [Dials("off", n) for n in threads[1:]]
        loaded: Layout = "both" if len(repacks) > 1 else "off"
        for runner, layers in ((small, slices.small), (large, slices.large)):
            runner.load(layers, repack=loaded, n_threads=threads[0], n_ctx=_ROWS)
            for repack in repacks[:2]:
                runner.trial(Trial(8, 1, n_ctx=_ROWS, layout=repack))  # pages and caches

        def seconds(dials: Dials, n_prompt: int, n_gen: int, n_seq: int = 1) -> float:
            """Of the whole model: both slices at once, so that what drifts hits both."""
            layout, n = dials.repack or "off", dials.n_threads or 0
            trial = Trial(n_prompt, n_gen, n_seq=n_seq, n_ctx=_ROWS, n_threads=n, layout=layout)
            found = [runner.trial(trial) for runner in (small, large)]
            of = [done.prefill_s or sorted(done.step_s)[n_gen // 4] for done in found]
            return slices.whole(of[0], of[1])

        prefill_s = {dials: seconds(dials, _ROWS, 0) for dials in tries}
        decode_s: dict[Dials, list[float]] = {dials: [] for dials in tries}
        for _ in range(_ROUNDS):
            for dials, found in decode_s.items():
                found.append(seconds(dials, 0, _STEPS))
        many_s = {dials: seconds(dials, 0, _MANY_STEPS, MANY) / MANY for dials in tries if many}
        deep = {name: WORKLOADS[name] for name in _DEEP}
        attention = costs(header, config, deep, threads[0], small.seconds_of)
    tried = [
        Tried(each, prefill_s[each] / _ROWS, statistics.median(decode_s[each]), many_s.get(each)) for each in tries
    ]
    if "both" in repacks:  # each does what it does alone; to hand a state over takes milliseconds
        plain, repacked = tried[:2]
        tried.append(Tried(Dials("both", threads[0]), plain.prefill_s, repacked.decode_s))
    return Measured(tried, attention)


def chosen(tried: Sequence[Tried], workload: Workload, default: Layout) -> Dials:
    """The fastest for a workload; the default layout and the most threads where nothing gains more than noise."""

    def token_s(one: Tried) -> float:
        return one.many_s if workload.n_seq > 1 and one.many_s is not None else one.decode_s

    def seconds(one: Tried) -> float:
        return workload.seconds(1 / one.prefill_s, 1 / token_s(one))

    by_layout = {each.dials.repack: each for each in reversed(tried)}  # with the most threads
    best = by_layout.get(default, tried[0])
    ways: list[tuple[Layout, float]] = [("off", _WORTH), ("on", _WORTH), ("both", WORTH_TWICE)]
    for layout, worth in ways[:2] if workload.n_seq > 1 else ways:  # several answers have but one of both
        other = by_layout.get(layout)
        if other is not None and seconds(other) < seconds(best) * (1 - worth):
            best = other
    alike = [each for each in tried if each.dials.repack == tried[0].dials.repack]
    fewer = min(alike, key=token_s)
    n_threads = None  # as many as usual, whatever that will be
    if token_s(fewer) < token_s(alike[0]) * (1 - _WORTH):
        n_threads = fewer.dials.n_threads
    return Dials(best.dials.repack, n_threads)


def with_attention(
    tried: Sequence[Tried], dials: Dials, workload: Workload, attention: tuple[AttentionCost, AttentionCost]
) -> tuple[Dials, tuple[Tried, Tried]]:
    """The dials, without flash attention where that is worth it, and what a token takes with and without."""
    base = next(each for each in tried if each.dials.repack == dials.repack)
    ways = dials, replace(dials, flash_attn="off", n_ubatch=UBATCH_WITHOUT_FLASH)
    flash, apart = (
        Tried(each, base.prefill_s + cost.prompt_s, base.decode_s + cost.step_s)
        for each, cost in zip(ways, attention, strict=True)
    )

    def seconds(one: Tried) -> float:
        return workload.seconds(1 / one.prefill_s, 1 / one.decode_s)

    best = apart if seconds(apart) < seconds(flash) * (1 - _WORTH_WITHOUT_FLASH) else flash
    return best.dials, (flash, apart)


def choices(header: Header, config: LoadConfig, *, many: bool = False) -> dict[str, Choice]:
    """For all classes of workloads, with `many` that of many answers too, by one measurement. Raises `EngineCrashed`,
    `OSError`."""
    others = Others()
    found = measured(header, config, decode_threads(config.n_threads or hardware.default_threads()), many=many)
    busy = others.cores()
    usual: Layout = "on" if wants_repack(header) else "off"
    made = {}
    for name, workload in WORKLOADS.items():
        if workload.n_seq > 1 and not many:
            continue
        dials, tried = chosen(found.tried, workload, usual) if found.tried else Dials(), [*found.tried]
        if name in found.attention:
            dials, both = with_attention(found.tried, dials, workload, found.attention[name])
            tried += both
        made[name] = Choice(dials, "first use", tried=tuple(tried), other_cores=busy)
    return made


def settled(
    header: Header,
    config: LoadConfig,
    n_prompt: int,
    *,
    n_seq: int = 1,
    model: str,
    given: Collection[str] = (),
    on_measure: Callable[[], None] = lambda: None,
    on_unkept: Callable[[DiskError], None] = lambda _error: None,
) -> tuple[LoadConfig, Choice | None]:
    """The config with what is kept for this model on this machine, or is measured now, and the choice.

    `n_seq`: answers side by side. `given`: fields that somebody has set; they stay. `on_measure` is called before
    anything is measured, `on_unkept` where it can't be kept. Nothing is changed where nothing could be measured.
    Flash attention is left out for one answer alone, as it was measured, and where scores take little memory.
    """
    if config.rpc:
        return config, None
    fixed = {*given, *(("repack",) if config.repack != "auto" else ())}
    key = kept.key_of(header, config)
    known = kept.read(key)
    many = n_seq >= MANY // 2
    name = "many" if many else class_of(n_prompt)
    if name not in known:
        on_measure()
        try:
            made = choices(header, config, many=many)
        except (LlmrunError, OSError):  # it is only about speed: the model may run all the same
            return config, None
        known = {**made, **known}  # what was kept stays: the same command gives the same text
        try:
            kept.keep(key, model, {each: made[each] for each in made if known[each] is made[each]})
        except DiskError as error:
            on_unkept(error)
    choice = known[name]
    longest = max(n_prompt, _MOST_WITHOUT_FLASH + 1 if config.n_ctx == 0 else config.n_ctx or 0)
    if choice.by == "first use" and (n_seq > 1 or longest > _MOST_WITHOUT_FLASH):
        fixed.add("flash_attn")
    return choice.dials.applied(config, leave=fixed), choice
