"""From a plan to a loaded model; and to the plan, by what llama.cpp says of devices and of its compute buffers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, get_args

from llmrun import codec
from llmrun.engine.buffers import by_device
from llmrun.engine.connection import Connection
from llmrun.engine.devices import Found, built
from llmrun.engine.protocol import (
    DraftSettings,
    Failed,
    Load,
    Loaded,
    Measure,
    Measured,
    PrefixStore,
    Progress,
    Settings,
)
from llmrun.errors import Change, EngineCrashed, UsageError
from llmrun.gguf.reader import Header
from llmrun.gguf.rules import open_adapter
from llmrun.gguf.stub import stub_file
from llmrun.machine.backends import why_no_devices
from llmrun.machine.hardware import available_memory, default_threads
from llmrun.machine.proc import Proc
from llmrun.models.quants import split_parts
from llmrun.options.defaults import COMFORTABLE_CTX
from llmrun.options.load import Draft, LoadConfig
from llmrun.planning.fit import CTX_STEP
from llmrun.planning.fit import Measure as MeasureLayout
from llmrun.planning.footprint import CPU, Footprint, Placement, footprint, loaded_tensors, repackable_types
from llmrun.planning.kv_layout import layer_memories
from llmrun.planning.layout import DeviceBudget, Layout, usable_devices
from llmrun.planning.load_plan import Expected, LoadPlan, Planner, wants_repack
from llmrun.units import duration, size

if TYPE_CHECKING:
    from llmrun.models.resolve import Model

_STATE_BYTES = 4
"""Of an element of a recurrent state: F32."""
_MTP_TOKENS = 4
"""A head is trained for one token, and of a recurrent model every one more at once is a copy of all its states."""
_KV_SHARE = 0.9
"""Of the memory that is free, that contexts of several sequences may grow to."""
_UNKNOWN_SEQ = 4
"""Sequences that are believed to fit, of a model whose memory for each is not known."""


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
        self._adapters = tuple(open_adapter(each.path, self._header.architecture) for each in self._config.lora)
        self.drafter = drafting_model(self._config)
        if self._config.draft == "mtp":
            self._extra_ram_bytes += head_bytes(self._header, self._config)
        self._may_measure = True
        self._holds_model = False
        self.found: Found = connection.find_devices()
        if self.drafter is not None:
            self._extra_ram_bytes += self._bytes_beside(self.drafter.header)

    def start_again(self) -> None:
        """With a new child."""
        self._connection.start_again()
        self._holds_model = False
        self.found = self._connection.find_devices()

    # -- planning ---

    def plan(self, expected: Expected, budgets: tuple[DeviceBudget, ...] | None = None) -> LoadPlan:
        """What lies where, before it is loaded. `budgets`: other ones than the devices have."""
        with self.planner(expected, budgets) as planner:
            return planner.plan(self._config)

    @contextmanager
    def planner(self, expected: Expected, budgets: tuple[DeviceBudget, ...] | None = None) -> Iterator[Planner]:
        """Plans of the model with one layout and another, while the block runs. `budgets`: as `plan` has them."""
        if budgets is None:
            devices = self.found.devices
            budgets = usable_devices(self._config, devices, why_no_devices(built(), devices) or "RAM alone")
        measure: MeasureLayout = _unmeasured
        with ExitStack() as stack:
            with suppress(OSError):  # no room for it: then the compute buffers stay unknown
                measure = partial(self._measure, stack.enter_context(stub_file(self._header)))
            path, threads, free = self._connection.situation.path, self._n_threads, available_memory()
            types = repackable_types(self.found.system_info)
            yield Planner(path, self._header, budgets, free, measure, expected, threads, types, self._adapters)

    def footprint(self, plan: LoadPlan, n_ctx: int) -> Footprint:
        """What the plan takes with a context of `n_ctx` tokens, which may not be the one that it was made for."""
        found = footprint(self._header, plan.placement, n_ctx, self._config, self._adapters, plan.n_seq)
        try:
            with stub_file(self._header) as path:
                return found.with_compute(self._measure(path, self._config, plan.layout, n_ctx))
        except OSError:
            return found

    def most_context(self, plan: LoadPlan, n_seq: int) -> int:
        """Tokens of context that each of `n_seq` sequences can have, by what is free now beside the model; 0: none."""
        wanted = self._header.n_ctx_train or plan.n_ctx
        needs = footprint(self._header, plan.placement, wanted, self._config).by_device
        free = {budget.name: budget.free_bytes for budget in plan.budgets}
        ram = available_memory()
        # Pages of the file count as available, and are wanted again with every token.
        free[CPU] = None if ram is None else ram - plan.footprint.span_bytes
        share = 1.0
        for name, need in needs.items():
            there = free.get(name)
            if need.kv is None and n_seq > _UNKNOWN_SEQ:
                return 0
            if need.kv and there is not None:
                taken = plan.footprint.by_device[name].total - (plan.footprint.by_device[name].kv or 0)
                room = there if name == CPU else there - taken
                share = min(share, _KV_SHARE * max(0, room) / (n_seq * need.kv))
        return int(share * wanted) // CTX_STEP * CTX_STEP if share < 1 else wanted

    def _bytes_beside(self, header: Header) -> int:
        """Of RAM that a model takes which guesses ahead: weights, keys and values of a usual context, and compute
        buffers."""
        n_ctx = min(header.n_ctx_train or COMFORTABLE_CTX, COMFORTABLE_CTX)
        config = LoadConfig(n_batch=self._config.n_batch, n_ubatch=self._config.n_ubatch)
        found = footprint(header, Placement((CPU,) * ((header.n_layer or 0) + 1)), n_ctx)
        with suppress(OSError), stub_file(header) as path:
            found = found.with_compute(self._measure(path, config, Layout(0), n_ctx))
        return found.by_device[CPU].total

    def _measure(self, path: str, config: LoadConfig, layout: Layout, n_ctx: int) -> dict[str, int] | None:
        """Bytes that llama.cpp would compute in, by device; None where it can't lay the model out."""
        if not self._may_measure:
            return None
        threads, repack = self._n_threads, wants_repack(self._header, config)
        settings = settings_of(config, layout, n_ctx=n_ctx, n_ctx_most=None, n_threads=threads, repack=repack)
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

    def load(
        self, plan: LoadPlan, on_progress: Callable[[float], None] | None = None, *, keeps_prefixes: str | None = None
    ) -> Loaded:
        """Load as planned. `on_progress` gets the share that is loaded, 0 to 1. `keeps_prefixes`: the model's name,
        where the beginnings of prompts are kept on disk."""
        connection, config = self._connection, plan.config
        connection.situation = replace(connection.situation, plan=plan)
        n_ctx = None if config.n_ctx is None else plan.n_ctx
        threads, most = plan.n_threads, plan.n_ctx_most
        settings = settings_of(config, plan.layout, n_ctx=n_ctx, n_ctx_most=most, n_threads=threads, repack=plan.repack)
        # Not resolved: in the cache a name links to a blob, and the other parts lie beside the name.
        path = os.fspath(plan.path.absolute())
        if self.drafter is not None:
            repack = wants_repack(self.drafter.header)
            settings = codec.replace(settings, draft=DraftSettings(os.fspath(self.drafter.path.absolute()), repack))
        if keeps_prefixes is not None:
            settings = codec.replace(settings, prefixes=self._store(plan, settings, keeps_prefixes))
        number = connection.request(Load(path, settings, self._header.chat_template is not None))
        try:
            loaded = self._wait(number, on_progress)
        finally:
            connection.forget(number)
        self._holds_model = True
        return loaded

    def _store(self, plan: LoadPlan, settings: Settings, model: str) -> PrefixStore | None:
        """Where beginnings are kept for this model, build and settings; None where that can't be told."""
        from llmrun.engine import prefixes

        files = [plan.path.with_name(name) for name in split_parts(plan.path.name)]
        what = {"build": self.found.system_info, "versions": self.found.versions, "settings": codec.plain(settings)}
        for name in (
            "n_ctx",
            "n_ctx_most",
            "guards_threads",
            "load_mode",
            "n_draft",
            "draft",
            "mtp",
        ):  # they change no state
            what["settings"].pop(name)
        what["settings"]["tensor_split"] = plan.placement.layers  # shares by free memory are other ones every time
        try:
            key = prefixes.key_of([*files, *(adapter.path for adapter in self._config.lora)], what)
        except OSError:
            return None
        where, least_s = os.fspath(prefixes.folder() / key), self._connection.limits.prefix_s
        return PrefixStore(where, key, model, prefixes.LIMIT_BYTES, least_s)

    def _wait(self, number: int, on_progress: Callable[[float], None] | None) -> Loaded:
        connection = self._connection
        deadline = time.monotonic() + connection.limits.header_s
        while (event := connection.receive(number, min(deadline, time.monotonic() + 0.2))) is None:
            self._check_header_phase(deadline)
        while isinstance(event, Progress):
            if on_progress:
                on_progress(event.fraction)
            event = connection.answer(number)
        if isinstance(event, Loaded):
            return event
        raise connection.unexpected(event, "while loading")

    def _check_header_phase(self, deadline: float) -> None:
        connection, limits = self._connection, self._connection.limits
        taken = Proc().memory(connection.child.pid).anonymous_bytes
        did = None
        if taken and taken > limits.header_bytes:
            did = f"took {size(taken)} before a single weight was read"
        elif time.monotonic() >= deadline:
            did = f"was still reading the header after {duration(limits.header_s)}"
        if did:
            why = "a worker does not answer, or the file is" if self._config.rpc else "the file is probably"
            raise connection.ended(f"{did} ({why} damaged)")


