"""The messages between the two sides of the engine, and how they travel: one a line, as `[7, "Tokens", {…}]`.

The number is that of the request that a message is about: the request itself has it, a `Cancel` of it, and all that is
answered. Numbers are given by the parent and count up from 1; 0 is about no request. A child may answer several at a
time: whatever comes back tells which request it belongs to, and `Cancel` is for one alone. Times are seconds on
`time.perf_counter()`, one clock for all processes of a machine (CLOCK_MONOTONIC).

JSON and not pickle, because a hostile model file may own the child: what comes back must stay data.
"""

from __future__ import annotations

import json
import os
import re
from typing import Any, Literal

from llmrun import codec
from llmrun.codec import Struct, field
from llmrun.machine.device import Device

NO_REQUEST = 0


class Message(Struct):
    """What one side may say to the other."""


class PrefixStore(Struct):
    """Where a child keeps what the beginnings of prompts were computed to (`engine/prefixes.py`).

    Attributes:
        folder: of this key, which stands for model, build and settings.
        model: a name to show.
        limit_bytes: of all keys together.
        least_s: what a prompt must have taken to be kept.
    """

    folder: str
    key: str
    model: str
    limit_bytes: int
    least_s: float = 1.0


class DraftSettings(Struct):
    """A model that guesses what another one says. `repack`: its weights are rearranged."""

    path: str
    repack: bool


class Settings(Struct):
    """How llama.cpp is to load a model and to make its context: checked and decided, down to the last number.

    Attributes:
        n_ctx: tokens of context; None: as many as a request needs, at most `n_ctx_most`.
        devices: names of those that layers may lie on.
        tensor_split: shares of the layers, one for each of `devices`.
        override_tensor: [pattern, device].
        override_kv: [key, value].
        rope: the fields of `config.Rope` that are set.
        lora: [path, scale].
        guards_threads: fewer threads decode while other processes want the cores.
        plain_prefill: with `repack`: the weights are there a second time, as in the file, for long prompts.
        n_draft: tokens that may be guessed and computed with the next one.
        draft: the model that guesses them; None: what the text repeats does.
        mtp: the model's own head does.
        prefixes: where the beginnings of prompts are kept on disk; None: nowhere.
    """

    n_ctx: int | None
    n_ctx_most: int | None
    n_batch: int
    n_ubatch: int
    n_threads: int
    n_threads_batch: int
    flash_attn: str
    repack: bool
    type_k: str
    type_v: str
    load_mode: str
    numa: str | None
    n_gpu_layers: int
    devices: list[str]
    tensor_split: list[float]
    split_mode: str
    main_gpu: int
    override_tensor: list[list[str]]
    offload_kv: bool
    override_kv: list[list[Any]]
    rope: dict[str, Any]
    lora: list[list[Any]]
    guards_threads: bool = False
    plain_prefill: bool = False
    n_draft: int = 0
    draft: DraftSettings | None = None
    mtp: bool = False
    prefixes: PrefixStore | None = None


class Load(Message):
    """Parent → child: load the model.

    `has_template` lets the child import what renders chat templates while the weights load.
    """

    path: str
    settings: Settings
    has_template: bool


class Measure(Message):
    """Parent → child: lay out the model at `path` with these settings, taking no memory. `n_ctx` is set."""

    path: str
    settings: Settings


class FindDevices(Message):
    """Parent → child: which devices are there, those of the RPC servers at "host:port" included?"""

    rpc: list[str]


def new_call_id() -> str:
    """Of a call of a tool: nine letters and digits, as templates of Mistral's demand."""
    return os.urandom(5).hex()[:9]


