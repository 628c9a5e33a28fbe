"""LFM2's architecture in plain PyTorch, for training: one forward over packed rows.

The same numbers as `transformers.Lfm2ForCausalLM` (a test compares them), about twice as fast on
few cores at this size: fused projections, no cache, and logits only where there is a loss.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Sizes of the model; `layers` has a letter for each: c (short convolution), a (attention)."""

    vocab_size: int = 2048
    hidden: int = 192
    ffn: int = 512
    heads: int = 6
    kv_heads: int = 2
    layers: str = "ccacacac"
    rope_theta: float = 10000.0
    max_positions: int = 2048
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def to_hf(self) -> dict[str, object]:
        """Return the `config.json` of transformers' Lfm2ForCausalLM."""
        return {
            "architectures": ["Lfm2ForCausalLM"],
            "model_type": "lfm2",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "block_auto_adjust_ff_dim": False,
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "layer_types": ["conv" if c == "c" else "full_attention" for c in self.layers],
            "conv_L_cache": 3,
            "conv_bias": False,
            "norm_eps": self.norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "use_cache": True,
            "dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 7,
            "pad_token_id": 0,
        }


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (wide * weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Linear(nn.Linear):
    """No bias; weights scaled by fan-in, so that the double-gated path is alive from the start."""

    def __init__(self, inputs: int, outputs: int, gain: float = 1.0) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.normal_(self.weight, std=gain / math.sqrt(inputs))


class ShortConv(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.in_proj = Linear(config.hidden, 3 * config.hidden)
        self.out_proj = Linear(config.hidden, config.hidden, 0.5)
        # Tap 2 is the token itself; each tap starts large enough to be of use.
        self.conv = nn.Parameter(0.6 * torch.randn(config.hidden, 3))

    def forward(self, u: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        b, c, x = self.in_proj(u).chunk(3, -1)
        bx = b * x
        taps = self.conv.to(u.dtype)
        one = F.pad(bx[:, :-1], (0, 0, 1, 0))
        two = F.pad(bx[:, :-2], (0, 0, 2, 0))
        y: Tensor = self.out_proj(c * (bx * taps[:, 2] + one * taps[:, 1] + two * taps[:, 0]))
        return y


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.head_dim * (config.heads + 2 * config.kv_heads)
        self.qkv = Linear(config.hidden, width)
        self.out_proj = Linear(config.hidden, config.hidden, 0.5)
        self.q_norm = nn.Parameter(torch.ones(config.head_dim))
        self.k_norm = nn.Parameter(torch.ones(config.head_dim))

    def forward(self, u: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        config = self.config
        rows, length, _ = u.shape
        qkv = self.qkv(u).view(rows, length, -1, config.head_dim).transpose(1, 2)
        q, k, v = qkv.split((config.heads, config.kv_heads, config.kv_heads), 1)
        q = rotate(rms_norm(q, self.q_norm, config.norm_eps), *rope)
        k = rotate(rms_norm(k, self.k_norm, config.norm_eps), *rope)
        group = config.heads // config.kv_heads
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(y.transpose(1, 2).reshape(rows, length, config.hidden))
        return out


class Layer(nn.Module):
    def __init__(self, config: Config, kind: str) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.operator_norm = nn.Parameter(torch.ones(config.hidden))
        self.ffn_norm = nn.Parameter(torch.ones(config.hidden))
        self.operator = ShortConv(config) if kind == "c" else Attention(config)
        self.w13 = Linear(config.hidden, 2 * config.ffn)
        self.w2 = Linear(config.ffn, config.hidden, 0.5)

    def forward(self, h: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        h = h + self.operator(rms_norm(h, self.operator_norm, self.eps), mask, rope)
        gate, up = self.w13(rms_norm(h, self.ffn_norm, self.eps)).chunk(2, -1)
        out: Tensor = h + self.w2(F.silu(gate) * up)
        return out


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Parameter(torch.randn(config.vocab_size, config.hidden) * 0.05)
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.layers)
        self.norm = nn.Parameter(torch.ones(config.hidden))

    def rope(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        dim = self.config.head_dim
        frequency = self.config.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)
        angle = torch.outer(torch.arange(length).float(), frequency)
        angle = torch.cat((angle, angle), -1)
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def forward(self, ids: Tensor, mask: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the normed last hidden state, [rows, length, hidden]; mask [rows, 1, L, L]."""
        h = F.embedding(ids, self.embed.to(rope[0].dtype))
        for layer in self.layers:
            h = layer(h, mask, rope)
        return rms_norm(h, self.norm, self.config.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.to(hidden.dtype))

    def to_hf(self) -> dict[str, Tensor]:
        """Return the tensors under the names of transformers' Lfm2ForCausalLM."""
        config = self.config
        out = {"model.embed_tokens.weight": self.embed, "model.embedding_norm.weight": self.norm}
        for index, (kind, layer) in enumerate(zip(config.layers, self.layers, strict=True)):
            name = f"model.layers.{index}."
            out[name + "operator_norm.weight"] = layer.operator_norm
            out[name + "ffn_norm.weight"] = layer.ffn_norm
            w1, w3 = layer.w13.weight.chunk(2)
            out[name + "feed_forward.w1.weight"] = w1
            out[name + "feed_forward.w3.weight"] = w3
            out[name + "feed_forward.w2.weight"] = layer.w2.weight
            op = layer.operator
            if kind == "c":
                out[name + "conv.in_proj.weight"] = op.in_proj.weight
                out[name + "conv.out_proj.weight"] = op.out_proj.weight
                out[name + "conv.conv.weight"] = op.conv.unsqueeze(1)
            else:
                kv = config.kv_heads * config.head_dim
                q, k, v = op.qkv.weight.split((config.hidden, kv, kv))
                out[name + "self_attn.q_proj.weight"] = q
                out[name + "self_attn.k_proj.weight"] = k
                out[name + "self_attn.v_proj.weight"] = v
                out[name + "self_attn.out_proj.weight"] = op.out_proj.weight
                out[name + "self_attn.q_layernorm.weight"] = op.q_norm
                out[name + "self_attn.k_layernorm.weight"] = op.k_norm
        return {name: tensor.detach().contiguous() for name, tensor in out.items()}

    def parameter_groups(self) -> tuple[list[tuple[Tensor, tuple[int, ...]]], list[Tensor]]:
        """Return the matrices, each with the rows of its fused parts, and all other parameters."""
        config = self.config
        kv = config.kv_heads * config.head_dim
        matrices: list[tuple[Tensor, tuple[int, ...]]] = []
        for layer in self.layers:
            op = layer.operator
            if isinstance(op, ShortConv):
                matrices.append((op.in_proj.weight, (config.hidden,) * 3))
            else:
                matrices.append((op.qkv.weight, (config.hidden, kv, kv)))
            matrices.append((op.out_proj.weight, (config.hidden,)))
            matrices.append((layer.w13.weight, (config.ffn,) * 2))
            matrices.append((layer.w2.weight, (config.hidden,)))
        known = {id(tensor) for tensor, _ in matrices}
        return matrices, [p for p in self.parameters() if id(p) not in known]

    def sizes(self) -> dict[str, Any]:
        """Return the arguments of `Config`."""
        return asdict(self.config)
