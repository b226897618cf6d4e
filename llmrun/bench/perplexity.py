"""Perplexity of a model on a text, and its divergence from a reference, as llama.cpp's llama-perplexity has them.

`score()` loads the model (and the reference) as an `Engine` does, plan and offload included, in a child that gives the
logits of many tokens; the arithmetic is in `bench/quality.py`. Two models take their chunks in turns, the reference
first: each then has the cores to itself, and one chunk's logits are all that lies between them: n_ctx/2 rows of the
vocabulary in float32, 131 MB at n_ctx 512 and 128 k tokens.

Chunks are computed one at a time, in batches of at most `n_batch`. llama.cpp takes other kernels for other batches, and
figures move in the fourth digit with them: `llama-perplexity -b` must be the same to print the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import zip_longest

from llmrun import fs
from llmrun.bench.quality import Quality, Tally
from llmrun.engine.child.score import n_counted
from llmrun.engine.engine import ChildEngine
from llmrun.engine.limits import Limits
from llmrun.engine.protocol import Failed, Score, Scored, Tokenize, Tokenized
from llmrun.errors import BadModel, Change, EngineCrashed, LlmrunError, OutOfMemory, UsageError
from llmrun.gguf import rules
from llmrun.gguf.reader import StringArray
from llmrun.machine.hardware import available_memory
from llmrun.models.resolve import Model
from llmrun.options.load import MAX_CTX, LoadConfig
from llmrun.planning.fit import DoesNotFit
from llmrun.text import printable
from llmrun.units import size

MIN_CTX = 16
"""Of fewer tokens nothing can be predicted."""


class Scorer(ChildEngine):
    """A model in a child that scores. `read` first, then chunks in any order; raises what `ChildEngine` does."""

    _module = "child.score"

    def read(self, text: str) -> Tokenized:
        """Tokenize the text and take the memory that a chunk needs. Raises `UsageError` for one of too few tokens."""
        while True:
            try:
                answer = self._answer(Tokenize(text, self.plan.n_ctx))
            except OutOfMemory:
                if not self.try_smaller():
                    raise
                continue
            if not isinstance(answer, Tokenized):
                raise EngineCrashed(f"the engine sent {type(answer).__name__} instead of a number of tokens")
            return answer

    def chunk(self, index: int, *, keep: str | None = None, beside: str | None = None) -> Scored:
        """Compute a chunk; its logits to the file `keep`, or beside those in another."""
        answer = self._answer(Score(index, keep, beside))
        n = n_counted(self.plan.n_ctx)
        lengths = (n, 0, 0) if beside is None else (n, n, n)
        if not isinstance(answer, Scored) or (len(answer.nll), len(answer.reference), len(answer.kld)) != lengths:
            raise EngineCrashed(f"the engine sent {type(answer).__name__} instead of {n} tokens' figures")
        return answer

    def _answer(self, message: Tokenize | Score) -> object:
        answer = self.connection.ask(message)
        if isinstance(answer, Failed):
            error = self.connection.error_of(answer)
            if "n_needed" in answer.numbers:  # tokens of a text that is too short
                error.remedies = ("a longer text, or a smaller n_ctx",)
            raise error
        return answer

    def _explained(self, error: LlmrunError) -> LlmrunError:
        """The logits are what takes memory here, and what a smaller batch saves."""
        match error:
            case DoesNotFit():
                error.remedies = (*error.remedies, self._smaller_batch)
            case OutOfMemory():
                _say(error, f"{error.message}; logits of {self._n_outputs} tokens {size(self._extra_ram_bytes)}")
                error.remedies = (self._smaller_batch,)
        return error

    @property
    def _smaller_batch(self) -> Change:
        return Change({"n_batch": max(1, self._n_outputs // 4)})

    @property
    def _n_outputs(self) -> int:
        """Tokens of a batch whose logits are wanted, as the child counts them."""
        assert self.config.n_ctx
        return min(self.config.n_batch, n_counted(self.config.n_ctx) + 1)

    @property
    def _extra_ram_bytes(self) -> int:
        """The logits, for which llama.cpp takes memory when it first computes them."""
        return 4 * self._n_outputs * (self.header.n_vocab or 0)


def score(
    model: Model,
    text: str,
    *,
    config: LoadConfig | None = None,
    n_ctx: int = 512,
    max_chunks: int | None = None,
    reference: Model | None = None,
    reference_config: LoadConfig | None = None,
    on_progress: Callable[[Quality, int], None] | None = None,
    on_load: Callable[[str, float], None] | None = None,
    limits: Limits | None = None,
) -> Quality:
    """What the model makes of the text; with a `reference` also how far its predictions are from that one's.

    Attributes:
        config: how to load the model; its `n_ctx` does not count.
        n_ctx: tokens of a chunk, of which the second half counts. Perplexities of different n_ctx can't be compared.
        max_chunks: read no more than so many; None: the whole text.
        reference_config: how to load the reference; None: as the model.
        on_progress: called after every chunk with the figures so far and how many chunks there will be. Who wants to
            show something after Ctrl-C keeps the last ones.
        on_load: called while loading, with the model's name and the share that is loaded.

    Raises what `Engine` raises; `BadModel` where a model computes NaN or predicts no next token; `UsageError` for a
    text of fewer than 2 · n_ctx tokens, and for two vocabularies. Leaves no process behind, whatever ends it.
    """
    if not isinstance(n_ctx, int) or not MIN_CTX <= n_ctx <= MAX_CTX:
        raise UsageError(f"n_ctx: {n_ctx} is outside {MIN_CTX} to {MAX_CTX}")
    if max_chunks is not None and max_chunks < 1:
        raise UsageError(f"max_chunks: {max_chunks}; at least one chunk must be read")
    if not text:
        raise UsageError("the text is empty")
    config = config or LoadConfig()
    _check_predicts(model)
    if reference is not None:
        _check_predicts(reference)
        _check_vocabularies(model, reference)
        if config.rpc:
            raise UsageError(
                "a worker serves one model at a time, so none can be compared with a reference over `rpc`",
                remedies=(Change({"rpc": None}), Change({"reference": None})),
            )
    with ExitStack() as stack:

        def opened(which: Model, how: LoadConfig) -> Scorer:
            how = replace(how, n_ctx=n_ctx, n_batch=min(how.n_batch, n_ctx))
            told = None if on_load is None else partial(on_load, which.name)
            return stack.enter_context(Scorer(which.path, which.header, how, limits=limits, on_progress=told))

        # The reference first, its memory taken: the other is laid out in what is left.
        teacher = read_by_teacher = shared = None
        if reference is not None:
            with _of_the_reference():
                teacher = opened(reference, reference_config or config)
                read_by_teacher = teacher.read(text)
            shared = stack.enter_context(_logits_file(n_ctx, teacher.loaded.n_vocab))
        student = opened(model, config)
        read = student.read(text)
        if read_by_teacher is not None and read.digest != read_by_teacher.digest:
            raise UsageError(
                f"the models cut the text into different tokens, {read.n_tokens} and {read_by_teacher.n_tokens}, "
                "though their vocabularies are the same: another tokenizer, or another BOS",
                hint="a reference from the same source",
            )
        n_chunks = read.n_tokens // n_ctx if max_chunks is None else min(max_chunks, read.n_tokens // n_ctx)
        notes = (f"the reference: {note}" for note in (teacher.notes if teacher else ()))
        tally = Tally(n_ctx, (*student.notes, *notes))
        for index in range(n_chunks):
            if teacher is None:
                tally.add(student.chunk(index).nll)
            else:
                with _of_the_reference():
                    teacher.chunk(index, keep=shared)
                found = student.chunk(index, beside=shared)
                tally.add_compared(found.nll, found.reference, found.kld, found.n_same_top)
            if on_progress:
                on_progress(tally.quality(), n_chunks)
        return tally.quality()


@contextmanager
def _of_the_reference() -> Iterator[None]:
    """Which of the two it was."""
    try:
        yield
    except LlmrunError as error:
        _say(error, f"the reference: {error.message}")
        raise


def _say(error: LlmrunError, message: str) -> None:
    """Give an error other words."""
    error.message, error.args = message, (message,)


def _check_predicts(model: Model) -> None:
    """Raise `BadModel` for one that sees the whole text at once, such as an embedding or a diffusion model."""
    if rules.is_encoder(model.header):
        said = f"{model.name} ({printable(str(model.header.architecture), 40)}) predicts no next token"
        raise BadModel(f"{said}: it has no perplexity", hint="a model that generates text")


def _check_vocabularies(model: Model, reference: Model) -> None:
    """Raise `UsageError` unless every token is the same text in both: what isn't can't be compared."""
    ours, theirs = (which.header.metadata.get("tokenizer.ggml.tokens") for which in (model, reference))
    if not isinstance(ours, StringArray) or not isinstance(theirs, StringArray):
        return  # such a model can't be given a text at all, which the engine will say
    hint = "a reference of the same family: the unquantized model, or its Q8_0"
    if len(ours) != len(theirs):
        said = f"{model.name} has a vocabulary of {len(ours)} tokens"
        raise UsageError(f"{said}, the reference {reference.name} one of {len(theirs)}", hint=hint)
    other = [i for i, (a, b) in enumerate(zip_longest(ours.iter_raw(), theirs.iter_raw())) if a != b]
    if other:
        one, another = (printable(tokens[other[0]], 40) for tokens in (ours, theirs))
        raise UsageError(
            f"{model.name} and the reference {reference.name} have different vocabularies: {len(other)} of {len(ours)} "
            f"tokens, the first is {other[0]}: '{one}' and '{another}'",
            hint=hint,
        )


@contextmanager
def _logits_file(n_ctx: int, n_vocab: int) -> Iterator[str]:
    """A path that both children can map: room for a chunk's logits. Raises `OutOfMemory`.

    In memory where the system can do that.
    """
    n_bytes = 4 * n_counted(n_ctx) * n_vocab
    with fs.shared_file("llmrun-logits") as (descriptor, path):
        try:
            os.ftruncate(descriptor, n_bytes)
            if hasattr(os, "posix_fallocate"):  # taken now: later the lack of it would be a signal
                os.posix_fallocate(descriptor, 0, n_bytes)
        except OSError as error:
            raise OutOfMemory(
                f"{size(n_bytes)} for the logits of a chunk could not be had ({error.strerror}); "
                f"{size(available_memory())} available",
                hint="a smaller n_ctx",
            ) from None
        yield path
