"""What Prometheus is told: totals by llama.cpp's names, and histograms by vLLM's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmrun.errors import LlmrunError
from llmrun.server.runner import Runner, Stream, Totals

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_GAP_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_E2E_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 240, 480, 960)

# Of `Totals`: llama.cpp's name, and what it is.
_COUNTERS = (
    ("prompt_tokens", "Tokens of prompts that were computed.", lambda t: t.n_prompt - t.n_cached),
    ("prompt_seconds", "Seconds in which prompts were computed.", lambda t: t.prefill_s),
    ("tokens_predicted", "Tokens that were generated.", lambda t: t.n_generated),
    ("tokens_predicted_seconds", "Seconds of generating, of all answers together.", lambda t: t.decode_s),
    ("prompt_tokens_cached", "Tokens of prompts that were known already.", lambda t: t.n_cached),
    ("tokens_embedded", "Tokens of texts that became vectors.", lambda t: t.n_embedded),
    ("requests", "Answers that were made.", lambda t: t.n_answers),
    ("requests_failed", "Answers that failed, or were left.", lambda t: t.n_errors),
    ("engine_restarts", "Engines that crashed and were replaced.", lambda t: t.n_crashes),
)


class Metrics:
    """Of all models, each with its name for a label."""

    def __init__(self, totals: Mapping[str, Totals], runners: Mapping[str, Runner]) -> None:
        """Both by model; what they hold is looked at when it is asked for."""
        self._registry = CollectorRegistry()
        self._registry.register(_Counted(totals, runners))

        def histogram(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}_seconds", what, ["model_name"], buckets=buckets, registry=self._registry)

        self._ttft = histogram("time_to_first_token", "From the request to its first token.", _TTFT_S)
        self._queue = histogram("request_queue_time", "From the request to its turn.", _TTFT_S)
        self._gap = histogram("inter_token_latency", "Between two tokens.", _GAP_S)
        self._e2e = histogram("e2e_request_latency", "From the request to its last token.", _E2E_S)

    def ended(self, model: str, stream: Stream, error: LlmrunError | None) -> None:
        """Take in an answer."""
        answer = stream.answer
        if answer is None or error is not None:
            return
        timing, token_s = answer.timing, answer.meter.token_s
        if token_s:
            self._ttft.labels(model).observe(max(0.0, token_s[0] - stream.asked_s))
            self._e2e.labels(model).observe(max(0.0, token_s[-1] - stream.asked_s))
        if timing.ttft_s is not None and token_s:
            self._queue.labels(model).observe(max(0.0, token_s[0] - timing.ttft_s - stream.asked_s))
        gap = self._gap.labels(model)
        for step_s in timing.step_s:
            gap.observe(step_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Counted(Collector):
    """What is known without being told."""

    def __init__(self, totals: Mapping[str, Totals], runners: Mapping[str, Runner]) -> None:
        self._totals, self._runners = totals, runners

    def collect(self) -> Iterable[Metric]:
        for name, what, of in _COUNTERS:
            counter = CounterMetricFamily(f"llamacpp:{name}", what, labels=["model"])
            for model, totals in self._totals.items():
                counter.add_metric([model], of(totals))  # type: ignore[no-untyped-call]
            yield counter
        gauges: tuple[tuple[str, str, Callable[[Runner], float]], ...] = (
            ("requests_processing", "Answers that are being made.", lambda runner: runner.n_active),
            ("requests_deferred", "Requests that wait.", lambda runner: runner.n_waiting),
            ("slots", "Answers that are made side by side, at most.", lambda runner: runner.n_slots),
        )
        for gauge, what, value in gauges:
            family = GaugeMetricFamily(f"llamacpp:{gauge}", what, labels=["model"])
            for model, runner in self._runners.items():
                family.add_metric([model], value(runner))
            yield family
