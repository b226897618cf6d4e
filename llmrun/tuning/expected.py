"""What settings should take by the profile of this machine: good enough to leave out what can only lose.

    t(n tokens) = Σ products, by type, layout, threads and columns + layers · overhead

Attention is left out: the settings that are compared here do not change it, or it is measured. All layers lie in RAM.
"""

from __future__ import annotations

from llmrun.gguf.reader import Header, TensorInfo
from llmrun.machine.profile import Profile
from llmrun.planning.footprint import is_experts
from llmrun.tuning.dials import Dials, Workload

_MOST_COLUMNS = 512


def workload_s(profile: Profile, header: Header, workload: Workload, dials: Dials) -> float | None:
    """Seconds of prompt and answer; None where a type of this model was not measured, or the threads are not known."""
    decode, prefill = dials.n_threads, dials.n_threads_batch or dials.n_threads
    if not decode or not prefill or dials.repack is None:
        return None
    n_ubatch = min(dials.n_ubatch or _MOST_COLUMNS, workload.n_prompt)
    prompt_s = batch_s(profile, header, n_ubatch, prefill, repack=dials.repack == "on")
    token_s = batch_s(profile, header, 1, decode, repack=dials.repack != "off")
    if prompt_s is None or token_s is None:
        return None
    return workload.n_prompt / n_ubatch * prompt_s + workload.n_gen * token_s


def batch_s(profile: Profile, header: Header, n_tokens: int, n_threads: int, *, repack: bool) -> float | None:
    """Seconds of so many tokens at once, attention left out; None where a type was not measured."""
    total = 0.0
    for tensor in header.tensors:
        n_weights = _multiplied(tensor, header)
        if not n_weights or tensor.type.name == "F32":  # routers and convolutions: small
            continue
        # Logits are wanted of the last token alone.
        n_columns = 1 if tensor.name in ("output.weight", "token_embd.weight") else n_tokens
        experts = is_experts(tensor) and profile.product_s(tensor.type.name, 1, 1, n_threads, experts=True) is not None
        taken = profile.product_s(tensor.type.name, n_weights, n_columns, n_threads, repack=repack, experts=experts)
        if taken is None:
            return None
        total += taken
    overhead = profile.overhead(1, n_threads)
    return total + (header.n_layer or 0) * (overhead.layer_s if overhead else 0.0)


def _multiplied(tensor: TensorInfo, header: Header) -> int:
    """Elements of a matrix that one token is multiplied with; 0: it is none, or looked up by row."""
    if len(tensor.shape) < 2 or (tensor.name == "token_embd.weight" and header.tensor("output.weight") is not None):
        return 0
    if is_experts(tensor) and header.n_expert:
        return tensor.n_elements * header.n_expert_used // header.n_expert
    return tensor.n_elements if tensor.name.endswith(".weight") else 0
