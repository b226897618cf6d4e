"""The child: loads one model, serves what it is asked in order, and dies with its parent.

Answers may be made side by side (`slots.py`), everything else is done one after the other.

stdin carries the parent's messages, stdout ours, stderr llama.cpp's log. A thread reads stdin all the time: `Cancel`
must be seen in the middle of a decode, and the end of stdin means that the parent is gone.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llmrun import codec
from llmrun.engine import protocol
from llmrun.engine.child import bootstrap
from llmrun.engine.child.inbox import Inbox, Outbox, Request
from llmrun.engine.child.kv_context import KVContext
from llmrun.engine.child.template_process import TemplateProcess
from llmrun.engine.protocol import (
    NO_REQUEST,
    Buffer,
    Done,
    Failed,
    FailureKind,
    Message,
    RequestFailed,
    Settings,
    StopReason,
)
from llmrun.machine.proc import Proc
from llmrun.options.defaults import COMFORTABLE_CTX

if TYPE_CHECKING:
    from llmrun.engine.child import native
    from llmrun.engine.child.draft_model import DraftModel
    from llmrun.engine.child.embedding import Embedder
    from llmrun.engine.child.mtp import Head
    from llmrun.engine.child.raw_bench import RawBench
    from llmrun.engine.child.roofline import Products
    from llmrun.engine.child.slots import Slots

_NO_VOCABULARY = "it has no vocabulary, so no text can be given to it"
_OF_A_MODEL = ("model", "LoRA")
_IDLE_S = 0.5
"""So long nothing is asked, before what can wait is done."""
_NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}  # enum ggml_numa_strategy

clock = time.perf_counter


class Worker:
    def __init__(self, outbox: Outbox, templates: TemplateProcess) -> None:
        from llmrun.engine.child import ggml, native, params

        self.ggml, self.native, self.params, self.llama = ggml, native, params, native.llama
        self.outbox, self.templates = outbox, templates
        self.log = native.Log()
        ggml.on_abort(bootstrap.last_words)
        self.cancelled = native.CancelFlag()
        self.llama.llama_backend_init()
        self.model: Any = None
        self.kv: KVContext
        self.plain: Any = None  # the model once more, its weights as they are in the file
        self.plain_kv: KVContext | None = None
        self.drafter: DraftModel | None = None
        self.head: Head | None = None
        self._drafting: Any = None  # the model that guesses
        self.of_drafter: list[Buffer] = []
        self.settings: Settings
        self.adapters: dict[Any, list[tuple[Any, float]]] = {}
        self.in_context: dict[Any, list[Buffer]] = {}
        self.raw_bench: RawBench | None = None
        self.products: Products | None = None
        self.slots: Slots | None = None
        self.embedder: Embedder | None = None
        self.vocab: native.Vocab
        self.inbox = Inbox(self.cancelled)
        self.request: Request
        self.serves: dict[type[Message], Callable[[Any], None]] = {
            protocol.Load: self.load,
            protocol.Generate: lambda _: self._slots().run(self.request),
            protocol.Count: lambda message: self._slots().count(message),
            protocol.Encode: lambda message: self._slots().encode(message),
            protocol.Decode: lambda message: self._slots().decode(message),
            protocol.Embed: self.embed,
            protocol.Prepare: lambda message: self._slots().prepare(message),
            protocol.Reserve: lambda message: self._slots().reserve(message),
            protocol.Flush: self.flush,
            protocol.Measure: self.measure,
            protocol.FindDevices: self.find_devices,
            protocol.Trial: self.trial,
            protocol.Probe: self.probe,
            protocol.TimeProducts: self.time_operations,
            protocol.TimeAttention: self.time_operations,
            protocol.TimeTransfers: self.time_operations,
            protocol.TimeLayers: self.time_operations,
        }
        outbox.send(NO_REQUEST, protocol.Ready(self.llama.llama_print_system_info().decode(errors="replace")))

    def send(self, message: Message) -> None:
        """Send what is about the request being served."""
        self.outbox.send(self.request.number, message)

    def serve(self, request: Request) -> None:
        self.request = request
        try:
            self.serves.get(type(request.message), self._refuse)(request.message)
        except (RequestFailed, MemoryError) as error:
            self.fail(request.number, error)

    def answer_questions(self) -> None:
        """Those that came while answers are made."""
        while (question := self.inbox.take(protocol.QUESTIONS)) is not None:
            before = self.request
            self.serve(question)
            self.inbox.done(question.number)
            self.request = before

    def fail(self, number: int, error: RequestFailed | MemoryError) -> None:
        """The end of a request that can't be served."""
        no_memory = Failed("memory", "Python could not allocate memory")
        self.outbox.send(number, error.failed if isinstance(error, RequestFailed) else no_memory)

    def _refuse(self, message: Message) -> None:
        raise RequestFailed("engine", f"this child does not serve {type(message).__name__}")

    def find_devices(self, message: protocol.FindDevices) -> None:
        for endpoint in message.rpc:
            try:
                if not self.ggml.add_server(endpoint):
                    raise RequestFailed("engine", f"the worker at {endpoint} offers no device")
            except OSError as error:
                raise RequestFailed("usage", str(error), field="rpc") from None
        self.send(protocol.Devices([*map(self.ggml.describe, self.ggml.handles())], self.ggml.versions()))

    # -- load ---------------------------------------------------------------------------------------------------------

    def load(self, message: protocol.Load) -> None:
        # While nobody waits yet for a first token.
        from llmrun.engine.child import slots  # noqa: F401

        if message.settings.prefixes is not None:
            from llmrun.engine.child import kept_prefixes  # noqa: F401

        begin_s = clock()
        self.unload()
        self.settings = settings = message.settings
        if settings.numa is not None:
            self.llama.llama_numa_init(_NUMA[settings.numa])
        params = self.params.model_params(settings)
        last_sent = -1.0

        def progress(fraction: float, _user: object) -> bool:
            nonlocal last_sent
            if fraction - last_sent >= 0.01 or fraction >= 1:
                last_sent = fraction
                self.send(protocol.Progress(fraction))
            return not self.cancelled

        params.progress_callback = self.llama.llama_progress_callback(progress)
        self.log.buffers.clear()
        self.model = self._opened(message.path, params)
        self.vocab = self.native.Vocab(self.model)
        if not self.vocab.n_tokens:
            raise RequestFailed("model", _NO_VOCABULARY)
        if self.llama.llama_model_has_encoder(self.model):
            raise RequestFailed("model", "it has an encoder; only decoder models can continue a text here")
        self._adapt(self.model)
        if settings.mtp:
            self._open_head(settings)
        self.kv = KVContext(self.llama, self.model, settings, self._make_context)
        if settings.plain_prefill:
            self.plain = self._opened(message.path, self.params.model_params(_as_in_the_file(settings)))
            self._adapt(self.plain)
            self.plain_kv = KVContext(self.llama, self.plain, settings, partial(self._make_context, model=self.plain))
        if settings.draft is not None:
            self._load_drafter(settings)
        description = ctypes.create_string_buffer(256)
        self.llama.llama_model_desc(self.model, description, len(description))
        self.send(
            protocol.Loaded(
                n_ctx_train=self.llama.llama_model_n_ctx_train(self.model),
                n_vocab=self.vocab.n_tokens,
                n_params=self.llama.llama_model_n_params(self.model),
                description=description.value.decode(errors="replace"),
                has_template=self.native.chat_template(self.model) is not None,
                begin_s=begin_s,
                end_s=clock(),
                warnings=[line for _, line in self.log.lines if "failed to mlock" in line][:1],
            )
        )

    def unload(self) -> None:
        """Give back the model that there is, and all that belongs to it."""
        if self.model is None:
            return
        self._end_raw_bench()
        self.slots = None
        self._close_contexts()
        self.adapters.clear()  # llama.cpp frees them with the model
        for model in (self.model, self.plain, self._drafting):
            if model is not None:
                self.llama.llama_model_free(model)
        self.model = self.plain = self.plain_kv = self.drafter = self._drafting = self.head = None

    def _opened(self, path: str, params: Any) -> Any:
        model = self.llama.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            self.fail_from_log("model", "llama.cpp can't load it")
        return model

    def _open_head(self, settings: Settings) -> None:
        from llmrun.engine.child.mtp import Head

        make = partial(self._make_context, is_head=True)
        its = codec.replace(settings, n_ctx=None, n_ctx_most=None)
        self.head = Head(self.model, KVContext(self.llama, self.model, its, make, attends=True), settings.n_draft)

    def _load_drafter(self, settings: Settings) -> None:
        """The model that guesses what this one says."""
        from llmrun.engine.child import draft_model

        assert settings.draft is not None
        its = draft_model.settings_of(settings)
        n_before = len(self.log.buffers)
        self._drafting = model = self._opened(settings.draft.path, self.params.model_params(its))
        self.of_drafter = [self.log.buffers.pop() for _ in self.log.buffers[n_before:]]
        vocab = self.native.Vocab(model)
        draft_model.check_vocabulary(self.vocab, vocab)
        kv = KVContext(self.llama, model, its, partial(self._make_context, settings=its, model=model))
        if not kv.rolls_back:
            raise RequestFailed("usage", "a draft model can't have recurrent layers or windows", field="draft")
        self.drafter = draft_model.DraftModel(self.llama, kv, vocab.n_tokens, self.vocab.n_tokens, its.n_batch)

    def _adapt(self, model: Any) -> None:
        """Load the adapters for it."""
        for path, scale in self.settings.lora:
            adapter = self.llama.llama_adapter_lora_init(model, os.fsencode(path))
            if not adapter:
                self.fail_from_log("model", f"the adapter {Path(path).name} does not go with it")
            self.adapters.setdefault(model, []).append((adapter, scale))

    def _close_contexts(self) -> None:
        for kv in (self.kv, self.plain_kv, self.drafter.kv if self.drafter else None):
            if kv is not None:
                kv.close()
        if self.head is not None:
            self.head.close()
        if self.embedder is not None:
            self.embedder.close()
            self.embedder = None
        self.in_context.clear()

    def fail_from_log(self, kind: FailureKind, what: str, *, n_ctx: int | None = None) -> NoReturn:
        lines = self.log.errors()
        if protocol.out_of_memory("\n".join(lines)):
            kind = "memory"
        # The first error is the cause, those behind it are its echo; its function's name means nothing to a user.
        reason = re.sub(r"^\w+: ", "", lines[0]) if lines else "it gives no reason"
        raise RequestFailed(kind, f"{what}: {reason}", {} if n_ctx is None else {"n_ctx": n_ctx})

    def buffers(self) -> list[Buffer]:
        """What llama.cpp holds; what a model that guesses takes, in one piece."""
        held, guessing = [*self.log.buffers], [*self.of_drafter]
        for of, taken in self.in_context.items():
            (guessing if of in (self._drafting, "head") else held).extend(taken)
        if guessing:
            held.append(Buffer("CPU", "compute", sum(buffer.n_bytes for buffer in guessing)))
        return held

    def _make_context(
        self,
        n_ctx: int,
        n_seq: int = 1,
        settings: Settings | None = None,
        *,
        model: Any = None,
        is_head: bool = False,
        pooling: int = 0,
    ) -> Any:
        """A context of a loaded model with its adapters, or None with the reason in the log."""
        model = model or self.model
        context = self._new_context(model, settings or self.settings, n_ctx, n_seq, is_head=is_head, pooling=pooling)
        is_own = is_head or pooling > 0
        if context is not None and self.head is not None and not is_own and model is not self._drafting:
            self.head.watch(context)
        self.in_context["head" if is_head else "embedding" if pooling else model] = [
            buffer for buffer in self.log.buffers if buffer.kind not in _OF_A_MODEL
        ]
        self.log.buffers[:] = [buffer for buffer in self.log.buffers if buffer.kind in _OF_A_MODEL]
        if context is not None and (adapters := self.adapters.get(model)):
            n, pointer = len(adapters), self.llama.llama_adapter_lora_p_ctypes
            handles = (pointer * n)(*[ctypes.cast(handle, pointer) for handle, _ in adapters])
            scales = (ctypes.c_float * n)(*[scale for _, scale in adapters])
            self.llama.llama_set_adapters_lora(context, handles, n, scales)
        return context

    def _new_context(
        self,
        model: Any,
        settings: Settings,
        n_ctx: int,
        n_seq: int = 1,
        *,
        is_head: bool = False,
        pooling: int = 0,
    ) -> Any:
        """A context, or None with the reason in the log. `is_head`: for the layer behind the last; `pooling`: for
        vectors, of llama.cpp's enum."""
        params = self.params.context_params(settings, n_ctx, self._n_outputs(settings, n_ctx), n_seq)
        params.abort_callback = self.cancelled.callback
        params.abort_callback_data = self.cancelled.data
        if is_head:
            params.ctx_type, params.n_rs_seq = self.llama.LLAMA_CONTEXT_TYPE_MTP, 0
        if pooling:
            params.embeddings, params.pooling_type, params.n_outputs_max, params.n_rs_seq = True, pooling, 0, 0
            params.kv_unified = True
        self.log.lines.clear()
        return self.llama.llama_init_from_model(model, params) or None

    def _n_outputs(self, settings: Settings, n_ctx: int) -> int:
        """Tokens of a batch whose logits are wanted."""
        return 1 + settings.n_draft

    def measure(self, message: protocol.Measure) -> None:
        """Lay the model out with llama.cpp's own allocator; nothing is allocated but recurrent states."""
        settings = message.settings
        self.log.lines.clear()
        of_the_loaded, self.log.buffers = self.log.buffers, []
        try:
            taken = self._laid_out(message, settings)
            if settings.plain_prefill:
                self.log.buffers = []
                taken += self._laid_out(message, _as_in_the_file(settings))
            self.send(protocol.Measured(taken))
        finally:
            self.log.buffers = of_the_loaded

    def _laid_out(self, message: protocol.Measure, settings: Settings) -> list[Buffer]:
        params = self.params.model_params(settings)
        params.no_alloc = True
        params.load_mode = self.llama.LLAMA_LOAD_MODE_NONE  # mapped files and no_alloc exclude each other
        model = self.llama.llama_model_load_from_file(os.fsencode(message.path), params)
        if not model:
            self.fail_from_log("model", "llama.cpp can't lay it out")
        try:
            context = self._new_context(model, settings, message.settings.n_ctx or COMFORTABLE_CTX)
            if context is None:
                self.fail_from_log("engine", "llama.cpp can't lay out a context")
            self.llama.llama_free(context)
            return [buffer for buffer in self.log.buffers if buffer.kind in ("compute", "output")]
        finally:
            self.llama.llama_model_free(model)

    # -- vectors ---

    def embed(self, message: protocol.Embed) -> None:
        from llmrun.engine.child.embedding import Embedder

        self._end_raw_bench()
        if self.embedder is None or self.embedder.pooling != message.pooling:
            if self.embedder is not None:
                self.embedder.close()
            self.embedder = Embedder(self, message.pooling, is_causal=message.is_causal)
        self.send(self.embedder.embed(message))

    def embedding_context(self, n_ctx: int, n_batch: int, n_seq: int, pooling: int) -> Any:
        settings = codec.replace(self.settings, n_batch=n_batch, n_ubatch=n_batch)
        context = self._make_context(n_ctx, n_seq, settings, pooling=pooling)
        if context is None:
            self.fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens", n_ctx=n_ctx)
        return context

    # -- bare speed ---

    def trial(self, message: protocol.Trial) -> None:
        from llmrun.engine.child.raw_bench import RawBench, TrialFailed

        if self.raw_bench is None:
            self._close_contexts()  # two contexts would be two KV caches
            self.raw_bench = RawBench(self.vocab, self.settings, self._trial_context)
        try:
            prefill_s, step_s = self.raw_bench.run(message)
        except TrialFailed as error:
            self.fail_from_log("engine", str(error))
        self.send(protocol.TrialResult(prefill_s, step_s, self.buffers()))

    def _trial_context(self, settings: Settings, n_ctx: int, n_seq: int, *, plain: bool) -> Any:
        context = self._make_context(n_ctx, n_seq, settings, model=self.plain if plain else self.model)
        if context is None:
            self.fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens", n_ctx=n_ctx)
        return context

    def time_operations(
        self, message: protocol.TimeProducts | protocol.TimeAttention | protocol.TimeTransfers | protocol.TimeLayers
    ) -> None:
        from llmrun.engine.child import op_times

        self.send(protocol.OpTimes(op_times.seconds_of(self._device(message.device), message)))

    def _device(self, name: str) -> ctypes.c_void_p:
        handle = self.ggml.by_name(name)
        if handle is None:
            raise RequestFailed("usage", f"there is no device {name}")
        return handle

    def probe(self, message: protocol.Probe) -> None:
        handle = self._device(message.device)
        if self.products is None:
            from llmrun.engine.child.roofline import Products

            self.products = Products()
        self.send(self.products.probe(handle, message))

    # -- generate -----------------------------------------------------------------------------------------------------

    def done(self, reason: StopReason, threads: list[tuple[int, int]], n_drafted: int, n_accepted: int) -> Done:
        """The end of an answer."""
        used = (self.ggml.by_name(name) for name in self.settings.devices)
        devices = [self.ggml.describe(handle) for handle in used if handle is not None]
        return Done(reason, *resident_memory(), devices, threads, n_drafted, n_accepted)

    def flush(self, message: protocol.Flush) -> None:
        if self.slots is None:
            self.send(protocol.Flushed(is_done=True))
        else:
            self.slots.flush(message)

    def _slots(self) -> Slots:
        self._end_raw_bench()  # two contexts would be two KV caches
        if self.vocab.kind == self.llama.LLAMA_VOCAB_TYPE_NONE:  # a slice of a model, to be measured
            raise RequestFailed("model", _NO_VOCABULARY)
        if self.slots is None:
            from llmrun.engine.child.slots import Slots

            self.slots = Slots(self)
        return self.slots

    def _end_raw_bench(self) -> None:
        if self.raw_bench is not None:
            self.raw_bench.close()
            self.raw_bench = None
            self.in_context.clear()


