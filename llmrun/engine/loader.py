"""From a plan to a loaded model; and to the plan, by what llama.cpp says of devices and of its compute buffers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from llmrun import codec
from llmrun.engine.buffers import by_device
from llmrun.engine.connection import Connection
from llmrun.engine.devices import Found
from llmrun.engine.protocol import Failed, Load, Loaded, Measure, Measured, Progress
from llmrun.engine.settings import settings_of, settings_of_plan
from llmrun.errors import EngineCrashed
from llmrun.gguf.rules import open_adapter
from llmrun.gguf.stub import stub_file
from llmrun.machine.hardware import available_memory, default_threads
from llmrun.machine.proc import Proc
from llmrun.options.load import LoadConfig
from llmrun.planning.fit import Measure as MeasureLayout
from llmrun.planning.fit import footprint_of
from llmrun.planning.footprint import CPU, Footprint, repackable_types
from llmrun.planning.layout import DeviceBudget, Layout, usable_devices
from llmrun.planning.load_plan import Expected, LoadPlan, make_plan, wants_repack
from llmrun.units import duration, size


class Loader:
    """Finds devices, plans and loads, with the child of a connection.

    Attributes:
        found: what llama.cpp sees.
    """

    def __init__(self, connection: Connection, *, extra_ram_bytes: int = 0) -> None:
        """Waits until the child is there. `extra_ram_bytes` are taken beside what llama.cpp lays out."""
        situation = connection.situation
        self._connection, self._extra_ram_bytes = connection, extra_ram_bytes
        self._header, self._config = situation.header, situation.config
        self._n_threads = self._config.n_threads or default_threads()
        self._adapters = [open_adapter(adapter.path, self._header.architecture) for adapter in self._config.lora]
        self._may_measure = True
        self._holds_model = False
        self.found: Found = connection.find_devices()

    def start_again(self) -> None:
        """With a new child."""
        self._connection.start_again()
        self._holds_model = False
        self.found = self._connection.find_devices()

    # -- planning ---

    def plan(self, expected: Expected, budgets: Sequence[DeviceBudget] | None = None) -> LoadPlan:
        """What lies where, before it is loaded. `budgets`: other ones than the devices have."""
        if budgets is None:
            budgets = usable_devices(self._config, self.found.devices)
        try:
            with stub_file(self._header) as path:
                return self._planned(budgets, expected, partial(self._measure, path))
        except OSError:  # no room for it: then the compute buffers stay unknown
            return self._planned(budgets, expected, lambda *_: None)

    def _planned(
        self,
        budgets: Sequence[DeviceBudget],
        expected: Expected,
        measure: MeasureLayout,
    ) -> LoadPlan:
        situation = self._connection.situation
        return make_plan(
            situation.path,
            self._header,
            self._config,
            budgets,
            ram_free=available_memory(),
            measure=measure,
            expected=expected,
            n_threads=self._n_threads,
            repackable=repackable_types(self.found.system_info),
            adapters=self._adapters,
        )

    def footprint(self, plan: LoadPlan, n_ctx: int) -> Footprint:
        """What the plan takes with a context of `n_ctx` tokens, which may not be the one that it was made for."""
        found = footprint_of(self._header, self._config, plan.placement, n_ctx, self._adapters)
        try:
            with stub_file(self._header) as path:
                return found.with_compute(self._measure(path, self._config, plan.layout, n_ctx))
        except OSError:
            return found

    def _measure(self, path: str, config: LoadConfig, layout: Layout, n_ctx: int) -> dict[str, int] | None:
        """Bytes that llama.cpp would compute in, by device; None where it can't lay the model out."""
        if not self._may_measure:
            return None
        settings = settings_of(
            config,
            layout,
            n_ctx=n_ctx,
            n_ctx_most=None,
            n_threads=self._n_threads,
            repack=wants_repack(self._header, config),
        )
        try:
            answer = self._connection.ask(Measure(path, codec.replace(settings, lora=[])))
        except EngineCrashed:
            # What can be loaded can't be laid out: of no harm but for this child, and what it had loaded.
            self._may_measure = False
            if not self._holds_model:
                self.start_again()
            return None
        match answer:
            case Measured(buffers):
                taken = {device: kinds["compute"] for device, kinds in by_device(buffers, self.found.devices).items()}
                return {**taken, CPU: taken.get(CPU, 0) + self._extra_ram_bytes} if self._extra_ram_bytes else taken
            case Failed(kind=kind) if kind != "usage":
                return None
            case other:
                raise self._connection.unexpected(other, "instead of a measurement")

    # -- loading ---

    def load(self, plan: LoadPlan, on_progress: Callable[[float], None] | None = None) -> Loaded:
        """Load as planned. `on_progress` gets the share that is loaded, 0 to 1."""
        connection = self._connection
        connection.situation = connection.situation.planned(plan)
        number = connection.new_request()
        # Not resolved: in the cache a name links to a blob, and the other parts lie beside the name.
        path = os.fspath(plan.path.absolute())
        connection.send(number, Load(path, settings_of_plan(plan), self._header.chat_template is not None))
        try:
            loaded = self._wait(number, on_progress)
        finally:
            connection.forget(number)
        self._holds_model = True
        return loaded

    def _wait(self, number: int, on_progress: Callable[[float], None] | None) -> Loaded:
        connection = self._connection
        deadline = time.monotonic() + connection.limits.header_s
        in_header = True
        while True:
            if in_header:
                event = connection.receive_until(number, min(deadline, time.monotonic() + 0.2))
                if event is None:
                    self._check_header_phase(deadline)
                    continue
            else:
                event = connection.receive(number)
            match event:
                case Progress(fraction):
                    in_header = False
                    if on_progress:
                        on_progress(fraction)
                case Loaded():
                    return event
                case other:
                    raise connection.unexpected(other, "while loading")

    def _check_header_phase(self, deadline: float) -> None:
        connection, limits = self._connection, self._connection.limits
        memory = Proc().memory(connection.pid)
        taken = memory.anonymous_bytes
        if taken and taken > limits.header_bytes:
            raise connection.ended(f"took {size(taken)} before a single weight was read (the file is probably damaged)")
        if time.monotonic() >= deadline:
            raise connection.ended(
                f"was still reading the header after {duration(limits.header_s)} (the file is probably damaged)"
            )
