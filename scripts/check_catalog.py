"""Compares every entry of the catalog with the hub, and prints what it found.

    scripts/check_catalog.py                    the shipped models.toml against HF_ENDPOINT, one question per entry
    scripts/check_catalog.py qwen3 gpt-oss:20b  these families and models only
    scripts/check_catalog.py --catalog my.toml  another file

Wrong is: no such repository, no GGUF model in it, a part missing of a split one, not the level that the entry names, a
number of parameters that the file's size contradicts, and a `gated` that is not what the hub says. Worth a note, but
not wrong: another level than Q4_K_M is taken, the hub names another licence.

Exit status: 0 all right, 1 something is wrong, 2 unknown name or malformed file, 5 the hub can't be reached.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrun import units  # noqa: E402
from llmrun.errors import LlmrunError, NetworkError, NotFound  # noqa: E402
from llmrun.models import catalog, quants  # noqa: E402

WIDE = ("BF16", "F16", "Q8_0", "F32")
"""Levels that store nearly every weight at the same width, so that the file's size tells how many there are."""
WIDE_RATIO = (0.85, 1.35)
"""Weights by size over weights as the entry says. Above 1: a tied embedding is often stored a second time."""
NARROW_RATIO = (0.70, 1.65)
"""Of the other levels. Small models are mostly embedding, which stays wide: Gemma 3 270M at Q4_K_M has 1.54."""
SPDX = ("Apache-2.0", "MIT", "CC-BY-NC-4.0")


class RepoFile(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...


class RepoInfo(Protocol):
    """What is used of `llmrun.models.hub.info.RepoInfo`."""

    @property
    def files(self) -> Sequence[RepoFile]: ...
    @property
    def gated(self) -> bool: ...
    @property
    def licence(self) -> str | None: ...


@dataclass(frozen=True)
class Checked:
    """One entry: what a user who names no level would get, and what is wrong with that."""

    entry: catalog.CatalogEntry
    quant: str | None = None
    size: int | None = None
    parameters: float | None = None
    gated: bool = False
    wrong: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(entry: catalog.CatalogEntry, info: RepoInfo) -> Checked:
    """Compare an entry with what the hub says about its repository."""
    sizes = {file.name: file.size for file in info.files}
    wrong: list[str] = []
    notes: list[str] = []
    if info.gated != entry.gated:
        wrong.append("gated, and the entry does not say so" if info.gated else "not gated, and the entry says so")
    if entry.licence in SPDX and info.licence and info.licence.lower() not in (entry.licence.lower(), "other"):
        notes.append(f"the hub says licence {info.licence}")
    if entry.file is not None and entry.file not in sizes:
        return Checked(entry, gated=info.gated, wrong=(*wrong, f"no file {entry.file}"))
    choice = (
        quants.Choice(entry.file, quants.quant_of(entry.file), "")
        if entry.file is not None
        else quants.choose(sizes, entry.quant)
    )
    if choice is None:
        has = sorted({quant for name in sizes if quants.is_model_file(name) and (quant := quants.quant_of(name))})
        said = f"no {entry.quant}; it has {', '.join(has)}" if has and entry.quant else "no GGUF model"
        return Checked(entry, gated=info.gated, wrong=(*wrong, said))
    if entry.quant is None and choice.quant != quants.DEFAULT:
        notes.append(choice.why)
    parts = quants.split_parts(choice.file)
    if missing := [part for part in parts if part not in sizes]:
        wrong.append(f"{len(missing)} of {len(parts)} parts missing")
    estimate = None if missing else _weights(sizes, choice)
    if estimate is not None and entry.parameters:
        low, high = (bound * entry.parameters for bound in estimate[1])
        if not low <= estimate[0] <= high:
            wrong.append(f"{units.count(entry.parameters)} parameters, but files for {units.count(estimate[0])}")
    size = sum(sizes.get(part, 0) for part in parts)
    weights = estimate[0] if estimate else None
    return Checked(entry, choice.quant, size, weights, info.gated, tuple(wrong), tuple(notes))


def _weights(sizes: dict[str, int], choice: quants.Choice) -> tuple[float, tuple[float, float]] | None:
    """About how many weights the files have, and how far that may be off; from a wide level where there is one."""
    for quant in (*WIDE, choice.quant):
        found = quants.choose(sizes, quant) if quant else None
        bits = quants.bits_per_weight(quant) if quant else None
        if found is None or found.quant != quant or not bits:
            continue
        parts = quants.split_parts(found.file)
        if all(part in sizes for part in parts):
            ratio = WIDE_RATIO if quant in WIDE else NARROW_RATIO
            return 8 * sum(sizes[part] for part in parts) / bits, ratio
    return None


def main(arguments: Sequence[str] | None = None, *, model_info: Callable[[str], RepoInfo] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="families and models; all if none is named")
    parser.add_argument("--catalog", type=Path, default=ROOT / "models.toml", metavar="FILE")
    options = parser.parse_args(arguments)
    if model_info is None:
        from llmrun.models.hub import info

        model_info = info.model_info
    try:
        entries = _selected(catalog.read(options.catalog), options.names)
        n_wrong = sum(_report(entry, model_info) for entry in entries)
    except LlmrunError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 2 if isinstance(error, NotFound) else error.exit_code
    print(f"{len(entries)} entries, {n_wrong} wrong")
    return 1 if n_wrong else 0


def _selected(known: catalog.Catalog, names: Sequence[str]) -> Sequence[catalog.CatalogEntry]:
    if not names:
        return known.entries
    found: list[catalog.CatalogEntry] = []
    for name in names:
        entry = known.find(name)
        family = known.families().get(name.lower())
        if entry is None and family is None:
            raise NotFound(f"the catalog has no {name!r}")
        found += family or ([entry] if entry else [])
    return list(dict.fromkeys(found))


def _report(entry: catalog.CatalogEntry, model_info: Callable[[str], RepoInfo]) -> bool:
    """Check one entry and print its line; whether something is wrong."""
    try:
        checked = check(entry, model_info(entry.repo))
    except NetworkError:
        raise  # of no use for the next one either
    except LlmrunError as error:
        checked = Checked(entry, wrong=(error.message,))
    verdict = "WRONG" if checked.wrong else "ok"
    said, found = units.count(entry.parameters), units.count(checked.parameters)
    told = "; ".join((*checked.wrong, *checked.notes, *(("gated",) if checked.gated else ())))
    print(
        f"{verdict:5}  {entry.name:25}  {checked.quant or units.UNKNOWN:12}  {units.size(checked.size):>9}"
        f"  {said:>7} {found:>7}  {entry.repo}" + (f"  ({told})" if told else ""),
        flush=True,
    )
    return bool(checked.wrong)


if __name__ == "__main__":
    sys.exit(main())
