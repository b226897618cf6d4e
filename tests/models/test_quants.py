"""Quantization levels: their names, in file names as well, and which one to take."""

from __future__ import annotations

import pytest

from llmrun.models import quants


@pytest.mark.parametrize(
    ("filename", "quant"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-1.5b-instruct-q4_k_m.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("Q4_K_M/GLM-4.5-Air-Q4_K_M-00001-of-00002.gguf", "Q4_K_M"),
        ("Q4_K_M/Q4_K_M-00001-of-00001.gguf", "Q4_K_M"),
        ("UD-Q8_K_XL/GLM-4.5-Air-UD-Q8_K_XL-00001-of-00003.gguf", "UD-Q8_K_XL"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("BF16/model.gguf", "BF16"),
        ("mixtral-8x7b-instruct-v0.1.Q5_K_M.gguf", "Q5_K_M"),
        ("Meta-Llama-3.1-8B-Instruct.IQ4_XS.gguf", "IQ4_XS"),
        ("Llama-3.2-1B-Instruct-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3.6-35B-A3B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("Model.i1-IQ2_XXS.gguf", "IQ2_XXS"),
        ("gemma-2-9b-it-Q6_K_L.gguf", "Q6_K_L"),
        ("gemma-3-4b-it-qat-Q4_0.gguf", "Q4_0"),
        ("gemma-3n-E2B-it-f16.gguf", "F16"),
        ("Phi-3-mini-4k-instruct-fp16.gguf", "F16"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Q4"),
        ("ggml-model-bf16.gguf", "BF16"),
        ("model_q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("gpt-oss-120b-mxfp4-00001-of-00003.gguf", "MXFP4"),
        ("Qwen3-Coder-Next-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("Llama-3.2-1B-Instruct-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("Llama-3.2-1B-Instruct-IQ4_NL.gguf", "IQ4_NL"),
        ("DeepSeek-V3.1-UD-TQ1_0.gguf", "UD-TQ1_0"),
        ("Bonsai-8B-Q1_0.gguf", "Q1_0"),
        ("mistral-7b-code-16k-qlora.Q4_K_M.gguf", "Q4_K_M"),
        ("Q8_0-donor-merge-Q4_K_S.gguf", "Q4_K_S"),
        ("Yi-1.5-9B-Chat-Q3_K_XL.gguf", "Q3_K_XL"),
        ("Kimi-Q4_K_M_imat.gguf", "Q4_K_M"),
        ("SmolLM3-Q4_K_M.GGUF", "Q4_K_M"),
        ("Qwen2.5-Q.gguf", None),
        ("Qwen2.5-QwQ-32B.gguf", None),
        ("Magnum-Q3-v2.gguf", None),
        ("EQ4_K_M2.gguf", None),
        ("model.gguf", None),
        ("F16x.gguf", None),
        ("", None),
    ],
)
def test_quant_of(filename: str, quant: str | None) -> None:
    """The level in the names that quantizers of the hub really use; a model's own name is not taken for one."""
    assert quants.quant_of(filename) == quant


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q4_k_m", "Q4_K_M"),
        ("q4km", "Q4_K_M"),
        ("Q4-K-M", "Q4_K_M"),
        ("ud-q4_k_xl", "UD-Q4_K_XL"),
        ("fp16", "F16"),
        ("mxfp4_moe", "MXFP4_MOE"),
        ("q4", "Q4"),
        ("iq5_k", "IQ5_K"),
        ("latest", None),
        ("4b", None),
        ("main", None),
        ("v1", None),
        ("", None),
        ("UD-", None),
        ("Q4_K_M.gguf", None),
    ],
)
def test_normalize(text: str, name: str | None) -> None:
    """One spelling for each level; None for what is no level's name."""
    assert quants.normalize(text) == name


def test_levels() -> None:
    """Every level is there once, smallest first, under a name that is its own one spelling."""
    bits = [level.bits_per_weight for level in quants.LEVELS.values()]
    assert bits == sorted(bits)
    assert all(quants.normalize(name) == name for name in quants.LEVELS)
    assert quants.bits_per_weight("UD-Q4_K_M") == quants.bits_per_weight("Q4_K_M") == 4.8944
    assert quants.bits_per_weight("weird") is None


@pytest.mark.parametrize(
    ("filename", "is_model"),
    [
        ("Qwen3-4B-Q4_K_M.gguf", True),
        ("sub/Qwen3-4B-Q4_K_M-00002-of-00002.gguf", True),
        ("Qwen3.6-27B-MTP-UD-Q4_K_XL.gguf", True),
        ("mmproj-model-f16.gguf", False),
        ("Ministral-3-3B-Instruct-2512-BF16-mmproj.gguf", False),
        ("imatrix_unsloth.gguf", False),
        ("Qwen3-4B.imatrix.gguf", False),
        ("Qwen3-4B.imatrix", False),
        ("imatrix.dat", False),
        ("mtp-gemma-4-31B-it.gguf", False),
        ("MTP/mtp-gemma-4-31B-it-Q8_0.gguf", False),
        ("ggml-vocab-qwen2.gguf", False),
        ("README.md", False),
        ("model.safetensors", False),
    ],
)
def test_model_files(filename: str, is_model: bool) -> None:
    """Projectors, importance matrices and draft heads lie beside the models."""
    assert quants.is_model_file(filename) is is_model


def test_split_parts() -> None:
    """Any part names them all; what can't be a part is a model by itself."""
    parts = tuple(f"Q8_0/m-Q8_0-0000{i}-of-00003.gguf" for i in (1, 2, 3))
    assert all(quants.split_parts(part) == parts for part in parts)
    for single in (
        "m.gguf",
        "m-00004-of-00003.gguf",
        "m-00000-of-00003.gguf",
        "m-00001-of-99999.gguf",
        "m-1-of-2.gguf",
    ):
        assert quants.split_parts(single) == (single,)


@pytest.mark.parametrize(
    ("files", "wanted", "file", "why"),
    [
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf", "the default"),
        (["m-Q8_0.gguf", "m-Q4_K_M.gguf"], "q8_0", "m-Q8_0.gguf", ""),
        (["m-Q8_0.gguf", "m-Q4_K_S.gguf"], None, "m-Q4_K_S.gguf", "there is no Q4_K_M; Q4_K_S is the nearest in size"),
        (["m-Q8_0.gguf", "m-Q5_K_M.gguf", "m-Q3_K_S.gguf"], None, "m-Q5_K_M.gguf", "nearest in size"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_S.gguf"], None, "m-UD-Q4_K_M.gguf", "nearest in size"),
        (["m-Q8_0.gguf"], None, "m-Q8_0.gguf", "there is no Q4_K_M; Q8_0 is all there is"),
        (["m-mxfp4.gguf", "m-f16.gguf"], None, "m-mxfp4.gguf", "MXFP4 is the nearest in size"),
        (["m-MXFP4_MOE.gguf"], "MXFP4", "m-MXFP4_MOE.gguf", "MXFP4_MOE stands for it"),
        (["m-q4.gguf", "m-fp16.gguf"], None, "m-q4.gguf", "nearest in size"),
        (["m-Q4_0.gguf", "m-Q4_K_M.gguf"], "q4", "m-Q4_K_M.gguf", "there is no Q4; Q4_K_M stands for it"),
        (["m-Q4_0.gguf", "m-UD-Q4_K_M.gguf"], "Q4_K_M", "m-UD-Q4_K_M.gguf", "UD-Q4_K_M stands for it"),
        (["m-Q4_K_M-00002-of-00002.gguf", "m-Q4_K_M-00001-of-00002.gguf"], None, "m-Q4_K_M-00001-of-00002.gguf", ""),
        (["m-it-qat-Q4_K_M.gguf", "m-it-Q4_K_M.gguf"], None, "m-it-Q4_K_M.gguf", ""),
        (["mmproj-m-Q4_K_M.gguf", "m.gguf"], None, "m.gguf", "no file's name tells its level"),
    ],
)
def test_choose(files: list[str], wanted: str | None, file: str, why: str) -> None:
    """Q4_K_M when no level is named, else the nearest in size, and half a sentence on why."""
    chosen = quants.choose(files, wanted)
    assert chosen is not None
    assert chosen.file == file
    assert why in chosen.why


@pytest.mark.parametrize("wanted", ["Q5_K_M", "weird", "Q4_K_XL"])
def test_choose_nothing(wanted: str) -> None:
    """A level that is not there is never replaced by another one."""
    assert quants.choose(["m-Q4_K_M.gguf", "m-Q8_0.gguf"], wanted) is None
    assert quants.choose(["README.md", "mmproj-F16.gguf"]) is None


def test_choose_by_real_sizes() -> None:
    """Where sizes are known they decide: here a level of unknown width is the nearest to what Q4_K_M would take."""
    sizes = {"m-Q8_0.gguf": 8_500, "m-Q3_K_S.gguf": 3_640, "m-IQ5_K.gguf": 5_000, "m-Q2_K.gguf": 3_160}
    chosen = quants.choose(sizes)
    assert chosen is not None
    assert chosen.quant == "IQ5_K"
