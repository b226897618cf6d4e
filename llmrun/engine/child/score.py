"""The child that scores a text: loads a model as `worker` does, and gives −ln p of every token that counts.

Two of these, one with a reference, work in turns: what the reference computes for a chunk lies in a file that both map
(in memory, where the system can do that), and no logit goes through a pipe. Importing this imports no native code and
no numpy.
"""

from __future__ import annotations

import ctypes
import hashlib
from array import array
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from llmrun.engine.child import main as worker
from llmrun.engine.child.inbox import Outbox
from llmrun.engine.child.template_process import TemplateProcess
from llmrun.engine.protocol import RequestFailed, Score, Scored, Settings, Tokenize, Tokenized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

_SLICE = 1 << 17
"""Logits that are looked at together: in double precision 1 MiB, which a cache holds."""


class NotFinite(Exception):
    """A figure is NaN ("NaN") or infinite ("infinity")."""


def first_counted(n_ctx: int) -> int:
    """The position of a chunk whose logits are the first that count: they are about the token behind it."""
    return n_ctx // 2


def n_counted(n_ctx: int) -> int:
    """Tokens of a chunk that count. The last position has none behind it."""
    return n_ctx - 1 - first_counted(n_ctx)


def _slices(n_rows: int, n_vocab: int) -> Iterator[slice]:
    step = max(1, _SLICE // n_vocab)
    return (slice(begin, begin + step) for begin in range(0, n_rows, step))


def log_softmax(logits: Logits) -> Any:
    """ln of the softmax of every row, in double precision."""
    import numpy as np

    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def negative_log_likelihoods(logits: Logits, targets: list[int]) -> list[float]:
    """−ln p of `targets[i]` by row i of the logits (n, n_vocab). Raises `NotFinite`."""
    import numpy as np

    found = np.empty(len(targets))
    chosen = np.asarray(targets)
    with np.errstate(all="ignore"):
        for part in _slices(*logits.shape):
            rows = logits[part].astype(np.float64)
            rows -= rows.max(axis=1, keepdims=True)
            own = rows[np.arange(len(rows)), chosen[part]]
            np.exp(rows, out=rows)
            found[part] = np.log(rows.sum(axis=1)) - own
    _check(found)
    values: list[float] = found.tolist()
    return values


def compare(logits: Logits, reference: Logits, targets: list[int]) -> Scored:
    """The model's logits beside the reference's, both (n, n_vocab). Raises `NotFinite`."""
    import numpy as np

    chosen = np.asarray(targets)
    nll, nll_reference, kld = np.empty((3, len(targets)))
    n_same_top = 0
    with np.errstate(all="ignore"):
        for part in _slices(*logits.shape):
            q, p = log_softmax(logits[part]), log_softmax(reference[part])
            n_same_top += int((q.argmax(axis=1) == p.argmax(axis=1)).sum())
            each = np.arange(len(q))
            nll[part], nll_reference[part] = -q[each, chosen[part]], -p[each, chosen[part]]
            weights = np.exp(p)
            np.subtract(p, q, out=p)
            p[weights == 0] = 0  # what the reference never says counts for nothing, whatever the model thinks of it
            kld[part] = np.einsum("ij,ij->i", weights, p)
    for figures in (nll_reference, nll, kld):
        _check(figures)
    return Scored(nll.tolist(), nll_reference.tolist(), kld.tolist(), n_same_top)


def _check(figures: Any) -> None:
    import numpy as np

    if not np.isfinite(figures).all():
        raise NotFinite("NaN" if np.isnan(figures).any() else "infinity")


class Scorer(worker.Worker):
    """Serves `Tokenize` and then `Score`, beside what every worker does."""

    def __init__(self, outbox: Outbox, templates: TemplateProcess) -> None:
        super().__init__(outbox, templates)
        self.serves |= {Tokenize: self.tokenize, Score: self.score}

    def _n_outputs(self, settings: Settings, n_ctx: int) -> int:
        return min(settings.n_batch, n_ctx - first_counted(n_ctx))

    def tokenize(self, message: Tokenize) -> None:
        self.n_ctx = message.n_ctx
        self.tokens: list[int] = self.vocab.tokenize(message.text, parse_special=False)
        n_tokens, n_needed = len(self.tokens), 2 * self.n_ctx
        if n_tokens < n_needed:
            problem = f"the text has {n_tokens} tokens; {n_needed} are needed, for two chunks of {self.n_ctx}"
            raise RequestFailed("usage", problem, {"n_tokens": n_tokens, "n_needed": n_needed})
        if self.kv.reserve(self.n_ctx) is None:
            self.fail_from_log("engine", f"llama.cpp can't make a context of {self.n_ctx} tokens", n_ctx=self.n_ctx)
        self.send(Tokenized(n_tokens, hashlib.sha256(array("i", self.tokens).tobytes()).hexdigest()))

    def score(self, message: Score) -> None:
        import numpy as np

        begin = message.index * self.n_ctx
        chunk = self.tokens[begin : begin + self.n_ctx]
        first, n = first_counted(self.n_ctx), n_counted(self.n_ctx)
        targets = chunk[first + 1 :]
        if self.vocab.adds_bos:  # in the place of the chunk's first token, so that all are of one length
            chunk[0] = self.llama.llama_vocab_bos(self.llama.llama_model_get_vocab(self.model))
        shape = (n, self.vocab.n_tokens)
        kept = None if message.keep is None else np.memmap(message.keep, np.float32, "r+", shape=shape)
        beside = None if message.beside is None else np.memmap(message.beside, np.float32, "r", shape=shape)
        scored, done = Scored([], [], [], 0), 0
        try:
            for logits in self._logits(chunk):
                rows = logits[: n - done]
                part = slice(done, done + len(rows))
                if kept is not None:
                    kept[part] = rows
                if beside is None:
                    scored.nll += negative_log_likelihoods(rows, targets[part])
                else:
                    found = compare(rows, beside[part], targets[part])
                    scored.nll += found.nll
                    scored.reference += found.reference
                    scored.kld += found.kld
                    scored.n_same_top += found.n_same_top
                done += len(rows)
        except NotFinite as error:
            problem = f"it computes {error} at chunk {message.index + 1}: damaged, or too large for its numbers"
            raise RequestFailed("model", problem) from None
        self.send(scored)

    def _logits(self, chunk: list[int]) -> Iterator[Logits]:
        """Of a chunk's second half, batch by batch: (n, n_vocab), to be used before the next one is asked for."""
        import numpy as np

        from llmrun.engine.child.batch import Batch

        llama, first = self.llama, first_counted(self.n_ctx)
        llama.llama_memory_clear(llama.llama_get_memory(self.kv.context), True)
        batch = Batch(self.settings.n_batch)
        for begin in range(0, len(chunk), self.settings.n_batch):
            tokens = chunk[begin : begin + self.settings.n_batch]
            n = max(0, begin + len(tokens) - max(begin, first))
            batch.clear()
            batch.add(0, tokens, begin, n_wanted=n)
            status = llama.llama_decode(self.kv.context, batch.raw)
            if status:
                self.fail_from_log("engine", f"llama_decode failed with {status}")
            if n:
                address = ctypes.cast(llama.llama_get_logits(self.kv.context), ctypes.POINTER(ctypes.c_float))
                if not address:
                    raise RequestFailed("model", "llama.cpp computes no logits of it")
                yield np.ctypeslib.as_array(address, shape=(n, self.vocab.n_tokens))


def main() -> None:
    worker.main(Scorer)
