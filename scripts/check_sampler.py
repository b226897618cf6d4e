"""What machine/sampler.py takes of the machine that it measures, while an engine answers.

    scripts/check_sampler.py                      the embedded model, 20 s at 0.25 s
    scripts/check_sampler.py --interval 0.05 --seconds 10 --model ./my.gguf

Two figures that must agree: what the sampler says of itself (`Usage.cost_s`), and the CPU clock of its thread, which
counts whatever the thread does. The bar is 1 % of one core. Exit status: 0 below it, 1 above.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from llmrun import open_model  # noqa: E402
from llmrun.machine.nvml import open_nvml  # noqa: E402
from llmrun.machine.sampler import Sampler  # noqa: E402
from llmrun.options.sampling import SamplingConfig  # noqa: E402
from llmrun.units import duration, significant, size  # noqa: E402

BAR = 0.01


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--interval", type=float, default=0.25, metavar="S")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S")
    options = parser.parse_args()
    with open_model(options.model) as engine:
        nvml = open_nvml()
        begin_s = time.perf_counter()
        with Sampler(engine.pid, interval_s=options.interval, nvml=nvml) as sampler:
            (thread,) = (each for each in threading.enumerate() if each.name == "llmrun-sampler")
            assert thread.ident is not None
            clock = time.pthread_getcpuclockid(thread.ident)
            n_tokens = 0
            while time.perf_counter() - begin_s < options.seconds:
                for _ in engine.generate("Once upon a time", SamplingConfig(max_tokens=64)):
                    n_tokens += 1
            thread_s = time.clock_gettime(clock)
            watched_s = time.perf_counter() - begin_s
    usage = sampler.summary()
    share, own_share = thread_s / watched_s, usage.cost_s / watched_s
    print(f"{usage.n_samples} samples in {duration(watched_s)}, one every {duration(usage.interval_s)}")
    print(f"thread  {duration(thread_s)} of CPU, {significant(100 * share)} % of one core")
    print(f"itself  {duration(usage.cost_s)} of CPU, {significant(100 * own_share)} % of one core")
    print(f"engine  {significant(usage.cores)} cores, others {significant(usage.other_cores)}", end="")
    print(f", steal {significant(usage.steal_cores)}, {usage.major_faults} major faults")
    print(f"memory  peak {size(usage.peak_rss_bytes)}: own {size(usage.peak_anonymous_bytes)}", end="")
    print(f", of files {size(usage.peak_file_bytes)}, swapped {size(usage.peak_swap_bytes)}")
    for gpu in usage.gpus or ():
        print(f"GPU {gpu.index}   {gpu.name}: {size(gpu.peak_used_bytes)} of {size(gpu.total_bytes)}", end="")
        print(f", engine {size(gpu.peak_process_bytes)}, {significant(gpu.mean_power_w)} W")
    print(f"GPUs    {usage.gpus_unknown or len(usage.gpus or ())}")
    if usage.broke_off:
        print(f"error: the sampler broke off: {usage.broke_off}", file=sys.stderr)
    return 1 if share > BAR or usage.broke_off else 0


if __name__ == "__main__":
    sys.exit(main())
