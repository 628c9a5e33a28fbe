"""Bad input: a Python exception of one clear line, and a process that lives on."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import golden_models
from gguf_writer import write_gguf
from golden_models import DTYPES, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM, _core

pytestmark = pytest.mark.engine

NORM = "model.embedding_norm.weight"
W2 = "model.layers.2.feed_forward.w2.weight"
CONV = "model.layers.0.conv.conv.weight"
EMBED = "model.embed_tokens.weight"

RunPython = Callable[..., Any]


def edit(folder: Path, change: Callable[[dict[str, Any], bytearray], None]) -> None:
    """Change header and data of model.safetensors; lets the header say what it wants."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = json.loads(raw[8 : 8 + length]), bytearray(raw[8 + length :])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return golden_models.changed_copy("lfm2-base", tmp_path / "model")


def load_fails(path: Path, message: str, **options: Any) -> None:
    """Loading gives a ValueError of one line that names the path and matches `message`."""
    with pytest.raises(ValueError, match=message) as caught:
        AutoModelForCausalLM.from_pretrained(path, **{"num_threads": 1, **options})
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert len(text) < 500


# -- files --


@pytest.mark.parametrize(
    "bits", [0x7FC0, 0xFFC1, 0x7F80, 0xFF80], ids=["nan", "-nan", "inf", "-inf"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [NORM, W2, CONV, EMBED])
def test_weights_that_are_not_finite(folder: Path, name: str, dtype: str, bits: int) -> None:
    def change(header: dict[str, Any], data: bytearray) -> None:
        end = header[name]["data_offsets"][1]
        data[end - 2 : end] = struct.pack("<H", bits)

    edit(folder, change)
    load_fails(folder, f"'{name}'.*(NaN|infinit|finite)", dtype=dtype)


@pytest.mark.parametrize("name", [NORM, W2, CONV])
def test_missing_tensors(folder: Path, name: str) -> None:
    def change(header: dict[str, Any], data: bytearray) -> None:
        header["model.unused.weight"] = header.pop(name)

    edit(folder, change)
    load_fails(folder, f"tensor '{name}' is missing")


@pytest.mark.parametrize(("name", "shape"), [(W2, [40, 64]), (NORM, [8, 8]), (CONV, [64, 3])])
def test_misshapen_tensors(folder: Path, name: str, shape: list[int]) -> None:
    def change(header: dict[str, Any], data: bytearray) -> None:
        header[name]["shape"] = shape

    edit(folder, change)
    wanted = golden_models.load("lfm2-base").config.tensor_shapes()[name]
    load_fails(folder, rf"'{name}' has shape \[{shape[0]}, {shape[1]}\].*needs \[{wanted[0]}")


def test_wrong_types_of_tensors(folder: Path) -> None:
    edit(folder, lambda header, data: header[W2].update(dtype="I16"))
    load_fails(folder, f"'{W2}' has dtype I16")


@pytest.mark.parametrize("keep", [0, 7, 300, 100_000])
def test_truncated_files(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    load_fails(folder, "model.safetensors")


def test_lying_headers(folder: Path) -> None:
    edit(folder, lambda header, data: header[NORM].update(shape=[1 << 40]))
    load_fails(folder, NORM)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    load_fails(folder, "model.safetensors")


@pytest.mark.parametrize("keep", [0, 3, 20, 500, 20_000, -1])
def test_truncated_gguf(base: Golden, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(base.path, path, "Q8_0")
    path.write_bytes(path.read_bytes()[:keep])
    load_fails(path, "gguf")


def test_lying_gguf(base: Golden, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(base.path, path, "F16")
    good = path.read_bytes()
    # Counts of tensors and of metadata entries, then a version from the future.
    for offset, value in ((8, 1 << 62), (16, 1 << 62), (8, 9999), (4, 99)):
        lie = struct.pack("<Q" if offset > 4 else "<I", value)
        path.write_bytes(good[:offset] + lie + good[offset + len(lie) :])
        load_fails(path, "gguf")


def test_unknown_architectures(tmp_path: Path) -> None:
    folder = golden_models.changed_copy("lfm2-base", tmp_path / "model", model_type="mamba")
    load_fails(folder, "architecture 'mamba'")


def test_configurations_that_contradict_the_weights(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        (
            ("hidden_size", 128),
            ("vocab_size", 200),
            ("num_hidden_layers", 3),
            ("num_attention_heads", 3),
        )
    ):
        folder = golden_models.changed_copy("lfm2-base", tmp_path / str(number), **{name: value})
        load_fails(folder, ".")


def test_paths_that_do_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "absent.gguf"):
        with pytest.raises(OSError, match=str(path)):
            AutoModelForCausalLM.from_pretrained(path)


# -- arguments of from_pretrained --


def test_devices(base: Golden) -> None:
    with pytest.raises(ValueError, match=r"device 'cuda'.*(build|CUDA)"):
        AutoModelForCausalLM.from_pretrained(base.path, device="cuda")
    with pytest.raises(ValueError, match="device 'tpu'"):
        AutoModelForCausalLM.from_pretrained(base.path, device="tpu")


@pytest.mark.parametrize("dtype", ["int3", "float64", "", None, 32])
def test_dtypes(base: Golden, dtype: Any) -> None:
    with pytest.raises(ValueError, match=f"dtype '{dtype}' is not supported; use float32"):
        AutoModelForCausalLM.from_pretrained(base.path, dtype=dtype)


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2", 10**6, 2**40])
def test_num_threads(base: Golden, number: Any) -> None:
    with pytest.raises(ValueError, match="num_threads must be"):
        AutoModelForCausalLM.from_pretrained(base.path, num_threads=number)


# -- prompts --

BAD_PROMPTS: list[tuple[Any, str]] = [
    ([131], "input_ids holds 131, outside the vocabulary of 131"),
    ([5, -1], "input_ids holds -1, outside"),
    ([1 << 31], "input_ids holds 2147483648, outside"),
    ([(1 << 32) + 5], "input_ids holds 4294967301, outside"),
    (np.array([1 << 63], np.uint64), "input_ids holds 9223372036854775808, outside"),
    ([1 << 70], "input_ids"),
    ([], "input_ids is empty"),
    ([[]], "input_ids is empty"),
    ([[], []], "input_ids is empty"),
    (np.zeros((0, 5), np.int64), "input_ids is empty"),
    (np.zeros(129, np.int64), "129 tokens.*context of 128"),
    ([1.0, 2.0], "input_ids must hold integers, not float64"),
    (np.array([1.0], np.float16), "input_ids must hold integers, not float16"),
    ([True, False], "input_ids must hold integers, not bool"),
    ("hello", "input_ids must hold token ids, not text"),
    (["hello"], "input_ids must hold integers"),
    (b"hello", "input_ids must hold token ids, not text"),
    (np.array([1, "a"], object), "input_ids must hold integers, not object"),
    ({"input_ids": [1]}, "input_ids must hold integers, not object"),
    (None, "input_ids is missing"),
    (np.zeros((1, 1, 1), np.int64), "1 or 2 dimensions, not 3"),
    (5, "1 or 2 dimensions, not 0"),
]


@pytest.mark.parametrize(("ids", "message"), BAD_PROMPTS, ids=range(len(BAD_PROMPTS)))
def test_bad_prompts(model: CausalLM, ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(ids)
    with pytest.raises(ValueError, match=message):
        model.generate(ids, max_new_tokens=2)


def test_bad_rows_of_a_list(model: CausalLM) -> None:
    for ids, message in (
        ([[1, 2], []], r"input_ids is empty \(row 1\)"),
        ([[1, 2], [131]], "input_ids holds 131"),
        ([[1, 2], [1.5]], "must hold integers"),
        ([[[1]], [[1], [2]]], "1 dimension"),
        ([[1, 2], list(range(129))], "129 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, max_new_tokens=2)
    with pytest.raises(ValueError, match="different lengths; pad on the left"):
        model([[1, 2], [3]])


def test_prompts_that_leave_no_room(model: CausalLM) -> None:
    full = np.zeros(128, np.int64)
    assert model(full).logits.shape == (1, 128, 131)
    assert model.generate(full, max_new_tokens=1).shape == (1, 129)
    with pytest.raises(ValueError, match=r"leaves no room in the model's context of 128"):
        model.generate(full)
    with pytest.raises(ValueError, match=r"need 129 positions.*context of 128"):
        model.generate(full, max_new_tokens=2)
    with pytest.raises(ValueError, match="max_length=40 leaves no room after a prompt of 128"):
        model.generate(full, max_length=40)


def test_bad_masks(model: CausalLM) -> None:
    ids = np.ones((2, 3), np.int64)
    for mask, message in (
        ([[1, 1, 0], [1, 1, 1]], "padding must be on the left"),
        ([[1, 0, 1], [1, 1, 1]], "padding must be on the left"),
        ([[0, 0, 0], [1, 1, 1]], r"input_ids is empty \(row 0\)"),
        ([[1, 1, 1]], r"attention_mask has shape \[1, 3\], input_ids has \[2, 3\]"),
        ([1, 1, 1], r"attention_mask has shape \[1, 3\]"),
        ([[2, 1, 1], [1, 1, 1]], "attention_mask must hold 0 and 1 only"),
        ([["a", "b", "c"]] * 2, "attention_mask must hold 0 and 1 only"),
        ([[np.nan, 1, 1], [1, 1, 1]], "attention_mask must hold 0 and 1 only"),
        ([[1], [1, 1]], "attention_mask"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(ids, attention_mask=mask)
        with pytest.raises(ValueError, match=message):
            model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="attention_mask needs a rectangular input_ids"):
        model.generate([[1], [1, 2]], attention_mask=[[1], [1, 1]])


def test_bad_options(model: CausalLM) -> None:
    for options, message in (
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be an integer"),
        ({"max_new_tokens": 1 << 70}, "max_new_tokens"),
        ({"do_sample": True, "temperature": 0}, "temperature must be greater than 0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"top_p": 0}, "top_p must be in"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 1 << 64}, "seed must be below"),
        ({"eos_token_id": 131}, "eos_token_id 131 is outside the vocabulary of 131"),
        ({"eos_token_id": 1 << 70}, "eos_token_id"),
        ({"pad_token_id": -1}, "pad_token_id must be at least 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be greater than 0"),
        ({"top_k": 1 << 70, "do_sample": True}, "top_k"),
        ({"min_new_tokens": 1 << 70}, "min_new_tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate([1, 2], **options)
    for keep, message in ((-1, "must not be negative"), (1.5, "must be an integer")):
        with pytest.raises(ValueError, match=f"logits_to_keep {message}"):
            model([1, 2], logits_to_keep=keep)


# -- memory --


def test_out_of_memory_leaves_the_process_alive(long_folder: Path, run_python: RunPython) -> None:
    """30 GB of logits and of KV under a limit on the address space; two OpenMP threads at work."""
    done = run_python(
        f"""
        import resource
        model = AutoModelForCausalLM.from_pretrained(
            {str(long_folder)!r}, dtype="float32", num_threads=2)
        golden = golden_models.golden("lfm2-base")
        expected = model(golden.prompt).logits
        long = np.zeros(2_000_000, np.int32)
        batch = np.broadcast_to(long, (30, long.size))  # 30 GB of logits
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
        state = model.core.new_state()
        def tries():
            yield lambda: model(batch)
            yield lambda: model.core.forward(state, long)
            yield lambda: model.core.forward(state, long, "last", chunk=long.size)
            yield lambda: model.core.forward_batch([state], [long])
            yield lambda: model.generate(batch, max_new_tokens=1)
        for number, attempt in enumerate(tries()):
            try:
                attempt()
            except MemoryError as error:
                assert "\\n" not in str(error)
            else:
                raise SystemExit(f"attempt {{number}} gave no MemoryError")
            assert state.length == 0
        assert np.array_equal(model(golden.prompt).logits, expected)
        assert np.array_equal(model.core.forward(state, golden.prompt), expected[0])
        print("alive")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"


def test_out_of_memory_while_loading(tmp_path: Path, run_python: RunPython) -> None:
    # 400 MB of zeros that take no room on the disk; packing them needs as much again.
    shape = [400_000, 512]
    folder = golden_models.changed_copy(
        "lfm2-base", tmp_path / "model", vocab_size=shape[0], hidden_size=shape[1], head_dim=32
    )
    size = shape[0] * shape[1] * 2
    header = {EMBED: {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    done = run_python(
        f"""
        import resource
        good = AutoModelForCausalLM.from_pretrained(
            golden_models.GOLDENS / "lfm2-base", dtype="float32", num_threads=2)
        golden = golden_models.golden("lfm2-base")
        expected = good(golden.prompt).logits
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + {size} + 200_000_000,) * 2)
        for dtype in ("float32", "bfloat16", "int8"):
            try:
                AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype=dtype, num_threads=2)
            except MemoryError:
                print(dtype)
        assert np.array_equal(good(golden.prompt).logits, expected)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["float32", "bfloat16", "int8"]


# -- the environment --

FIRST_USE = """
try:
    golden_models.load("lfm2-base")
except ValueError as error:
    print(error)
"""


def test_unknown_isa(run_python: RunPython) -> None:
    done = run_python(FIRST_USE, LFM_ENGINE_ISA="sse9")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("LFM_ENGINE_ISA=sse9 is unknown; use reference, avx2, avx2_vnni")


def test_an_isa_that_the_cpu_lacks(run_python: RunPython) -> None:
    has = _core.cpu_info()["isas"]
    lacking = [isa for isa in ("avx2_vnni", "avx512", "avx512_bf16", "amx") if isa not in has]
    if not lacking:
        pytest.skip("this CPU has every ISA level")
    for isa in lacking:
        done = run_python(FIRST_USE, LFM_ENGINE_ISA=isa)
        assert done.returncode == 0, done.stderr
        expected = f"LFM_ENGINE_ISA={isa} is not available: this CPU has {', '.join(has)}\n"
        assert done.stdout == expected


def test_every_isa_of_the_cpu_is_used(run_python: RunPython) -> None:
    code = "print(golden_models.load('lfm2-base').core.isa)"
    for isa in _core.cpu_info()["isas"]:
        done = run_python(code, LFM_ENGINE_ISA=isa)
        assert done.stdout == isa + "\n", done.stderr


def test_none_is_no_model() -> None:
    none: Any = None
    for make in (_core.Scheduler, lambda model: _core.PrefixCache(model, 1)):
        with pytest.raises(TypeError, match="model"):
            make(none)
