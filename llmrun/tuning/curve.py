"""Layers for speed: how fast each number of them on devices would be here, by slices of the model and a few runs of it.

    what fits ─► slices on each device, in turn ─► the fastest split of each number ─► at most four runs ─► curve

Where several devices are, each is filled in turn, in every order: seconds add up, so that the best split has one device
full before the next gets a layer. What steps take is their mean: under a quota of CPU time a few steps bear it all.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Literal

from llmrun.engine.engine import ChildEngine, planning
from llmrun.engine.protocol import Trial
from llmrun.errors import Act, OutOfMemory, UsageError
from llmrun.gguf.reader import Header
from llmrun.options.load import LoadConfig, Repack
from llmrun.planning.fit import DoesNotFit
from llmrun.planning.footprint import CPU, is_experts
from llmrun.planning.layout import DeviceBudget, Layout
from llmrun.planning.load_plan import Expected, LoadPlan, Planner
from llmrun.planning.predict.curve import Costs, Curve, Home, Point, homes
from llmrun.planning.predict.prediction import Question, Range
from llmrun.tuning import kept
from llmrun.tuning.probe import MOST_SLICE, Part, Runners, apart, seconds_of
from llmrun.tuning.slice_runner import Slices, laid_on, layer_bytes, slices_within

_STEPS, _ROUNDS = 24, 3
_DOUBT = 1.03
"""Three rounds do not show all that the machine does."""
_FEW_DEVICES = 3
"""Of so many all orders are tried; of more, each one first."""

OnPart = Callable[[Literal["slices", "runs"], int, int], None]
"""What is measured, and how much of it is done."""


@dataclass(frozen=True)
class Candidate:
    """A placement that fits.

    Attributes:
        split: layers on each device, the output among them.
        homes: of each layer and of the output.
    """

    plan: LoadPlan
    split: tuple[int, ...]
    homes: tuple[Home, ...]

    @property
    def n_gpu_layers(self) -> int:
        return self.plan.layout.n_gpu_layers

    @property
    def between(self) -> list[str]:
        """Devices with layers that another one, with the output, follows."""
        return [each for each in dict.fromkeys(home.device for home in self.homes) if each not in (CPU, self.output)]

    @property
    def output(self) -> str:
        return self.homes[-1].device


def curve(
    header: Header,
    question: Question,
    path: Path | None,
    *,
    runs: bool = True,
    on_part: OnPart = lambda what, done, of: None,
) -> Curve:
    """Every number of layers on this machine's devices and those of the workers that `question.config` names.

    `path`: of the model; None, or not `runs`: slices have to do. Of the depths in `question` the first counts. Raises
    `UsageError` where there are no devices, or for settings that the model or the machine can't have; `DoesNotFit`;
    `EngineCrashed`; `NetworkError`; `OSError` where slices find no room.
    """
    config = kept.settings(header, question.config, question.n_prompt)
    depth = question.depths[0]
    longest = max(question.n_prompt, depth) + max(question.n_gen, _STEPS)
    with planning(path or Path("model"), header, config, expected=Expected(longest, longest)) as planner:
        devices = tuple(budget.name for budget in planner.budgets)
        if not devices:
            raise UsageError("there is no device to put layers on: RAM alone", hint=Act("devices"))
        found = [*candidates(planner, config)]
    if not any(each.n_gpu_layers for each in found):
        raise UsageError(f"not one layer fits on {', '.join(devices)}", hint=Act("devices"))
    trials = (
        Trial(question.n_prompt, 0, n_ctx=longest),
        Trial(0, _STEPS, n_depth=depth, n_ctx=longest),
    )
    prefill, step = _costs(header, config, found, trials, on_part)
    sizes = layer_bytes(header)
    chosen = _fastest(found, lambda each: statistics.median(cost.seconds(each.homes, sizes) for cost in step))
    mixture = any(is_experts(tensor) for tensor in header.tensors)
    predicted = Curve(
        devices,
        question.n_prompt,
        depth,
        tuple(
            Point(
                each.n_gpu_layers,
                each.plan.layout.n_cpu_moe if mixture else None,
                each.split,
                _on_devices(each.plan),
                _range(prefill, each, sizes),
                _range(step, each, sizes),
            )
            for each in chosen
        ),
    )
    if path is None or not runs:
        return predicted
    measured: dict[int, tuple[float, float]] = {}
    to_run = predicted.to_confirm()
    for n, i in enumerate(to_run):
        on_part("runs", n, len(to_run))
        with suppress(OutOfMemory):  # closer than was computed: then nothing is known of it but what slices say
            measured[i] = _run(header, chosen[i].plan, trials)
    return predicted.corrected(measured)


# -- placements ---


def candidates(planner: Planner, config: LoadConfig) -> Iterator[Candidate]:
    """Of each number of layers, and of layers whose experts stay in RAM, the splits that may be fastest and fit.

    Of a mixture: whole layers; layers without any experts; all layers, with the experts of some of them in RAM. Each
    device keeps free what "auto" would leave there.
    """
    header, given = planner.header, config.offload.n_cpu_moe
    left = config.offload.fit_target
    budgets = ((each.name, each.free_bytes) for each in planner.budgets)
    left_over = (DeviceBudget(name, free and max(0, free - left)) for name, free in budgets)
    planner = replace(planner, budgets=tuple(left_over))
    n_layer = header.n_layer or 0
    lines = [[(n, given) for n in range(n_layer + 2)]]
    if not given and any(is_experts(tensor) for tensor in header.tensors):
        lines.append([(n, n_layer) for n in range(1, n_layer + 2)])
        lines.append([(n_layer + 1, n) for n in range(n_layer - 1, 0, -1)])
    n_devices = len(planner.budgets)
    is_split_given = n_devices < 2 or config.offload.tensor_split or config.offload.split_mode != "layer"
    seen: set[tuple[Home, ...]] = set()
    for line in lines:
        for order in [()] if is_split_given else _orders(n_devices):
            counts = [0] * n_devices
            for n_layers, n_cpu_moe in line:
                offload = replace(config.offload, n_gpu_layers=n_layers, n_cpu_moe=n_cpu_moe)
                asked = replace(config, offload=offload)
                plan = _filled(planner, asked, counts, order) if n_layers and order else _fitting(planner, asked)
                if plan is None:
                    continue
                lie = homes(header, plan.placement, plan.layout.n_cpu_moe)
                if lie not in seen:
                    seen.add(lie)
                    on = Counter(plan.placement.layers)
                    yield Candidate(plan, tuple(on[budget.name] for budget in planner.budgets), lie)


def _orders(n: int) -> list[tuple[int, ...]]:
    if n <= _FEW_DEVICES:
        return [*permutations(range(n))]
    return [(first, *(other for other in range(n) if other != first)) for first in range(n)]


def _fitting(planner: Planner, config: LoadConfig) -> LoadPlan | None:
    with suppress(DoesNotFit):
        return planner.tried(config, strict=True)
    return None


def _filled(planner: Planner, config: LoadConfig, counts: list[int], order: Sequence[int]) -> LoadPlan | None:
    """The devices filled one after the other, in this order. `counts`: of fewer layers; then of these, where they fit.

    None where RAM or all devices together are too small.
    """
    names = [budget.name for budget in planner.budgets]
    tried = [*counts]
    tried[order[0]] += int(config.offload.n_gpu_layers) - sum(counts)
    while True:
        shares = tuple(map(float, tried))
        try:
            plan = planner.tried(replace(config, offload=replace(config.offload, tensor_split=shares)), strict=True)
        except DoesNotFit as error:
            at = order.index(names.index(error.device)) if error.device != CPU else len(order)
            if at + 1 >= len(order) or not tried[order[at]]:
                return None
            tried[order[at]] -= 1
            tried[order[at + 1]] += 1
        else:
            counts[:] = tried
            return plan


def _on_devices(plan: LoadPlan) -> int:
    return sum(need.weights for name, need in plan.footprint.by_device.items() if name != CPU)


def _fastest(found: Sequence[Candidate], seconds: Callable[[Candidate], float]) -> list[Candidate]:
    """Of each number of layers and of experts in RAM one, by rising numbers of layers."""
    best: dict[tuple[int, int], Candidate] = {}
    for each in sorted(found, key=seconds):
        best.setdefault((each.n_gpu_layers, each.plan.layout.n_cpu_moe if each.n_gpu_layers else 0), each)
    return [best[key] for key in sorted(best, key=lambda key: (key[0], -key[1]))]


# -- slices ---


def _costs(
    header: Header, config: LoadConfig, found: Sequence[Candidate], trials: Sequence[Trial], on_part: OnPart
) -> list[list[Costs]]:
    """Of each trial, those of each round."""
    plan = found[-1].plan
    repack: Repack = "on" if plan.repack else "off"
    slices = slices_within(header, min(MOST_SLICE, *_rooms(found)))
    lived_in = dict.fromkeys(home for each in found for home in each.homes)
    # What is outside of the layers is of each device as it is without experts in RAM.
    needed = dict.fromkeys([*lived_in, *(Home(home.device) for home in lived_in)])
    behind = {device: each.output for each in found for device in each.between}
    made: list[list[Costs]] = [[] for _ in trials]
    with Runners(header, config, repack, trials[0].n_ctx, of_steps=statistics.fmean) as runners:
        for i in range(_ROUNDS):
            on_part("slices", i, _ROUNDS)
            parts = {home: _apart(runners, header, slices, home, trials, first=i % 2) for home in needed}
            costs = [
                Costs(
                    {home: pairs[t][0] for home, pairs in parts.items()},
                    {home.device: pairs[t][1] for home, pairs in parts.items() if not home.experts_in_ram},
                )
                for t in range(len(trials))
            ]
            handed = {pair[0]: _handed(runners, header, slices.large, pair, trials, costs) for pair in behind.items()}
            for t, each in enumerate(costs):
                made[t].append(replace(each, handed_s={device: seconds[t] for device, seconds in handed.items()}))
    return made


def _rooms(found: Sequence[Candidate]) -> list[int]:
    """Of each device, the most bytes of weights that a placement with the output there has on it."""
    rooms: Counter[str] = Counter()
    for each in found:
        rooms[each.output] = max(rooms[each.output], each.plan.footprint.by_device[each.output].weights)
    return [*rooms.values()]


def _apart(
    runners: Runners, header: Header, slices: Slices, home: Home, trials: Sequence[Trial], *, first: int
) -> list[tuple[float, float]]:
    """Of each trial, seconds of a byte of a layer there, and of what is outside of the layers."""
    small, large = (
        Part(own, laid_on(home.device, len(own), experts_in_ram=home.experts_in_ram))
        for own in (slices.small, slices.large)
    )
    return [apart(header, slices, *pair) for pair in runners.pairs(small, large, trials, first=first)]


def _handed(
    runners: Runners,
    header: Header,
    layers: tuple[int, ...],
    pair: tuple[str, str],
    trials: Sequence[Trial],
    costs: Sequence[Costs],
) -> list[float]:
    """Of each trial, what handing over to the first device takes, the second one having the output: what a slice on
    both takes beyond the sum of what is known."""
    device, output = pair
    n = max(1, len(layers) // 2)
    part = Part(layers, Layout(len(layers) + 1, pair, (float(n), float(len(layers) + 1 - n))))
    placed = [Home(device)] * n + [Home(output)] * (len(layers) + 1 - n)
    sizes = layer_bytes(header)
    own = [sizes[layer] for layer in layers]
    known = (replace(each, handed_s={device: 0.0}).seconds(placed, own) for each in costs)
    return [max(0.0, seconds - k) for seconds, k in zip(runners.seconds(part, trials), known, strict=True)]


def _range(costs: Sequence[Costs], placed: Candidate, sizes: Sequence[int]) -> Range:
    seconds = [cost.seconds(placed.homes, sizes) for cost in costs]
    return Range(min(seconds) / _DOUBT, statistics.median(seconds), max(seconds) * _DOUBT)


# -- runs ---


def _run(header: Header, plan: LoadPlan, trials: Sequence[Trial]) -> tuple[float, float]:
    """Seconds of the prompt and of one token, of the model itself."""
    with ChildEngine.open(plan, header) as engine:
        engine.run_trial(Trial(min(trials[0].n_prompt, 64), 2, n_ctx=trials[0].n_ctx))
        prefill_s, step_s = (
            statistics.median(seconds_of(engine.run_trial(each), each, statistics.fmean) for _ in range(_ROUNDS))
            for each in trials
        )
    return prefill_s, step_s
