"""Experiments 10 and 11: what tokens cost, and by how much GPUs are faster, by the size of the model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from llmrun.bench.plot.figures import Axis, Figure, Panel, Point, Series
from llmrun.bench.spec import Test
from llmrun.experiments.experiment import Cell, Finding, Result, Table, judged, range_text, shown
from llmrun.experiments.lab import Lab, figures_of
from llmrun.experiments.spread import BARS, Spread
from llmrun.gguf import synth
from llmrun.machine.energy import cost_per_million_tokens
from llmrun.planning.footprint import CPU
from llmrun.planning.predict.elsewhere import Elsewhere
from llmrun.planning.predict.machines import parse
from llmrun.planning.predict.prediction import Question, Range
from llmrun.units import UNKNOWN, significant

SHAPE, LEVEL = "llama-1.2b", "Q4_K_M"
LARGE = "llama-8b"
CPU_MACHINE, GPU_MACHINE = "7950X3D 64gb", "RTX 4090"
CHATS, TURNS, N_PROMPT, N_GEN, DAYS = 1000, 6, 600, 250, 30
"""A stated load: chats a day, turns of each, tokens of prompt that are new and of answer in a turn."""
BILL = (2000.0, 2500.0)
"""Dollars a month, told by the article."""
_HOURS = 24 * DAYS


def cost(lab: Lab) -> Result:
    batches = (1, 16) if lab.quick else (1, 16, 64)

    def of(n: int) -> Cell:
        def take() -> Mapping[str, float | None]:
            return figures_of(lab.bench(lab.model(SHAPE, LEVEL), lab.config(repack="off"), Test("tg", 0, 12, 16, n)))

        return Cell(f"{n} at a time", take)

    lab.measure([of(n) for n in batches])

    def ceilings() -> Mapping[str, float | None]:
        probed = lab.prober.probe(CPU, "F32", lab.n_threads, 0.3)
        found = {"bytes_per_s": probed.read_bytes_per_s, "flops_per_s": probed.flops_per_s}
        return {name: statistics.median(each) if each else None for name, each in found.items()}

    lab.measure([Cell("ceilings", ceilings)])
    watts, price = lab.options.watts, lab.options.price_kwh
    counted = _counted(lab, batches)
    stated = (
        "counted"
        if counted
        else f"{watts:g} W, stated"
        if watts
        else "nothing counts joules here, and no watts are stated"
    )
    rows = []
    for n in batches:
        rate = lab.spread(f"{n} at a time", "decode_tps")
        joules = _joules(lab, n)
        money = cost_per_million_tokens(joules, rate.median if rate else None, price, None) if joules else None
        rows.append((f"here, {n} at a time", shown(rate), _joule_text(joules), _money(money), stated))
    predicted = {name: _predicted(name, LARGE) for name in (CPU_MACHINE, GPU_MACHINE)}
    for name, (tps, per_million) in predicted.items():
        bill = per_million.times(price / 3.6e6) if per_million else None
        rows.append(
            (
                f"{name}, {LARGE}, one at a time, predicted",
                range_text(tps),
                range_text(per_million, 1e-6),
                range_text(bill),
                "board power",
            )
        )
    findings = [*_energy_findings(lab, batches), *_machine_findings(predicted), *_bill_findings(lab, predicted)]
    ceiling = {name: lab.spread("ceilings", name) for name in ("flops_per_s", "bytes_per_s")}
    per_work = _work_table(lab, ceiling, price)
    picture = _picture(lab, batches, predicted)
    return Result(
        tuple(findings),
        (
            f"{SHAPE}'s shape at {LEVEL}, behind 16 tokens; joules are counted where a counter is (RAPL, NVML),"
            " else watts that are stated"
            " times seconds. Without either, nothing is told.",
            (f"A kWh is taken to cost {price:g}, which can be told. Of machines elsewhere the board power of the data"
            " sheet and plan's t/s."),
            (f"A stated load: {CHATS} chats a day of {TURNS} turns, {N_PROMPT} new tokens of prompt and {N_GEN} of"
            " answer each."),
        ),
        (
            Table("A million tokens", ("", ">decode, t/s", ">joules a token", f">money, at {price:g} a kWh", "energy"),
                  tuple(rows)),
            per_work,
        ),
        {"": picture},
        (
            "Energy alone: what machines cost to buy or to rent is not in it.",
            "Board power is the most that a card takes; decoding alone takes less.",
        ),
    )  # fmt: skip


def _counted(lab: Lab, batches: tuple[int, ...]) -> bool:
    return any(lab.values(f"{n} at a time", "joules_per_token") for n in batches)


def _joules(lab: Lab, n: int) -> float | None:
    """A token's, while so many are made: counted, else by the watts that are stated."""
    if counted := lab.spread(f"{n} at a time", "joules_per_token"):
        return counted.median
    rate = lab.spread(f"{n} at a time", "decode_tps")
    return lab.options.watts / rate.median if lab.options.watts and rate else None


