"""Model configuration: one canonical, validated form of what the checkpoint formats say.

`from_hf` reads the dictionary of a config.json (LFM2 in both of its spellings, Llama), `from_gguf`
the metadata of a GGUF file. Both raise ValueError with one line that names the file and the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
import numpy.typing as npt

from . import rope
from .fields import LIMITS, Fields, show

CONV = "conv"
ATTENTION = "full_attention"
SUPPORTED_ARCHITECTURES = ("lfm2", "llama")

_HF_ARCHITECTURES = {
    "Lfm2ForCausalLM": "lfm2",
    "LFM2ForCausalLM": "lfm2",
    "LlamaForCausalLM": "llama",
}
_LAYER_TYPES = {
    CONV: CONV,
    ATTENTION: ATTENTION,
    "attention": ATTENTION,
}  # the last is a legacy name


@dataclass(frozen=True)
class ModelConfig:
    """Shape and constants of a model; the names are those of transformers' `Lfm2Config`.

    Attributes:
        architecture: "lfm2" or "llama".
        intermediate_size: the effective width of the FFN, after LFM2's automatic adjustment.
        layer_types: one of "conv", "full_attention" per layer.
        conv_L_cache: taps of the short convolution (its state is one less).
        conv_bias: whether the conv block's two projections and its convolution have biases.
        qk_norm: whether q and k are RMS-normalised over head_dim before RoPE (LFM2).
        max_position_embeddings: the longest context, in tokens.
        rope_inv_freq: float32 [head_dim / 2], radians per position, scaling applied; read-only.
        eos_token_id: every id that ends a generation, possibly none.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    layer_types: tuple[str, ...]
    conv_L_cache: int
    conv_bias: bool
    norm_eps: float
    qk_norm: bool
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_inv_freq: npt.NDArray[np.float32] = field(compare=False, repr=False)
    bos_token_id: int | None
    eos_token_id: tuple[int, ...]
    pad_token_id: int | None

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name and shape of every weight that the model needs, in model order."""
        h, d = self.hidden_size, self.head_dim
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, h)}
        for index, kind in enumerate(self.layer_types):
            layer = f"model.layers.{index}."
            shapes[layer + "operator_norm.weight"] = (h,)
            if kind == ATTENTION:
                shapes[layer + "self_attn.q_proj.weight"] = (q, h)
                shapes[layer + "self_attn.k_proj.weight"] = (kv, h)
                shapes[layer + "self_attn.v_proj.weight"] = (kv, h)
                shapes[layer + "self_attn.out_proj.weight"] = (h, q)
                if self.qk_norm:
                    shapes[layer + "self_attn.q_layernorm.weight"] = (d,)
                    shapes[layer + "self_attn.k_layernorm.weight"] = (d,)
            else:
                shapes[layer + "conv.in_proj.weight"] = (3 * h, h)
                shapes[layer + "conv.conv.weight"] = (h, 1, self.conv_L_cache)
                shapes[layer + "conv.out_proj.weight"] = (h, h)
                if self.conv_bias:
                    shapes[layer + "conv.in_proj.bias"] = (3 * h,)
                    shapes[layer + "conv.conv.bias"] = (h,)
                    shapes[layer + "conv.out_proj.bias"] = (h,)
            shapes[layer + "ffn_norm.weight"] = (h,)
            for matrix in ("w1", "w3"):
                shapes[f"{layer}feed_forward.{matrix}.weight"] = (self.intermediate_size, h)
            shapes[layer + "feed_forward.w2.weight"] = (h, self.intermediate_size)
        shapes["model.embedding_norm.weight"] = (h,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, h)
        return shapes

    @property
    def num_parameters(self) -> int:
        """Weights of the model; a tied output head is counted once."""
        return sum(math.prod(shape) for shape in self.tensor_shapes().values())


def from_hf(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The configuration in a Hugging Face config.json.

    Where LFM2's two spellings occur together, the one that transformers 5.18 uses wins
    (`block_ff_dim`, `tie_embedding`, `layer_types`, `rope_parameters`, `rope_theta`).

    Args:
        values: the parsed config.json.
        source: its path, for messages.

    Raises:
        ValueError: unknown architecture, missing or impossible field, unsupported option.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: must contain a JSON object")
    fields = Fields(values, source)
    architecture = _hf_architecture(fields)
    if fields.find("quantization_config")[1] is not None:
        method = fields.mapping("quantization_config").get("quant_method", "unknown")
        raise fields.error(f"weights quantized by {show(method)} are not supported")
    layers = fields.size("num_hidden_layers")
    heads = fields.size("num_attention_heads", "num_heads")
    hidden = fields.size("hidden_size", "block_dim")
    max_positions = fields.size(
        "max_position_embeddings", default=128_000 if architecture == "lfm2" else 2048
    )
    head_dim = _head_dim(fields, hidden, heads)
    if architecture == "lfm2":
        layer_types = _hf_layer_types(fields, layers)
        intermediate = _lfm2_intermediate_size(fields)
        eps = fields.number("norm_eps", "block_norm_eps", default=1e-5)
        tied = fields.flag("tie_embedding", "tie_word_embeddings", default=True)
    else:
        layer_types = (ATTENTION,) * layers
        intermediate = fields.size("intermediate_size")
        eps = fields.number("rms_norm_eps", default=1e-6)
        tied = fields.flag("tie_word_embeddings", default=False)
        _check_llama_options(fields)
    return _finish(
        fields,
        architecture=architecture,
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=fields.size(
            "num_key_value_heads", default=heads if architecture == "llama" else 8
        ),
        head_dim=head_dim,
        layer_types=layer_types,
        conv_L_cache=fields.integer("conv_L_cache", default=3, low=2, high=LIMITS["conv_L_cache"]),
        conv_bias=architecture == "lfm2" and fields.flag("conv_bias", default=False),
        norm_eps=eps,
        qk_norm=architecture == "lfm2",
        tie_word_embeddings=tied,
        max_position_embeddings=max_positions,
        rope_inv_freq=rope.from_hf(fields, architecture, head_dim, max_positions),
        bos_token_id=fields.token("bos_token_id", 1),
        eos_token_id=fields.tokens("eos_token_id", (2,)),
        pad_token_id=fields.token("pad_token_id", 0 if architecture == "lfm2" else None),
    )


def from_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    rope_factors: npt.NDArray[np.float32] | None,
    source: str,
) -> ModelConfig:
    """The configuration in a GGUF file of architecture "lfm2" or "llama".

    Args:
        metadata: key -> value, as `gguf_header.read` returns it.
        shapes: GGUF tensor name -> shape, rows first.
        rope_factors: float32 [head_dim / 2] of the tensor rope_freqs.weight, if there is one
            (llama.cpp writes Llama 3's RoPE scaling like this).
        source: the file's path, for messages.

    Raises:
        ValueError: unknown architecture, missing or impossible field, unsupported option.
    """
    architecture = metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise _unknown_architecture(source, architecture)
    # Keys without the architecture's prefix, under the canonical names where one-to-one.
    prefix = f"{architecture}."
    values = {k[len(prefix) :]: v for k, v in metadata.items() if k.startswith(prefix)}
    values.update((k, v) for k, v in metadata.items() if k.startswith("tokenizer.ggml."))
    fields = Fields(values, source)
    _check_gguf_options(fields)

    layers = fields.integer("block_count", high=LIMITS["num_hidden_layers"])
    hidden = fields.integer("embedding_length", high=LIMITS["hidden_size"])
    heads = _uniform(fields, "attention.head_count", layers, zeros=False)[0]
    per_layer_kv = _uniform(
        fields, "attention.head_count_kv", layers, zeros=architecture == "lfm2", default=heads
    )
    embedding = shapes.get("token_embd.weight", ())
    head_dim = fields.integer(
        "attention.key_length", default=hidden // max(heads, 1), high=LIMITS["head_dim"]
    )
    if fields.integer("attention.value_length", default=head_dim) != head_dim:
        raise fields.error("attention.key_length and attention.value_length differ (unsupported)")
    if fields.integer("rope.dimension_count", default=head_dim) != head_dim:
        raise fields.error("partial RoPE (rope.dimension_count below the head size) is unsupported")
    eos = fields.tokens("tokenizer.ggml.eos_token_id", ())
    eot = fields.tokens("tokenizer.ggml.eot_token_id", ())
    return _finish(
        fields,
        architecture=architecture,
        vocab_size=fields.integer(
            "vocab_size", default=embedding[0] if embedding else None, high=LIMITS["vocab_size"]
        ),
        hidden_size=hidden,
        intermediate_size=_uniform(fields, "feed_forward_length", layers, zeros=False)[0],
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(per_layer_kv),
        head_dim=head_dim,
        layer_types=tuple(ATTENTION if kv else CONV for kv in per_layer_kv),
        conv_L_cache=fields.integer(
            "shortconv.l_cache", default=3, low=2, high=LIMITS["conv_L_cache"]
        ),
        conv_bias=any(name.endswith(".shortconv.conv.bias") for name in shapes),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        qk_norm=architecture == "lfm2",
        tie_word_embeddings="output.weight" not in shapes,
        max_position_embeddings=fields.integer(
            "context_length", high=LIMITS["max_position_embeddings"]
        ),
        rope_inv_freq=rope.from_gguf(fields, head_dim, rope_factors),
        bos_token_id=fields.token("tokenizer.ggml.bos_token_id", None),
        eos_token_id=tuple(dict.fromkeys(eos + eot)),
        pad_token_id=fields.token("tokenizer.ggml.padding_token_id", None),
    )


def to_packed(config: ModelConfig) -> dict[str, Any]:
    """The configuration as JSON values, which `from_packed` reads."""
    values = {item.name: getattr(config, item.name) for item in dataclass_fields(config)}
    return {**values, "rope_inv_freq": config.rope_inv_freq.tolist()}


def from_packed(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The configuration in a packed file. ValueError: a field is missing or impossible."""
    fields = Fields(values, source)
    architecture = fields.find("architecture")[1]
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise _unknown_architecture(source, architecture)
    layers, head_dim = fields.size("num_hidden_layers"), fields.size("head_dim")
    inv_freq = fields.find("rope_inv_freq")[1]
    if not isinstance(inv_freq, list) or len(inv_freq) != head_dim // 2:
        raise fields.error(f"'rope_inv_freq' must list {head_dim // 2} numbers")
    return _finish(
        fields,
        architecture=architecture,
        **{
            name: fields.size(name)
            for name in (
                *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"),
                *("num_key_value_heads", "conv_L_cache", "max_position_embeddings"),
            )
        },
        num_hidden_layers=layers,
        head_dim=head_dim,
        layer_types=_hf_layer_types(fields, layers),
        conv_bias=fields.flag("conv_bias", default=False),
        norm_eps=fields.number("norm_eps"),
        qk_norm=fields.flag("qk_norm", default=True),
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=True),
        rope_inv_freq=np.array(
            [fields.positive("rope_inv_freq", value) for value in inv_freq], np.float32
        ),
        bos_token_id=fields.token("bos_token_id", None),
        eos_token_id=fields.tokens("eos_token_id", ()),
        pad_token_id=fields.token("pad_token_id", None),
    )


