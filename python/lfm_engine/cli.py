"""The `lfm-engine` command: `demo`, `info`, `generate`, `chat`, `pack` and `eval`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .evaluate.cli import add_commands as add_evaluation
from .streamers import TextStreamer
from .tokenizer import AutoTokenizer, Tokenizer

_DEFAULT_NEW_TOKENS = 512
_SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "seed")
_HELP = "/reset starts over, /exit leaves; Ctrl-C stops an answer"
_BAD_INPUT, _INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's); return the exit status.

    0: done. 2: bad arguments or input, told in one line on stderr. 130: interrupted.
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has printed the reason, or the help
        return stop.code if isinstance(stop.code, int) else _BAD_INPUT
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character
    try:
        return int(options.run(options))
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (OSError, ValueError, MemoryError, ImportError) as error:
        if options.debug:
            traceback.print_exc()
        else:
            print(f"lfm-engine: error: {_one_line(error)}", file=sys.stderr)
        return _BAD_INPUT


def _one_line(error: BaseException) -> str:
    fallback = "out of memory" if isinstance(error, MemoryError) else type(error).__name__
    return " ".join(str(error).split()) or fallback


# -- arguments --


def _parser() -> argparse.ArgumentParser:
    import lfm_engine

    version = getattr(lfm_engine, "__version__", "unknown")
    parser = argparse.ArgumentParser(prog="lfm-engine", description="Run LFM2 models on the CPU.")
    parser.add_argument("--version", action="version", version=f"lfm-engine {version}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "model", metavar="MODEL", help='hub id, folder, .gguf or .lfm file, or "demo"'
    )
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="a tour on the miniature model in this package")
    demo.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, int8 or int4")
    demo.add_argument("--threads", type=int, metavar="N", help="default: this process's cores")
    demo.add_argument("--debug", action="store_true", help="show the traceback of an error")
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", parents=[common], help="describe a model; reads no weights")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    generate = commands.add_parser(
        "generate", parents=[common], help="answer or continue one prompt"
    )
    generate.add_argument("-p", "--prompt", help="the prompt; read from stdin when absent")
    style = generate.add_mutually_exclusive_group()
    style.add_argument(
        "--chat", action="store_true", help="apply the chat template (default if any)"
    )
    style.add_argument("--raw", action="store_true", help="continue the prompt as it is")
    generate.add_argument("--json", action="store_true", help="print one JSON object at the end")
    generate.set_defaults(run=_generate)

    chat = commands.add_parser("chat", parents=[common], help=f"a conversation ({_HELP})")
    chat.set_defaults(run=_chat)

    pack = commands.add_parser(
        "pack", parents=[common], help="write a model as one .lfm file that opens at once"
    )
    action = pack.add_mutually_exclusive_group(required=True)
    action.add_argument("-o", "--output", metavar="FILE", help="the file to write")
    action.add_argument(
        "--verify", action="store_true", help="compare a packed file with its checksums"
    )
    pack.add_argument("--dtype", default="int4", help="int4 (default) or int8")
    pack.add_argument("--threads", type=int, metavar="N", help="default: this process's cores")
    pack.set_defaults(run=_pack)

    for command in (generate, chat):
        command.add_argument("--system", help="system message")
        _add_engine_options(command)
        _add_sampling_options(command)
    add_evaluation(commands, _add_engine_options, _add_sampling_options, _generation_options)
    return parser


def _add_engine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, int8 or int4")
    command.add_argument(
        "--kv-dtype", default="auto", help="of keys and values: auto, float32, bfloat16 or int8"
    )
    command.add_argument("--threads", type=int, metavar="N", help="default: this process's cores")


def _add_sampling_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("generation", "defaults come from the checkpoint")
    group.add_argument(
        "--max-new-tokens", type=int, metavar="N", help=f"default {_DEFAULT_NEW_TOKENS}"
    )
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--greedy", action="store_true", help="take the likeliest token")
    mode.add_argument("--sample", action="store_true", help="draw; implied by the options below")
    group.add_argument("--temperature", type=float, metavar="T")
    group.add_argument("--top-k", type=int, metavar="K")
    group.add_argument("--top-p", type=float, metavar="P")
    group.add_argument("--min-p", type=float, metavar="P")
    group.add_argument("--seed", type=int, metavar="N")
    group.add_argument("--repetition-penalty", type=float, metavar="R")


def _generation_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for `model.generate`; those not given are left to the checkpoint."""
    given = {
        name: getattr(options, name)
        for name in _SAMPLING_OPTIONS
        if getattr(options, name) is not None
    }
    if options.greedy and given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"--greedy does not go with {names}")
    if options.greedy:
        given["do_sample"] = False
    elif given or options.sample:
        given["do_sample"] = True
    if options.repetition_penalty is not None:
        given["repetition_penalty"] = options.repetition_penalty
    if options.max_new_tokens is not None:
        given["max_new_tokens"] = options.max_new_tokens
    from .generation import GenerationConfig

    GenerationConfig(**given)  # complain before the weights are loaded
    return given


