"""Makes tests/goldens: tiny random checkpoints and what transformers computes from them.

Run by hand, with torch and transformers (5.18 made the committed files):

    PYTHONPATH=python python tests/make_goldens.py && python tests/make_activation_goldens.py

Each folder holds config.json, safetensors weights and golden.npz:

- ``prompt`` int64 [T]: token ids;
- ``logits`` float32 [T, vocab]: the logits of the prompt, computed in float32;
- ``greedy`` int64 [24]: the greedy continuation (computed without a cache);
- ``min_gap`` float32: the smallest distance of the two best logits along that continuation, so
  that a test knows how near to a tie it comes.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Lfm2Config, Lfm2ForCausalLM, LlamaConfig, LlamaForCausalLM

from lfm_engine.checkpoint import names, open_checkpoint

GOLDENS = Path(__file__).parent / "goldens"
PROMPT_TOKENS = 40
NEW_TOKENS = 24
MIN_DISTINCT = 10  # different tokens in a continuation: one that repeats itself tests little
MIN_GAP = 0.02  # a seed is taken only if no choice of the continuation is closer than this


@dataclass
class Golden:
    """One checkpoint to make.

    Attributes:
        options: arguments of the transformers configuration.
        written: replaces config.json's text, to write a second spelling of the same options.
        dtype: how the weights are stored; they are rounded to it before the logits are computed.
        shards: number of files.
        generation: contents of generation_config.json, if any.
    """

    name: str
    kind: str  # "lfm2" | "llama"
    options: dict[str, Any]
    written: dict[str, Any] | None = None
    dtype: torch.dtype = torch.bfloat16
    shards: int = 1
    generation: dict[str, Any] | None = None
    prompt_tokens: int = field(default=PROMPT_TOKENS)


def lfm2(**options: Any) -> dict[str, Any]:
    """Options common to the LFM2 goldens."""
    return {"block_auto_adjust_ff_dim": False, "max_position_embeddings": 128, **options}


GOLDENS_TO_MAKE = [
    Golden(
        "lfm2-base",
        "lfm2",
        lfm2(
            vocab_size=131,
            hidden_size=64,
            intermediate_size=40,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=1,
            layer_types=["conv", "full_attention", "conv", "full_attention"],
            eos_token_id=7,
        ),
        generation={
            "temperature": 0.1,
            "top_k": 50,
            "repetition_penalty": 1.05,
            "eos_token_id": [7, 2],
        },
    ),
    # The other spelling, as in the first LFM2 checkpoints: block_*, num_heads, theta, tie_*.
    Golden(
        "lfm2-block-spelling",
        "lfm2",
        lfm2(
            vocab_size=150,
            hidden_size=72,
            intermediate_size=60,
            block_auto_adjust_ff_dim=True,
            block_ffn_dim_multiplier=1.1,
            block_multiple_of=20,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=2,
            full_attn_idxs=[1],
            conv_L_cache=4,
            norm_eps=1e-4,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
        ),
        written={
            "architectures": ["LFM2ForCausalLM"],
            "model_type": "lfm2",
            "vocab_size": 150,
            "block_dim": 72,
            "block_ff_dim": 60,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.1,
            "block_multiple_of": 20,
            "block_norm_eps": 1e-4,
            "num_hidden_layers": 3,
            "num_heads": 2,
            "num_key_value_heads": 2,
            "full_attn_idxs": [1],
            "conv_L_cache": 4,
            "conv_bias": False,
            "theta": 10_000.0,
            "max_position_embeddings": 128,
            "tie_embedding": True,
            "use_pos_enc": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    # Biases, attention first and conv last, heads x head_dim (128) unequal to an odd hidden size.
    Golden(
        "lfm2-bias-hd64",
        "lfm2",
        lfm2(
            vocab_size=101,
            hidden_size=45,
            intermediate_size=39,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            layer_types=["full_attention", "conv", "conv"],
            conv_bias=True,
            conv_L_cache=4,
        ),
    ),
    Golden(
        "lfm2-hd128-f32",
        "lfm2",
        lfm2(
            vocab_size=97,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=128,
            layer_types=["conv", "full_attention", "conv"],
            rope_theta=500_000.0,
        ),
        dtype=torch.float32,
    ),
    Golden(
        "lfm2-untied-sharded",
        "lfm2",
        lfm2(
            vocab_size=203,
            hidden_size=48,
            intermediate_size=40,
            num_hidden_layers=4,
            num_attention_heads=2,
            num_key_value_heads=2,
            layer_types=["conv", "conv", "full_attention", "conv"],
            tie_word_embeddings=False,
        ),
        shards=3,
    ),
    Golden(
        "llama-gqa3-rope3-f16",
        "llama",
        {
            "vocab_size": 110,
            "hidden_size": 96,
            "intermediate_size": 56,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        dtype=torch.float16,
    ),
    # As older Llama checkpoints write it: rope_theta and rope_scaling at the top.
    Golden(
        "llama-linear-rope",
        "llama",
        {
            "vocab_size": 120,
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 2.0},
        },
        written={
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 120,
            "hidden_size": 64,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "rope_theta": 10_000.0,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
]


def build(golden: Golden, seed: int) -> torch.nn.Module:
    """The model with random weights, all of them representable in the stored dtype."""
    config_class, model_class = (
        (Lfm2Config, Lfm2ForCausalLM) if golden.kind == "lfm2" else (LlamaConfig, LlamaForCausalLM)
    )
    model = model_class(config_class(**golden.options)).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                values = 0.2 * torch.randn(weight.shape, generator=generator)
            elif weight.ndim == 1:  # norms
                values = 0.5 + torch.rand(weight.shape, generator=generator)
            else:
                fan_in = weight.shape[-1]  # for the depthwise convolution, its taps
                scale = 2.0 if "lm_head" in name else 1.0
                values = scale * fan_in**-0.5 * torch.randn(weight.shape, generator=generator)
            weight.copy_(values.to(golden.dtype).float())
    return model


@torch.no_grad()
def run(model: torch.nn.Module, golden: Golden, seed: int) -> dict[str, np.ndarray]:
    """Prompt, its logits, and the greedy continuation with the smallest gap on its way."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(0, golden.options["vocab_size"], golden.prompt_tokens)
    ids = torch.from_numpy(prompt)[None]
    logits = model(ids).logits[0]
    gaps = []
    for _ in range(NEW_TOKENS):
        last = model(ids, use_cache=False).logits[0, -1]
        best = torch.topk(last, 2)
        gaps.append(float(best.values[0] - best.values[1]))
        ids = torch.cat([ids, best.indices[None, :1]], dim=1)
    greedy = ids[0, golden.prompt_tokens :].numpy()
    # The mask is given: transformers would otherwise take a pad id inside the prompt for padding.
    model.generation_config.eos_token_id = None
    cached = model.generate(
        ids[:, : golden.prompt_tokens],
        attention_mask=torch.ones(1, golden.prompt_tokens, dtype=torch.long),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
    )
    assert (cached[0, golden.prompt_tokens :].numpy() == greedy).all(), "transformers disagrees"
    return {
        "prompt": prompt,
        "logits": logits.numpy(),
        "greedy": greedy,
        "min_gap": np.float32(min(gaps)),
    }


