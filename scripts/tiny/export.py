"""Write the trained network as a GGUF file: Q8_0 matrices, F32 norms, tokenizer, chat template, honest metadata."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

from tiny.tokenizer import BOS, CONTROL, END, EOS, UNK, Tokenizer

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
DESCRIPTION = (
    "A demo model that comes with llmrun: it tells short stories and answers questions about running language models "
    "locally. Trained from scratch by scripts/train_tiny.py on text that the project wrote itself."
)


def render(messages: list[tuple[str, str]], tokenizer: Tokenizer) -> list[int]:
    """What the chat template gives for (role, text) messages, as token ids: BOS first, the assistant's turn open."""
    tokens = [BOS]
    for role, text in messages:
        tokens += [3 + CONTROL.index(f"<|{role}|>"), *tokenizer.encode(text), END]
    return [*tokens, 3 + CONTROL.index("<|assistant|>")]


def write_gguf(path: Path, tensors: Mapping[str, np.ndarray], shape: Mapping[str, float], tokenizer: Tokenizer) -> None:
    """Write `path` whole or not at all. `tensors` have GGUF names and (rows, columns) float32 values.

    `shape` has the fields of `model.Shape`. The same input gives the same bytes.
    """
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    n_parameters = sum(tensor.size for tensor in tensors.values())
    writer.add_name("tiny")
    writer.add_description(DESCRIPTION)
    writer.add_author("llmrun")
    writer.add_organization("llmrun")
    writer.add_license("mit")
    writer.add_version("1")
    writer.add_size_label(f"{n_parameters / 1e6:.1f}M")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation", "demo"])
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(2)
    _add_shape(writer, shape)
    _add_tokenizer(writer, tokenizer)
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _add_shape(writer: GGUFWriter, shape: Mapping[str, float]) -> None:
    writer.add_context_length(int(shape["n_ctx"]))
    writer.add_embedding_length(int(shape["n_embd"]))
    writer.add_block_count(int(shape["n_layer"]))
    writer.add_feed_forward_length(int(shape["n_ff"]))
    writer.add_head_count(int(shape["n_head"]))
    writer.add_head_count_kv(int(shape["n_head_kv"]))
    writer.add_rope_dimension_count(int(shape["n_embd"] // shape["n_head"]))
    writer.add_rope_freq_base(shape["rope_base"])
    writer.add_layer_norm_rms_eps(shape["norm_eps"])
    writer.add_vocab_size(int(shape["n_vocab"]))


def _add_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer) -> None:
    types = [TokenType.NORMAL] * len(tokenizer.pieces)
    types[UNK] = TokenType.UNKNOWN
    for token in (BOS, EOS, *range(3, 3 + len(CONTROL))):
        types[token] = TokenType.CONTROL
    for token in range(tokenizer.first_piece - 256, tokenizer.first_piece):
        types[token] = TokenType.BYTE
    # the earlier a merge was learnt, the better its score: this is all that the encoder goes by
    scores = [min(0.0, float(tokenizer.first_piece - token)) for token in range(len(tokenizer.pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END)
    writer.add_unk_token_id(UNK)
    writer.add_pad_token_id(EOS)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