def _as_in_the_file(settings: Settings) -> Settings:
    """Of the same model once more, whose weights are not rearranged. One copy of them is locked, if any."""
    return codec.replace(
        settings, repack=False, load_mode=settings.load_mode.replace("+mlock", "").replace("mlock", "mmap")
    )


def resident_memory() -> tuple[int | None, int | None, int | None]:
    """Peak resident, resident and anonymous bytes of this process; None where the system doesn't tell.

    Linux's VmHWM belongs to this program alone. `ru_maxrss` does not: it begins with what the parent had at the fork.
    """
    found = Proc().memory()
    if found.peak_rss_bytes is not None:
        return found.peak_rss_bytes, found.rss_bytes, found.anonymous_bytes
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024), None, None


def main(kind: type[Worker] = Worker) -> None:
    templates = TemplateProcess()  # forks: first of all
    lines, descriptor = bootstrap.begin()
    worker = kind(Outbox(descriptor), templates)
    inbox = worker.inbox

    def listen() -> None:
        for line in lines:
            inbox.put(*protocol.decode(line))
        os._exit(0)  # the parent is gone: nobody wants the rest

    threading.Thread(target=listen, daemon=True).start()
    while True:
        while (slots := worker.slots) is not None and slots.has_due and not inbox.wait(_IDLE_S):
            slots.do_due()
        request = inbox.next()
        worker.serve(request)
        inbox.done(request.number)


if __name__ == "__main__":
    main()
