"""Runs quantized language models on your own machine, and tells the truth about how fast it is.

    import llmrun

    with llmrun.open_model("tiny") as model:
        answer = model.generate([{"role": "user", "content": "What do GPU layers do?"}])
        for text in answer:
            print(text, end="", flush=True)
        print(answer.timing.tg_tps, "t/s")

What is imported here is found at first use, so that `import llmrun` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without typing: an import of llmrun imports nothing
if TYPE_CHECKING:
    from llmrun.api import benchmark as benchmark
    from llmrun.api import open_model as open_model
    from llmrun.api import pull as pull
    from llmrun.api import tune as tune
    from llmrun.bench.record import Record as Record
    from llmrun.bench.spec import MeasurementOptions as MeasurementOptions
    from llmrun.bench.spec import Test as BenchTest
    from llmrun.engine.interface import Engine as Engine
    from llmrun.engine.interface import Generation as Generation
    from llmrun.engine.meter import Timing as Timing
    from llmrun.errors import LlmrunError as LlmrunError
    from llmrun.models.hub.events import PullEvent as PullEvent
    from llmrun.options.load import LoadConfig as LoadConfig
    from llmrun.options.sampling import SamplingConfig as SamplingConfig

__version__ = "0.1.0"

# Each name, and where it lives. "bench" is a package of ours, so that the function is `benchmark`.
_HOMES = {
    "BenchTest": "llmrun.bench.spec:Test",
    "Engine": "llmrun.engine.interface:Engine",
    "Generation": "llmrun.engine.interface:Generation",
    "LlmrunError": "llmrun.errors:LlmrunError",
    "LoadConfig": "llmrun.options.load:LoadConfig",
    "MeasurementOptions": "llmrun.bench.spec:MeasurementOptions",
    "PullEvent": "llmrun.models.hub.events:PullEvent",
    "Record": "llmrun.bench.record:Record",
    "SamplingConfig": "llmrun.options.sampling:SamplingConfig",
    "Timing": "llmrun.engine.meter:Timing",
    "benchmark": "llmrun.api:benchmark",
    "open_model": "llmrun.api:open_model",
    "pull": "llmrun.api:pull",
    "tune": "llmrun.api:tune",
}
__all__ = ["BenchTest", "Engine", "Generation", "LlmrunError", "LoadConfig", "MeasurementOptions", "PullEvent"]
__all__ += ["Record", "SamplingConfig", "Timing", "__version__", "benchmark", "open_model", "pull", "tune"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        module, _, there = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), there)
    raise AttributeError(f"module 'llmrun' has no attribute '{name}'")