class Tool(Struct, frozen=True):
    """A function that a model may call.

    Attributes:
        description: what it does, for the model.
        parameters: the JSON schema of its arguments, as the model is told it.
        schema: the same as it is enforced.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    schema: dict[str, Any]


class CallPiece(Struct, frozen=True):
    """More of a call. `index`: counted from 0; `name` stands in its first piece, `arguments` are JSON, cut anywhere."""

    index: int
    name: str = ""
    arguments: str = ""


class PromptOptions(Struct, frozen=True):
    """How a prompt is meant, beside how its answer is sampled.

    Attributes:
        template: a chat template (Jinja) instead of the model's own.
        assistant_prefix: the beginning of the answer, which is there already.
        reuse: the prompt continues a conversation: what the context holds of it is not computed again, and the context
            grows with it.
        anew: nothing that is known of the prompt is used, neither in memory nor on disk.
        thinks: False has a reasoning model answer at once.
        think_budget: the most tokens of thinking; None: no limit.
        grammar: what the answer has to keep to, for llguidance (`engine/grammar.py`).
        special: control tokens count as such where their names stand in what is given; False: they are text. None: in
            a prompt that is continued, not in messages, whose control tokens are their template's alone.
        bulk: nobody watches the answer as it is made: its tokens come many at a time, and prompts of others hold it up.
        patient: the answer is watched, and whole prompts of others may hold it up all the same.
        choices: texts of which `grammar` allows one: how likely each is, is found as well.
        n_logprobs: with each token of the answer, how likely it was, and so many of the likeliest; None: not told.
        tools: that the answer may call; `must_call`: it has to; `several_calls`: it may call more than one at once.
    """

    template: str | None = None
    assistant_prefix: str = ""
    reuse: bool = False
    anew: bool = False
    thinks: bool = True
    think_budget: int | None = None
    grammar: str | None = None
    special: bool | None = None
    bulk: bool = False
    patient: bool = False
    choices: list[str] | None = None
    n_logprobs: int | None = None
    tools: list[Tool] | None = None
    must_call: bool = False
    several_calls: bool = True


class Generate(Message):
    """Parent → child: answer `messages` (through the chat template) or continue `prompt` (as it is).

    Attributes:
        sampling: the fields of `SamplingConfig` (`logit_bias` as [token, bias] pairs), seed already chosen.
        repeatable: the same request is to give the same text another time.
        drafts: tokens may be guessed ahead, as far as the model was loaded for it.
    """

    sampling: dict[str, Any]
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    options: PromptOptions = field(default_factory=PromptOptions)
    repeatable: bool = False
    drafts: bool = False


class Reserve(Message):
    """Parent → child: from now on answer up to `n_seq` requests side by side, each in a context of its own.

    Attributes:
        n_ctx: tokens of prompt and answer that each has room for from the beginning, where no settings say.
        n_ctx_most: tokens that it may grow to.
    """

    n_seq: int
    n_ctx: int
    n_ctx_most: int | None


class Reserved(Message):
    """Child → parent: the answer to `Reserve`. `n_ctx`: tokens that each has; 0: that is known with the first one."""

    n_ctx: int
    buffers: list[Buffer]


class Flush(Message):
    """Parent → child: wait until what is being written to the disk is there, for at most so long."""

    timeout_s: float


class Flushed(Message):
    """Child → parent: the answer to `Flush`. `is_done`: it is there."""

    is_done: bool


class Prepare(Message):
    """Parent → child: make a context and compute what these messages will begin with, until `Cancel`.

    For the time in which somebody types. The first time the weights are read once, so that they are in memory.
    """

    messages: list[dict[str, Any]]
    template: str | None = None
    thinks: bool = True
    special: bool | None = None
    tools: list[Tool] | None = None


class Prepared(Message):
    """Child → parent: the answer to `Prepare`. `n_tokens` are remembered now."""

    n_tokens: int


class Count(Message):
    """Parent → child: how many tokens have these messages, rendered for an answer, or this text? As `PromptOptions`."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    template: str | None = None
    thinks: bool = True
    special: bool | None = None
    tools: list[Tool] | None = None


class Counted(Message):
    """Child → parent: the answer to `Count`."""

    n_tokens: int


class Encode(Message):
    """Parent → child: cut `text` into tokens. `special`: control tokens count where their names stand in it;
    `add_special`: with what the vocabulary puts before every text."""

    text: str
    special: bool = True
    add_special: bool = False


class Encoded(Message):
    """Child → parent: the answer to `Encode`. `pieces`: the bytes of each, of a control token its name."""

    ids: list[int]
    pieces: list[bytes]


class Decode(Message):
    """Parent → child: what do these tokens say?"""

    ids: list[int]


