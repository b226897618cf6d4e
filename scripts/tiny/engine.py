"""The few calls of llama.cpp that the evaluation needs, through llama-cpp-python's low-level API."""

import ctypes
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp.llama_cpp as api
import numpy as np


class Engine:
    """A model in llama.cpp with one context: tokenize, generate, and score texts."""

    def __init__(self, path: Path, n_ctx: int = 1024, n_threads: int = 2) -> None:
        api.llama_backend_init()
        self._quiet = api.llama_log_callback(lambda *_: None)  # kept: llama.cpp holds only the pointer
        api.llama_log_set(self._quiet, ctypes.c_void_p(0))
        loading = api.llama_model_default_params()
        loading.use_extra_bufts = False  # repacked weights round differently on different CPUs
        self.model = api.llama_model_load_from_file(str(path).encode(), loading)
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.vocab = api.llama_model_get_vocab(self.model)
        self.n_vocab = api.llama_vocab_n_tokens(self.vocab)
        params = api.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        self.context = api.llama_init_from_model(self.model, params)
        self.n_ctx = n_ctx

    def close(self) -> None:
        """Free the context and the model."""
        api.llama_free(self.context)
        api.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool, parse: bool) -> list[int]:
        """Token ids; `special` adds BOS as the model wants it, `parse` reads `<|end|>` as a control token."""
        data = text.encode()
        out = (api.llama_token * (len(data) + 8))()
        n = api.llama_tokenize(self.vocab, data, len(data), out, len(out), special, parse)
        return list(out[:n])

    def text(self, tokens: list[int]) -> str:
        """The text of the tokens, control tokens left out."""
        data, piece = b"", ctypes.create_string_buffer(256)
        for token in tokens:
            n = api.llama_token_to_piece(self.vocab, token, piece, 256, 0, False)
            data += piece.raw[: max(0, n)]
        return data.decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """Whether llama.cpp ends an answer at this token."""
        return bool(api.llama_vocab_is_eog(self.vocab, token))

    def generate(self, prompt: list[int], limit: int, rng: random.Random | None = None) -> tuple[list[int], bool]:
        """The new tokens, without the end token, and whether there was one; greedy, or at temperature 0.8 with `rng`."""
        answer: list[int] = []
        with self._fresh():
            step = prompt
            while len(answer) < limit:
                self._decode(step)
                scores = self._scores(-1)
                token = int(scores.argmax())
                if rng is not None:
                    odds = np.exp((scores - scores.max()) / 0.8)
                    token = rng.choices(range(self.n_vocab), weights=odds.tolist())[0]
                if self.is_end(token):
                    return answer, True
                answer.append(token)
                step = [token]
        return answer, False

    def nll(self, tokens: list[int], counted: list[bool]) -> tuple[float, int]:
        """Sum of -ln p over the counted tokens of one document, and how many they are."""
        with self._fresh():
            self._decode(tokens, all_scores=True)
            total = 0.0
            for at in (i for i in range(1, len(tokens)) if counted[i]):
                scores = self._scores(at - 1).astype(np.float64)
                total += float(np.logaddexp.reduce(scores) - scores[tokens[at]])
        return total, sum(counted)

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        api.llama_memory_clear(api.llama_get_memory(self.context), True)
        self._n_past = 0
        yield

    def _decode(self, tokens: list[int], all_scores: bool = False) -> None:
        batch = api.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._n_past + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = all_scores or i == len(tokens) - 1
        status = api.llama_decode(self.context, batch)
        api.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode failed with {status}")
        self._n_past += len(tokens)

    def _scores(self, at: int) -> np.ndarray:
        row = api.llama_get_logits_ith(self.context, at)
        return np.ctypeslib.as_array(row, shape=(self.n_vocab,)).copy()
