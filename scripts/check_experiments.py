#!/usr/bin/env python3
"""Does a rerun reproduce a record within its own interval? Prints Markdown.

    scripts/check_experiments.py FOLDER LATER_FOLDER

Of each experiment that is in both: figures whose median of the later record lies where the earlier one expects it,
which should be 19 of 20; how far the others are beside it; and how much time lies between.
"""

from __future__ import annotations

import statistics
import sys
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from llmrun.experiments.conduct import EXPERIMENTS  # noqa: E402
from llmrun.experiments.record import Record, read_record  # noqa: E402


def figures(record: Record) -> dict[tuple[str, str], list[float]]:
    """Samples of each figure of each cell."""
    found: dict[tuple[str, str], list[float]] = {}
    for key, samples in record.cells.items():
        for sample in samples:
            for name, value in sample.values.items():
                if value is not None and value > 0:
                    found.setdefault((key, name), []).append(value)
    return found


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: scripts/check_experiments.py FOLDER LATER_FOLDER", file=sys.stderr)
        return 2
    folders = [Path(each) for each in sys.argv[1:]]
    print("| experiment | minutes later | figures | within | off in the median | the worst beside | half width |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    n_all = n_held = 0
    for name in EXPERIMENTS:
        paths = [folder / f"{name}.json" for folder in folders]
        if not all(path.exists() for path in paths):
            continue
        first, later = map(read_record, paths)
        again = figures(later)
        n = held = 0
        off, beside, widths = [], [0.0], []
        for key, samples in figures(first).items():
            spread = first.noise.spread(samples)
            if key not in again or spread is None or spread.low == spread.high:
                continue
            value = statistics.median(again[key])
            n, held = n + 1, held + (spread.low <= value <= spread.high)
            off.append(abs(value / spread.median - 1))
            widths.append(spread.high / spread.median - 1)
            beside.append(max(value / spread.high, spread.low / value) - 1)
        if not n:
            continue
        n_all, n_held = n_all + n, n_held + held
        times = [datetime.fromisoformat(each.created.replace("Z", "+00:00")) for each in (first, later)]
        minutes = (times[1] - times[0]).total_seconds() / 60
        cells = (
            name,
            f"{minutes:.0f}",
            n,
            held,
            *(f"{100 * each:.1f} %" for each in (statistics.median(off), max(beside))),
        )
        print(f"| {' | '.join(map(str, cells))} | {100 * statistics.median(widths):.0f} % |")
    print(f"\n{n_held} of {n_all} figures are within.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
