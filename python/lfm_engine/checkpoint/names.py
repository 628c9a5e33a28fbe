"""Tensor names: what Hugging Face and GGUF files say -> the names of `Lfm2ForCausalLM`."""

from __future__ import annotations

import re

_TOP = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "embedding_norm.weight": "model.embedding_norm.weight",
    "norm.weight": "model.embedding_norm.weight",  # Llama
    "lm_head.weight": "lm_head.weight",
}

# Parts of a layer whose name differs from the canonical one: Llama's, which no LFM2 file uses for
# anything else.
_LAYER = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "self_attn.out_proj",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}

_CANONICAL = frozenset(
    (
        *("operator_norm", "ffn_norm", "conv.in_proj", "conv.conv", "conv.out_proj"),
        *(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")),
        *("self_attn.q_layernorm", "self_attn.k_layernorm"),
        *(f"feed_forward.w{number}" for number in (1, 2, 3)),
    )
)

_GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "token_embd_norm.weight": "model.embedding_norm.weight",  # llama.cpp's name for LFM2's
    "output_norm.weight": "model.embedding_norm.weight",
    "output.weight": "lm_head.weight",
}

_GGUF_LAYER = {
    "attn_norm": "operator_norm",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
}

_LAYER_NAME = re.compile(r"layers\.(\d{1,5})\.([a-z0-9_.]+)\.(weight|bias)")
_GGUF_LAYER_NAME = re.compile(r"blk\.(\d{1,5})\.([a-z0-9_.]+)\.(weight|bias)")


def from_hf(name: str) -> str | None:
    """Canonical name of a Hugging Face tensor, with or without "model."; None: of no use here."""
    name = name.removeprefix("model.")
    if name in _TOP:
        return _TOP[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return None
    part = _LAYER.get(match[2], match[2])
    return f"model.layers.{int(match[1])}.{part}.{match[3]}" if part in _CANONICAL else None


def from_gguf(name: str) -> str | None:
    """Canonical name of a GGUF tensor; None: of no use here."""
    if name in _GGUF_TOP:
        return _GGUF_TOP[name]
    match = _GGUF_LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _GGUF_LAYER:
        return None
    return f"model.layers.{int(match[1])}.{_GGUF_LAYER[match[2]]}.{match[3]}"


def to_gguf(name: str, architecture: str) -> str:
    """GGUF name of a canonical tensor, as llama.cpp's converter writes it; KeyError if none."""
    if name == "model.embedding_norm.weight":
        return "token_embd_norm.weight" if architecture == "lfm2" else "output_norm.weight"
    for gguf_name, canonical in _GGUF_TOP.items():
        if canonical == name:
            return gguf_name
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise KeyError(name)
    part = {value: key for key, value in _GGUF_LAYER.items()}[match[2]]
    return f"blk.{match[1]}.{part}.{match[3]}"