def _joule_text(joules: float | None) -> str:
    return UNKNOWN if joules is None else significant(joules)


def _money(value: float | None) -> str:
    return UNKNOWN if value is None else significant(value)


def _predicted(name: str, shape: str) -> tuple[Range | None, Range | None]:
    """Tokens per second, and joules of a million tokens."""
    header = synth.header_of(synth.SHAPES[shape], LEVEL)
    found = Elsewhere(parse(name)).predict(header, Question(512, 128, (512,)))
    rate = found.decode_tps[512]
    return rate, rate.per(found.watts * 1e6) if rate and found.watts else None


def _energy_findings(lab: Lab, batches: tuple[int, ...]) -> list[Finding]:
    claim = "Energy of a token falls with the batch."
    first, last = (_joules(lab, n) for n in (batches[0], batches[-1]))
    rates = [lab.spread(f"{n} at a time", "decode_tps") for n in (batches[0], batches[-1])]
    if first and last and _counted(lab, batches):
        text = f"{significant(first)} J a token one at a time, {significant(last)} J with {batches[-1]}"
        return [Finding(claim, "rise", text, judged([last < first]))]
    if rates[0] and rates[1]:
        gain = rates[1].median / rates[0].median
        text = f"{batches[-1]} at a time make {significant(gain)} × the tokens with the same cores busy"
        if first and last:
            text += (
                f": {significant(first)} and {significant(last)} J a token by {lab.options.watts:g} W, which are stated"
            )
        return [Finding(claim, "rise", text, "not measured", "Nothing counts joules here.")]
    return [Finding(claim, "rise", UNKNOWN, "not measured")]


_FEW = 2.0
"""Machines in place of a card: more of them are no cheap way."""


def _machine_findings(predicted: Mapping[str, tuple[Range | None, Range | None]]) -> list[Finding]:
    (cpu, cpu_j), (gpu, gpu_j) = predicted[CPU_MACHINE], predicted[GPU_MACHINE]
    found = []
    if cpu and gpu:
        n = gpu.mid / cpu.mid
        text = f"{significant(n)} of a {CPU_MACHINE} do what one {GPU_MACHINE} does, {LARGE}, one answer at a time each"
        claim = "A few CPUs carry the load of a GPU."
        found.append(Finding(claim, "rise", text, judged([n <= _FEW]), predicted=True))
    if cpu_j and gpu_j:
        text = (
            f"{significant(cpu_j.mid / 1e6)} J a token on the {CPU_MACHINE}, {significant(gpu_j.mid / 1e6)} on the"
            f" {GPU_MACHINE}"
        )
        why = "By energy alone, one answer at a time."
        claim = "CPUs are the cheaper way to infer."
        found.append(Finding(claim, "rise", text, judged([cpu_j.mid < gpu_j.mid]), why, predicted=True))
    return found


