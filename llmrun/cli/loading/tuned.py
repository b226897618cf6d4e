"""Settings that were measured to be the fastest for a model on this machine; measured now, the first time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmrun.cli.terminal import screen
from llmrun.options.load import LoadConfig
from llmrun.options.spec import SPEED, Flag, check, option, options_of
from llmrun.units import duration, fixed

if TYPE_CHECKING:
    from llmrun.bench.spec import Case
    from llmrun.cli.loading.recommended import Chosen
    from llmrun.models.resolve import Model
    from llmrun.tuning.kept import Choice


@dataclass(frozen=True)
class TuningArguments:
    """What is kept from one run to the next to be faster.

    Attributes:
        tune: a model is loaded with settings that were measured; False has the defaults, whatever is faster here.
        prompt_cache: what the beginnings of long prompts were computed to is kept on disk, and taken from there.
    """

    tune: bool = option(
        True,
        "no-tune",
        Flag(),
        panel=SPEED,
        negated=True,
        help="Keep to the default weight layout and threads; else the fastest here, measured at a model's first use.",
    )
    prompt_cache: bool = option(
        True,
        "no-prompt-cache",
        Flag(),
        panel=SPEED,
        negated=True,
        help="Compute all of the prompt; else its beginning comes from the disk, where it once took long to compute.",
    )

    def __post_init__(self) -> None:
        check(self)

    def settled(
        self,
        reference: str,
        model: Model,
        load: LoadConfig,
        chosen: Chosen,
        n_prompt: int,
        *,
        n_seq: int = 1,
        quiet: bool,
    ) -> tuple[LoadConfig, Choice | None]:
        """What `load` leaves open, decided for a prompt of about so many tokens and `n_seq` answers side by side, and
        the choice that decided it. What somebody has set stays."""
        if not self.tune or load.override_kv or load.lora:
            return load, None
        from llmrun import fs
        from llmrun.machine import hardware
        from llmrun.tuning import first_use

        if first_use.is_small(model.header):
            return load, None
        keys = chosen(reference)
        given = {each.field for each in options_of(LoadConfig) if each.key in keys}
        begin_s = time.monotonic()
        said: list[str] = []
        unkept: list[str] = []

        def on_measure() -> None:
            said.append(f"measuring which settings are the fastest here for {model.name}, once")
            if not quiet:
                screen.note(said[0])
            if 2 * model.header.weight_bytes < (hardware.available_memory() or 0):
                fs.read_ahead(model.path)  # it is loaded next

        settled, choice = first_use.settled(
            model.header,
            load,
            n_prompt,
            n_seq=n_seq,
            model=model.name,
            given=given,
            on_measure=on_measure,
            on_unkept=lambda error: unkept.append(f"not kept: {error.message}"),
        )
        if said and choice is not None and not quiet:
            outcome = unkept[0] if unkept else "kept"
            screen.note(f"{choice.dials.words()}, after {duration(time.monotonic() - begin_s)}; {outcome}")
            if beside := disturbed(choice):
                screen.note(f"{beside}: llmrun tune measures it again when they have ended")
        return settled, choice


def disturbed(choice: Choice) -> str:
    """ "beside 1.9 busy cores", where that was much; else ""."""
    from llmrun.machine.others import MOST_OTHERS

    cores = choice.other_cores or 0.0
    return f"beside {fixed(cores, 1)} busy cores" if cores > MOST_OTHERS else ""


def fastest(model: Model, case: Case, *, quiet: bool) -> LoadConfig:
    """The settings of a bench, with what is kept for prompts of that length where it leaves them as they are."""
    from llmrun.tuning import kept
    from llmrun.tuning.dials import class_of

    config, default = case.config, LoadConfig()
    choice = kept.read(kept.key_of(model.header, config)).get(class_of(case.test.n_prompt))
    if choice is None:
        if not quiet:
            screen.note(
                f"nothing is kept for {model.name} and prompts of {case.test.n_prompt} tokens; llmrun tune measures it"
            )
        return config
    said = {name for name, value in vars(config).items() if value != getattr(default, name)}
    # Threads that were measured are no threads to give away: a guard is on in a bench only where it was asked for.
    return replace(choice.dials.applied(config, leave=said), thread_guard=config.thread_guard)