def eos_of(generation_config: Mapping[str, Any], source: str) -> tuple[int, ...] | None:
    """`eos_token_id` of a generation_config.json as a tuple; None if it does not say."""
    if generation_config.get("eos_token_id") is None:
        return None
    return Fields(generation_config, source).tokens("eos_token_id", ())


def _finish(fields: Fields, **values: Any) -> ModelConfig:
    """Checks that hold for every source, then the frozen configuration."""
    config = ModelConfig(**values)
    if config.head_dim % 2:
        raise fields.error(f"the head size must be even for RoPE, not {config.head_dim}")
    if config.num_key_value_heads == 0:
        raise fields.error("a model without attention layers is not supported")
    if config.num_attention_heads % config.num_key_value_heads:
        raise fields.error(
            f"{config.num_attention_heads} attention heads cannot share "
            f"{config.num_key_value_heads} key/value heads evenly"
        )
    if config.norm_eps >= 1:
        raise fields.error(f"the norm epsilon must be below 1, not {config.norm_eps}")
    if not np.isfinite(config.rope_inv_freq).all():
        raise fields.error("the RoPE parameters give frequencies that are not finite")
    config.rope_inv_freq.setflags(write=False)
    return config


def _hf_architecture(fields: Fields) -> str:
    model_type = fields.find("model_type")[1]
    names = fields.find("architectures")[1]
    first = names[0] if isinstance(names, list) and names else None
    if model_type is None and isinstance(first, str):
        model_type = _HF_ARCHITECTURES.get(first, first)
    if model_type not in SUPPORTED_ARCHITECTURES:
        raise _unknown_architecture(fields.source, model_type)
    return str(model_type)


