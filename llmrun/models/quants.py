"""Quantization levels: what they are called, how large they make a model, and which of those on offer to take.

A level such as Q4_K_M is llama.cpp's name for a recipe. "4" is the width of most weights, K the family of the formats
and M (medium) how many tensors get a wider one. The file is a little larger than the digit says: scales lie beside the
weights, and the embedding and the output stay wider. Decoding reads nearly the whole file for each token, so the bits
per weight set its speed as well as its size.

Names are compared in one spelling, `normalize`: upper case, "F16" and not "fp16", with Unsloth's "UD-" in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEFAULT = "Q4_K_M"
"""What llama.cpp and its neighbours take when nobody names one."""
MAX_PARTS = 999
"""Of a split model. The largest models of the hub have a few dozen."""


@dataclass(frozen=True)
class Level:
    """One level.

    Attributes:
        bits_per_weight: of a whole file, of which embedding and output are a part; larger on very small models.
        good_for: one line for a table.
    """

    name: str
    bits_per_weight: float
    good_for: str


LEVELS: Mapping[str, Level] = {
    name: Level(name, bits, good_for)
    for name, bits, good_for in sorted(
        (
            # Bits per weight of Llama 3.1 8B, measured: llama.cpp, tools/quantize/README.md.
            ("IQ1_S", 2.0042, "the smallest that still talks; for models that fit no other way"),
            ("IQ1_M", 2.1460, "a little better than IQ1_S; needs an importance matrix"),
            ("IQ2_XXS", 2.3824, "very large models only; slow on a CPU"),
            ("IQ2_XS", 2.5882, "very large models only; slow on a CPU"),
            ("IQ2_S", 2.7403, "very large models only; slow on a CPU"),
            ("IQ2_M", 2.9294, "the best of the 2-bit ones for its size"),
            ("Q2_K_S", 2.9697, "smaller than Q2_K, clearly worse"),
            ("Q2_K", 3.1593, "large models that must fit; small ones lose much"),
            ("IQ3_XXS", 3.2548, "better than Q2_K at nearly its size; slow on a CPU"),
            ("IQ3_XS", 3.4977, "between IQ3_XXS and Q3_K_S"),
            ("Q3_K_S", 3.6429, "the fastest of the 3-bit ones on a CPU"),
            ("IQ3_S", 3.6606, "better than Q3_K_S at its size"),
            ("IQ3_M", 3.7628, "a good 3-bit choice on a GPU"),
            ("Q3_K_M", 3.9960, "when Q4_K_M is just too large"),
            ("Q3_K_L", 4.2979, "the largest of the 3-bit ones; IQ4_XS is better at this size"),
            ("IQ4_XS", 4.4597, "close to Q4_K_S, and a little smaller"),
            ("Q4_K_S", 4.6672, "nearly Q4_K_M, a little smaller and faster"),
            ("IQ4_NL", 4.6818, "as good as Q4_K_S; repacked, fast on ARM and AVX CPUs"),
            ("Q4_K_M", 4.8944, "the usual choice: little loss at a third of F16's size"),
            ("Q5_K_S", 5.5704, "hardly any loss"),
            ("Q5_K_M", 5.7036, "hardly any loss; when memory allows a little more than Q4_K_M"),
            ("Q6_K", 6.5633, "nearly as good as Q8_0 at three quarters of its size"),
            ("Q8_0", 8.5008, "no loss that one notices; good for very small models"),
            ("F16", 16.0005, "unquantized; to quantize from, and for comparisons"),
            ("BF16", 16.0005, "unquantized, as most models are trained; slow on older CPUs"),
            # From the sizes for Llama 3 8B (8.03 B weights) in llama.cpp's tools/quantize/quantize.cpp.
            ("Q4_0", 4.64, "old and simple; repacked, the fastest prefill on a CPU"),
            ("Q4_1", 5.11, "old; Q4_K_M is better and smaller"),
            ("Q5_0", 5.57, "old; Q5_K_S is better at this size"),
            ("Q5_1", 6.04, "old; Q5_K_M is better and smaller"),
            # Of the block alone (bits of its type in ggml-common.h); embedding and output come on top.
            ("Q1_0", 1.125, "models that were trained for one bit"),
            ("TQ1_0", 1.69, "models that were trained for three values per weight"),
            ("TQ2_0", 2.06, "models that were trained for three values per weight; faster than TQ1_0"),
            ("Q2_0", 2.25, "models that were trained for two bits"),
            ("MXFP4", 4.25, "models that were trained for it, such as gpt-oss"),
            ("MXFP4_MOE", 4.25, "the experts in MXFP4, all else in Q8_0"),
            ("NVFP4", 4.5, "NVIDIA's 4-bit floats; models that were trained for it"),
            ("F32", 32.0, "only to quantize from"),
        ),
        key=lambda level: level[1],
    )
}
"""Every level of llama.cpp's quantizer, by size."""

