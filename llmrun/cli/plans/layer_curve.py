"""Layers for speed: `llmrun plan MODEL --curve`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrun.cli.framework import spelling
from llmrun.cli.plans.asked import Asked
from llmrun.cli.plans.document import model_of, range_of
from llmrun.cli.plans.report import shown
from llmrun.cli.terminal import screen, tables
from llmrun.errors import Act, UsageError
from llmrun.units import UNKNOWN, significant

if TYPE_CHECKING:
    from llmrun.models.levels import Levels
    from llmrun.planning.predict.curve import Curve, Point

_BAR = 24


def tell(models: list[str], asked: Asked, output: Path | None) -> None:
    """Every number of layers on devices of one model, at the level that a run would take."""
    from llmrun.bench.plot import images
    from llmrun.bench.plot.curve import figure
    from llmrun.cli.terminal import progress
    from llmrun.engine.devices import find_devices
    from llmrun.machine.environment import describe_machine
    from llmrun.models.levels import usual_level
    from llmrun.tuning.curve import curve

    if len(models) != 1 or len(asked.depths) > 1:
        raise UsageError("a curve is of one model and one depth", field="curve", hint="llmrun plan MODEL --curve -d 0")
    if output is not None:
        images.format_of(output)
        images.require()  # before minutes are spent
    levels = usual_level(models[0], offline=asked.offline)
    (file,) = levels.files
    with progress.bar("measuring slices, and running it", shown=not asked.quiet) as bar:

        def on_part(what: str, done: int, of: int) -> None:
            if bar:
                bar.update((done / of + (what == "runs")) / 2)

        found = curve(file.header, asked.question(levels), file.path, on_part=on_part)
    if output is not None:
        images.write(figure(found, f"{levels.name} · {file.quant or UNKNOWN}"), output)
        screen.note(f"wrote {output}")
    if asked.as_json:
        machine = asdict(describe_machine(find_devices(asked.load.rpc).devices))
        screen.out_json(_document(found, levels, machine))
    else:
        _show(found, levels, asked)


def _document(found: Curve, levels: Levels, machine: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": model_of(levels),
        "machine": dict(machine),
        "devices": [*found.devices],
        "points": [_point(point, found) for point in found.points],
        "best": _point(found.best, found),
        "crosses_cpu_at": found.crosses_cpu_at,
    }


def _point(point: Point, of: Curve) -> dict[str, Any]:
    step_s = point.measured_step_s
    return {
        "n_gpu_layers": point.n_gpu_layers,
        "n_cpu_moe": point.n_cpu_moe,
        "split": [*point.split],
        "pp_tps": range_of(point.prefill_s.per(of.n_prompt)),
        "tg_tps": range_of(point.step_s.per(1)),
        "measured_tg_tps": 1 / step_s if step_s else None,
    }


def _show(found: Curve, levels: Levels, asked: Asked) -> None:
    from llmrun.bench.plot.text import bar

    header, best, alone = levels.files[0].header, found.best, found.alone
    n_all, several = (header.n_layer or 0) + 1, len(found.devices) > 1
    fastest = best.step_s.per(1).high
    mixture = best.n_cpu_moe is not None
    screen.out(f"{levels.name}: layers on {', '.join(found.devices)}, t/s, decoding behind {found.n_depth} tokens\n\n")
    titles = [">LAYERS", *([">EXPERTS IN RAM"] * mixture), *([">SPLIT"] * several)]
    tables.show(
        [*titles, f">PREFILL {found.n_prompt}", ">DECODE", ">MEASURED", ""],
        (
            [
                str(point.n_gpu_layers),
                *([str(point.n_cpu_moe)] * mixture),
                *([",".join(map(str, point.split))] * several),
                significant(1 / point.prefill_s.mid * found.n_prompt),
                shown(point.step_s.per(1)),
                significant(1 / point.measured_step_s) if point.measured_step_s else UNKNOWN,
                bar(1 / point.step_s.mid / fastest, _BAR),
            ]
            for point in found.points
        ),
    )
    fields: dict[str, object] = {"n_gpu_layers": best.n_gpu_layers}
    if best.n_gpu_layers:
        fields |= {"tensor_split": best.split} if several else {}
        fields |= {"n_cpu_moe": best.n_cpu_moe} if best.n_cpu_moe else {}
        fields |= {"rpc": asked.load.rpc} if asked.load.rpc else {}
    screen.out(f"\nbest: {spelling.typed(Act('run', levels.name, fields))}\n")
    if alone is not None:
        rate, crosses = significant(1 / alone.step_s.mid), found.crosses_cpu_at
        few = f"{crosses} layers are the fewest that are" if crosses else "no number of layers is"
        screen.out(f"{few} faster than the CPU alone, {rate} t/s\n")
    most = max(point.n_gpu_layers for point in found.points)
    if most < n_all:
        screen.out(f"more than {most} of {n_all} layers do not fit\n")
    if levels.files[0].path is None:
        screen.out("not confirmed: the model is not here to be run\n")
