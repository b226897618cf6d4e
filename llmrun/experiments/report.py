"""An experiment's record as a page, and all of them as one table: Markdown."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from llmrun.experiments.experiment import ARTICLES, Finding, Table
from llmrun.experiments.record import Record
from llmrun.units import UNKNOWN, fixed, percent, size


def page(record: Record, pictures: Mapping[str, str]) -> str:
    """`pictures`: names of files beside the page, by the part of the figure's name."""
    result = record.result
    blocks = [
        f"# {record.title}",
        head(record),
        _findings(result.findings),
        *(f"![{record.result.figures[part].title}]({name})" for part, name in pictures.items()),
        "## How",
        "\n".join(f"- {line}" for line in (*result.method, _repeated(record))),
        *(_table(table) for table in result.tables),
    ]
    if record.errors:
        blocks += ["## Not measured", "\n".join(f"- {key}: {error}" for key, error in record.errors.items())]
    if result.limits:
        blocks += ["## What this does not say", "\n".join(f"- {line}" for line in result.limits)]
    blocks += ["## Again", f"    {shlex.join(record.command)}"]
    return "\n\n".join(blocks) + "\n"


def head(record: Record) -> str:
    """Where, when and with what."""
    machine, build = record.machine, record.build
    others = [sample.other_cores for samples in record.cells.values() for sample in samples]
    known = [each for each in others if each is not None]
    busy = f", others kept {fixed(max(known), 1)} cores busy at most" if known else ""
    where = f"{machine.cpu or 'a CPU'}, {machine.default_threads} threads, {size(machine.ram_bytes)} of RAM"
    devices = [device.name for device in machine.devices if device.kind != "cpu"]
    beside = f", {', '.join(devices)}" if devices else ""
    quick = " Quick: fewer values and rounds." if record.setup.settings.get("quick") else ""
    return (
        f"{record.created[:10]}, {where}{beside}{busy}; llmrun {build.llmrun}, llama-cpp-python"
        f" {build.llama_cpp_python},"
        f" ggml {build.ggml}.{quick} Claims of: {record.article}."
    )


def place(record: Record) -> str:
    """Where it was measured, in a line."""
    build, machine = record.build, record.machine
    if not record.cells:
        return f"not measured · llmrun {build.llmrun}"
    where = f"{machine.cpu or 'a CPU'}, {machine.default_threads} threads"
    return f"measured on {where}, {record.created[:10]} · llmrun {build.llmrun}"


def _repeated(record: Record) -> str:
    counts = sorted(map(len, record.cells.values()))
    if not counts:
        return "Nothing could be measured." if record.errors else "Nothing is measured here."
    each = " to ".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
    told = f"{each} sample{'s' * (counts[-1] > 1)} of each cell, {sum(counts)} in all, cells in turn."
    if counts[-1] < 2:
        return told
    noise = record.noise
    return (
        f"{told} A figure is their median. Brackets are where the median of a rerun is expected, 19 times of 20. They"
        f" are as wide as samples differ, usually by {percent(noise.usual_by)}, and as the machine's own speed moved"
        f" meanwhile, by {percent(noise.moved_by)} (standard deviations)."
    )


def _findings(findings: Sequence[Finding]) -> str:
    rows = [("claim", "here", "verdict")]
    for each in findings:
        rows.append((each.claim, each.number, f"**{each.judged}**{f'. {each.why}' if each.why else ''}"))
    return _markdown(rows)


def _table(table: Table) -> str:
    return f"### {table.title}\n\n" + _markdown([table.columns, *table.rows])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = rows
    titles = [_cell(each.removeprefix(">")) for each in first]
    rule = ["---:" if each.startswith(">") else "---" for each in first]
    lines = [titles, rule, *([_cell(each) for each in row] for row in rest)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def front(records: Sequence[Record]) -> str:
    """One table of all claims. Records of several machines are told apart."""
    machines = {record.setup.machine: _machine(record) for record in records}
    blocks = [TITLE, _INTRODUCTION]
    if len(machines) > 1:
        of = "; ".join(
            f"{said}: {', '.join(record.name for record in records if record.setup.machine == digest)}"
            for digest, said in machines.items()
        )
        blocks.append(f"**Measured on {len(machines)} machines**, each experiment on one of them. {of}.")
    elif machines:
        dates = sorted({record.created[:10] for record in records})
        when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
        blocks.append(f"Measured on {next(iter(machines.values()))}, {when}.")
    rows = [("claim", "article", "our number", "verdict", "more")]
    for record in records:
        for finding in record.result.findings:
            name = ARTICLES[finding.article].partition(" (")[0]
            rows.append(
                (
                    finding.claim,
                    name,
                    finding.number,
                    f"**{finding.judged}**{f'. {finding.why}' if finding.why else ''}",
                    f"[{record.name}]({record.name}.md)",
                )
            )
    blocks.append(_markdown(rows) if len(rows) > 1 else UNKNOWN)
    counted = Counter(finding.judged for record in records for finding in record.result.findings)
    blocks.append("; ".join(f"{n} {verdict}" for verdict, n in counted.most_common()) + ".")
    return "\n\n".join(blocks) + "\n"


TITLE = "# The founding questions"
_INTRODUCTION = (
    "What five articles say of running models on CPUs and GPUs, and what came of measuring it. A GPU's figure is"
    " measured on one or"
    " predicted from its data sheet, and says which. Every page has the command that makes it again."
)


def _machine(record: Record) -> str:
    info = record.machine
    return f"{info.cpu or 'a CPU'} with {info.default_threads} threads"