def _bill_findings(lab: Lab, predicted: Mapping[str, tuple[Range | None, Range | None]]) -> list[Finding]:
    """The stated load on one GPU: hours that it is busy with prompts and answers, one at a time, and their energy."""
    claim = f"A GPU for a chat costs {BILL[0]:g} to {BILL[1]:g} dollars a month."
    rate, joules = predicted[GPU_MACHINE]
    prompts = _prefill(GPU_MACHINE, LARGE)
    turns = CHATS * TURNS * DAYS
    if rate is None or joules is None or prompts is None:
        return [Finding(claim, "dream", UNKNOWN, "not measured")]
    hours = turns * (N_GEN / rate.mid + N_PROMPT / prompts.mid) / 3600
    watts = joules.mid / 1e6 * rate.mid
    money = hours * watts / 1000 * lab.options.price_kwh
    text = (
        f"{significant(turns * N_GEN / 1e6)} M tokens of answer and {significant(turns * N_PROMPT / 1e6)} M of"
        " prompt keep an"
        f" {GPU_MACHINE} with {LARGE} busy for {significant(hours)} h, {significant(money)} of energy;"
        f" {BILL[0]:g} to {BILL[1]:g} are {significant(BILL[0] / _HOURS)} to {significant(BILL[1] / _HOURS)} for"
        " each hour"
        " of the month"
    )
    inside = [BILL[0] <= money <= BILL[1]]
    why = (
        ""
        if all(inside)
        else (f"As rent, whether it is used or not: it is busy {significant(100 * hours / _HOURS)} % of the time.")
    )
    return [Finding(claim, "dream", text, judged(inside), why, predicted=True)]


def _prefill(name: str, shape: str) -> Range | None:
    header = synth.header_of(synth.SHAPES[shape], LEVEL)
    return Elsewhere(parse(name)).predict(header, Question(N_PROMPT, N_GEN, (512,))).prefill_tps


def _work_table(lab: Lab, ceiling: Mapping[str, Spread | None], price: float) -> Table:
    """Seconds and money of 10¹² operations, and of a terabyte read."""
    rows = []
    watts = lab.options.watts
    flops, reads = ceiling["flops_per_s"], ceiling["bytes_per_s"]
    here = [1e12 / flops.median if flops else None, 1e12 / reads.median if reads else None]
    rows.append(_work_row("here, measured", here, watts, price))
    for name in (CPU_MACHINE, GPU_MACHINE):
        part = parse(name).parts[0]
        rows.append(
            _work_row(
                f"{part.name}, data sheet",
                [1e12 / part.flops if part.flops else None, 1e12 / part.bytes_per_s],
                part.watts,
                price,
            )
        )
    columns = ("", ">10¹² operations, s", ">money", ">1 TB read, s", ">money", ">watts")
    return Table("What computing and reading cost", columns, tuple(rows))


def _work_row(name: str, seconds: list[float | None], watts: float | None, price: float) -> tuple[str, ...]:
    cells = []
    for each in seconds:
        money = each * watts / 3.6e6 * price if each and watts else None
        cells += [UNKNOWN if each is None else significant(each), UNKNOWN if money is None else significant(money, 2)]
    return (name, *cells, UNKNOWN if watts is None else f"{watts:g}")


def _picture(lab: Lab, batches: tuple[int, ...], predicted: Mapping[str, tuple[Range | None, Range | None]]) -> Figure:
    rates = tuple(spread.point(n) for n in batches if (spread := lab.spread(f"{n} at a time", "decode_tps")))
    ticks = tuple((float(n), str(n)) for n in batches)
    panels = [
        Panel(
            "sweep",
            f"{SHAPE} {LEVEL} here",
            Axis("answers at a time", "log", ticks),
            Axis("tokens per second"),
            (Series("decode", rates),),
        )
    ]
    known = [(name, joules) for name, (_, joules) in predicted.items() if joules]
    if known:
        points = tuple(
            Point(i, each.mid / 1e6, low=each.low / 1e6, high=each.high / 1e6) for i, (_, each) in enumerate(known)
        )
        names = tuple((float(i), name) for i, (name, _) in enumerate(known))
        panels.append(
            Panel(
                "bars",
                f"{LARGE} {LEVEL}, predicted",
                Axis("", ticks=names),
                Axis("joules a token"),
                (Series("joules", points, "bar"),),
            )
        )
    return Figure(
        "what tokens cost",
        tuple(panels),
        (f"{BARS}; of predictions their range",),
    )