_LIKE: Mapping[str, str] = {
    # What quantizers of the hub and old versions of llama.cpp add; the name of the level that is as large.
    "Q2_K_L": "IQ3_XXS", "Q2_K_XL": "IQ3_XXS", "Q3_K_XL": "Q3_K_L", "Q4_K_L": "Q4_1", "Q4_K_XL": "Q4_1",
    "Q5_K_L": "Q5_1", "Q5_K_XL": "Q5_1", "Q6_K_L": "Q6_K", "Q6_K_XL": "Q6_K", "Q8_K_XL": "Q8_0",
    "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M",
    "Q2": "Q2_K", "Q3": "Q3_K_M", "Q4": "Q4_K_M", "Q5": "Q5_K_M", "Q6": "Q6_K", "Q8": "Q8_0",
    "Q4_0_4_4": "Q4_0", "Q4_0_4_8": "Q4_0", "Q4_0_8_8": "Q4_0", "IQ4_NL_4_4": "IQ4_NL",
}  # fmt: skip
# Of these, the ones that people type and mean the other by.
_MEANS = frozenset({"Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "Q3_K", "Q4_K", "Q5_K"})
_UNSLOTH = "UD-"
_SQUEEZED = {name.replace("_", ""): name for name in (*LEVELS, *_LIKE)} | {"FP16": "F16", "FP32": "F32"}

# A level inside a file name: between separators, so that the "Q2" of a model's own name is none.
_IN_NAME = re.compile(
    r"(?<![A-Z0-9])((?:UD-)?(?:"
    r"I?Q[1-9]_(?:0_[48]_[48]|NL_4_4|NL|[01]|XXS|XS|S|M|L|XL|K(?:_(?:XXS|XS|S|M|L|XL))?)"
    r"|TQ[12]_0|MXFP4_MOE|MXFP4|NVFP4|BF16|FP?16|FP?32"
    r"))(?![A-Z0-9])",
    re.IGNORECASE,
)
_AT_THE_END = re.compile(r"[-_.](Q[2-8])$", re.IGNORECASE)
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<n_parts>\d{5})(?P<end>\.gguf)", re.IGNORECASE | re.DOTALL)
# What lies beside a model: projectors, importance matrices, vocabularies; draft heads, adapters, by folder or name.
_BESIDE = re.compile(r"mmproj|^ggml-vocab-|^imatrix\.|[-_.]imatrix\.gguf$", re.IGNORECASE)
_COMPANION = re.compile(
    r"(?:^|/)(?:mtp|eagle[23]?|dflash|dspark|draft(?:er)?s?|speculators?|assistants?|lora|loras|adapters?|mmproj|imatrix)/"
    r"|(?:^|/)(?:mtp|eagle[23]?|dflash|dspark|draft(?:er)?|lora|adapter)[-_.][^/]*$"
    r"|[-_.](?:mtp|eagle[23]?|dflash|dspark|draft(?:er)?|assistant|lora|adapter)(?:[-_.]\d{5}-of-\d{5})?\.gguf$",
    re.IGNORECASE,
)
_PROJECTORS = ("F16", "BF16", "F32")
_DOUBTFUL = re.compile(r"mtp|eagle|dflash|draft|specul|assistant|lora|adapter|imatrix", re.IGNORECASE)


def normalize(text: str) -> str | None:
    """The one spelling of a level's name: "q4_k_m", "Q4-K-M" and "q4km" are "Q4_K_M". None: it is no level's name."""
    upper = text.upper()
    prefix = _UNSLOTH if upper.startswith(_UNSLOTH) else ""
    squeezed = upper.removeprefix(prefix).replace("_", "").replace("-", "")
    if squeezed in _SQUEEZED:
        return prefix + _SQUEEZED[squeezed]
    # Recipes that nobody has listed here (IQ5_K, say), as long as they look like one.
    return upper if _IN_NAME.fullmatch(upper) else None


def bits_per_weight(quant: str) -> float | None:
    """About how many bits a weight takes in a file of this level; None for one that is unknown here."""
    base = quant.removeprefix(_UNSLOTH)
    level = LEVELS.get(_LIKE.get(base, base))
    return level.bits_per_weight if level else None


def model_bytes(n_params: float, quant: str) -> int | None:
    """About how large a model of so many weights is at this level; None for one that is unknown here."""
    bits = bits_per_weight(quant)
    return round(n_params * bits / 8) if bits else None


def split_parts(filename: str) -> tuple[str, ...]:
    """The names of all parts of the model that the file belongs to, in order: of "x-00002-of-00003.gguf" all three.

    A file that is no part, or can't be one (no 4 of 3), is its model's only one.
    """
    match = _SPLIT.fullmatch(filename)
    if match is None:
        return (filename,)
    no, n_parts = int(match["no"]), int(match["n_parts"])
    if not 1 <= no <= n_parts <= MAX_PARTS:
        return (filename,)
    return tuple(f"{match['stem']}-{no:05}-of-{n_parts:05}{match['end']}" for no in range(1, n_parts + 1))


def is_gguf(filename: str) -> bool:
    """Whether a file of a repository can be taken where it is named exactly."""
    return filename.lower().endswith(".gguf")


def is_model_file(filename: str) -> bool:
    """Whether a file of a repository is a model's weights, or a part of them, as far as its path tells.

    Not so are draft heads, adapters and whatever else lies beside a model. An importance matrix has "imatrix" in its
    name; so has a model that was made with one, but then with a level as well.
    """
    name = filename.rpartition("/")[2]
    if not is_gguf(name) or _BESIDE.search(name) or _COMPANION.search(filename):
        return False
    return "imatrix" not in name.lower() or quant_of(name) is not None


def is_projector(filename: str) -> bool:
    """Whether a file of a repository is the image or audio part of a model, by its path."""
    return is_gguf(filename) and "mmproj" in filename.lower()


def choose_projector(files: Iterable[str], model: str) -> str | None:
    """The projector to take with a model of the same repository: one in its folder before others, then by precision:
    F16, which every backend computes, BF16, F32, then the others by their size. None: there is none."""
    folder = model.rpartition("/")[0]

    def order(name: str) -> tuple[bool, int, float, int, str]:
        quant = quant_of(name)
        rank = _PROJECTORS.index(quant) if quant in _PROJECTORS else len(_PROJECTORS)
        bits = (bits_per_weight(quant) if quant else None) or 0.0
        return name.rpartition("/")[0] != folder, rank, -bits, len(name), name

    return min(filter(is_projector, files), key=order, default=None)


def is_in_doubt(filename: str, others: Iterable[str]) -> bool:
    """Whether a file that passes for a model by its path may not be one: one of several of its level, or so called."""
    rivals = {split_parts(name)[0] for name in others if is_model_file(name) and quant_of(name) == quant_of(filename)}
    return len(rivals) > 1 or bool(_DOUBTFUL.search(filename))


def quant_of(filename: str) -> str | None:
    """The level that a file name in a repository tells, folders included; None when it tells none.

    The last one in the name counts ("Q8_0-finetune-Q4_K_M.gguf" is Q4_K_M), and the name before its folder.
    """
    split = _SPLIT.fullmatch(filename)
    stem = split["stem"] if split else re.sub(r"\.gguf$", "", filename, flags=re.IGNORECASE)
    for name in reversed(stem.split("/")):
        found = _AT_THE_END.findall(name) or _IN_NAME.findall(name)
        if found:
            return normalize(found[-1])
    return None


@dataclass(frozen=True)
class Choice:
    """One model of a repository.

    Attributes:
        file: its file, the first one if it is split.
        quant: its level; None when its name tells none.
        why: why this one, in half a sentence; empty when it is exactly what was asked for.
    """

    file: str
    quant: str | None
    why: str


def choose(files: Iterable[str] | Mapping[str, int], wanted: str | None = None) -> Choice | None:
    """The model to take of those in a repository: the wanted level, else Q4_K_M, else the nearest to that in size.

    `files` are names, better with their sizes in bytes: without them, "nearest" goes by what the levels take as a
    rule. None: there is no model at the wanted level, or none at all.
    """
    sizes = dict(files) if isinstance(files, Mapping) else dict.fromkeys(files, 0)
    models: dict[str | None, tuple[str, int]] = {}
    # Where one level has several files, the shortest name: variants are named by adding to the model's name.
    for name in sorted(filter(is_model_file, sizes), key=lambda name: (len(name), name)):
        parts = split_parts(name)
        if parts[0] == name:
            models.setdefault(quant_of(name), (name, sum(sizes.get(part, 0) for part in parts)))
    if wanted is not None:
        return _named(models, normalize(wanted) or wanted)
    levels = {quant: size for quant, (_, size) in models.items() if quant is not None}
    if not levels:
        return Choice(models[None][0], None, "no file's name tells its level") if models else None
    if DEFAULT in levels:
        return Choice(models[DEFAULT][0], DEFAULT, "the default")
    quant = _nearest_in_size(levels, DEFAULT)
    why = f"there is no {DEFAULT}; {quant} is " + ("the nearest in size" if len(models) > 1 else "all there is")
    return Choice(models[quant][0], quant, why)


def _named(models: Mapping[str | None, tuple[str, int]], wanted: str) -> Choice | None:
    if wanted in models:
        return Choice(models[wanted][0], wanted, "")
    # Not the same recipe, but what was meant: Q4 and Q4_K are Q4_K_M, and Unsloth's mixes stand for the plain ones.
    base = _LIKE.get(wanted, wanted) if wanted in _MEANS else wanted
    for other in (base, _UNSLOTH + wanted, _UNSLOTH + base, wanted + "_MOE", wanted.removesuffix("_MOE")):
        if other in models:
            return Choice(models[other][0], other, f"there is no {wanted}; {other} stands for it")
    return None


def _nearest_in_size(available: Mapping[str, int], wanted: str) -> str:
    """The level whose file is nearest to what one of level `wanted` would have; the larger of two equals.

    `available` maps levels to bytes, 0 where they are not known.
    """
    target_bits = bits_per_weight(wanted) or LEVELS[DEFAULT].bits_per_weight
    # How many weights there are, as each file would have it. The median: one file may be named wrongly.
    known = ((size, bits_per_weight(quant)) for quant, size in available.items() if size > 0)
    weights = sorted(8 * size / bits for size, bits in known if bits)
    n_weights = weights[len(weights) // 2] if weights else None

    def distance(quant: str) -> float:
        size = available[quant]
        bits = 8 * size / n_weights if n_weights and size > 0 else bits_per_weight(quant)
        return abs(math.log(bits / target_bits)) if bits else math.inf

    return min(available, key=lambda quant: (round(distance(quant), 6), -(bits_per_weight(quant) or 0), quant))
