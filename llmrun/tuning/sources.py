"""Predictions for this machine: from its measured profile, and by running slices of the model itself.

Both are sources of what `llmrun plan` shows (`planning.predict.prediction.Source`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmrun.engine.devices import Found
from llmrun.engine.engine import plan_load
from llmrun.engine.interface import Engine
from llmrun.engine.jobs.roofline import Prober, key_of
from llmrun.engine.meter import Timing
from llmrun.engine.process import spins_for
from llmrun.engine.protocol import TimeProducts
from llmrun.errors import DiskError
from llmrun.gguf.reader import Header
from llmrun.machine import hardware
from llmrun.machine.energy import EnergyMeter, Joules
from llmrun.machine.environment import describe_machine
from llmrun.machine.others import MOST_OTHERS
from llmrun.machine.profile import Profile
from llmrun.machine.profile import load as load_profile
from llmrun.machine.profile import save as save_profile
from llmrun.options.load import LoadConfig, Repack
from llmrun.planning.fit import DoesNotFit
from llmrun.planning.footprint import CPU, Footprint, Placement, place_layers, repackable_types
from llmrun.planning.load_plan import Expected, wants_repack
from llmrun.planning.predict.from_profile import GraphTimes
from llmrun.planning.predict.prediction import TOO_LARGE, Prediction, Question, Range, with_disk
from llmrun.tuning import kept, profiling, score
from llmrun.tuning.dials import LAYOUTS
from llmrun.tuning.probe import probe
from llmrun.tuning.score import Compared
from llmrun.units import fixed

_DECODE_FACTOR, _PREFILL_FACTOR = 1.19, 1.22
"""What predictions are divided and multiplied by for the range, on a machine that is even (docs/prediction.md)."""
_OF_NOISE = 1.5
"""How much of a machine's noise, as `Profile.noise` has it, is in the range of a prediction."""
_PROBE_FACTOR = 1.08
"""The same of what was measured by slices: three rounds do not show all that the machine does."""
_READ_S, _LOOK_S, _LOOKS = 0.25, 0.05, 3
_GLANCES, _LOOK_AGAIN_S = 3, 0.25
_LONGEST_BLOCK = 256
_STEADY = 1.25
"""Factor by which a product moves from one time to the next on a machine that does not change: what a model then does
follows smaller ones as often as not."""
_OF_THE_CPU = ("whole machine", "CPU package")
"""Boundaries of `energy.Joules` that have all in them that decoding in RAM takes; the first that there is."""


@dataclass(frozen=True)
class Placed:
    """A model as `run` would load it here, or as if there were memory for it.

    Attributes:
        config: with the settings that were measured for the model, if there are any.
        missing: bytes of RAM that it lacks.
    """

    config: LoadConfig
    placement: Placement
    footprint: Footprint
    n_gpu_layers: int
    n_threads: int
    repack: Repack
    missing: int = 0

    @property
    def memory_bytes(self) -> dict[str, int]:
        return {"RAM" if name == CPU else name: need.total for name, need in self.footprint.by_device.items()}


def placed(header: Header, question: Question, found: Found) -> Placed:
    """Raises `UsageError` for settings that the model or the machine can't have, and `EngineCrashed`."""
    config = kept.settings(header, question.config, question.n_prompt)
    longest = max((question.n_prompt, *question.depths)) + question.n_gen
    try:
        plan = plan_load(Path("model"), header, config, expected=Expected(longest, longest))
    except DoesNotFit as error:
        repack = wants_repack(header, config)
        layers = place_layers(header.n_layer or 0, 0, (), ())
        placement = Placement(layers, repacked=repackable_types(found.system_info) if repack else frozenset())
        threads = config.n_threads or hardware.default_threads()
        missing = max(1, error.needed - error.free)
        return Placed(config, placement, error.footprint, 0, threads, "on" if repack else "off", missing)
    how: Repack = "both" if plan.plain_prefill else "on" if plan.repack else "off"
    return Placed(config, plan.placement, plan.footprint, plan.layout.n_gpu_layers, plan.n_threads, how)


class _OfThisMachine:
    """What both sources have in common."""

    def __init__(self, found: Found) -> None:
        self._found = found

    def machine(self) -> Mapping[str, Any]:
        """As a bench's record has it."""
        return asdict(describe_machine(self._found.devices))


def profile_of(
    prober: Prober, *, on_measure: Callable[[], None] = lambda: None, on_note: Callable[[str], None] = lambda _: None
) -> Profile:
    """What is kept of this machine; measured now where there is nothing. Raises `EngineCrashed`."""
    known = load_profile(key_of(prober.found))
    if known is None:
        on_measure()
        known = measure_profile(prober, on_note=on_note)
    return known


