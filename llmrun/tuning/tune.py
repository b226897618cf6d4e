"""Tuning a whole model: loaded in every layout that there is to try, both at once where memory allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from llmrun.engine.engine import ChildEngine
from llmrun.engine.protocol import Trial
from llmrun.machine import hardware
from llmrun.models.resolve import Model
from llmrun.options.load import LoadConfig
from llmrun.planning.footprint import repackable_types
from llmrun.planning.load_plan import wants_repack
from llmrun.tuning.dials import Dials, Workload
from llmrun.tuning.first_use import decode_threads, layouts
from llmrun.tuning.search import Outcome, Search, candidates

_MOST_PROMPT = 512
_STEPS = 16


class WholeModel:
    """Measures a model with any dials. A context manager: leaving it ends the engines."""

    def __init__(self, model: Model, config: LoadConfig, workload: Workload) -> None:
        self._model, self._config, self._workload = model, config, workload
        self._engines: dict[bool, ChildEngine] = {}

    def __enter__(self) -> WholeModel:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            engine.close()

    def engine(self, repack: bool) -> ChildEngine:
        """With this layout; the other one goes where there is no memory for both."""
        if repack not in self._engines:
            needed = self._model.header.weight_bytes
            if self._engines and (hardware.available_memory() or 0) < 2 * needed:
                for other in self._engines.values():
                    other.close()
                self._engines.clear()
            load = replace(self._config, repack="on" if repack else "off")
            self._engines[repack] = ChildEngine(self._model.path, self._model.header, load)
        return self._engines[repack]

    def measure(self, dials: Dials) -> tuple[float, float]:
        """Seconds of a token of the prompt, and of one of the answer in the middle of it."""
        engine, work = self.engine(bool(dials.repack)), self._workload
        n_prompt = min(work.n_prompt, _MOST_PROMPT)
        depth = min(engine.n_ctx_most - n_prompt - _STEPS, work.n_prompt + work.n_gen // 2 - n_prompt)
        trial = Trial(
            n_prompt,
            _STEPS,
            n_depth=max(0, depth) if work.n_prompt <= _MOST_PROMPT else 0,
            n_threads=dials.n_threads or 0,
            n_threads_batch=dials.n_threads_batch or dials.n_threads or 0,
            n_ubatch=dials.n_ubatch or 0,
            flash_attn=dials.flash_attn or "",
        )
        done = engine.run_trial(trial)
        return (done.prefill_s or 0.0) / n_prompt, sorted(done.step_s)[_STEPS // 2]


def tune(
    model: Model,
    config: LoadConfig,
    workload: Workload,
    *,
    budget_s: float = 60.0,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> tuple[Dials, list[Outcome]]:
    """The fastest settings for a workload, and all that was tried. Raises what `ChildEngine` raises."""
    usual = hardware.default_threads()
    cpus = len(hardware.usable_cpus())
    with WholeModel(model, config, workload) as whole:
        repack = wants_repack(model.header, config)
        engine = whole.engine(repack)
        begin = Dials(repack, usual, usual, min(config.n_ubatch, config.n_batch))
        whole.measure(begin)  # pages and caches
        search = Search(whole.measure, workload, begin, budget_s=budget_s, on_outcome=on_outcome)
        best = search.run(
            candidates(
                begin,
                layouts=layouts(model.header, repackable_types(engine.system_info)),
                threads=[*decode_threads(usual), *({usual - 1} if usual > 1 else ())],
                threads_batch=[cpus] if cpus > usual else [],
            )
        )
    return _kept(best, begin), search.outcomes


def _kept(best: Dials, begin: Dials) -> Dials:
    """Without what is as usual: it is left to follow the machine."""
    changed = {
        name: None
        for name in ("n_threads", "n_threads_batch", "n_ubatch")
        if getattr(best, name) == getattr(begin, name)
    }
    return replace(best, **changed)