def save_weights(model: torch.nn.Module, golden: Golden, folder: Path) -> None:
    """One model.safetensors, or shards and their index."""
    weights = {name: w.detach().to(golden.dtype) for name, w in model.named_parameters()}
    if golden.shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for shard in range(golden.shards):
        name = f"model-{shard + 1:05}-of-{golden.shards:05}.safetensors"
        part = dict(list(weights.items())[shard :: golden.shards])
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def check(model: torch.nn.Module, folder: Path) -> None:
    """Our reader must give the same weights and the same RoPE frequencies as the oracle."""
    base = model.model
    rotary = base.pos_emb if hasattr(base, "pos_emb") else base.rotary_emb
    with open_checkpoint(folder) as checkpoint:
        config = checkpoint.config
        assert config.num_parameters == sum(w.numel() for w in model.parameters())
        expected = {names.from_hf(name): weight for name, weight in model.named_parameters()}
        shapes = config.tensor_shapes()
        assert set(shapes) == set(expected)
        for name, shape in shapes.items():
            found = checkpoint.tensor(name, shape).to_float32()
            assert np.array_equal(found, expected[name].detach().numpy()), name
        ulps = config.rope_inv_freq.view(np.int32) - rotary.inv_freq.numpy().view(np.int32)
        assert np.abs(ulps).max() <= 1, f"{folder.name}: RoPE frequencies differ: {ulps}"
        print(f"  {int((ulps != 0).sum())} of {ulps.size} RoPE frequencies 1 ulp off")


def main() -> None:
    """Remakes every folder below tests/goldens."""
    for golden in GOLDENS_TO_MAKE:
        for seed in range(100):
            model = build(golden, seed)
            result = run(model, golden, seed)
            varied = len(set(result["greedy"].tolist())) >= MIN_DISTINCT
            if varied and result["min_gap"] >= MIN_GAP:
                break
        else:
            raise SystemExit(f"{golden.name}: no seed gives a continuation fit for a test")
        folder = GOLDENS / golden.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model.config.architectures = [type(model).__name__]
        config = golden.written or json.loads(model.config.to_json_string(use_diff=False))
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        if golden.generation is not None:
            text = json.dumps(golden.generation, indent=1) + "\n"
            (folder / "generation_config.json").write_text(text)
        save_weights(model, golden, folder)
        np.savez_compressed(folder / "golden.npz", **result)
        size = sum(path.stat().st_size for path in folder.iterdir())
        spread = float(result["logits"].std())
        print(
            f"{golden.name}: seed {seed}, gap {result['min_gap']:.3f}, std {spread:.2f}, {size} B"
        )
        check(model, folder)


if __name__ == "__main__":
    main()
