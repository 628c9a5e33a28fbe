"""Writes a Hugging Face folder as a GGUF file, as llama.cpp's converter would (tests, benchmarks).

PYTHONPATH=python python tests/gguf_writer.py FOLDER OUT.gguf Q8_0
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, TokenType

from k_quants import quantize
from lfm_engine.checkpoint import Checkpoint, ModelConfig, names, open_checkpoint
from lfm_engine.checkpoint.rope import inverse_frequencies

_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
    "Q4_1": LlamaFileType.MOSTLY_Q4_1,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q5_1": LlamaFileType.MOSTLY_Q5_1,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q5_K": LlamaFileType.MOSTLY_Q5_K_M,
    "Q6_K": LlamaFileType.MOSTLY_Q6_K,
    "Q4_K_M": LlamaFileType.MOSTLY_Q4_K_M,
}
# Q4_K_M: these in Q6_K, the other matrices in Q4_K.
_MORE_BITS = ("token_embd.weight", "attn_v.weight", "ffn_down.weight")


def write_gguf(folder: Path, out_path: Path, qtype: str) -> None:
    """Writes the checkpoint in `folder` to `out_path`.

    Matrices get `qtype`, or F16 where their rows are not whole blocks of it; vectors and the
    convolution stay F32. With a byte-level BPE tokenizer.json in the folder the file has that
    vocabulary, without one it says that it has none ("none", which llama.cpp accepts).

    Args:
        folder: a model folder that `open_checkpoint` reads.
        out_path: is overwritten.
        qtype: F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q5_K, Q6_K or Q4_K_M.
    """
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config
        writer = GGUFWriter(out_path, config.architecture)
        _add_metadata(writer, config, folder, qtype)
        for name, shape in config.tensor_shapes().items():
            values = np.ascontiguousarray(checkpoint.tensor(name, shape).to_float32())
            if config.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                values = _permuted(values, config.head_dim)
            gguf_name = names.to_gguf(name, config.architecture)
            kind = qtype
            if qtype == "Q4_K_M":
                kind = "Q6_K" if gguf_name.endswith(_MORE_BITS) else "Q4_K"
            _add_tensor(writer, gguf_name, values, GGMLQuantizationType[kind])
        _add_rope_factors(writer, checkpoint, folder)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _add_metadata(writer: GGUFWriter, config: ModelConfig, folder: Path, qtype: str) -> None:
    writer.add_name(folder.name)
    writer.add_file_type(_FILE_TYPES[qtype])
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.architecture == "lfm2":
        kv_heads = config.num_key_value_heads
        writer.add_head_count_kv([0 if t == "conv" else kv_heads for t in config.layer_types])
        writer.add_shortconv_l_cache(config.conv_L_cache)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    rope = _rope_options(folder)
    writer.add_rope_freq_base(rope["theta"])
    if rope["kind"] == "linear":
        writer.add_string(f"{config.architecture}.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(rope["factor"])
    _add_vocabulary(writer, config, folder)


def _rope_options(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "config.json").read_text())
    rope = values.get("rope_scaling") or values.get("rope_parameters") or {}
    top = values.get("rope_theta") or values.get("theta")
    theta = rope.get("rope_theta") or top
    if theta is None:
        theta = 1e6 if values["model_type"] == "lfm2" else 1e4
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return {"theta": theta, "kind": kind, "factor": rope.get("factor", 1.0)}


def _add_rope_factors(writer: GGUFWriter, checkpoint: Checkpoint, folder: Path) -> None:
    """Llama 3's scaling goes into a tensor of divisors, one per frequency."""
    rope = _rope_options(folder)
    if rope["kind"] == "llama3":
        plain = inverse_frequencies(rope["theta"], checkpoint.config.head_dim)
        factors = (plain / checkpoint.config.rope_inv_freq).astype(np.float32)
        writer.add_tensor("rope_freqs.weight", factors)


def _add_vocabulary(writer: GGUFWriter, config: ModelConfig, folder: Path) -> None:
    tokenizer_path = folder / "tokenizer.json"
    if tokenizer_path.is_file():
        _add_bpe(writer, config, json.loads(tokenizer_path.read_text(encoding="utf-8")))
        template_path = folder / "chat_template.jinja"
        if template_path.is_file():
            writer.add_chat_template(template_path.read_text(encoding="utf-8"))
    else:
        writer.add_tokenizer_model("none")
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.eos_token_id:
        writer.add_eos_token_id(config.eos_token_id[0])
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)


def _add_bpe(writer: GGUFWriter, config: ModelConfig, tokenizer: dict[str, Any]) -> None:
    """A byte-level BPE tokenizer.json; ids that it does not use are filled with unused tokens."""
    tokens = [f"[PAD{i}]" for i in range(config.vocab_size)]
    types = [TokenType.UNUSED] * config.vocab_size
    for token, index in tokenizer["model"]["vocab"].items():
        tokens[index], types[index] = token, TokenType.NORMAL
    for added in tokenizer.get("added_tokens", []):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("lfm2" if config.architecture == "lfm2" else "llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])


def _permuted(values: npt.NDArray[np.float32], head_dim: int) -> npt.NDArray[np.float32]:
    """Rows of Llama's q and k as llama.cpp wants them: halves of a head interleaved."""
    rows, columns = values.shape
    halves = values.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def _add_tensor(
    writer: GGUFWriter, name: str, values: npt.NDArray[np.float32], kind: GGMLQuantizationType
) -> None:
    if name.endswith("shortconv.conv.weight"):
        values = values.reshape(values.shape[0], values.shape[2])
    if values.ndim == 1 or ".shortconv.conv." in name:
        kind = GGMLQuantizationType.F32
    elif values.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16
    writer.add_tensor(name, quantize(values, kind), raw_dtype=kind)


if __name__ == "__main__":
    write_gguf(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
