"""Classification of many short texts under one long instruction, against peers.

    PYTHONPATH=python python benchmarks/bench_classify.py FOLDER [--python llama.cpp=PATH ...]

FOLDER comes from make_model.py --gguf Q8_0. Every engine gets the same ids: an instruction of about
500 tokens, then a text of its own of about 30. lfm-engine runs `classify` in int8; llama.cpp its
Q8_0 file as its server does with prompt caching: the state after the instruction is restored, each
text is evaluated and a token chosen; transformers a padded batch of 16 in bfloat16, whose
instruction is computed each time. Slow engines get --peer-texts of the texts; figures are texts/s.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PHRASES = """the order came late again and nobody at the desk could say why so please send my money
back thank you for the quick help your new app is great but login fails on my phone since monday we
would like to book two rooms near the station for next week with breakfast and parking"""
WORDS = PHRASES.split()
LABELS = ["billing", "delivery", "technical", "booking", "praise"]


def texts(count: int) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.randint(18, 32))) for _ in range(count)]


def instruction(words: int) -> str:
    rng = random.Random(2)
    rules = [" ".join(rng.choices(WORDS, k=12)) for _ in range(words // 12)]
    return f"Answer with one of {', '.join(LABELS)}. Examples: " + ". ".join(rules)


def shared_length(prompts: list[list[int]]) -> int:
    first, *rest = prompts[:20]
    count = 0
    while all(row[count] == first[count] for row in rest):
        count += 1
    return count


def llama_cpp(folder: Path, prompts: list[list[int]], threads: int) -> Callable[[], Any]:
    from llama_cpp import Llama

    llm = Llama(
        str(folder / "model-Q8_0.gguf"),
        n_ctx=2048,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    # Its cache cannot go back to the middle of a hybrid model's sequence: the state after the
    # instruction is saved and restored, as the server's context checkpoints are.
    shared = shared_length(prompts)
    llm.eval(prompts[0][:shared])
    state = llm.save_state()

    def first(ids: list[int]) -> int:
        llm.load_state(state)
        llm.eval(ids[shared:])
        return int(llm.sample(temp=0.0))

    first(prompts[0])
    return lambda: [first(ids) for ids in prompts[1:]]


def transformers(folder: Path, prompts: list[list[int]], threads: int) -> Callable[[], Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def run() -> None:
        for i in range(0, len(prompts), 16):
            rows = prompts[i : i + 16]
            longest = max(map(len, rows))
            ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            with torch.inference_mode():
                model(ids, attention_mask=mask, logits_to_keep=1).logits.argmax(-1)

    return run


def worker(engine: str, folder: Path, threads: int) -> None:
    prompts = json.loads(sys.stdin.read())
    run = {"llama.cpp": llama_cpp, "transformers": transformers}[engine](folder, prompts, threads)
    begin = time.perf_counter()
    run()
    count = len(prompts) - (engine == "llama.cpp")
    print(json.dumps(count / (time.perf_counter() - begin)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--peer-texts", type=int, default=64)
    parser.add_argument("--instruction", type=int, default=440, help="words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=INTERPRETER")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.folder, options.threads)
        return

    import numpy as np

    from lfm_engine import AutoModelForCausalLM, AutoTokenizer
    from tables import format_table

    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForCausalLM.from_pretrained(
        options.folder, dtype="int8", num_threads=options.threads
    )
    system = instruction(options.instruction)
    all_texts = texts(options.texts)
    prompts = [
        np.asarray(
            tokenizer.apply_chat_template(
                [{"role": "system", "content": system}, {"role": "user", "content": text}],
                add_generation_prompt=True,
                return_dict=False,
            )
        ).tolist()
        for text in all_texts
    ]
    rows = []

    def add(name: str, rate: float) -> None:
        rows.append([name, f"{rate:.2f}", f"{mine / rate:.1f}" if rows else ""])

    model.classify(all_texts[:20], LABELS, tokenizer=tokenizer, instruction=system)
    begin = time.perf_counter()
    model.classify(all_texts, LABELS, tokenizer=tokenizer, instruction=system)
    mine = options.texts / (time.perf_counter() - begin)
    add("lfm-engine int8", mine)
    interpreters = dict(entry.split("=", 1) for entry in options.python)
    for engine in ("llama.cpp", "transformers"):
        command = [interpreters.get(engine, sys.executable), __file__, str(options.folder)]
        command += ["--worker", engine, "--threads", str(options.threads)]
        given = json.dumps(prompts[: options.peer_texts + 1])
        done = subprocess.run(command, input=given, capture_output=True, text=True)
        if done.returncode != 0:
            print(f"not run: {engine}: {done.stderr.strip().splitlines()[-1]}")
            continue
        add(engine, json.loads(done.stdout.splitlines()[-1]))
    title = (
        f"{options.texts} texts of {len(prompts[0])} tokens that share their first "
        f"{shared_length(prompts)}, {options.threads} threads"
    )
    print(format_table(title, ["", "texts/s", "lfm-engine is faster by"], rows))


if __name__ == "__main__":
    main()
