"""How well a model predicts a text, and how far it is from a reference: per-token figures → perplexity and divergence.

The text is cut into chunks of n_ctx tokens. Of each, tokens n_ctx/2 + 1 to the last count: those before them are what
the model gets to know first. With nll = −ln p(token) of the n tokens that count:

    nll        mean of nll, in nats a token
    ppl        exp(nll)
    error      of any mean m: sqrt((mean of squares − m²) / (n − 1)), its standard error
    ppl_error  ppl · error of nll

With q for the model and p for the reference, over the whole vocabulary and for each token that counts:

    kld        Σ p · (ln p − ln q)             Kullback-Leibler divergence in nats; 0 where both say the same
    dp         q(token) − p(token)             how much likelier the model finds what the text says
    same_top   1 where the likeliest token is the same
    ln_ratio   mean of nll − nll of the reference, which is ln(ppl / ppl of the reference); its error, that of the
               differences, is much smaller than either's own, because both read the same text

All of this is what llama.cpp's llama-perplexity computes and prints (tools/perplexity/perplexity.cpp, `perplexity` and
`kl_divergence`), and its figures can be set beside these, with one exception. llama-perplexity keeps the reference's
log-probabilities in 16 bits: in steps of up to 16/65535, and none lower than 16 below the highest. Here they are exact.
Its mean kld moves by some 1e-6 for the steps. The floor matters where the text surprises the reference very much: its
"PPL(base)" is then too low, and "ln(PPL(Q)/PPL(base))" too high by as much, even of a model with itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmrun.errors import NotFound, UsageError

QUANTILES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
"""Those that llama-perplexity prints, from the minimum over the median to the maximum."""
MAX_TEXT_BYTES = 256 << 20
"""More than anyone waits for; a disk image named by mistake is not read into memory."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; `error` is None of a single value."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Divergence:
    """A model beside a reference, on the same tokens. Formulas are at the top of this module.

    Attributes:
        kld: mean Kullback-Leibler divergence, nats.
        kld_quantiles: fraction → kld; 0.5 is the median.
        dp: mean of q − p of the text's tokens, −1 to 1.
        dp_rms: root of the mean square of it; its error is 0.5 / rms · the error of the mean square.
        dp_quantiles: fraction → q − p.
        same_top: share of the tokens where both find the same token likeliest; its error is sqrt(s (1 − s) / (n − 1)).
        nll_reference: mean of the reference's nll.
        ln_ratio: ln(ppl / reference's ppl).
        correlation: of the two nll, −1 to 1; None where one of them does not vary.
    """

    kld: Estimate
    kld_quantiles: Mapping[float, float]
    dp: Estimate
    dp_rms: Estimate
    dp_quantiles: Mapping[float, float]
    same_top: Estimate
    nll_reference: Estimate
    ln_ratio: Estimate
    correlation: float | None

    @property
    def ppl_reference(self) -> float | None:
        return _exp(self.nll_reference.value)

    @property
    def ppl_ratio(self) -> float | None:
        """Perplexity of the model over that of the reference."""
        return _exp(self.ln_ratio.value)

    @property
    def ppl_ratio_error(self) -> float | None:
        return _times(self.ppl_ratio, self.ln_ratio.error)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON; quantiles are keyed "0.999"."""
        estimates = ("kld", "dp", "dp_rms", "same_top", "nll_reference", "ln_ratio")
        return {
            **{name: vars(getattr(self, name)) for name in estimates},
            "ppl_reference": self.ppl_reference,
            "ppl_ratio": self.ppl_ratio,
            "ppl_ratio_error": self.ppl_ratio_error,
            "correlation": self.correlation,
            "kld_quantiles": {f"{at:g}": value for at, value in self.kld_quantiles.items()},
            "dp_quantiles": {f"{at:g}": value for at, value in self.dp_quantiles.items()},
        }


@dataclass(frozen=True)
class Quality:
    """What a model makes of a text, as far as it has been read.

    Attributes:
        nll: mean negative log-likelihood, nats a token.
        n_ctx: tokens of a chunk.
        n_chunks: chunks read.
        n_tokens: tokens that count, in all of them.
        kld: beside a reference; None without one.
        notes: what a user should be told of how it was measured, one sentence each.
    """

    nll: Estimate
    n_ctx: int
    n_chunks: int
    n_tokens: int
    kld: Divergence | None = None
    notes: tuple[str, ...] = ()

    @property
    def ppl(self) -> float | None:
        """exp(nll); None where that is beyond what a float holds."""
        return _exp(self.nll.value)

    @property
    def ppl_error(self) -> float | None:
        return _times(self.ppl, self.nll.error)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON."""
        return {
            "ppl": self.ppl,
            "ppl_error": self.ppl_error,
            "nll": vars(self.nll),
            "n_ctx": self.n_ctx,
            "n_chunks": self.n_chunks,
            "n_tokens": self.n_tokens,
            "kld": self.kld and self.kld.as_dict(),
            "notes": list(self.notes),
        }


