"""An engine that computes nothing: it answers as late as a plan says that one would, on a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmrun.engine.interface import Messages
from llmrun.engine.protocol import PromptOptions
from llmrun.engine.router import Speed
from llmrun.options.sampling import SamplingConfig


@dataclass
class VirtualClock:
    """Time that passes when somebody waits for it."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += max(0.0, seconds)


@dataclass
class _Meter:
    token_s: tuple[float, ...] = ()


@dataclass
class _Timing:
    n_prompt: int
    n_cached: int = 0
    n_drafted: int = 0
    n_accepted: int = 0


@dataclass(eq=False)
class Answer:
    """As much of `interface.Submitted` as a load generator looks at."""

    timing: _Timing
    n_gen: int
    meter: _Meter = field(default_factory=_Meter)
    error: None = None
    token_s: list[float] = field(default_factory=list)

    def cancel(self) -> None:
        self.n_gen = len(self.token_s)


class SimulatedEngine:
    """Up to `n_seq` answers side by side. Prompts are computed one after the other, and hold up the steps meanwhile; a
    step makes a token for all answers."""

    def __init__(self, speed: Speed, n_seq: int, clock: VirtualClock) -> None:
        self.speed, self.n_seq, self._clock = speed, n_seq, clock
        self._at_s = 0.0
        self._waiting: list[tuple[float, Answer]] = []
        self._made: list[Answer] = []
        self._ended: list[Answer] = []

    def submit(
        self, prompt: str | Messages, sampling: SamplingConfig | None = None, *, options: PromptOptions | None = None
    ) -> Answer:
        """The prompt's words are its tokens."""
        text = prompt if isinstance(prompt, str) else " ".join(message.get("content", "") for message in prompt)
        answer = Answer(_Timing(len(text.split())), (sampling and sampling.max_tokens) or 1)
        self._waiting.append((self._clock(), answer))
        return answer

    def wait(self, timeout_s: float | None = None) -> Answer | None:
        """The next one that has ended by then; the clock goes on to its end, or by the timeout."""
        end_s = None if timeout_s is None else self._clock() + timeout_s
        while not self._ended and (self._waiting or self._made) and (end_s is None or self._next_s() <= end_s):
            self._advance()
        if self._ended:
            done = self._ended.pop(0)
            done.meter = _Meter(tuple(done.token_s))
            self._clock.now_s = max(self._clock.now_s, done.token_s[-1])
            return done
        if end_s is not None:
            self._clock.now_s = max(self._clock.now_s, end_s)
        return None

    def _next_s(self) -> float:
        """When what is computed next would be done."""
        if self._waiting and len(self._made) < self.n_seq:
            asked_s, answer = self._waiting[0]
            return max(self._at_s, asked_s) + answer.timing.n_prompt / self.speed.prefill_tps
        return self._at_s + self.speed.step_of(len(self._made))

    def _advance(self) -> None:
        if self._waiting and len(self._made) < self.n_seq:
            self._at_s = self._next_s()
            _, answer = self._waiting.pop(0)
            self._made.append(answer)
            answer.token_s.append(self._at_s)  # the prompt's last position gives the first token
        else:
            self._at_s = self._next_s()
            for answer in self._made:
                answer.token_s.append(self._at_s)
        for answer in [each for each in self._made if len(each.token_s) >= each.n_gen]:
            self._made.remove(answer)
            self._ended.append(answer)
