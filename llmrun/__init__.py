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

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmrun.engine.engine import Engine as Engine
    from llmrun.engine.engine import Generation as Generation
    from llmrun.engine.meter import Timing as Timing
    from llmrun.errors import LlmrunError as LlmrunError
    from llmrun.models.resolve import open_model as open_model
    from llmrun.options.load import LoadConfig as LoadConfig
    from llmrun.options.sampling import SamplingConfig as SamplingConfig

__version__ = "0.1.0"

_HOMES = {
    "Engine": "llmrun.engine.engine",
    "Generation": "llmrun.engine.engine",
    "LlmrunError": "llmrun.errors",
    "LoadConfig": "llmrun.options.load",
    "SamplingConfig": "llmrun.options.sampling",
    "Timing": "llmrun.engine.meter",
    "open_model": "llmrun.models.resolve",
}
__all__ = ["Engine", "Generation", "LlmrunError", "LoadConfig", "SamplingConfig", "Timing", "__version__", "open_model"]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llmrun' has no attribute '{name}'")
