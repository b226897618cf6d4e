"""`llmrun serve MODEL…`: answers over HTTP."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from llmrun.chat.answer_options import AnswerOptions
from llmrun.cli.answering.answer_options import AnswerShape, answer_options
from llmrun.cli.framework import options
from llmrun.cli.framework.command import Invocation, command
from llmrun.cli.framework.options import Option
from llmrun.cli.loading import api_keys
from llmrun.cli.loading.tuned import TuningArguments
from llmrun.cli.terminal import screen
from llmrun.errors import UsageError
from llmrun.options.load import LoadConfig
from llmrun.options.sampling import SamplingConfig
from llmrun.options.spec import Whole

if TYPE_CHECKING:
    from llmrun.engine.engine import ChildEngine
    from llmrun.engine.interface import Engine
    from llmrun.server.pool import Served
    from llmrun.server.runner import Width

Pooling = Literal["mean", "cls", "last"]
DEFAULT_PORT = 8080
_SERVING = "Serving"


@command(model_of=lambda typed: str(typed["models"][0]))
def serve(
    models: options.ModelNames,
    host: Annotated[
        str, Option("--host", metavar="ADDRESS", help="The address to listen at.", panel=_SERVING)
    ] = "127.0.0.1",
    port: Annotated[
        int,
        Option("--port", metavar="PORT", kind=Whole(0, 65535), help="The port; 0: any that is free.", panel=_SERVING),
    ] = DEFAULT_PORT,
    parallel: Annotated[
        int | None, options.parallel("Answers made side by side; auto: up to 4, as there is memory for.")
    ] = None,
    max_queue: Annotated[
        int,
        Option("--max-queue", metavar="N", kind=Whole(0, 100_000), help="Requests that may wait.", panel=_SERVING),
    ] = 64,
    whole_prompts: Annotated[
        bool,
        Option(
            "--whole-prompts",
            help="Answers wait while a prompt is computed: more tokens per second of all, gaps as long as prompts.",
            panel=_SERVING,
        ),
    ] = False,
    pooling: Annotated[
        Pooling | None,
        Option("--pooling", help="How a text becomes one vector; else as the model's file says.", panel=_SERVING),
    ] = None,
    allow_remote: Annotated[
        bool,
        Option("--allow-remote", help="Listen at an address that others can reach; needs a key.", panel=_SERVING),
    ] = False,
    api_key_file: Annotated[
        Path | None,
        Option(
            "--api-key-file",
            metavar="FILE",
            help=f"Keys, one a line, of which a request needs one; also {api_keys.NAME}.",
            panel=_SERVING,
        ),
    ] = None,
    api_key: Annotated[
        str | None, Option("--api-key", metavar="TEXT", help="Refused: others would see it.", panel=_SERVING)
    ] = None,
    cors: Annotated[
        str | None,
        Option("--cors", metavar="ORIGIN,…|*", help="Pages that may ask from a browser.", panel=_SERVING),
    ] = None,
    max_body: Annotated[
        int,
        Option("--max-body", metavar="MIB", kind=Whole(1, 1024), help="The longest body of a request.", panel=_SERVING),
    ] = 32,
    stop_timeout: Annotated[
        int,
        Option(
            "--stop-timeout",
            metavar="S",
            kind=Whole(0, 3600),
            help="How long answers may go on when it is to end.",
            panel=_SERVING,
        ),
    ] = 10,
    quiet: options.Quiet = False,
    *,
    answering: AnswerOptions,
    shape: AnswerShape,
    sampling: SamplingConfig,
    load: LoadConfig,
    tuning: TuningArguments,
    invocation: Invocation,
) -> None:
    """Serve models to clients of OpenAI, Anthropic and ollama.

    What a request asks for is held, or refused with the reason. What it leaves out is as the options here have it. The
    first model is loaded at once, others when somebody asks for one; where memory is short, the one that was not used
    for the longest time is unloaded. Ctrl-C lets what runs end, a second one does not.
    """
    from llmrun.engine.rpc.host import is_loopback

    if api_key is not None:
        raise UsageError(
            "--api-key: everybody on this machine can read a command line",
            hint=f"--api-key-file FILE  or  {api_keys.NAME}=…",
        )
    keys = api_keys.read(api_key_file)
    if not is_loopback(host):
        if not allow_remote:
            raise UsageError(
                f"--host {host}: others could reach it", hint="--allow-remote, with a key for those who may ask"
            )
        if not keys:
            raise UsageError(
                f"--host {host}: others can reach it, and nothing is asked of them",
                hint=f"--api-key-file FILE  or  {api_keys.NAME}=…",
            )
    _check_installed()
    from llmrun.server import app
    from llmrun.server.guard import Rules, split_origins
    from llmrun.server.serve import address_of, bound, noted
    from llmrun.server.serve import serve as run

    answers = answer_options(answering, shape)
    notes: list[str] = []
    served = [
        replace(
            _served(name, load, answers, tuning, invocation, parallel, pooling, notes, quiet=quiet),
            whole_prompts=whole_prompts,
        )
        for name in dict.fromkeys(models)
    ]
    rules = Rules(keys, origins=tuple(split_origins(cors or "")), most_body=max_body << 20)
    with bound(host, port) as listener:
        address = address_of(listener)
        screen.note(address)  # the first line: whoever started this reads it
        for note in () if quiet else notes:
            screen.note(note)
        made, stop = app.made(
            served,
            rules=rules,
            most_waiting=max_queue,
            stop_s=stop_timeout,
            on_note=(lambda _: None) if quiet else screen.note,
        )
        with noted(address, [each.name for each in served], needs_key=bool(keys)):
            run(made, listener, stop_s=stop_timeout, on_stop=stop)


def _check_installed() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UsageError(f"a server needs {', '.join(missing)}", hint="pip install 'llmrun-cli[serve]'")


def _served(
    reference: str,
    load: LoadConfig,
    answers: AnswerOptions,
    tuning: TuningArguments,
    invocation: Invocation,
    parallel: int | None,
    pooling: Pooling | None,
    told: list[str],
    *,
    quiet: bool,
) -> Served:
    """A model as it will be loaded when somebody asks for it."""
    from llmrun.chat.conversation import CHATML, CHATML_END
    from llmrun.cli.loading import load_model, recommended
    from llmrun.gguf.rules import is_encoder, overridden, pooling_of, writes_no_text
    from llmrun.options.defaults import COMFORTABLE_CTX
    from llmrun.server.pool import Served

    found = load_model.found(reference, quiet=quiet, use="serve")
    header = overridden(found.header, load.override_kv)
    writes, is_causal = writes_no_text(header) is None, not is_encoder(header)
    pools = pooling or pooling_of(header)
    if pools is None and not writes:
        raise UsageError(
            f"{found.name} is an embedding model whose file does not say how a text becomes one vector",
            hint="--pooling mean, cls or last, as its makers have it",
        )
    sampling, notes = recommended.sampling_of(invocation.given(reference), header)
    ends = ""
    if writes and answers.chat_template is None and header.chat_template is None:
        notes.append(f"{load_model.no_template(found)}: ChatML is used for messages")
        answers, ends = replace(answers, chat_template=CHATML), CHATML_END
    told += [f"{found.name}: {note}" for note in notes]
    wanted = parallel or 4

    def opened() -> Engine:
        settled, _ = tuning.settled(
            reference, found, load, invocation.given, COMFORTABLE_CTX // 2, n_seq=wanted, quiet=True
        )
        return load_model.loaded(
            reference,
            found,
            settled,
            None,
            load.n_ctx or COMFORTABLE_CTX,
            load.n_ctx or COMFORTABLE_CTX // 4,
            n_seq=parallel or 1,
            keeps_prefixes=tuning.prompt_cache,
            quiet=True,
        )

    opener: Any = opened
    return Served(
        found.path.name if os.sep in found.name else found.name,
        found.path,
        opener,
        partial(_width, wanted=parallel, n_ctx=load.n_ctx) if writes else partial(_of_vectors, n_ctx=load.n_ctx),
        sampling,
        answers,
        _facts(found, answers.chat_template or header.chat_template),
        int(found.path.stat().st_mtime),
        reference,
        pools,
        is_causal,
        writes,
        ends=ends,
    )


def _width(engine: ChildEngine, *, wanted: int | None, n_ctx: int | None) -> Width:
    """As many as are wanted; else up to four, of which each has room for what is usual."""
    from llmrun.options.defaults import COMFORTABLE_CTX
    from llmrun.server.runner import Width

    n_seq = wanted or 4
    longest = n_ctx or engine.n_ctx_most
    least = min(longest, COMFORTABLE_CTX)
    while wanted is None and n_seq > 1 and engine.most_context(n_seq) < least:
        n_seq //= 2
    most = n_ctx or min(longest, engine.most_context(n_seq) or longest)
    return Width(n_seq, min(most, COMFORTABLE_CTX), most)


def _of_vectors(engine: ChildEngine, *, n_ctx: int | None) -> Width:
    """No answers; a text may be as long as the model was trained on, or as is comfortable."""
    from llmrun.options.defaults import COMFORTABLE_CTX
    from llmrun.server.runner import Width

    return Width(0, 0, min(n for n in (engine.header.n_ctx_train, n_ctx or COMFORTABLE_CTX) if n))


def _facts(found: Any, template: str | None) -> dict[str, Any]:
    """`template`: that messages are written with."""
    from llmrun.engine.child.reasoning import tags_of

    header = found.header
    with found.path.open("rb") as file:  # all of it would take a minute, and its beginning tells models apart
        digest = hashlib.sha256(file.read(1 << 20) + str(found.path.stat().st_size).encode()).hexdigest()
    return {
        "digest": digest,
        "architecture": header.architecture,
        "n_params": header.n_params,
        "level": header.quantization_label,
        "size_bytes": header.weight_bytes,
        "n_ctx_train": header.n_ctx_train,
        "template": header.chat_template,
        "thinks": template is not None and tags_of(template) is not None,
    }