class Decoded(Message):
    """Child → parent: the answer to `Decode`, control tokens by their names; half a character is U+FFFD."""

    text: str


class Embed(Message):
    """Parent → child: each of these as one vector. Texts are texts: no control token counts in them.

    Attributes:
        inputs: texts, or tokens as they are.
        pooling: "mean", "cls" or "last": how a text's tokens become one vector.
        is_causal: each token sees those before it alone.
        n_most: tokens that one may have.
        truncates: of a longer one the first so many count; else it is an error.
        first: the number of the first one, for errors.
    """

    inputs: list[str | list[int]]
    pooling: str
    is_causal: bool
    n_most: int
    truncates: bool = False
    first: int = 0


class Embedded(Message):
    """Child → parent: the answer to `Embed`. `vectors`: of length 1, float32 in the machine's order; `n_tokens`: of
    each."""

    vectors: list[bytes]
    n_tokens: list[int]


QUESTIONS = (Count, Encode, Decode, Embed)
"""What is answered at once, whatever is being computed."""


class Tokenize(Message):
    """Parent → scorer: cut `text` into chunks of `n_ctx` tokens and make a context for one of them."""

    text: str
    n_ctx: int


class Score(Message):
    """Parent → scorer: compute chunk number `index`, counted from 0.

    Attributes:
        keep: path of a file to write the logits to: float32, one row of the vocabulary for each token that counts.
        beside: path of such a file, with a reference's logits to compare with.
    """

    index: int
    keep: str | None = None
    beside: str | None = None


class Trial(Message):
    """Parent → child: compute random tokens and tell how long it took; nothing is sampled or detokenized.

    Attributes:
        n_prompt: tokens of prompt of every sequence; 0: none.
        n_gen: tokens that are then computed one by one, in every sequence.
        n_depth: tokens that are in the memory of every sequence before, outside the clock.
        n_seq: sequences, side by side.
        n_ctx: tokens of context to make at least, so that the next trial can use it too.
        n_threads, n_threads_batch: for decoding and for prefill; 0: as the model was loaded.
        n_ubatch, flash_attn, kv_type: in place of those of the settings; 0, "": as they are.
        layout: where weights are there in both layouts, which to use: "off" (as in the file), "on" (rearranged) or
            "both"; "": as the model was loaded.
    """

    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_seq: int = 1
    n_ctx: int = 0
    n_threads: int = 0
    n_threads_batch: int = 0
    n_ubatch: int = 0
    flash_attn: str = ""
    kv_type: str = ""
    layout: Literal["", "off", "on", "both"] = ""


class TrialResult(Message):
    """Child → parent: the answer to `Trial`.

    Attributes:
        prefill_s: seconds of the prompts; None without.
        step_s: seconds of each step, one token for every sequence; `n_gen` of them.
        buffers: what llama.cpp holds, by device.
    """

    prefill_s: float | None
    step_s: list[float]
    buffers: list[Buffer]


class Probe(Message):
    """Parent → child: how fast does a device read and multiply? A model need not be loaded.

    Attributes:
        n_bytes: of the matrix that is read; 0: none is.
        kind: ggml type of the matrix that is multiplied, such as "Q4_K"; "": none is.
        seconds: of each of the two, about.
        repack: whether weights in RAM are rearranged where ggml can.
    """

    device: str
    n_bytes: int
    kind: str
    n_threads: int
    seconds: float
    repack: bool = False


class Probed(Message):
    """Child → parent: the answer to `Probe`, one figure for every product. Empty where there is no room, or no way."""

    read_bytes_per_s: list[float]
    flops_per_s: list[float]


class TimeProducts(Message):
    """Parent → child: how long does a device take for products with matrices of this type, as models have them?

    The matrices lie in memory, not in a cache: there are as many of `n_rows` rows as `n_bytes` are, which take turns.
    With `n_experts`, each is one of so many experts, of which every column goes through `n_used`.

    Attributes:
        kind: ggml type, such as "Q4_K".
        repack: rearranged as ggml rearranges weights in RAM; no answer where it does not.
        n_row: elements of a row, a multiple of 256.
        n_columns, n_threads: each number of columns is tried with each number of threads.
        seconds: of each, about.
        noise: what fills them; without, one byte, which a worker need not be sent.
    """

    device: str
    kind: str
    n_row: int
    n_rows: int
    n_bytes: int
    n_columns: list[int]
    n_threads: list[int]
    seconds: float
    repack: bool = False
    n_experts: int = 0
    n_used: int = 0
    noise: bool = True


