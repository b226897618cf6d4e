"""The child: loads one model, serves one request at a time, and dies with its parent.

stdin carries the parent's messages, stdout ours, stderr llama.cpp's log. A thread reads stdin all the time: `Cancel`
must be seen in the middle of a decode, and the end of stdin means that the parent is gone.
"""

from __future__ import annotations

import codecs
import ctypes
import os
import queue
import re
import select
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmrun.engine import inside
from llmrun.engine.protocol import (
    Buffer,
    Cancel,
    Devices,
    Done,
    Failed,
    FailureKind,
    FindDevices,
    Generate,
    Load,
    Loaded,
    Measure,
    Measured,
    Message,
    Prefilled,
    Probe,
    Probed,
    Progress,
    Ready,
    Rendering,
    Scored,
    Settings,
    Started,
    StopReason,
    Tokenized,
    Tokens,
    Trial,
    Tried,
    decode,
    encode,
    out_of_memory,
)

if TYPE_CHECKING:
    from llmrun.engine.ceiling import Products
    from llmrun.engine.trial import Trials

# Every message wakes the parent on a core that decoding may be using. At thousands of tokens per second they are sent
# together, never later than this: no eye sees the difference.
COALESCE_S = 0.010
# The context of a request that bounds neither context nor answer: the usual of the neighbours.
COMFORTABLE_CTX = 4096

_NUMA = {"distribute": 1, "isolate": 2, "numactl": 3}  # enum ggml_numa_strategy

# Each of them ends something that the parent waits for.
_AWAITED = Ready | Devices | Measured | Tried | Probed | Loaded | Tokenized | Scored | Done | Failed

clock = time.perf_counter


class RequestFailed(Exception):
    """Becomes a `Failed` message."""

    def __init__(self, kind: FailureKind, message: str, **numbers: int) -> None:
        super().__init__(message)
        self.failed = Failed(kind, message, numbers)


