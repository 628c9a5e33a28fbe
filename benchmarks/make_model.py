"""Makes a checkpoint of LFM2.5-350M's exact shape with random weights (seeded, 709 MB bf16).

    PYTHONPATH=python python benchmarks/make_model.py FOLDER [--gguf all] [--pack int8 --pack int4]

FOLDER gets config.json, generation_config.json, model.safetensors, the real tokenizer where its
data is at hand (see --tokenizer), and the same weights as FOLDER/model-<type>.gguf for llama.cpp
(Q4_0 and Q4_K_M by llama.cpp's own quantizer: llama-cpp-python, or a llama-quantize program) and as
FOLDER/model-<dtype>.lfm, lfm-engine's packed file. Speed does not depend on the values; parity
does: the scales keep activations near 1 and the logits spread out (standard deviation about 2 to
3), so that greedy choices are rarely near a tie.

GCC 12 and CPUs with AMX: its header lets the compiler drop most of a tile configuration, and
llama.cpp dies; build llama-cpp-python with CXXFLAGS="-fno-tree-dse -fno-dse" there.

Two more peers have exporters of their own, which bench_speed.py expects in these places (with
onnxruntime-genai 0.18 beside torch, transformers, onnx and onnx_ir; with optimum-intel 2.2, nncf,
openvino and transformers 5.4):

    python -m onnxruntime_genai.models.builder -m LFM2 -i FOLDER -o FOLDER/onnxruntime-int4 \\
        -p int4 -e cpu
    optimum-cli export openvino -m FOLDER --task text-generation-with-past --weight-format int8 \\
        FOLDER/openvino-int8
    optimum-cli export openvino -m FOLDER --task text-generation-with-past --weight-format int4 \\
        --sym --group-size 32 --ratio 1.0 FOLDER/openvino-int4
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lfm_engine.checkpoint.config import from_hf

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT.parent / "shared" / "data" / "lfm2_tokenizer"
ATTENTION_LAYERS = (2, 5, 8, 10, 12, 14)
QUANTIZED = ("Q4_0", "Q4_K_M")  # by llama.cpp's quantizer
PEER_TYPES = ("BF16", "Q8_0", *QUANTIZED)
_CALLBACKS: list[Any] = []  # given to C, so never freed
CHUNK_ROWS = 4096  # rows of a matrix in memory at once

# config.json as the published checkpoints spell it.
CONFIG: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "block_auto_adjust_ff_dim": True,
    "block_dim": 1024,
    "block_ff_dim": 6656,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "block_norm_eps": 1e-05,
    "block_use_swiglu": True,
    "bos_token_id": 1,
    "conv_L_cache": 3,
    "conv_bias": False,
    "conv_dim": 1024,
    "eos_token_id": 7,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "layer_types": ["full_attention" if i in ATTENTION_LAYERS else "conv" for i in range(16)],
    "max_position_embeddings": 128000,
    "model_type": "lfm2",
    "norm_eps": 1e-05,
    "num_attention_heads": 16,
    "num_heads": 16,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "rope_theta": 1000000.0,
    "tie_embedding": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 65536,
}
GENERATION_CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
    "do_sample": True,
    "temperature": 0.1,
    "top_k": 50,
    "repetition_penalty": 1.05,
}


def random_rows(
    name: str, shape: tuple[int, ...], rows: int, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The next `rows` rows of the tensor `name`, float32 [rows, ...].

    Matrices: normal, fan-in^-0.5. Norms: about 1. Convolution taps: 0.6, so that three of them keep
    the scale. Embedding (which is the output head too): rows of different length.
    """
    values = rng.standard_normal((rows, *shape[1:]), dtype=np.float32)
    if name.endswith("norm.weight"):
        return 1 + 0.1 * values
    if name.endswith("conv.conv.weight"):
        return 0.6 * values
    if name.endswith("embed_tokens.weight"):
        lengths = rng.uniform(0.05, 0.1, (rows, 1)).astype(np.float32)
        return lengths * values
    return np.float32(shape[-1] ** -0.5) * values


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bit patterns of finite `values` rounded to bfloat16, to nearest even."""
    bits = values.view(np.uint32)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits >> np.uint32(16)).astype(np.uint16)


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Writes random bfloat16 tensors of these shapes; a few MB are in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for index, (name, shape) in enumerate(shapes.items()):
            rng = np.random.default_rng([seed, index])  # a stream of its own for each tensor
            for start in range(0, shape[0], CHUNK_ROWS):
                rows = min(CHUNK_ROWS, shape[0] - start)
                file.write(to_bfloat16(random_rows(name, shape, rows, rng)).data)
    partial.replace(path)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copies LFM2's tokenizer with LFM2.5's template; False where `source` is not there."""
    if not source.is_dir():
        return False
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    shutil.copyfile(source / "chat_template_lfm25.jinja", folder / "chat_template.jinja")
    return True


