"""Prompts and responses of IFEval and IFBench: from JSONL files, or prompts from the hub."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .extras import require

HUB = {"ifeval": "google/IFEval", "ifbench": "allenai/IFBench_test"}

Key = str | int


@dataclass(frozen=True)
class Prompt:
    """A prompt with the instructions that its response must follow.

    Attributes:
        key: its name in the benchmark.
        text: what the user says.
        instruction_ids: such as "keywords:existence".
        kwargs: the arguments of each instruction's checker.
    """

    key: Key
    text: str
    instruction_ids: list[str]
    kwargs: list[dict[str, Any]]


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with the numbers of their lines, from 1.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no JSON object; the message has the file and the line.
    """
    with open(path, encoding="utf-8") as file:
        try:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
                if not isinstance(value, dict):
                    raise ValueError(f"{path}, line {number}: not a JSON object")
                yield number, value
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8: {error}") from None


def load_prompts(source: str | os.PathLike[str]) -> list[Prompt]:
    """Read the prompts of IFEval or IFBench.

    Args:
        source: a JSONL file as the authors publish it, or the id of a dataset on the hub.

    Raises:
        OSError: no such file, or no network.
        ValueError: a line is malformed or a key comes twice; the message has file and line.
        MissingExtraError: `source` is on the hub, and the package datasets is missing.
    """
    if Path(source).exists() or Path(source).suffix in (".jsonl", ".json"):
        rows = _file_rows(source)
    else:
        rows = _hub_rows(str(source))
    prompts: dict[Key, Prompt] = {}
    for where, row in rows:
        prompt = _read_prompt(row, where)
        if prompt.key in prompts:
            raise ValueError(f"{where}: the key {prompt.key!r} comes twice")
        prompts[prompt.key] = prompt
    if not prompts:
        raise ValueError(f"{source}: no prompts")
    return list(prompts.values())


def _file_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in read_jsonl(path):
        yield f"{path}, line {number}", row


def _hub_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    datasets = require("datasets", "a data set of the hub")
    try:
        splits = datasets.load_dataset(name)
    except Exception as error:  # of many kinds: the hub's, the network's, the file system's
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(f"{name}: neither a file nor a data set that can be loaded: {reason}") from (
            error
        )
    split = next(name for name in ("train", "test", *splits) if name in splits)
    for index, row in enumerate(splits[split]):
        yield f"{name}, row {index}", dict(row)


def _read_prompt(row: Mapping[str, Any], where: str) -> Prompt:
    for field in ("key", "prompt", "instruction_id_list", "kwargs"):
        if field not in row:
            raise ValueError(f"{where}: {field} is missing")
    key, text, ids, kwargs = (row[f] for f in ("key", "prompt", "instruction_id_list", "kwargs"))
    if isinstance(key, bool) or not isinstance(key, (str, int)):
        raise ValueError(f"{where}: key must be a string or an integer, not {key!r}")
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: prompt must be text, not {text!r}")
    if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"{where}: instruction_id_list must be a list of names, not {ids!r}")
    if not isinstance(kwargs, list) or not all(isinstance(each, dict) for each in kwargs):
        raise ValueError(f"{where}: kwargs must be a list of objects")
    if len(kwargs) != len(ids):
        raise ValueError(f"{where}: {len(ids)} instructions, but kwargs for {len(kwargs)}")
    return Prompt(key, text, list(ids), [dict(each) for each in kwargs])


def match_responses(
    source: str | os.PathLike[str], prompts: Sequence[Prompt]
) -> tuple[dict[Key, str], list[Key]]:
    """Read responses that were made elsewhere, `{"prompt" or "key": ..., "response": ...}` a line.

    Published responses do not always repeat the prompt to the letter. In a file with as many lines
    as there are prompts, a response that fits none is the one of the prompt in its place, if no
    other fits that.

    Returns:
        The response to each prompt that has one, and the keys of those matched by place.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is malformed; the message has file and line.
    """
    by_key = {str(prompt.key): prompt.key for prompt in prompts}
    by_text = {prompt.text.strip(): prompt.key for prompt in prompts}
    found: dict[Key, str] = {}
    unmatched: dict[int, str] = {}
    count = 0
    for number, row in read_jsonl(source):
        if "settings" in row and "response" not in row:
            continue  # the first line of our own files
        response = row.get("response")
        if not isinstance(response, str):
            raise ValueError(f"{source}, line {number}: response must be text, not {response!r}")
        key = by_key.get(str(row.get("key")))
        if key is None:
            key = by_text.get(str(row.get("prompt", "")).strip())
        if key is None:
            unmatched[count] = response
        else:
            found[key] = response
        count += 1
    by_place: list[Key] = []
    if count == len(prompts):
        for index, response in unmatched.items():
            key = prompts[index].key
            if key not in found:
                found[key] = response
                by_place.append(key)
    if not found:
        raise ValueError(f"{source}: no response is to one of the prompts")
    return found, by_place
