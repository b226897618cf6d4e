"""The toy: computed as it is described, predicted as the page says, and judged by what was measured."""

from __future__ import annotations

import subprocess
import sys

import pytest
from waiting import HANGS_S

from llmrun.engine.jobs.roofline import Prober
from llmrun.engine.protocol import TimeLayers
from llmrun.experiments import toy
from llmrun.experiments.toy import Toy, crossing, exponent
from llmrun.planning.predict import speed
from llmrun.planning.predict.machines import parse

COMPUTED = """
import struct
from llmrun.engine.child import ggml, op_times, tensors
from llmrun.engine.child.op_times import _Device, _through_layers
from llmrun.engine.child.tensors import F32, Owner
WIDTH, LAYERS, COLUMNS = 64, 5, 3
handle = ggml.by_name("CPU")

def numbers(tensor, n):
    return struct.unpack(f"={n}f", tensors.get_bytes(tensor, 4 * n))

made = []
graph_of = tensors.graph_of
tensors.graph_of = lambda context, results, n_nodes=0: made.append(results) or graph_of(context, results, n_nodes)
with Owner() as owner:
    device = _Device(handle, owner)
    context = owner.context()
    weights = [tensors.new(context, F32, WIDTH, WIDTH) for _ in range(LAYERS)]
    owner.buffer(context, device.usual)
    for each in weights:
        tensors.fill_scaled(each, 1 / LAYERS)
    _through_layers(device, weights, WIDTH, COLUMNS, owner)()
    noise = tensors.noise_rows(16)
    x = [*struct.unpack(f"={WIDTH * COLUMNS}f", noise[: 4 * WIDTH * COLUMNS])]
    for each in weights:
        w = numbers(each, WIDTH * WIDTH)
        x = [
            x[c * WIDTH + i] + sum(w[i * WIDTH + j] * x[c * WIDTH + j] for j in range(WIDTH))
            for c in range(COLUMNS) for i in range(WIDTH)
        ]
    got = numbers(made[0][-1], WIDTH * COLUMNS)
    print(max(abs(a - b) for a, b in zip(x, got)), max(map(abs, x)))
"""


def test_it_computes_what_it_says() -> None:
    """x + W·x for each layer, of several inputs at once: as Python has it, to the last bits of single precision."""
    done = subprocess.run([sys.executable, "-c", COMPUTED], capture_output=True, text=True, timeout=HANGS_S)
    error, largest = map(float, done.stdout.split())
    assert error < 1e-6 * largest and largest > 0


def test_every_batch_with_every_number_of_threads() -> None:
    """In this order, all of them positive; more layers than ggml has nodes in a graph by itself."""
    with Prober() as prober:
        found = prober.seconds_of(TimeLayers("CPU", 32, 3000, [1, 4], [1, 2], 0.0))
    assert len(found) == 4 and min(found) > 0


def test_a_gpu_by_hand() -> None:
    """RTX 4090, 128 layers of 128, one input: mostly 256 operations."""
    part = parse("RTX 4090").parts[0]
    constants = speed.constants()
    decode, prefill = constants.decode["nvidia"], constants.prefill["nvidia"]
    assert part.flops is not None
    by_hand = 20e-6 + 256 * decode.layer_s / 19 + 4 * 128**3 / (decode.share * part.bytes_per_s)
    by_hand += 2 * 128**3 / (prefill.rate * part.flops)
    found = Toy(128, 128).on_gpu(1)
    assert found.mid == pytest.approx(by_hand) and (found.low, found.high) == (found.mid / 2, found.mid * 2)


def test_exponents() -> None:
    assert exponent([(2, 12), (4, 48), (8, 192)]) == pytest.approx(2)
    assert exponent([(2, 5)]) is None


def test_where_one_overtakes_the_other() -> None:
    """Between 4 and 16, where 1 × x meets 8; never, and from the beginning, is nowhere."""
    assert crossing([(x, x, 8) for x in (1, 4, 16, 64)]) == pytest.approx(8)
    assert crossing([(1, 1, 2), (2, 1, 2)]) is None
    assert crossing([(1, 3, 2), (2, 4, 2)]) is None


def test_who_is_ahead_is_said_where_intervals_tell() -> None:
    """Overlapping ones decide nothing."""
    rows = [toy._Row(float(n), str(n), toy.Toy(128, n), 1) for n in (1, 2, 3)]
    assert toy._judged_ahead(rows, ["CPU", "CPU", "CPU"]) == ("holds", "")
    verdict, why = toy._judged_ahead(rows, ["CPU", None, "GPU"])
    assert verdict == "holds in part" and "CPU is ahead at 1 layers. The GPU is ahead at 3" in why and "At 2" in why
    assert toy._judged_ahead(rows, ["GPU", "GPU", None])[0] == "does not hold"
    assert toy._judged_ahead(rows, [None, None, None])[0] == "holds in part"