# -- commands --


class _Recorder(TextStreamer):
    """Prints the answer as it comes, unless `silent`, and keeps its text and times."""

    def __init__(self, tokenizer: Tokenizer, silent: bool = False) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._silent = silent
        self._pieces: list[str] = []
        self._prompt_tokens = 0
        self._new_tokens = 0
        self._start = time.perf_counter()
        self._first = self._last = self._start

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def put(self, value: Any) -> None:
        if self.next_tokens_are_prompt:
            self._prompt_tokens = int(value.size)
        else:
            self._last = time.perf_counter()
            if self._new_tokens == 0:
                self._first = self._last
            self._new_tokens += int(getattr(value, "size", 1))
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._pieces.append(text)
        if not self._silent:
            super().on_finalized_text(text, stream_end)

    def statistics(self) -> dict[str, Any]:
        """Return the counts and the speeds; None for a speed that a single token cannot tell."""
        decode = self._last - self._first
        return {
            "prompt_tokens": self._prompt_tokens,
            "new_tokens": self._new_tokens,
            "seconds_to_first_token": round(self._first - self._start, 4),
            "tokens_per_second": round((self._new_tokens - 1) / decode, 2) if decode > 0 else None,
        }

    def report(self) -> None:
        """Print the statistics to stderr."""
        found = self.statistics()
        wait = f"{found['seconds_to_first_token']:.2f} s"
        speed = f", {found['tokens_per_second']} tokens/s" if found["tokens_per_second"] else ""
        print(
            f"[{found['prompt_tokens']} prompt tokens, first token after {wait}; "
            f"{found['new_tokens']} new tokens{speed}]",
            file=sys.stderr,
        )


