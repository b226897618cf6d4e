"""Errors of the core in the words of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmrun.cli.framework import spelling
from llmrun.errors import Act, Change, UsageError
from llmrun.options.load import Lora


def test_a_field_is_its_option() -> None:
    """The field that is wrong stands first, in both forms; one that is mentioned as it is typed."""
    error = UsageError("quantized values need `flash_attn`, and `color` is not an option", field="type_v", value="q8_0")
    assert spelling.message(error) == "-ctv/--cache-type-v: quantized values need -fa, and `color` is not an option"
    assert spelling.message(UsageError("nothing is wrong")) == "nothing is wrong"
    assert spelling.message(UsageError("too late", field="color")) == "color: too late"


@pytest.mark.parametrize(
    ("fields", "typed"),
    [
        ({"n_ctx": 4096, "n_gpu_layers": "all"}, "-c 4096 -ngl all"),
        ({"n_ctx": None}, "leave -c out"),
        ({"kv_offload": False}, "-nkvo"),
        ({"kv_offload": True}, "leave -nkvo out"),
        ({"ignore_eos": True}, "--ignore-eos"),
        ({"fit_target": 512 << 20}, "-fitt 512"),
        ({"devices": ("CUDA0", "RPC0")}, "-dev CUDA0,RPC0"),
        ({"devices": ()}, "-dev none"),
        ({"tensor_split": (3, 1)}, "-ts 3,1"),
        ({"override_tensor": (("ffn_.*_exps", "CPU"),)}, "-ot 'ffn_.*_exps=CPU'"),
        ({"n_cpu_moe": "all"}, "-ncmoe all"),
        ({"n_cpu_moe": 12}, "-ncmoe 12"),
        ({"lora": (Lora(Path("a b.gguf")),)}, "--lora 'a b.gguf'"),
        ({"lora_scaled": (Lora(Path("a.gguf"), 0.5),)}, "--lora-scaled a.gguf:0.5"),
        ({"override_kv": {"a.b": 4, "c": True}}, "--override-kv a.b=int:4 --override-kv c=bool:true"),
        ({"stop": ("###", "a b")}, "--stop '###' --stop 'a b'"),
        ({"logit_bias": {7: -1.5}}, "-l 7-1.5"),
        ({"temperature": 0.6}, "--temp 0.6"),
    ],
    ids=str,
)
def test_a_change_is_what_to_type(fields: dict[str, object], typed: str) -> None:
    """Sizes in the unit that is typed, flags without a value, lists as the option takes them."""
    assert spelling.hint(UsageError("no", hint=Change(fields))) == typed


def test_an_act_is_a_command() -> None:
    """With the names of its arguments in capitals; several remedies are joined."""
    acts = (Act("help", "run"), Act("show", "a b"), Act("run", "MODEL", {"n_ctx": 9}), "wait for it")
    said = "llmrun run --help  or  llmrun show 'a b'  or  llmrun run MODEL -c 9  or  wait for it"
    assert spelling.hint(UsageError("no", remedies=acts)) == said
    assert spelling.hint(UsageError("no")) is None