class Outbox:
    """Messages to the parent. One that nobody reads yet must not stop the clock of what is being measured."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unsent = b""
        os.set_blocking(descriptor, False)

    def send(self, message: Message) -> None:
        """Send, and wait for a reader only with the messages that end something."""
        self._unsent += encode(message)
        while self._unsent:
            try:
                self._unsent = self._unsent[os.write(self._descriptor, self._unsent) :]
            except BlockingIOError:
                if not isinstance(message, _AWAITED):
                    return
                select.select([], [self._descriptor], [])


class Answer:
    """Tokens to text that can be shown: whole characters only, and nothing that may turn out to be a stop text."""

    def __init__(self, stop: list[str]) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def add(self, piece: bytes, *, final: bool = False) -> str:
        """What can be shown after this piece; `final` gives out whatever was held back."""
        self._held += self._decoder.decode(piece, final)
        found = [at for at in (self._held.find(text) for text in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = 0 if final else max((self._overlap(text) for text in self._stop), default=0)
        cut = len(self._held) - keep
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _overlap(self, text: str) -> int:
        """The longest end of what is held that is a beginning of `text`."""
        longest = min(len(text) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(text[:n])), 0)


class Worker:
    def __init__(self, outbox: Outbox) -> None:
        from llmrun.engine import ggml, native

        self.ggml = ggml
        self.native = native
        self.llama = native.llama
        self.outbox = outbox
        self.log = native.Log()
        ggml.on_abort(inside.last_words)
        self.cancelled = native.CancelFlag()
        self.llama.llama_backend_init()
        self.model: Any = None
        self.context: Any = None
        self.settings: Settings
        self.adapters: list[tuple[Any, float]] = []
        self.trials: Trials | None = None
        self.products: Products | None = None
        self.vocab: Any
        outbox.send(Ready(self.llama.llama_print_system_info().decode(errors="replace")))

    def serve(self, message: Message) -> None:
        try:
            self._do(message)
        except RequestFailed as error:
            self.outbox.send(error.failed)
        except MemoryError:
            self.outbox.send(Failed("memory", "Python could not allocate memory"))

    def _do(self, message: Message) -> None:
        if isinstance(message, Load):
            self.load(message)
        elif isinstance(message, Generate):
            self.generate(message)
        elif isinstance(message, Measure):
            self.measure(message)
        elif isinstance(message, FindDevices):
            self.find_devices(message)
        elif isinstance(message, Trial):
            self.trial(message)
        elif isinstance(message, Probe):
            self.probe(message)
        else:
            raise RequestFailed("engine", f"nobody here serves {type(message).__name__}")

    def find_devices(self, message: FindDevices) -> None:
        for endpoint in message.rpc:
            try:
                if not self.ggml.add_server(endpoint):
                    raise RequestFailed("engine", f"the worker at {endpoint} offers no device")
            except OSError as error:
                raise RequestFailed("usage", f"--rpc: {error}") from None
        self.outbox.send(Devices(self.ggml.devices(), self.ggml.versions()))

    # -- load ---------------------------------------------------------------------------------------------------------

    def load(self, message: Load) -> None:
        begin_s = clock()
        self.settings = message.settings
        if message.has_template:
            # 40 ms that the first answer need not wait for: loading is native and leaves Python free.
            threading.Thread(target=_import_templates, daemon=True).start()
        settings = message.settings
        if settings.numa is not None:
            self.llama.llama_numa_init(_NUMA[settings.numa])
        params = self._model_params(settings)
        last_sent = -1.0

        def progress(fraction: float, _user: object) -> bool:
            nonlocal last_sent
            if fraction - last_sent >= 0.01 or fraction >= 1:
                last_sent = fraction
                self.outbox.send(Progress(fraction))
            return not self.cancelled

        keep = self.llama.llama_progress_callback(progress)
        params.progress_callback = keep
        self.log.buffers.clear()
        self.model = self.llama.llama_model_load_from_file(os.fsencode(message.path), params)
        if not self.model:
            self._fail_from_log("model", "llama.cpp can't load it")
        self.vocab = self.native.Vocab(self.model)
        if not self.vocab.n_tokens or self.vocab.kind == self.llama.LLAMA_VOCAB_TYPE_NONE:
            raise RequestFailed("model", "it has no vocabulary, so no text can be given to it")
        if self.llama.llama_model_has_encoder(self.model):
            raise RequestFailed("model", "it has an encoder; only decoder models can continue a text here")
        for adapter_path, scale in settings.lora:
            adapter = self.llama.llama_adapter_lora_init(self.model, os.fsencode(adapter_path))
            if not adapter:
                self._fail_from_log("model", f"the adapter {Path(adapter_path).name} does not go with it")
            self.adapters.append((adapter, scale))
        description = ctypes.create_string_buffer(256)
        self.llama.llama_model_desc(self.model, description, len(description))
        self.outbox.send(
            Loaded(
                n_ctx_train=self.llama.llama_model_n_ctx_train(self.model),
                n_vocab=self.vocab.n_tokens,
                n_params=self.llama.llama_model_n_params(self.model),
                description=description.value.decode(errors="replace"),
                has_template=self.llama.llama_model_chat_template(self.model, None) is not None,
                begin_s=begin_s,
                end_s=clock(),
                warnings=[line for _, line in self.log.lines if "failed to mlock" in line][:1],
            )
        )

    def _fail_from_log(self, kind: FailureKind, what: str, **numbers: int) -> None:
        lines = self.log.errors()
        if out_of_memory("\n".join(lines)):
            kind = "memory"
        # The first error is the cause, those behind it are its echo; its function's name means nothing to a user.
        reason = re.sub(r"^\w+: ", "", lines[0]) if lines else "it gives no reason"
        raise RequestFailed(kind, f"{what}: {reason}", **numbers)

    def _ensure_context(self, n_needed: int) -> int:
        """A context of at least `n_needed` tokens, as long as the configuration grants; returns the tokens usable.

        It is made when the first prompt is known: a context is memory, and what nobody asked for should not be taken.
        """
        n_train = self.llama.llama_model_n_ctx_train(self.model)
        wanted = self.settings.n_ctx or min(n_train, n_needed, self.settings.n_ctx_most or n_needed)
        if self.trials is not None:
            self.trials.close()
            self.trials = None
        if self.context is not None:
            # llama.cpp rounds the cells up to 256, but not the batch that it cuts to the context it was asked for.
            longest = self.llama.llama_n_ctx(self.context), self.llama.llama_n_batch(self.context)
            if longest[0] >= wanted and longest[1] >= min(self.settings.n_batch, wanted):
                return wanted
            self.llama.llama_free(self.context)
            self.context = None
        self.log.buffers[:] = [buffer for buffer in self.log.buffers if buffer.kind in ("model", "LoRA")]
        self.context = self._new_context(self.model, self.settings, wanted)
        if self.context is None:
            self._fail_from_log("engine", f"llama.cpp can't make a context of {wanted} tokens", n_ctx=wanted)
        if self.adapters:
            n = len(self.adapters)
            handles = (self.llama.llama_adapter_lora_p_ctypes * n)(
                *[ctypes.cast(handle, self.llama.llama_adapter_lora_p_ctypes) for handle, _ in self.adapters]
            )
            scales = (ctypes.c_float * n)(*[scale for _, scale in self.adapters])
            self.llama.llama_set_adapters_lora(self.context, handles, n, scales)
        return wanted

    def _model_params(self, settings: Settings) -> Any:
        from llmrun.engine import params

        try:
            return params.model_params(settings)
        except params.UnknownDevice as error:
            raise RequestFailed("usage", str(error)) from None

    def _new_context(self, model: Any, settings: Settings, n_ctx: int, n_seq: int = 1) -> Any:
        """A context, or None with the reason in the log."""
        from llmrun.engine.params import context_params

        params = context_params(settings, n_ctx, self._n_outputs(settings, n_ctx), n_seq)
        params.abort_callback = self.cancelled.callback
        params.abort_callback_data = self.cancelled.data
        self.log.lines.clear()
        return self.llama.llama_init_from_model(model, params) or None

    def _n_outputs(self, settings: Settings, n_ctx: int) -> int:
        """Tokens of a batch whose logits are wanted."""
        return 1

    def measure(self, message: Measure) -> None:
        """Lay the model out with llama.cpp's own allocator; nothing is allocated but recurrent states."""
        params = self._model_params(message.settings)
        params.no_alloc = True
        params.load_mode = self.llama.LLAMA_LOAD_MODE_NONE  # mapped files and no_alloc exclude each other
        self.log.lines.clear()
        of_the_loaded, self.log.buffers = self.log.buffers, []
        try:
            self.outbox.send(Measured(self._laid_out(message, params)))
        finally:
            self.log.buffers = of_the_loaded

    def _laid_out(self, message: Measure, params: Any) -> list[Buffer]:
        model = self.llama.llama_model_load_from_file(os.fsencode(message.path), params)
        if not model:
            self._fail_from_log("model", "llama.cpp can't lay it out")
        try:
            context = self._new_context(model, message.settings, message.settings.n_ctx or COMFORTABLE_CTX)
            if context is None:
                self._fail_from_log("engine", "llama.cpp can't lay out a context")
            self.llama.llama_free(context)
            return [buffer for buffer in self.log.buffers if buffer.kind in ("compute", "output")]
        finally:
            self.llama.llama_model_free(model)

    # -- bare speed ---

    def trial(self, message: Trial) -> None:
        from llmrun.engine.trial import TrialFailed, Trials

        if self.trials is None:
            if self.context is not None:  # two contexts would be two KV caches
                self.llama.llama_free(self.context)
                self.context = None
            self.trials = Trials(self.vocab, self.settings.n_batch, self._trial_context)
        try:
            prefill_s, step_s = self.trials.run(message)
        except TrialFailed as error:
            self._fail_from_log("engine", str(error))
        self.outbox.send(Tried(prefill_s, step_s, list(self.log.buffers)))

    def _trial_context(self, n_ctx: int, n_seq: int) -> Any:
        self.log.buffers[:] = [buffer for buffer in self.log.buffers if buffer.kind in ("model", "LoRA")]
        context = self._new_context(self.model, self.settings, n_ctx, n_seq)
        if context is None:
            self._fail_from_log("engine", f"llama.cpp can't make a context of {n_ctx} tokens", n_ctx=n_ctx)
        return context

    def probe(self, message: Probe) -> None:
        handle = self.ggml.by_name(message.device)
        if handle is None:
            raise RequestFailed("usage", f"there is no device {message.device}")
        if self.products is None:
            from llmrun.engine.ceiling import Products

            self.products = Products()
        self.outbox.send(self.products.probe(handle, message))

    # -- generate -----------------------------------------------------------------------------------------------------

    def generate(self, request: Generate) -> None:
        request_s = clock()
        sampling = request.sampling
        tokens = self._tokens_of(request)
        max_tokens = sampling["max_tokens"]
        # Clearing 4096 tokens of KV cache nobody will use was a third of a short answer's wait: measured 0.4 of 1.2 s.
        bounded = max_tokens >= 0
        n_ctx = self._ensure_context(
            len(tokens) + max_tokens if bounded else max(COMFORTABLE_CTX, len(tokens) + COMFORTABLE_CTX // 2)
        )
        if len(tokens) > n_ctx:
            raise RequestFailed(
                "prompt",
                f"the prompt has {len(tokens)} tokens, the context holds {n_ctx}",
                n_prompt=len(tokens),
                n_ctx=n_ctx,
                n_ctx_train=self.llama.llama_model_n_ctx_train(self.model),
            )
        beyond = [token for token, _ in sampling["logit_bias"] if token >= self.vocab.n_tokens]
        if beyond:
            raise RequestFailed(
                "usage", f"--logit-bias: there is no token {beyond[0]}, the vocabulary has {self.vocab.n_tokens}"
            )
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), False)
        sampler = self.native.build_sampler(sampling, self.vocab.n_tokens, n_ctx)
        try:
            begin_s = clock()
            buffers = list(self.log.buffers)
            self.outbox.send(Started(len(tokens), 0, n_ctx, request_s, begin_s, buffers))
            for token in tokens:  # the penalties look back at the prompt as well
                self.llama.llama_sampler_accept(sampler, token)
            reason = self._prefill(tokens) or self._decode(len(tokens), n_ctx, sampler, sampling)
        finally:
            self.llama.llama_sampler_free(sampler)
        used = [self.ggml.by_name(name) for name in self.settings.devices]
        self.outbox.send(
            Done(reason, *resident_memory(), [self.ggml.describe(handle) for handle in used if handle is not None])
        )

    def _tokens_of(self, request: Generate) -> list[int]:
        if request.messages is None:
            tokens = self.vocab.tokenize(request.prompt or "")
            if not tokens:
                raise RequestFailed("usage", "the prompt is empty and this model has no token to begin with")
            return list(tokens)
        from llmrun.engine.template import TemplateError, Templates, without_system

        template = self.llama.llama_model_chat_template(self.model, None)
        if template is None:
            raise RequestFailed("usage", "this model has no chat template")
        bos = self.vocab.special_text("bos")
        source = template.decode(errors="replace")
        tokens = {"bos_token": bos, "eos_token": self.vocab.special_text("eos")}
        templates = Templates()
        self.outbox.send(Rendering(done=False))
        try:
            try:
                text = templates.render(source, request.messages, **tokens)
            except TemplateError:
                # Some templates know no system role: what it says then goes before the user's first words.
                merged = without_system(request.messages)
                if merged == request.messages:
                    raise
                text = templates.render(source, merged, **tokens)
        except TemplateError as error:
            raise RequestFailed("model", f"its chat template fails: {error}") from error
        self.outbox.send(Rendering(done=True))
        # Where the vocabulary adds BOS by itself, a template's own would be the second.
        if self.vocab.adds_bos and bos:
            text = text.removeprefix(bos)
        return list(self.vocab.tokenize(text))

    def _prefill(self, tokens: list[int]) -> StopReason | None:
        size = self.settings.n_batch
        for first in range(0, len(tokens), size):
            chunk = tokens[first : first + size]
            reason = self._compute((self.llama.llama_token * len(chunk))(*chunk), len(chunk))
            if reason:
                return reason
            self.llama.llama_synchronize(self.context)  # devices compute behind our back; the time is theirs too
            self.outbox.send(Prefilled(first + len(chunk), clock()))
        return None

    def _compute(self, ids: Any, n: int) -> StopReason | None:
        """`llama_decode` on `n` tokens, the last one's logits kept; a reason to stop, or None."""
        if self.cancelled:
            return "cancelled"
        status = self.llama.llama_decode(self.context, self.llama.llama_batch_get_one(ids, n))
        if status == 0:
            return None
        if status == 2:  # aborted by our flag
            return "cancelled"
        if status == 1:  # no room in the KV cache
            return "context"
        self._fail_from_log("engine", f"llama_decode failed with {status}")
        raise AssertionError

    def _decode(self, n_past: int, n_ctx: int, sampler: Any, sampling: dict[str, Any]) -> StopReason:
        """Sample and compute, token by token. `n_past` tokens are in the context, the last one's logits ready."""
        sample, context = self.llama.llama_sampler_sample, self.context
        max_tokens, goes_on = sampling["max_tokens"], sampling["ignore_eos"]
        answer = Answer(sampling["stop"])
        one = (self.llama.llama_token * 1)()
        ids: list[int] = []
        at_s: list[float] = []
        text: list[str] = []
        sent_s = before_s = clock()
        n_made = 0
        reason: StopReason | None = None

        def flush() -> None:
            nonlocal sent_s
            if ids or text:
                self.outbox.send(Tokens(list(ids), list(at_s), "".join(text)))
                for sent in (ids, at_s, text):
                    sent.clear()
                sent_s = clock()

        while reason is None:
            if n_made == max_tokens:
                reason = "length"
            elif self.cancelled:
                reason = "cancelled"
            else:
                token = sample(sampler, context, -1)
                if self.vocab.ends(token) and not goes_on:
                    reason = "end"
                else:
                    now_s = clock()
                    n_made += 1
                    ids.append(token)
                    at_s.append(now_s)
                    text.append(answer.add(self.vocab.piece(token)))
                    # Alone when the next one takes longer than anyone would wait with this one, else together.
                    if n_made == 1 or now_s - before_s > COALESCE_S / 2 or now_s - sent_s > COALESCE_S:
                        flush()
                    before_s = now_s
                    if answer.stopped:
                        reason = "stop"
                    elif n_made == max_tokens:
                        reason = "length"
                    elif n_past == n_ctx:
                        reason = "context"
                    else:
                        one[0] = token
                        reason = self._compute(one, 1)
                        n_past += 1
        if not answer.stopped:
            text.append(answer.add(b"", final=True))
        flush()
        return reason


def _import_templates() -> None:
    from llmrun.engine.template import Templates

    Templates()


def resident_memory() -> tuple[int | None, int | None, int | None]:
    """Peak resident, resident and anonymous bytes of this process; None where the system doesn't tell.

    Linux's VmHWM belongs to this program alone. `ru_maxrss` does not: it begins with what the parent had at the fork.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return (peak if sys.platform == "darwin" else peak * 1024), None, None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)

    def of(name: str) -> int | None:
        return int(fields[name].split()[0]) * 1024 if name in fields else None

    return of("VmHWM"), of("VmRSS"), of("RssAnon")


def main(kind: type[Worker] = Worker) -> None:
    inbox, descriptor = inside.begin()
    outbox = Outbox(descriptor)
    worker = kind(outbox)
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def listen() -> None:
        for line in inbox:
            message = decode(line)
            # Here and not where the request is served: a Cancel may be read before that begins.
            if isinstance(message, Cancel):
                worker.cancelled.set()
            else:
                worker.cancelled.clear()
                requests.put(message)
        os._exit(0)  # the parent is gone: nobody wants the rest

    threading.Thread(target=listen, daemon=True).start()
    while True:
        worker.serve(requests.get())


if __name__ == "__main__":
    main()