def drafting_model(config: LoadConfig) -> Model | None:
    """The model that guesses ahead, where the configuration names one. Raises what `find_model` does."""
    if config.draft in get_args(Draft):
        return None
    from llmrun.models.resolve import find_model

    return find_model(config.draft)


def head_bytes(header: Header, config: LoadConfig) -> int:
    """Of RAM that a model's own head takes, with the copies of recurrent states that guesses need. Raises `UsageError`
    where it has none."""
    n_ahead = header.hparam("nextn_predict_layers")
    if not isinstance(n_ahead, int) or not n_ahead:
        why = "the model has no head of its own that predicts tokens ahead"
        raise UsageError(why, field="draft", value="mtp", hint=Change({"draft": "lookup"}))
    loaded = {tensor.name for tensor in loaded_tensors(header)}
    weights = sum(tensor.n_bytes for tensor in header.tensors if tensor.name not in loaded)
    states = sum(_STATE_BYTES * layer.n_state for layer in layer_memories(header) or ())
    return weights + n_drafted_at_once(config) * states


def n_drafted_at_once(config: LoadConfig) -> int:
    if config.draft == "off":
        return 0
    return min(config.draft_max, _MTP_TOKENS) if config.draft == "mtp" else config.draft_max


def _unmeasured(*_: object) -> None:
    """Of nothing is known what llama.cpp computes in."""