def _exp(exponent: float) -> float | None:
    try:
        return math.exp(exponent)
    except OverflowError:
        return None


def _times(value: float | None, error: float | None) -> float | None:
    return None if value is None or error is None else value * error


def _estimate(values: Any) -> Estimate:
    n = len(values)
    return Estimate(float(values.mean()), math.sqrt(values.var() / (n - 1)) if n > 1 else None)


@dataclass
class Tally:
    """Collects the tokens' figures, chunk by chunk, in any order; `quality()` is what they come to by now."""

    n_ctx: int
    notes: tuple[str, ...] = ()
    n_chunks: int = 0
    _nll: list[Any] = field(default_factory=list)
    _reference: list[Any] = field(default_factory=list)
    _kld: list[Any] = field(default_factory=list)
    _n_same_top: int = 0

    def add(self, nll: Sequence[float]) -> None:
        """A chunk without a reference: nll of the tokens that count."""
        self.n_chunks += 1
        self._nll.append(nll)

    def add_compared(
        self, nll: Sequence[float], reference: Sequence[float], kld: Sequence[float], n_same_top: int
    ) -> None:
        """A chunk with a reference: nll of both, the divergence at each token, and how often the top is the same."""
        self.add(nll)
        self._reference.append(reference)
        self._kld.append(kld)
        self._n_same_top += n_same_top

    def quality(self) -> Quality:
        """Needs at least one chunk."""
        nll = _joined(self._nll)
        divergence = self._divergence(nll) if self._kld else None
        return Quality(_estimate(nll), self.n_ctx, self.n_chunks, len(nll), divergence, self.notes)

    def _divergence(self, nlls: Any) -> Divergence:
        import numpy as np

        references, klds, n = _joined(self._reference), _joined(self._kld), len(nlls)
        dps = np.exp(-nlls) - np.exp(-references)
        nll, reference, ratio, square = map(_estimate, (nlls, references, nlls - references, dps * dps))
        correlation = None
        if nll.error and reference.error and ratio.error is not None:
            # var(a − b) = var(a) + var(b) − 2 cov(a, b)
            correlation = (nll.error**2 + reference.error**2 - ratio.error**2) / (2 * nll.error * reference.error)
        same = self._n_same_top / n
        rms = math.sqrt(square.value)
        kld_quantiles, dp_quantiles = (
            dict(zip(QUANTILES, np.quantile(each, QUANTILES).tolist(), strict=True)) for each in (klds, dps)
        )
        return Divergence(
            kld=_estimate(klds),
            kld_quantiles=kld_quantiles,
            dp=_estimate(dps),
            dp_rms=Estimate(rms, None if square.error is None else 0.5 / rms * square.error if rms else 0.0),
            dp_quantiles=dp_quantiles,
            same_top=Estimate(same, math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else None),
            nll_reference=reference,
            ln_ratio=ratio,
            correlation=correlation,
        )


def _joined(chunks: list[Any]) -> Any:
    """All of them in one array, in which they are then kept."""
    import numpy as np

    chunks[:] = [np.concatenate(chunks)]
    return chunks[0]


def default_text() -> str:
    """The text that comes with llmrun: English prose, dialogue, code and numbers, written for this purpose.

    For comparing levels of one model with each other. Figures of other texts can't be compared with it.
    """
    return read_text(Path(__file__).parents[1] / "data" / "quality.txt")


def read_text(path: Path) -> str:
    """A text to be scored. One line end at its end is left out, as in `llama-perplexity -f`.

    Raises `NotFound`, and `UsageError` for what is not text.
    """
    try:
        if path.is_file() and path.stat().st_size > MAX_TEXT_BYTES:
            too_large = f"{path.name} has more than {MAX_TEXT_BYTES >> 20} MiB"
            raise UsageError(f"{too_large}: that is too large for a text to score")
        data = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path.name}: {error.strerror}", hint="a file of plain text") from None
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        said = f"{path.name} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}"
        raise UsageError(said, hint="a file of plain text") from None
