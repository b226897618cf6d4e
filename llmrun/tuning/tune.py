"""Tuning a whole model: loaded once in both layouts where memory allows, else in one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llmrun import codec, fs
from llmrun.engine.devices import Found
from llmrun.engine.engine import ChildEngine
from llmrun.engine.jobs.roofline import key_of
from llmrun.engine.protocol import Trial
from llmrun.errors import Change, UsageError
from llmrun.machine import hardware, profile
from llmrun.machine.others import Others
from llmrun.models.resolve import Model
from llmrun.options.defaults import MOST_TUNE_S
from llmrun.options.load import KvType, LoadConfig, LoadMode, Repack
from llmrun.planning.footprint import CPU, Placement, repackable_types
from llmrun.planning.load_plan import wants_repack
from llmrun.planning.predict.from_profile import GraphTimes
from llmrun.tuning import kept
from llmrun.tuning.dials import Dials, Layout, Workload, class_of
from llmrun.tuning.first_use import decode_threads, layouts
from llmrun.tuning.search import NotTried, Outcome, Search, candidates
from llmrun.units import duration

_MOST_PROMPT = 512
_STEPS = 16


@dataclass(frozen=True)
class Tuned:
    """What a search has found.

    Attributes:
        choice: the fastest settings, as they are kept; what is as usual is None.
        outcomes: all that was tried, in order.
        not_tried: what is predicted to lose, by the profile of this machine where one is kept.
    """

    choice: kept.Choice
    outcomes: tuple[Outcome, ...]
    not_tried: tuple[NotTried, ...] = ()

    @property
    def dials(self) -> Dials:
        return self.choice.dials


class WholeModel:
    """Measures a model with any dials. A context manager: leaving it ends the engines.

    Attributes:
        layouts: what there is to try.
    """

    def __init__(self, model: Model, config: LoadConfig, workload: Workload) -> None:
        self._model, self._config, self._workload = model, config, workload
        self._engines: dict[tuple[Repack, LoadMode], ChildEngine] = {}
        usual: Layout = "on" if wants_repack(model.header, config) else "off"
        engine = self._engine(usual, config.load_mode)
        self.layouts = layouts(model.header, repackable_types(engine.system_info))
        if len(self.layouts) > 1 and not engine.plan.layout.n_gpu_layers:
            self.close()
            engine = self._engine("both", config.load_mode)
        self._has_both = engine.plan.plain_prefill
        if not self._has_both:
            self.layouts = tuple(each for each in self.layouts if each != "both")

    def __enter__(self) -> WholeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def _engine(self, repack: Repack, load_mode: LoadMode) -> ChildEngine:
        """Loaded so; the others go where there is no memory for all."""
        wanted = repack, load_mode
        if wanted not in self._engines:
            if self._engines and (hardware.available_memory() or 0) < 3 * self._model.header.weight_bytes:
                self.close()
            load = replace(self._config, repack=repack, load_mode=load_mode, draft="off")
            self._engines[wanted] = ChildEngine(self._model.path, self._model.header, load)
        return self._engines[wanted]

    def is_possible(self, dials: Dials) -> bool:
        """Whether the model can run so: some settings rule others out."""
        try:
            dials.applied(self._config)
        except UsageError:
            return False
        return True

    def predictor(self) -> Callable[[Dials], float | None]:
        """Seconds of the workload with any dials, where a profile is kept and all layers lie in RAM."""
        engine = next(iter(self._engines.values()))
        known = profile.load(key_of(Found(engine.devices, engine.system_info, engine.versions)))
        if known is None or engine.plan.layout.n_gpu_layers:
            return lambda _: None
        return partial(self._predicted_s, known, repackable_types(engine.system_info))

    def _predicted_s(self, known: profile.Profile, repackable: frozenset[str], dials: Dials) -> float | None:
        header, work = self._model.header, self._workload
        layers = (CPU,) * ((header.n_layer or 0) + 1)
        repacked = frozenset() if dials.repack == "off" else repackable
        placement = Placement(layers, repacked=repacked, twice=dials.repack == "both")
        threads = dials.n_threads or hardware.default_threads()
        times = GraphTimes(header, placement, dials.applied(self._config), known, threads)
        prompt_s, step_s = times.prefill_s(work.n_prompt), times.step_s(work.n_prompt + work.n_gen // 2)
        return None if prompt_s is None or step_s is None else prompt_s + work.n_gen * step_s

    def measure(self, dials: Dials, *, prompt: bool = True, answer: bool = True) -> tuple[float, float]:
        """Seconds of a token of the prompt, in the middle of it, and of one of the answer, in the middle of that."""
        work, layout = self._workload, dials.repack or "off"
        engine = self._engine("both" if self._has_both else layout, dials.load_mode or self._config.load_mode)
        n_prompt = min(work.n_prompt, _MOST_PROMPT)
        before = (work.n_prompt - n_prompt) // 2
        behind = max(0, min(engine.n_ctx_most - _STEPS, work.n_prompt + work.n_gen // 2))
        # Each part with the weights that it would have; a step has no micro-batch, so no context of its own for it.
        parts: tuple[Layout, Layout] = ("off", "on") if layout == "both" else (layout, layout)
        common = Trial(
            0,
            0,
            n_ctx=max(before + n_prompt, behind + _STEPS),
            n_threads=dials.n_threads or 0,
            n_threads_batch=dials.n_threads_batch or dials.n_threads or 0,
            flash_attn=dials.flash_attn or "",
            kv_type=dials.kv_type or "",
        )
        of_prompt, of_answer = (each if self._has_both else "" for each in parts)
        prefill_s = step_s = 0.0
        if prompt:
            trial = codec.replace(
                common, n_prompt=n_prompt, n_depth=before, n_ubatch=dials.n_ubatch or 0, layout=of_prompt
            )
            prefill_s = (engine.run_trial(trial).prefill_s or 0.0) / n_prompt
        if answer:
            trial = codec.replace(common, n_gen=_STEPS, n_depth=behind, layout=of_answer)
            step_s = sorted(engine.run_trial(trial).step_s)[_STEPS // 2]
        return prefill_s, step_s


def tune(
    model: Model,
    workload: Workload,
    config: LoadConfig | None = None,
    *,
    budget_s: float = 60.0,
    kv_types: Sequence[KvType] = (),
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> Tuned:
    """Finds the fastest settings for a workload, and keeps them for prompts of that length.

    `kv_types` may be tried as well: they change what the model answers. `budget_s` counts from when the model is
    loaded. Raises what `ChildEngine` raises, `DiskError`, and `UsageError` where the time was too short for anything.
    """
    config = config or LoadConfig()
    fs.check_writable(kept.folder())  # now, and not after a minute
    usual = hardware.default_threads()
    cpus = len(hardware.usable_cpus())
    begin = Dials(
        "on" if wants_repack(model.header, config) else "off", usual, usual, min(config.n_ubatch, config.n_batch)
    )
    others = Others()
    with WholeModel(model, config, workload) as whole:
        for layout in whole.layouts:
            whole.measure(replace(begin, repack=layout))  # pages and caches
        search = Search(
            whole.measure,
            workload,
            begin,
            budget_s=budget_s,
            on_outcome=on_outcome,
            is_possible=whole.is_possible,
            predict=whole.predictor(),
            renew=whole.close,  # what is measured next loads it again
        )
        best = search.run(
            candidates(
                begin,
                layouts=whole.layouts,
                threads=[*decode_threads(usual), *({usual - 1} if usual > 1 else ())],
                threads_batch=[cpus] if cpus > usual else [],
                kv_types=[each for each in kv_types if each != config.type_k],
                load_modes=["none"] if config.load_mode == "auto" else [],
            )
        )
    if search.ran_out and not search.outcomes:  # else what there is to try is predicted to lose: then it stays as usual
        raise UsageError(
            f"no setting could be measured in {duration(budget_s)}: nothing is kept",
            field="seconds",
            hint=Change({"seconds": min(MOST_TUNE_S, max(60, round(4 * budget_s)))}),
        )
    tried = tuple(kept.Tried(each.dials, each.prefill_s, each.decode_s) for each in search.outcomes)
    choice = kept.Choice(_unusual(best, begin), "tune", tried=tried, other_cores=others.cores())
    kept.keep(kept.key_of(model.header, config), model.name, {class_of(workload.n_prompt): choice})
    return Tuned(choice, tuple(search.outcomes), tuple(search.not_tried))


def _unusual(best: Dials, begin: Dials) -> Dials:
    """Without what is as usual: it is left to follow the machine."""
    usual = {
        name: None
        for name in ("n_threads", "n_threads_batch", "n_ubatch")
        if getattr(best, name) == getattr(begin, name)
    }
    return replace(best, **usual)