def settings_of(
    config: LoadConfig, layout: Layout, *, n_ctx: int | None, n_ctx_most: int | None, n_threads: int, repack: bool
) -> Settings:
    """Of `config` all fields that are called the same; the others are decided here."""
    offload = config.offload
    decided = {
        "n_ctx": n_ctx,
        "n_ctx_most": n_ctx_most,
        "n_threads": n_threads,
        "n_threads_batch": config.n_threads_batch or n_threads,
        "repack": repack,
        "plain_prefill": config.repack == "both",
        "guards_threads": config.guards_threads,
        "n_draft": n_drafted_at_once(config),
        "mtp": config.draft == "mtp",
        "draft": None,
        "n_gpu_layers": layout.n_gpu_layers,
        "devices": layout.devices,
        "tensor_split": layout.shares,
        "split_mode": offload.split_mode,
        "main_gpu": 0 if offload.split_mode == "none" else offload.main_gpu,  # `devices` is then that one alone
        "override_tensor": layout.overrides,
        "offload_kv": offload.kv,
        "override_kv": [*config.override_kv.items()],
        "rope": {name: value for name, value in vars(config.rope).items() if value is not None},
        "lora": [(os.fspath(adapter.path.absolute()), adapter.scale) for adapter in config.lora],
    }
    return codec.convert({**codec.plain(config), **decided}, Settings)