class TimeAttention(Message):
    """Parent → child: how long does a device take for attention over keys and values, every token over all?

    Attributes:
        flash: in one operation; else by two products and a softmax, with the values turned, which only F16 allows.
        kind: ggml type of keys and values.
        head_size: elements of a head.
        value_size: so many of the first elements of a key are its value (latent attention); 0: values are of their own.
        n_head, n_head_kv: of queries, and of keys and values.
        n_bytes: of keys and values together that take turns, where there is one token: as in a model, in no cache.
        n_depths, n_tokens, n_threads: each depth with each number of tokens with each number of threads.
        seconds: of each, about.
    """

    device: str
    kind: str
    head_size: int
    n_head: int
    n_head_kv: int
    n_bytes: int
    n_depths: list[int]
    n_tokens: list[int]
    n_threads: list[int]
    seconds: float
    flash: bool = True
    value_size: int = 0


class TimeTransfers(Message):
    """Parent → child: how long does it take to write a tensor of each of these sizes to a device, and to read it?"""

    device: str
    n_bytes: list[int]
    seconds: float


class TimeLayers(Message):
    """Parent → child: how long does a device take for square linear layers with a residual, x + W·x in F32, one behind
    the other?

    Attributes:
        width: elements of a row, which is as many as there are rows.
        n_layers: each with weights of its own.
        n_columns, n_threads: inputs at once; each number of them with each number of threads.
        seconds: of each, about; three passes are the least.
    """

    device: str
    width: int
    n_layers: int
    n_columns: list[int]
    n_threads: list[int]
    seconds: float


class OpTimes(Message):
    """Child → parent: the answer to `TimeProducts`, `TimeAttention` and `TimeTransfers`: the seconds of one
    operation, the lower quartile of some, in the order of the question's lists, the last one fastest. Empty where there
    is no room, or no way. `TimeTransfers` has two for each size, written and read; `TimeLayers` the median of a pass
    through all layers.
    """

    seconds: list[float]


class Cancel(Message):
    """Parent → child, at any time: end the request that this is about, and no other.

    It is answered as always: a generation by `Done` with stop reason "cancelled". For a request that is over already,
    or is not known, it changes nothing.
    """


class Ready(Message):
    """Child → parent, about no request: llama.cpp is loaded and can be asked."""

    system_info: str


class Measured(Message):
    """Child → parent: the answer to `Measure`: the sizes of compute and output buffers."""

    buffers: list[Buffer]


class Devices(Message):
    """Child → parent: the answer to `FindDevices`, in ggml's order. `versions`: what ggml says of itself."""

    devices: list[Device]
    versions: dict[str, str] = field(default_factory=dict)


class Progress(Message):
    """Child → parent: the share of the weights that is loaded, 0 to 1."""

    fraction: float


class Buffer(Struct):
    """Memory that llama.cpp took on one device, as its log says.

    Attributes:
        kind: "model", "KV", "RS" (recurrent state), "compute" or "output".
        n_bytes: its size; the log rounds to 0.01 MiB.
    """

    device: str
    kind: str
    n_bytes: int


class Loaded(Message):
    """Child → parent: the model can be used. `warnings`: what did not go as asked, in llama.cpp's words."""

    n_ctx_train: int
    n_vocab: int
    n_params: int
    description: str
    has_template: bool
    begin_s: float
    end_s: float
    warnings: list[str] = field(default_factory=list)


class Tokenized(Message):
    """Scorer → parent: the answer to `Tokenize`.

    Attributes:
        n_tokens: of the whole text, BOS included where the model wants one.
        digest: of the tokens: two models with the same one read the same.
    """

    n_tokens: int
    digest: str