def _unknown_architecture(source: str, found: Any) -> ValueError:
    known = ", ".join(SUPPORTED_ARCHITECTURES)
    what = "no architecture is named" if found is None else f"architecture {show(found)}"
    return ValueError(f"{source}: {what}; supported are {known}")


def _head_dim(fields: Fields, hidden: int, heads: int) -> int:
    if fields.find("head_dim")[1] is not None:
        return fields.size("head_dim")
    if hidden % heads:
        raise fields.error(f"hidden_size {hidden} is not a multiple of {heads} attention heads")
    return hidden // heads


def _hf_layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    found = fields.find("layer_types")[1]
    if found is not None:
        if not isinstance(found, list) or len(found) != layers:
            raise fields.error(f"'layer_types' must list {layers} layers (num_hidden_layers)")
        for kind in found:
            if not isinstance(kind, str) or kind not in _LAYER_TYPES:
                raise fields.error(f"layer type {show(kind)} is not one of {CONV}, {ATTENTION}")
        return tuple(_LAYER_TYPES[kind] for kind in found)
    indices = fields.find("full_attn_idxs")[1]
    if indices is None:
        return (ATTENTION,) * layers
    if not isinstance(indices, list):
        raise fields.error(f"'full_attn_idxs' must be a list, not {show(indices)}")
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < layers:
            raise fields.error(f"'full_attn_idxs' must hold layers below {layers}: {show(index)}")
    chosen = set(indices)
    return tuple(ATTENTION if i in chosen else CONV for i in range(layers))


