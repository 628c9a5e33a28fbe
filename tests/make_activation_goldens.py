"""Makes activations.npz of some folders of tests/goldens: what transformers computes inside.

Run by hand after make_goldens.py, with torch and transformers (5.18 made the committed files):

    python tests/make_activation_goldens.py

Of the first 12 tokens of the folder's prompt, in float32 and with attention computed eagerly:

- ``hidden_states`` [layers + 1, T, hidden], as transformers returns them;
- ``layers.N.attention.probs`` [heads, T, T], as it returns them, of the attention layers;
- ``layers.N.conv.in_proj`` [T, 3 * hidden], ``.conv.output``, ``.attention.output`` and
  ``.mlp.output`` [T, hidden]: what these modules return;
- ``layers.N.keys``, ``.values`` [kv_heads, T, head_dim] and ``.conv_state`` [conv_L_cache - 1,
  hidden], oldest first: its cache afterwards;
- ``ablated`` [T, vocab]: the logits when the MLP of layer 1 adds nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

GOLDENS = Path(__file__).parent / "goldens"
FOLDERS = ("lfm2-base", "lfm2-bias-hd64", "llama-gqa3-rope3-f16")
TOKENS = 12


def watched(layer: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The modules whose outputs are kept, by the engine's names."""
    found: dict[str, torch.nn.Module] = {}
    if hasattr(layer, "conv"):
        found |= {"conv.in_proj": layer.conv.in_proj, "conv.output": layer.conv}
    else:
        found["attention.output"] = layer.self_attn
    found["mlp.output"] = getattr(layer, "feed_forward", None) or layer.mlp
    return found


@torch.no_grad()
def activations(folder: Path) -> dict[str, np.ndarray]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.from_numpy(np.load(folder / "golden.npz")["prompt"][None, :TOKENS])
    kept: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            kept[name] = output[0].numpy()

        return hook

    handles = [
        module.register_forward_hook(keep(f"layers.{i}.{name}"))
        for i, layer in enumerate(model.model.layers)
        for name, module in watched(layer).items()
    ]
    out = model(ids, output_hidden_states=True, output_attentions=True, use_cache=True)
    for handle in handles:
        handle.remove()
    kept["hidden_states"] = np.stack([h[0].numpy() for h in out.hidden_states])
    types = getattr(model.config, "layer_types", None) or ["full_attention"] * len(
        model.model.layers
    )
    probs = iter(out.attentions)
    for i, kind in enumerate(types):
        cache = out.past_key_values.layers[i]
        if kind == "full_attention":
            kept[f"layers.{i}.attention.probs"] = next(probs)[0].numpy()
            kept[f"layers.{i}.keys"] = cache.keys[0].numpy()
            kept[f"layers.{i}.values"] = cache.values[0].numpy()
        else:
            # [hidden, conv_L_cache]: the last one is the newest, the first is not needed any more.
            kept[f"layers.{i}.conv_state"] = cache.conv_states[0][0].numpy().T[1:]
    mlp = watched(model.model.layers[1])["mlp.output"]
    handle = mlp.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    kept["ablated"] = model(ids).logits[0].numpy()
    handle.remove()
    return kept


def main() -> None:
    """Remakes the files."""
    for name in FOLDERS:
        kept = activations(GOLDENS / name)
        path = GOLDENS / name / "activations.npz"
        np.savez_compressed(path, **kept)
        print(name, path.stat().st_size, {key: value.shape for key, value in kept.items()})


if __name__ == "__main__":
    main()