class Scored(Message):
    """Scorer → parent: the answer to `Score`, one number for each token that counts.

    Attributes:
        nll: −ln p of the text's token.
        reference: the same by the reference's logits; empty without one.
        kld: divergence from the reference; empty without one.
        n_same_top: tokens where both find the same one likeliest.
    """

    nll: list[float]
    reference: list[float]
    kld: list[float]
    n_same_top: int


class Started(Message):
    """Child → parent: the request is tokenized and prefill begins.

    Attributes:
        n_cached: tokens of the prompt that are in the memory already and are not computed.
        request_s: when the request arrived in the child: TTFT counts from here.
        served_s: when its turn came: what lies between is the wait for requests before it. None: not known.
        n_ctx: tokens of context that prompt and answer share.
        buffers: what llama.cpp holds now, by device.
        thinks: the template has tags for thinking, so that an answer may begin with it.
        notes: what a user should be told, one sentence each.
    """

    n_prompt: int
    n_cached: int
    n_ctx: int
    request_s: float
    begin_s: float
    buffers: list[Buffer]
    thinks: bool = False
    served_s: float | None = None
    notes: list[str] = field(default_factory=list)


class Prefilled(Message):
    """Child → parent: so many tokens of the prompt are computed by now."""

    n_tokens: int
    at_s: float


class Logprob(Struct, frozen=True):
    """How likely a token was: the natural logarithm, before anything of sampling. `piece`: its bytes."""

    id: int
    piece: bytes
    logprob: float


class TokenLogprobs(Logprob, frozen=True):
    """The same of a token that was made. `top`: the likeliest in its place, the likeliest first."""

    top: list[Logprob] = field(default_factory=list)


class Tokens(Message):
    """Child → parent: tokens as they were made. Fast models send several at a time.

    Attributes:
        ids: the tokens.
        at_s: when each of them was sampled; same length as `ids`.
        text: of the answer, what can be shown now. It may lag behind the tokens, by half a character or the start of a
            stop text.
        thought: the same of the thinking, which is no part of the answer.
        n_thought: how many of the tokens were thinking, its tags included.
        logprobs: of those that were not, where the request wants them.
        calls: what they have added to calls of tools.
    """

    ids: list[int]
    at_s: list[float]
    text: str
    thought: str = ""
    n_thought: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    calls: list[CallPiece] = field(default_factory=list)


StopReason = Literal["end", "length", "stop", "context", "cancelled"]


class Done(Message):
    """Child → parent: the generation is over.

    Attributes:
        stop_reason: the model ended ("end"), max_tokens ("length"), a stop text ("stop"), the context is full
            ("context"), or `Cancel` ("cancelled").
        peak_rss_bytes: the most memory that the child ever had resident, weights mapped from the file included.
        rss_bytes, anonymous_bytes: resident now, and the part of it that is not backed by a file.
        devices: those that the model uses, with the memory that is free on them now, by their own word.
        threads: [token, threads]: from that token of the answer on, so many threads have decoded, where they changed.
        n_drafted, n_accepted: tokens that were guessed ahead, and those of them that were right.
        choices: how likely each of the request's choices was to be the answer; None: it had none, or was cancelled.
        stop: which stop text came.
    """

    stop_reason: StopReason
    peak_rss_bytes: int | None
    rss_bytes: int | None
    anonymous_bytes: int | None
    devices: list[Device] = field(default_factory=list)
    threads: list[tuple[int, int]] = field(default_factory=list)
    n_drafted: int = 0
    n_accepted: int = 0
    choices: list[float] | None = None
    stop: str | None = None


FailureKind = Literal["model", "memory", "prompt", "usage", "port", "engine"]


class Failed(Message):
    """Child → parent: the request can't be served; the child lives on.

    Attributes:
        field: the option's field that is wrong, as in `errors.LlmrunError`; None where it is not about one.
        numbers: what a message can be made of, e.g. `{"n_prompt": 5000, "n_ctx": 4096}`.
    """

    kind: FailureKind
    message: str
    numbers: dict[str, int] = field(default_factory=dict)
    field: str | None = None


class RequestFailed(Exception):
    """Raised in the child; becomes a `Failed` message."""

    def __init__(
        self, kind: FailureKind, message: str, numbers: dict[str, int] | None = None, *, field: str | None = None
    ) -> None:
        super().__init__(message)
        self.failed = Failed(kind, message, numbers or {}, field)