def measure_profile(
    prober: Prober,
    *,
    on_part: Callable[[str], None] = lambda _: None,
    on_note: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure it and keep it; `on_note` is told why, where it is not kept. Raises `EngineCrashed`."""
    made = profiling.measure(prober, on_part=on_part)
    if (made.other_cores or 0) > MOST_OTHERS:
        on_note(
            f"other processes used {fixed(made.other_cores, 1)} cores while this machine was measured: not kept, and of"
            " as little use as the machine is now"
        )
        return made
    try:
        save_profile(key_of(prober.found), made)
    except DiskError as error:
        on_note(f"what was measured can't be kept: {error.message}")
    return made


@dataclass(frozen=True)
class Moment:
    """What the machine does just now.

    Attributes:
        decode, prefill: how much longer products of one token, and of many, take than when the profile was made.
        watts: what it takes while all threads read; None where nothing counts it.
    """

    decode: float = 1.0
    prefill: float = 1.0
    watts: float | None = None


def moment_of(profile: Profile, prober: Prober, joules: Joules, *, n_threads: int | None = None) -> Moment:
    """Multiplies for half a second, as for the profile, and reads for a quarter where joules are counted. `n_threads`:
    None are the default. Raises `EngineCrashed`."""
    threads = n_threads or hardware.default_threads()
    decode, prefill = lasting(lambda: look(profile, prober, threads))
    boundary = next((name for name in _OF_THE_CPU if name in joules.counters), None)
    if boundary is None:
        return Moment(decode, prefill)
    prober.probe(CPU, "", threads, 0.0)  # what is read is laid out, by one thread
    with (meter := EnergyMeter(joules)):
        prober.probe(CPU, "", threads, _READ_S)
    taken = meter.joules.get(boundary)
    return Moment(decode, prefill, taken / meter.seconds if taken and meter.seconds else None)


def look(profile: Profile, prober: Prober, n_threads: int) -> list[float]:
    """How much longer products of one token, and of many, take just now, by one look. Raises `EngineCrashed`."""
    # With as many columns as were measured: what lies between two of them is not known to a quarter.
    many = max((each.n_columns for each in profile.products if not each.n_experts), default=1)
    return [_ratio(profile, prober, n, n_threads) for n in (1, many)]


def _ratio(profile: Profile, prober: Prober, n_columns: int, n_threads: int) -> float:
    """How much longer products take now; of several types the one in the middle, as any of them may have been
    disturbed. Not by the read ceiling: that moved by a third between two profiles whose products were alike."""
    known = [each for each in profile.products if (each.device, each.n_experts, each.repack) == (CPU, 0, False)]
    n_rows = {
        each.kind: math.isqrt(each.n_weights) for each in known if math.isqrt(each.n_weights) ** 2 == each.n_weights
    }
    n_bytes = profiling.Extent().of_matrices if n_columns == 1 else 0
    ratios = []
    for kind, n_row in [*n_rows.items()][:_LOOKS]:
        before = profile.product_s(kind, n_row**2, n_columns, n_threads)
        if before and not n_row % _LONGEST_BLOCK:
            asked = TimeProducts(CPU, kind, n_row, n_row, n_bytes, [n_columns], [n_threads], _LOOK_S)
            ratios += [seconds / before for seconds in prober.seconds_of(asked)]
    return statistics.median_low(ratios) if ratios else 1.0


def lasting(look: Callable[[], Sequence[float]], *, pause: Callable[[float], None] = time.sleep) -> list[float]:
    """By what factors things are slower than they were: 1 where one of some looks finds nothing, else what the look
    found that found least. What disturbs one of them for a moment is gone before a model runs."""
    least: list[float] = []
    for i in range(_GLANCES):
        if i:
            pause(_LOOK_AGAIN_S)
        found = [ratio if max(ratio, 1 / ratio) > _STEADY else 1.0 for ratio in look()]
        least = [min(pair, key=lambda ratio: abs(math.log(ratio))) for pair in zip(least or found, found, strict=True)]
        if all(ratio == 1 for ratio in least):
            break
    return least


class Here(_OfThisMachine):
    """By the profile of the machine."""

    def __init__(self, profile: Profile, found: Found, now: Moment | None = None) -> None:
        """`now`: None is as when the profile was made."""
        super().__init__(found)
        self._profile, self._now = profile, now or Moment()
        machine = key_of(self._found).digest
        self._prefill, self._decode = score.correction(machine, "prefill"), score.correction(machine, "decode")

    def predict(self, header: Header, question: Question) -> Prediction:
        """Raises as `placed`."""
        at = placed(header, question, self._found)
        then, now = GraphTimes(header, at.placement, at.config, self._profile, at.n_threads), self._now
        of_prompt, of_steps = (replace(then, drift={CPU: drift}) for drift in (now.prefill, now.decode))
        prefill = _slower(of_prompt.prefill_s(question.n_prompt), self._prefill)
        steps = {depth: _slower(of_steps.step_s(depth), self._decode) for depth in question.depths}
        too_large = at.missing > at.footprint.by_device[CPU].weights
        unread = None if too_large else self._disk_s(at) if at.missing else (0.0, 0.0)
        of_prompts, of_tokens = (_with_noise(each, self._profile) for each in (_PREFILL_FACTOR, _DECODE_FACTOR))
        return Prediction(
            fits=not at.missing,
            n_gpu_layers=at.n_gpu_layers,
            n_ctx=at.footprint.n_ctx,
            memory_bytes=at.memory_bytes,
            prefill_tps=_rate(prefill, of_prompts, unread, question.n_prompt),
            decode_tps={depth: _rate(each, of_tokens, unread, 1) for depth, each in steps.items()},
            note=TOO_LARGE if too_large else "mapped from the disk" if at.missing else _of_small(header),
            watts=now.watts if set(at.placement.devices) == {CPU} else None,
        )

    def _disk_s(self, at: Placed) -> tuple[float, float] | None:
        """Seconds to read what does not stay in memory, at every token: what is missing, at best; at worst, as the page
        that was used longest ago goes first, the whole of the weights. None: the disk's rate is not known."""
        rate = self._profile.disk_bytes_per_s
        return (at.missing / rate, at.footprint.by_device[CPU].weights / rate) if rate else None


def _of_small(header: Header) -> str:
    """What one token of a small model takes is mostly threads that wait for each other, and those of small models wait
    in another way than those by which overheads are measured (`process.spins_for`)."""
    return "a guess: so small a model is mostly waiting" if spins_for(header.weight_bytes) else ""


def _slower(seconds: float | None, correction: float) -> float | None:
    """With the correction of a rate."""
    return None if seconds is None else seconds / correction


def _with_noise(factor: float, profile: Profile) -> float:
    """The factor of a range, where both what is predicted and what the machine does are uncertain."""
    return math.exp(math.hypot(math.log(factor), _OF_NOISE * profile.noise))


def _rate(seconds: float | None, factor: float, unread: tuple[float, float] | None, n_tokens: int) -> Range | None:
    if seconds is None or unread is None:
        return None
    least, most = unread
    computing = Range.around(seconds, factor)
    return (with_disk(computing, least, most) if most else computing).per(n_tokens)


class Probe(_OfThisMachine):
    """By running slices of the model."""

    def __init__(
        self, found: Found, *, rounds: int = 3, on_round: Callable[[int, int], None] = lambda done, of: None
    ) -> None:
        super().__init__(found)
        self._rounds, self._on_round = rounds, on_round

    def predict(self, header: Header, question: Question) -> Prediction:
        """Measures. Raises as `placed`, and `OSError` where slices find no room."""
        at = placed(header, question, self._found)
        probed = probe(
            header,
            at.config,
            at.placement.layers,
            n_prompt=question.n_prompt,
            depths=question.depths,
            repack=at.repack,
            rounds=self._rounds,
            on_round=self._on_round,
        )
        return Prediction(
            fits=not at.missing,
            n_gpu_layers=at.n_gpu_layers,
            n_ctx=at.footprint.n_ctx,
            memory_bytes=at.memory_bytes,
            prefill_tps=_range(probed.prefill_s).per(question.n_prompt),
            decode_tps={depth: _range(times).per(1) for depth, times in probed.step_s.items()},
            note="measured as if there were memory for it" if at.missing else "",
        )


def _range(seconds: Sequence[float]) -> Range:
    return Range(min(seconds) / _PROBE_FACTOR, statistics.median(seconds), max(seconds) * _PROBE_FACTOR)


def compared(engine: Engine, model: str, timing: Timing) -> list[Compared]:
    """What a run did beside what the profile says of it; nothing where there is no profile, or too few tokens."""
    key = key_of(Found(engine.devices, engine.system_info, engine.versions))
    profile = load_profile(key)
    if profile is None:
        return []
    plan = engine.plan
    times = GraphTimes(engine.header, plan.placement, plan.config, profile, plan.n_threads)
    n_prompt, n_made = timing.n_prompt, timing.n_generated
    found: list[tuple[score.Kind, int, int, float | None, float | None]] = []
    if not timing.n_cached and n_prompt >= score.LEAST_TOKENS:
        found.append(("prefill", n_prompt, 0, n_prompt / (times.prefill_s(n_prompt) or math.inf), timing.pp_tps))
    if n_made >= score.LEAST_TOKENS:
        depth = n_prompt + n_made // 2
        found.append(("decode", n_made, n_prompt, 1 / (times.step_s(depth) or math.inf), timing.tg_tps))
    layout = LAYOUTS["both" if plan.plain_prefill else "on" if plan.repack else "off"]
    return [
        Compared(key.digest, model, kind, layout, plan.n_threads, n_tokens, depth, predicted, measured)
        for kind, n_tokens, depth, predicted, measured in found
        if predicted and measured
    ]
