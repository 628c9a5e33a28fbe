"""Streaming: pieces that join to the whole text, and stop strings."""

from __future__ import annotations

import random
from queue import Empty
from threading import Thread

import numpy as np
import pytest

import tiny_tokenizer
from lfm_engine.streamers import (
    BaseStreamer,
    IncrementalDecoder,
    StopStringMatcher,
    TextIteratorStreamer,
    TextStreamer,
)
from lfm_engine.tokenizer import Tokenizer

TEXT = "hello wo 12 Ünï 你好 😀👩‍👧 \ufffd end"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return tiny_tokenizer.load(tmp_path_factory.mktemp("tokenizer"))


def test_pieces_are_whole_characters(tokenizer: Tokenizer) -> None:
    decoder = IncrementalDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer(TEXT, add_special_tokens=False).input_ids]
    assert "".join(pieces) + decoder.flush() == TEXT
    assert "".join(piece for piece in pieces if "\ufffd" not in piece).startswith("hello wo 12 Ünï")
    assert "😀" in pieces
    assert decoder.flush() == ""


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_pieces_join_to_the_text_of_any_ids(
    tokenizer: Tokenizer, skip_special_tokens: bool
) -> None:
    draw = random.Random(0)
    multibyte = tokenizer("é你😀", add_special_tokens=False).input_ids
    for _ in range(400):
        pool = multibyte if draw.random() < 0.5 else range(len(tokenizer))
        ids = [draw.choice(pool) for _ in range(draw.randrange(50))]
        decoder = IncrementalDecoder(tokenizer, skip_special_tokens=skip_special_tokens)
        cut = draw.randrange(len(ids) + 1)
        pieces = [decoder.extend(ids[:cut]), *(decoder.push(token) for token in ids[cut:])]
        whole = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        assert "".join(pieces) + decoder.flush() == whole


def test_each_token_decodes_a_bounded_window(tokenizer: Tokenizer) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return str(tokenizer.decode(ids))

    for ids in (tokenizer("hello " * 200).input_ids, [tokenizer("é").input_ids[1]] * 500):
        counting = Counting()
        decoder = IncrementalDecoder(counting)
        for token in ids:
            decoder.push(token)
        assert counting.longest < 20


def test_text_streamer_prints(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    ids = tokenizer(TEXT).input_ids
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    for _ in range(2):  # a streamer can be used again
        streamer.put(np.array([ids[:3]]))
        for token in [*ids[3:], 2]:
            streamer.put(np.array([token]))
        streamer.end()
        expected = tokenizer.decode(ids[3:]) + "\n"
        assert capsys.readouterr().out == expected
    everything = TextStreamer(tokenizer)
    everything.put(ids)
    everything.put(2)
    everything.end()
    assert capsys.readouterr().out == f"<bos>{TEXT}<eos>\n"


def test_streamers_take_one_sequence(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        TextStreamer(tokenizer).put(np.zeros((2, 3), dtype=np.int64))
    with pytest.raises(NotImplementedError):
        BaseStreamer().put([1])
    with pytest.raises(NotImplementedError):
        BaseStreamer().end()


def test_iterator_streamer_across_threads(tokenizer: Tokenizer) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=10)

    def produce() -> None:
        streamer.put(np.array([[1]]))
        for token in ids:
            streamer.put(np.array([token]))
        streamer.end()

    thread = Thread(target=produce)
    thread.start()
    assert "".join(streamer) == TEXT
    thread.join()


def test_iterator_streamer_raises_the_producers_error(tokenizer: Tokenizer) -> None:
    streamer = TextIteratorStreamer(tokenizer, timeout=10)
    streamer.put(tokenizer("hello").input_ids)
    streamer.fail(MemoryError("no room"))
    assert next(streamer) == "<bos>hello"
    with pytest.raises(MemoryError, match="no room"):
        next(streamer)
    with pytest.raises(Empty):
        next(TextIteratorStreamer(tokenizer, timeout=0.01))


def test_stop_strings_span_pieces() -> None:
    matcher = StopStringMatcher(["<end>", "\n\n"])
    assert [matcher.push(piece) for piece in ("a<e", "", "nd", ">b", "c")] == [
        False,
        False,
        False,
        True,
        True,
    ]
    matcher = StopStringMatcher("\n\n")
    assert [matcher.push(piece) for piece in ("a\n", "b\n", "\n")] == [False, False, True]
    assert StopStringMatcher("x").push("xyz")
    assert not StopStringMatcher([]).push("text")
    with pytest.raises(ValueError, match="non-empty"):
        StopStringMatcher([""])


def test_stop_strings_equal_a_search_in_the_whole_text() -> None:
    draw = random.Random(1)
    for _ in range(300):
        text = "".join(draw.choice("ab") for _ in range(30))
        stops = ["".join(draw.choice("ab") for _ in range(draw.randrange(1, 7))) for _ in range(2)]
        matcher = StopStringMatcher(stops)
        start = 0
        while start < len(text):
            end = min(len(text), start + draw.randrange(1, 5))
            assert matcher.push(text[start:end]) == any(stop in text[:end] for stop in stops)
            start = end