# -- 11: the ratio -----------------------------------------------------------------------------------------------------

RATIO_SHAPES = ("qwen3-0.6b", "llama-1.2b", "llama-3b", "llama-8b")
RATIO_CPUS = ("7950X3D 64gb", "i9-14900 64gb")
RATIO_GPUS = ("RTX 4090", "RTX 3090", "RTX 3060")
_CLAIMED = (5.0, 6.0)


def ratio(lab: Lab) -> Result:
    """11: the claimed 5 to 6 times between CPU and GPU, by the size of the model, prompt and decoding apart."""
    question = Question(512, 128, (0,))
    found = {
        (shape, name): Elsewhere(parse(name)).predict(lab.header(shape, LEVEL), question)
        for shape in RATIO_SHAPES
        for name in (*RATIO_CPUS, *RATIO_GPUS)
    }
    rows, decodes, prompts = [], [], []
    for cpu in RATIO_CPUS:
        for gpu in RATIO_GPUS:
            decode, prompt = [], []
            for shape in RATIO_SHAPES:
                ours, theirs = found[shape, cpu], found[shape, gpu]
                a, b = ours.decode_tps[0], theirs.decode_tps[0]
                decode.append(b.mid / a.mid if a and b else None)
                prompt.append(
                    theirs.prefill_tps.mid / ours.prefill_tps.mid if ours.prefill_tps and theirs.prefill_tps else None
                )
            decodes += [each for each in decode if each]
            prompts += [each for each in prompt if each]
            rows.append((cpu, gpu, *map(significant, decode), *map(significant, prompt)))
    findings = []
    if decodes:
        text = f"decoding {significant(min(decodes))} to {significant(max(decodes))} ×"
        if prompts:
            text += f", prompts {significant(min(prompts))} to {significant(max(prompts))} ×"
        inside = [_CLAIMED[0] / 1.3 <= each <= _CLAIMED[1] * 1.3 for each in (*decodes, *prompts)]
        why = (
            ""
            if all(inside)
            else ("Decoding follows the memories' bandwidths, prompts the operations: there is no one ratio.")
        )
        findings.append(
            Finding(("A GPU is 5 to 6 times as fast as a CPU."), "dream", text, judged(inside), why, predicted=True)
        )
    columns = ("CPU", "GPU", *(f">{shape}" for shape in RATIO_SHAPES), *(f">{shape}, prompt" for shape in RATIO_SHAPES))
    series = []
    weights = [lab.header(shape, LEVEL).n_params / 1e9 for shape in RATIO_SHAPES]
    for gpu in RATIO_GPUS:
        points = []
        for x, shape in zip(weights, RATIO_SHAPES, strict=True):
            a, b = found[shape, RATIO_CPUS[0]].decode_tps[0], found[shape, gpu].decode_tps[0]
            if a and b:
                points.append(Point(x, b.mid / a.mid, low=b.low / a.high, high=b.high / a.low))
        series.append(Series(gpu, tuple(points)))
    panel = Panel(
        "sweep",
        f"decoding, GPU ÷ {RATIO_CPUS[0]}, predicted",
        Axis("billions of weights", "log", tuple((x, significant(x, 2)) for x in weights)),
        Axis("×"),
        tuple(series),
    )
    return Result(
        tuple(findings),
        (
            f"`plan`, from data sheets for both, at {LEVEL}, a prompt of 512 tokens, decoding behind an empty context."
            " Nothing is measured for it: neither these CPUs nor these GPUs are here.",
        ),
        (Table("By how much the GPU is faster: predicted", columns, tuple(rows)),),
        {"": Figure("GPU beside CPU, by the size of the model", (panel,), (("error bars: from the least to the"
                                                                           " most that both ranges allow"),))},
        ("How right such predictions are: docs/prediction.md.", ("A model that does not fit into the card's memory"
                                                                " is another question: 70b.")),
    )  # fmt: skip