def _lfm2_intermediate_size(fields: Fields) -> int:
    """The FFN width by the rules of transformers' Lfm2MLP."""
    limit = LIMITS["intermediate_size"]
    width = fields.integer("block_ff_dim", "intermediate_size", high=limit)
    if not fields.flag("block_auto_adjust_ff_dim", default=True):
        return width
    width = int(2 * width / 3)
    # Absent means transformers' default of 1.0; an explicit null skips multiplier and rounding.
    if not fields.is_null("block_ffn_dim_multiplier"):
        width = int(fields.number("block_ffn_dim_multiplier", default=1.0) * min(width, limit))
        multiple = fields.integer("block_multiple_of", default=256, high=limit)
        width = multiple * ((width + multiple - 1) // multiple)
    if not 1 <= width <= limit:
        raise fields.error(f"the adjusted FFN width must be between 1 and {limit}, not {width}")
    return width


def _check_llama_options(fields: Fields) -> None:
    for key in ("attention_bias", "mlp_bias"):
        if fields.flag(key, default=False):
            raise fields.error(f"{key}=true is not supported")
    activation = fields.find("hidden_act")[1]
    if activation not in (None, "silu", "swish"):
        raise fields.error(f"hidden_act {show(activation)} is not supported (only 'silu')")


def _check_gguf_options(fields: Fields) -> None:
    if fields.integer("expert_count", default=0, low=0) > 0:
        raise fields.error("mixture-of-experts models are not supported")
    if not fields.flag("attention.causal", default=True):
        raise fields.error("a bidirectional (embedding) model cannot generate")
    window = fields.find("attention.sliding_window")[1]
    if window is not None and fields.integer("attention.sliding_window", low=0):
        raise fields.error("sliding-window attention is not supported")


def _uniform(
    fields: Fields, key: str, layers: int, *, zeros: bool, default: int | None = None
) -> Sequence[int]:
    """A number per layer; all equal, apart from zeros where those are allowed."""
    value = fields.find(key)[1]
    if not isinstance(value, list):
        return (fields.integer(key, default=default, high=1 << 20),) * layers
    if len(value) != layers:
        raise fields.error(f"{key!r} must hold {layers} numbers, one per layer, not {len(value)}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= 1 << 20:
            raise fields.error(f"{key!r} must hold positive numbers, not {show(item)}")
    if len({item for item in value if item or not zeros}) > 1 or (not zeros and value[0] == 0):
        raise fields.error(f"{key!r} differs between layers (unsupported)")
    return value