def make_model(folder: Path, seed: int, tokenizer: Path) -> None:
    """Writes the checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION_CONFIG, indent=2) + "\n")
    if not copy_tokenizer(tokenizer, folder):
        print(f"no tokenizer in {tokenizer}: the checkpoint has none", file=sys.stderr)
    shapes = from_hf(CONFIG, "CONFIG").tensor_shapes()
    write_safetensors(folder / "model.safetensors", shapes, seed)


def quantize_gguf(source: Path, out: Path, kind: str, program: str = "llama-quantize") -> None:
    """llama.cpp's quantizer on a GGUF file, with its default types for each tensor.

    Args:
        source: F32 or BF16; another type is expanded first.
        kind: F32, Q8_0, Q4_0 or Q4_K_M. A tied embedding becomes Q6_K in the 4-bit ones.
        program: is run where llama-cpp-python is not installed.

    Raises:
        RuntimeError: neither is there, or quantizing failed.
    """
    partial = out.with_suffix(".partial")
    if find_spec("llama_cpp"):
        import llama_cpp

        _CALLBACKS.append(llama_cpp.llama_log_callback(lambda *_: None))
        llama_cpp.llama_log_set(_CALLBACKS[-1], ctypes.c_void_p(0))
        options = llama_cpp.llama_model_quantize_default_params()
        types = {"F32": "ALL_F32"}
        options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{types.get(kind, 'MOSTLY_' + kind)}")
        options.allow_requantize = True
        failed = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(partial), ctypes.byref(options)
        )
    elif shutil.which(program):
        command = [program, "--allow-requantize", str(source), str(partial), kind]
        failed = subprocess.run(command, capture_output=True, check=False).returncode
    else:
        raise RuntimeError(f"{kind} needs llama-cpp-python or {program} (llama.cpp)")
    if failed:
        partial.unlink(missing_ok=True)
        raise RuntimeError(f"llama.cpp cannot make {kind} of {source}")
    partial.replace(out)


def make_gguf(folder: Path, kind: str, program: str) -> Path:
    """FOLDER/model-KIND.gguf of the checkpoint in `folder`."""
    out = folder / f"model-{kind}.gguf"
    if kind in QUANTIZED:
        source = folder / "model-BF16.gguf"
        if not source.is_file():
            make_gguf(folder, "BF16", program)
        quantize_gguf(source, out, kind, program)
    else:
        sys.path.insert(0, str(ROOT / "tests"))  # the writer is a tool of the tests
        from gguf_writer import write_gguf

        write_gguf(folder, out, kind)
    return out


def pack(folder: Path, dtype: str) -> Path:
    """FOLDER/model-DTYPE.lfm by `lfm-engine pack`; int4 takes the values of Q4_0."""
    out, q4 = folder / f"model-{dtype}.lfm", folder / "model-Q4_0.gguf"
    source = q4 if dtype == "int4" and q4.is_file() else folder
    command = [sys.executable, "-m", "lfm_engine.cli", "pack", str(source), "-o", str(out)]
    subprocess.run([*command, "--dtype", dtype], check=True)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="output; keep it outside the repository")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="folder to copy it from")
    parser.add_argument(
        "--gguf",
        action="append",
        default=[],
        choices=["all", "F32", "F16", *PEER_TYPES],
        help=f"write FOLDER/model-TYPE.gguf too; may be repeated; all: {', '.join(PEER_TYPES)}",
    )
    parser.add_argument("--llama-quantize", default="llama-quantize", metavar="PROGRAM")
    parser.add_argument(
        "--pack", action="append", default=[], metavar="DTYPE", help="write FOLDER/model-DTYPE.lfm"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave model.safetensors as it is if it is there"
    )
    arguments = parser.parse_args()
    begin = time.perf_counter()
    made = [arguments.folder / "model.safetensors"]
    if not (arguments.keep and made[0].is_file()):
        make_model(arguments.folder, arguments.seed, arguments.tokenizer)
    for kind in PEER_TYPES if "all" in arguments.gguf else arguments.gguf:
        made.append(make_gguf(arguments.folder, kind, arguments.llama_quantize))
    made += [pack(arguments.folder, dtype) for dtype in arguments.pack]
    for path in made:
        print(f"{path}  {path.stat().st_size / 1e6:.0f} MB")
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