# -- to workers, and to the quantizer ---


class Serve(Message):
    """Parent → worker: serve these devices, none named: the GPUs, or else the CPU.

    Attributes:
        host: an IPv4 address; llama.cpp's server knows no other.
        limit_bytes: of memory, on each device; None: all that is free.
    """

    host: str
    port: int
    devices: list[str]
    n_threads: int
    limit_bytes: int | None


class Listening(Message):
    """Worker → parent: clients are accepted from now on. The devices are as a client sees them."""

    devices: list[Device]


class Client(Message):
    """Worker → parent: a client came (`connected`) or went."""

    connected: bool


class Quantize(Message):
    """Parent → quantizer: quantize `source` (the first part of a split model) into `target`.

    Attributes:
        file_type: number of the level in `enum llama_ftype`.
        pure: every matrix in the level's own type, without the mix that makes Q4_K_M better than plain Q4_K.
        keep_output: the output matrix stays as it is.
        metadata: texts to add to the file, at most `child.quantize.MAX_VALUE_BYTES` each.
        dry_run: write nothing, tell the size only.
    """

    source: str
    target: str
    file_type: int
    n_threads: int
    pure: bool
    keep_output: bool
    imatrix: str | None
    metadata: dict[str, str]
    dry_run: bool


class QuantizingTensor(Message):
    """Quantizer → parent: llama.cpp begins with this tensor."""

    name: str


class Quantized(Message):
    """Quantizer → parent: it is done.

    Attributes:
        mib: size of all tensors, in MiB, as the log has it: rounded to 0.01.
        needs_imatrix: of a dry run: the level can't be had without an importance matrix.
        n_fallback: tensors whose rows don't fit the level's type, so that they got another.
    """

    mib: float
    needs_imatrix: bool
    n_fallback: int


# -- to the process of a user's functions ---


class LoadFunctions(Message):
    """Parent → functions: run the Python file at `path`. Answered by `Functions`, or by `Failed`."""

    path: str


class FunctionSpec(Struct):
    """A function of the user's. `parameters`: the JSON schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]


class Functions(Message):
    """Functions → parent: what the file has, in its order."""

    specs: list[FunctionSpec]


class CallFunction(Message):
    """Parent → functions: call it. `arguments`: JSON."""

    name: str
    arguments: str


class Returned(Message):
    """Functions → parent: what came of a call: a text as it is, else JSON; of an exception its type and message."""

    text: str


# -- on the wire ---

_KINDS = {kind.__name__: kind for kind in Message.__subclasses__()}


def encode(request: int, message: Message) -> bytes:
    """One line of JSON, newline included."""
    line = (request, type(message).__name__, message)
    try:
        return codec.encode(line) + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, in the name of a file perhaps: only an escape can say it
        return json.dumps(codec.plain(line)).encode() + b"\n"


def decode(line: bytes) -> tuple[int, Message]:
    """The number of the request and the message, its fields of the types declared. Raises `codec.Malformed`."""
    try:
        try:
            request, name, fields = codec.decode(line, tuple[int, str, codec.Raw])
            return request, codec.decode(fields, _KINDS[name])
        except codec.Malformed:
            if rb"\ud" not in line:
                raise
            request, name, plain = codec.convert(json.loads(line), tuple[int, str, Any])
            return request, codec.convert(plain, _KINDS[name])
    except (KeyError, ValueError, RecursionError) as error:
        raise codec.Malformed(f"not a message: {line[:200]!r}") from error


_OUT_OF_MEMORY = re.compile(
    "failed to allocate|unable to allocate|cannot allocate memory|memory allocation of size|bad_alloc|memoryerror"
    r"|alloc_failed|out[ _]?of[ _]?((device|host|pool)[ _]?)?memory",  # OutOfDeviceMemory, CUBLAS_STATUS_ALLOC_FAILED
    re.IGNORECASE,
)


def out_of_memory(log: str) -> bool:
    """Whether a log tells of memory that could not be had, in the words of llama.cpp, C++, Python, CUDA, Vulkan,
    Metal or SYCL."""
    return _OUT_OF_MEMORY.search(log) is not None
