"""Write a trained model as a Hugging Face folder in bfloat16: `python export.py RUN FOLDER`.

transformers and lfm_engine load the folder as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from model import Config, Model
from tokens import BOS, EOS, PAD

HERE = Path(__file__).parent


def export(model: Model, tokenizer: Path, folder: Path) -> None:
    """Write config.json, generation_config.json, model.safetensors, tokenizer and template."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().to(torch.bfloat16) for name, tensor in model.to_hf().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    _write_json(folder / "config.json", model.config.to_hf())
    generation = {
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
        "do_sample": False,
        "max_new_tokens": 256,
    }
    _write_json(folder / "generation_config.json", generation)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    shutil.copyfile(HERE / "chat_template.jinja", folder / "chat_template.jinja")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, with its checkpoint.pt")
    parser.add_argument("folder", type=Path, help="to write")
    options = parser.parse_args()
    state = torch.load(options.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    model = Model(Config(**state["config"]))
    model.load_state_dict(state["model"])
    export(model, options.run, options.folder)
    print(f"step {state['step']}, {state['tokens']:,} tokens, {state['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
