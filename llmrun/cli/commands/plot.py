"""`llmrun plot`: a bench as a picture, in a file or in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from llmrun.cli.framework import options
from llmrun.cli.framework.bench_options import RECORD
from llmrun.cli.framework.options import Argument, Option
from llmrun.cli.terminal import screen

PIPE_WIDTH = 80


def plot(
    benches: Annotated[list[str], Argument("BENCH", RECORD)],
    output: Annotated[
        Path | None, Option("-o", "--output", metavar="FILE", help="Draw to this .svg or .png.", without="text, here")
    ] = None,
    kind: Annotated[
        list[str] | None,
        Option(
            "--kind", metavar="KIND", help="sweep, batch, bars, roofline, load; several: a,b.", without="by what varies"
        ),
    ] = None,
    x: Annotated[
        str | None,
        Option("--x", metavar="NAME", help="The swept setting: n_threads, n_depth, …", without="most values"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Draw benches: curves of a sweep, bars side by side, batch scaling, a roofline.

    sweep: t/s against the setting that varies, a line for each combination of the others and each bench. batch: t/s
    against sequences in parallel. bars: CPU against GPU, model against model. roofline: each row under the bandwidth
    and the operations per second that were measured beside it. load: what a server gives all and each, and the time to
    the first token, against requests at once.

    Points are means, error bars standard deviations. A file takes matplotlib; text and --json do not.
    """
    from llmrun.bench.plot import figures, images
    from llmrun.bench.record import to_document

    kinds = figures.kinds_of(kind) if kind else []
    if output is not None:
        images.format_of(output)
        images.require()  # before anything is read, and much is said
    figure = figures.figure(figures.open_benches(benches), kinds, x)
    if not kinds:
        screen.note(f"kind: {', '.join(figure.kinds)}")
    for line in figure.left_out:
        screen.note(f"left out: {line}")
    if output is not None:
        images.write(figure, output)
        screen.note(f"wrote {output}")
    if as_json:
        screen.out_json(to_document(figure))
    elif output is None:
        from llmrun.bench.plot.text import sketch

        width = screen.columns() if screen.is_terminal(sys.stdout) else PIPE_WIDTH
        screen.out(sketch(figure, width))