class _Session:
    """A loaded model with its tokenizer and the user's generation options."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = _generation_options(options)
        self.tokenizer = AutoTokenizer.from_pretrained(options.model)
        from lfm_engine import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(
            options.model,
            dtype=options.dtype,
            num_threads=options.threads,
            kv_dtype=options.kv_dtype,
        )

    def chat_ids(self, messages: list[dict[str, str]]) -> Any:
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="np"
        ).input_ids

    def generate(self, input_ids: Any, recorder: _Recorder) -> None:
        options = dict(self._options)
        room = int(self._model.config.max_position_embeddings) - int(input_ids.shape[1])
        if "max_new_tokens" not in options and room > 0:
            options["max_new_tokens"] = min(_DEFAULT_NEW_TOKENS, room)
        self._model.generate(input_ids, streamer=recorder, tokenizer=self.tokenizer, **options)


def _generate(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt is None else options.prompt
    if options.raw and options.system is not None:
        raise ValueError("--system does not go with --raw")
    session = _Session(options)
    tokenizer = session.tokenizer
    if options.raw or not (options.chat or options.system is not None or tokenizer.chat_template):
        input_ids = tokenizer(prompt, return_tensors="np").input_ids
    else:
        input_ids = session.chat_ids(
            [*_system_message(options), {"role": "user", "content": prompt}]
        )
    recorder = _Recorder(tokenizer, silent=options.json)
    session.generate(input_ids, recorder)
    if options.json:
        result = {"prompt": prompt, "text": recorder.text, **recorder.statistics()}
        print(json.dumps(result, ensure_ascii=False))
    else:
        recorder.report()
    return 0


def _chat(options: argparse.Namespace) -> int:
    session = _Session(options)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        _enable_line_editing()
        print(_HELP)
    messages = _system_message(options)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return 0
        except KeyboardInterrupt:
            if not interactive:
                raise
            print()
            continue
        if line in ("/exit", "/quit"):
            return 0
        if line == "/reset":
            messages = _system_message(options)
        elif line:
            _answer(session, messages, line, interactive)


def _answer(
    session: _Session, messages: list[dict[str, str]], line: str, interactive: bool
) -> None:
    """Add the user's turn and the model's to the conversation, or neither if that fails."""
    messages.append({"role": "user", "content": line})
    recorder = _Recorder(session.tokenizer)
    try:
        session.generate(session.chat_ids(messages), recorder)
    except KeyboardInterrupt:
        recorder.end()
        print("[stopped]", file=sys.stderr)
    except ValueError as error:
        # Mostly a conversation that outgrew the context: the user may go on or start over.
        messages.pop()
        if not interactive:
            raise
        print(f"lfm-engine: error: {_one_line(error)}", file=sys.stderr)
        return
    else:
        recorder.report()
    messages.append({"role": "assistant", "content": recorder.text})


def _system_message(options: argparse.Namespace) -> list[dict[str, str]]:
    return [] if options.system is None else [{"role": "system", "content": options.system}]


def _enable_line_editing() -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (importing it is enough for input())


# -- demo --


def _demo(options: argparse.Namespace) -> int:
    from .demo_command import run_demo

    run_demo(options.threads, options.dtype)
    return 0


# -- pack --


def _pack(options: argparse.Namespace) -> int:
    from .auto_model import AutoModelForCausalLM
    from .checkpoint import open_checkpoint
    from .checkpoint.packed import check_packable

    if options.verify:
        with open_checkpoint(options.model) as checkpoint:
            checkpoint.verify()
        print(f"{options.model}: all checksums are right")
        return 0
    check_packable(options.dtype)
    folder = Path(options.output).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{options.output}: there is no folder {folder}")
    tokenizer = None
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    except (OSError, ValueError) as error:
        print(f"lfm-engine: packing without a tokenizer: {_one_line(error)}", file=sys.stderr)
    model = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=options.dtype, num_threads=options.threads
    )
    model.save_packed(options.output, tokenizer)
    size = Path(options.output).stat().st_size
    print(f"{options.output}: {model.dtype}, {size / 1e6:.1f} MB")
    return 0


# -- info --


def _info(options: argparse.Namespace) -> int:
    facts = _facts(options.model)
    if options.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif sys.stdout.isatty():
        _print_table(facts)
    else:
        for name, value in facts.items():
            print(f"{name + ':':<20} {_show(value)}")
    return 0


def _facts(model: str) -> dict[str, Any]:
    from . import _core
    from .auto_model import auto_dtype
    from .checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model)
    try:
        config, path = checkpoint.config, Path(checkpoint.path)
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        facts = {
            "model": str(path),
            "architecture": config.architecture,
            "parameters": config.num_parameters,
            "auto dtype": auto_dtype(checkpoint),
            "files": {file.name: file.stat().st_size for file in files},
            "layers": dict(Counter(config.layer_types)),
            "hidden size": config.hidden_size,
            "FFN size": config.intermediate_size,
            "attention heads": config.num_attention_heads,
            "KV heads": config.num_key_value_heads,
            "head size": config.head_dim,
            "vocabulary": config.vocab_size,
            "tied head": config.tie_word_embeddings,
            "context": config.max_position_embeddings,
            "generation config": dict(checkpoint.generation_config),
        }
    finally:
        checkpoint.close()
    facts["tokenizer"] = _tokenizer_facts(model)
    engine = _core.cpu_info()
    facts["engine"] = f"{engine['isa']}, {engine['num_threads']} threads"
    return facts


def _tokenizer_facts(model: str) -> str:
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        return f"none ({_one_line(error)})"
    template = "with" if tokenizer.chat_template else "without"
    return (
        f"{len(tokenizer)} tokens, bos {tokenizer.bos_token_id}, eos {tokenizer.eos_token_id}, "
        f"pad {tokenizer.pad_token_id}, {template} chat template"
    )


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_show(entry)}" for key, entry in value.items()) or "-"
    return str(value)


def _print_table(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        table.add_row(Text(name, style="bold"), Text(_show(value)))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
