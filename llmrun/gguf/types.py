"""ggml's tensor types and llama.cpp's file types: facts that change when llama.cpp adds a quantization, and only then.

From `enum ggml_type` in ggml.h, the `block_*` structs in ggml-common.h and `enum llama_ftype` in llama.h; the tests
compare them with the `gguf` package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class GgmlType(NamedTuple):
    """How a tensor's numbers are stored: `block_size` elements of one row share a block of `type_size` bytes."""

    id: int
    name: str
    block_size: int
    type_size: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size


# id, name, elements and bytes of a block. The gaps in the ids are types that were removed.
_TYPES = """
     0 F32      1   4     1 F16      1   2    30 BF16     1   2    28 F64       1   8
    24 I8       1   1    25 I16      1   2    26 I32      1   4    27 I64       1   8
     2 Q4_0    32  18     3 Q4_1    32  20     6 Q5_0    32  22     7 Q5_1     32  24
     8 Q8_0    32  34     9 Q8_1    32  36    41 Q1_0   128  18    42 Q2_0     64  18
    10 Q2_K   256  84    11 Q3_K   256 110    12 Q4_K   256 144    13 Q5_K    256 176
    14 Q6_K   256 210    15 Q8_K   256 292    20 IQ4_NL  32  18    23 IQ4_XS  256 136
    16 IQ2_XXS 256 66    17 IQ2_XS 256  74    22 IQ2_S  256  82    18 IQ3_XXS 256  98
    21 IQ3_S  256 110    19 IQ1_S  256  50    29 IQ1_M  256  56    34 TQ1_0   256  54
    35 TQ2_0  256  66    39 MXFP4   32  17    40 NVFP4   64  36
""".split()

GGML_TYPES: Mapping[int, GgmlType] = {
    int(id_): GgmlType(int(id_), name, int(block_size), int(type_size))
    for id_, name, block_size, type_size in zip(*(_TYPES[i::4] for i in range(4)), strict=True)
}
"""All types that a tensor in a file may have, by the number that stands there."""


def _named(text: str) -> Mapping[int, str]:
    words = text.split()
    return {int(id_): name for id_, name in zip(words[::2], words[1::2], strict=True)}


REMOVED_GGML_TYPES = _named(
    "4 Q4_2 5 Q4_3 31 Q4_0_4_4 32 Q4_0_4_8 33 Q4_0_8_8 36 IQ4_NL_4_4 37 IQ4_NL_4_8 38 IQ4_NL_8_8"
)
"""Types that older files have and today's llama.cpp no longer reads."""

FILE_TYPES = _named("""
     0 F32      1 F16      2 Q4_0     3 Q4_1     7 Q8_0     8 Q5_0     9 Q5_1    10 Q2_K    11 Q3_K_S  12 Q3_K_M
    13 Q3_K_L  14 Q4_K_S  15 Q4_K_M  16 Q5_K_S  17 Q5_K_M  18 Q6_K    19 IQ2_XXS 20 IQ2_XS  21 Q2_K_S  22 IQ3_XS
    23 IQ3_XXS 24 IQ1_S   25 IQ4_NL  26 IQ3_S   27 IQ3_M   28 IQ2_S   29 IQ2_M   30 IQ4_XS  31 IQ1_M   32 BF16
    36 TQ1_0   37 TQ2_0   38 MXFP4_MOE          39 NVFP4   40 Q1_0    41 Q2_0
""")
"""`general.file_type`: the recipe a file was quantized with, under the name that files and repositories use."""

FILE_TYPE_GUESSED = 1024
"""Added to a file type that llama.cpp had to guess."""
