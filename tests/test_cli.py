"""The command line, with a model that repeats its prompt."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lfm_engine
import tiny_tokenizer
from lfm_engine import checkpoint, cli


class EchoModel:
    """Answers with the prompt's last word, token by token; records what it is called with."""

    config = SimpleNamespace(max_position_embeddings=600)
    calls: list[dict[str, Any]]
    loaded: dict[str, Any]
    interrupt = False
    error: Exception | None = None

    def generate(self, input_ids: Any, *, streamer: Any, tokenizer: Any, **options: Any) -> Any:
        assert input_ids.dtype == np.int64 and input_ids.shape[0] == 1
        text = tokenizer.decode(input_ids[0])
        self.calls.append({"prompt": text, **options})
        if self.error is not None:
            raise self.error
        words = text.replace("<eos>", " ").replace("<im>assistant", " ").split()
        new = [*tokenizer(words[-1], add_special_tokens=False).input_ids, 2]
        streamer.put(input_ids)
        for index, token in enumerate(new):
            if self.interrupt and index == 1:
                raise KeyboardInterrupt
            streamer.put(np.array([token]))
        streamer.end()
        return np.concatenate([input_ids, [new]], axis=1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> EchoModel:
    fake = EchoModel()
    fake.calls = []

    class Loader:
        @staticmethod
        def from_pretrained(path: str, **options: Any) -> EchoModel:
            fake.loaded = {"path": path, **options}
            return fake

    monkeypatch.setattr(lfm_engine, "AutoModelForCausalLM", Loader, raising=False)
    return fake


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_tokenizer.write(tmp_path / "model"))


def speak(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def test_generate_streams_and_reports(
    model: EchoModel, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", folder, "-p", "say hello"]) == 0
    output = capsys.readouterr()
    assert output.out == "hello\n"
    assert "2 new tokens" in output.err and "tokens/s" in output.err
    prompt = "<bos><im>user\nsay hello<eos>\n<im>assistant\n"
    assert model.calls == [{"prompt": prompt, "max_new_tokens": 512}]
    loaded = {"dtype": "auto", "kv_dtype": "auto", "num_threads": None}
    assert model.loaded == {"path": folder, **loaded}


def test_generate_passes_options_on(model: EchoModel, folder: str) -> None:
    text = "--raw --temperature 0.3 --top-k 5 --top-p 0.9 --min-p 0.15 --seed 3"
    text += " --repetition-penalty 1.05 --max-new-tokens 7 --dtype int8 --threads 2"
    assert cli.main(["generate", folder, "-p", "hello", *text.split()]) == 0
    assert model.calls[0] == {
        "prompt": "<bos>hello",
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.15,
        "seed": 3,
        "repetition_penalty": 1.05,
        "max_new_tokens": 7,
    }
    assert model.loaded["dtype"] == "int8" and model.loaded["num_threads"] == 2
    assert cli.main(["generate", folder, "-p", "hello", "--greedy", "--system", "Be"]) == 0
    assert model.calls[1]["do_sample"] is False
    assert model.calls[1]["prompt"].startswith("<bos><im>system\nBe<eos>\n<im>user\nhello")
    long_prompt = "x" * 550
    assert cli.main(["generate", folder, "-p", long_prompt, "--raw"]) == 0
    assert model.calls[2]["max_new_tokens"] == 600 - 551


def test_generate_json_and_stdin(
    model: EchoModel,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speak(monkeypatch, "hello 12")
    assert cli.main(["generate", folder, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["prompt"], result["text"], result["new_tokens"]) == ("hello 12", "12", 2)
    assert result["tokens_per_second"] > 0


def test_chat_keeps_the_conversation(
    model: EchoModel,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speak(monkeypatch, "hello\n\nwo 12\n/reset\nab\n/exit\nnever\n")
    assert cli.main(["chat", folder, "--system", "S"]) == 0
    assert capsys.readouterr().out == "hello\n12\nab\n"
    prompts = [call["prompt"] for call in model.calls]
    assert len(prompts) == 3
    turns = "<im>user\nhello<eos>\n<im>assistant\nhello<eos>\n<im>user\nwo 12<eos>\n<im>assistant\n"
    assert prompts[1] == "<bos><im>system\nS<eos>\n" + turns
    assert prompts[2] == "<bos><im>system\nS<eos>\n<im>user\nab<eos>\n<im>assistant\n"


def test_ctrl_c_stops_the_answer_only(
    model: EchoModel,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.interrupt = True
    speak(monkeypatch, "x hello,more\nagain wo\n")
    assert cli.main(["chat", folder]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == ["hello", "w"]
    assert output.err.count("[stopped]") == 2
    assert "<im>assistant\nhello<eos>" in model.calls[1]["prompt"]
    assert cli.main(["generate", folder, "-p", "hello,more"]) == 130


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--top-p", "2"], "top_p must be in"),
        (["--greedy", "--temperature", "1"], "--greedy does not go with --temperature"),
        (["--raw", "--system", "S"], "--system does not go with --raw"),
        (["--greedy", "--sample"], "not allowed with"),
        (["--threads", "many"], "invalid int value"),
    ],
)
def test_wrong_arguments(
    model: EchoModel,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    problem: str,
) -> None:
    assert cli.main(["generate", folder, "-p", "x", *arguments]) == 2
    error = capsys.readouterr().err
    assert problem in error and "Traceback" not in error
    assert not model.calls


def test_errors_are_one_line(
    model: EchoModel,
    folder: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.error = ValueError("prompt of 9 tokens\nis too long")
    assert cli.main(["generate", folder, "-p", "x"]) == 2
    assert capsys.readouterr().err == "lfm-engine: error: prompt of 9 tokens is too long\n"
    assert cli.main(["generate", folder, "-p", "x", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    speak(monkeypatch, "x\n")
    assert cli.main(["chat", folder]) == 2
    assert cli.main(["generate", "./nowhere", "-p", "x"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("lfm-engine ")
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0


def test_info(
    folder: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (Path(folder) / "model.safetensors").write_bytes(bytes(1234))

    def open_checkpoint(_: str) -> Any:
        config = SimpleNamespace(
            architecture="lfm2",
            num_parameters=354483968,
            layer_types=("conv", "conv", "full_attention"),
            hidden_size=1024,
            intermediate_size=4608,
            num_attention_heads=16,
            num_key_value_heads=8,
            head_dim=64,
            vocab_size=65536,
            tie_word_embeddings=True,
            max_position_embeddings=128000,
        )
        return SimpleNamespace(
            config=config,
            path=Path(folder),
            stored_dtype="bfloat16",
            generation_config={"eos_token_id": 7},
            close=lambda: None,
        )

    core = SimpleNamespace(cpu_info=lambda: {"isa": "avx2", "num_threads": 2})
    monkeypatch.setattr(checkpoint, "open_checkpoint", open_checkpoint)
    monkeypatch.setitem(sys.modules, "lfm_engine._core", core)
    monkeypatch.setattr(lfm_engine, "_core", core, raising=False)
    assert cli.main(["info", folder]) == 0
    text = capsys.readouterr().out
    for fact in (
        "354,483,968",
        "conv 2, full_attention 1",
        "model.safetensors 1,234",
        "avx2, 2 thr",
    ):
        assert fact in text
    assert "267 tokens, bos 1, eos 2, pad 0, with chat template" in text
    assert cli.main(["info", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == {"conv": 2, "full_attention": 1}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["info", folder]) == 0
    assert "bfloat16" in capsys.readouterr().out
