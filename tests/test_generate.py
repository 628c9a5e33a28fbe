"""`model.generate`: kinds of input, ends, options, seeds and streamers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import golden_models
import tiny_tokenizer
from golden_models import DTYPES, PLAIN_GREEDY, Golden
from lfm_engine import (
    AutoModelForCausalLM,
    BaseStreamer,
    CausalLM,
    GenerateOutput,
    GenerationConfig,
    TextIteratorStreamer,
    TextStreamer,
)

pytestmark = pytest.mark.engine


class Letters:
    """A tokenizer whose every token is one character."""

    @staticmethod
    def decode(ids: Sequence[int], **_: Any) -> str:
        return "".join(chr(0x4E00 + token) for token in ids)


class Recorder(BaseStreamer):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def put(self, value: Any) -> None:
        self.calls.append(np.asarray(value).tolist())

    def end(self) -> None:
        self.calls.append("end")


class TorchLike:
    """What a torch tensor has that NumPy reads."""

    def __init__(self, values: Any) -> None:
        self._values = np.asarray(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._values.astype(dtype) if dtype is not None else self._values

    def __len__(self) -> int:
        return len(self._values)


def greedy(model: CausalLM, ids: Any, new: int = 24, **options: Any) -> Any:
    return model.generate(ids, max_new_tokens=new, **{**PLAIN_GREEDY, **options})


# -- input --


def test_kinds_of_input() -> None:
    golden = golden_models.golden("lfm2-hd128-f32")  # its ids fit into int8
    model, prompt = golden_models.load(golden.name), golden.prompt
    spread = np.zeros(80, np.int64)
    spread[::2] = prompt
    inputs = [
        prompt,
        prompt[None],
        prompt.tolist(),
        [prompt.tolist()],
        tuple(prompt.tolist()),
        [prompt],
        TorchLike(prompt),
        TorchLike(prompt[None]),
        [TorchLike(prompt)],
        spread[::2],
        prompt[::-1].copy()[::-1],
        np.asfortranarray(np.stack([prompt, prompt]))[:1],
        memoryview(np.ascontiguousarray(prompt)),
    ]
    for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4", ">i8"):
        inputs += [prompt.astype(dtype), prompt[None].astype(dtype)]
    for ids in inputs:
        found = greedy(model, ids)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.int64
        assert found.tolist() == [[*prompt.tolist(), *golden.greedy.tolist()]]


def test_a_batch_is_its_rows(golden: Golden) -> None:
    model = golden_models.load(golden.name)
    rows = np.stack([golden.prompt, golden.prompt[::-1], np.roll(golden.prompt, 5)])
    found = greedy(model, rows)
    assert found.shape == (3, 64)
    assert found[0, 40:].tolist() == golden.greedy.tolist()
    for row, alone in zip(found, rows, strict=True):
        assert np.array_equal(row, greedy(model, alone)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_prompts_of_different_lengths(base: Golden, dtype: str, threads: int) -> None:
    model = golden_models.load(base.name, dtype, threads)
    prompts = [base.prompt[:n] for n in (3, 40, 1, 17)]
    found = greedy(model, prompts)
    assert isinstance(found, list)
    for row, prompt in zip(found, prompts, strict=True):
        assert row.dtype == np.int64
        assert row.ndim == 1
        assert np.array_equal(row, greedy(model, prompt)[0])
    nested = greedy(model, [prompt.tolist() for prompt in prompts])
    assert all(np.array_equal(one, other) for one, other in zip(found, nested, strict=True))
    torch_like = greedy(model, [TorchLike(prompt) for prompt in prompts])
    assert all(np.array_equal(one, other) for one, other in zip(found, torch_like, strict=True))


def test_padding_on_the_left(model: CausalLM, base: Golden) -> None:
    prompts = [base.prompt[:12], base.prompt[20:25], base.prompt[30:31]]
    ids = np.full((3, 12), 99)
    mask = np.zeros((3, 12), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, 12 - len(prompt) :] = prompt
        mask[row, 12 - len(prompt) :] = 1
    for given in (mask, mask.astype(bool), mask.tolist(), mask.astype(np.float32), TorchLike(mask)):
        found = greedy(model, ids, attention_mask=given)
        assert np.array_equal(found[:, :12], ids)  # the padding stays, as in transformers
        for row, prompt in enumerate(prompts):
            assert np.array_equal(found[row, 12:], greedy(model, prompt)[0, len(prompt) :])
    one = greedy(model, base.prompt, attention_mask=np.ones(40, np.int64))
    assert one[0, 40:].tolist() == base.greedy.tolist()


# -- where it ends --


def test_end_of_sequence(model: CausalLM, base: Golden) -> None:
    prompt, expected = base.prompt, base.greedy.tolist()
    end = expected[5]
    first = expected.index(end)

    def new(**options: Any) -> list[int]:
        return list(greedy(model, prompt, **options)[0, 40:])

    assert new(eos_token_id=end) == expected[: first + 1]
    assert new(eos_token_id=[130, end]) == expected[: first + 1]
    assert new(eos_token_id=np.int64(end)) == expected[: first + 1]
    assert new(eos_token_id=[]) == expected
    # None takes the checkpoint's; here it is made the same as above.
    config = GenerationConfig(eos_token_id=[end], max_new_tokens=24)
    found = model.generate(prompt, config, eos_token_id=None)
    assert found[0, 40:].tolist() == expected[: first + 1]
    assert model.config.eos_token_id == (7, 2)


def test_the_checkpoints_end_of_sequence(base: Golden, tmp_path: Any) -> None:
    end = int(base.greedy[5])
    folder = golden_models.changed_copy("lfm2-base", tmp_path / "model", eos_token_id=end)
    (folder / "generation_config.json").unlink()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", num_threads=1)
    expected = base.greedy[: base.greedy.tolist().index(end) + 1].tolist()
    for options in ({}, {"eos_token_id": None}):
        found = model.generate(base.prompt, max_new_tokens=24, **options)
        assert found[0, 40:].tolist() == expected
    assert model.generate(base.prompt, max_new_tokens=24, eos_token_id=[]).shape == (1, 64)


def test_min_new_tokens(model: CausalLM, base: Golden) -> None:
    end = int(base.greedy[0])
    assert greedy(model, base.prompt, eos_token_id=end).shape == (1, 41)
    found = greedy(model, base.prompt, eos_token_id=end, min_new_tokens=6)[0, 40:]
    assert len(found) > 6
    assert end not in found[:6]


def test_lengths(model: CausalLM, base: Golden) -> None:
    prompt = base.prompt
    options = PLAIN_GREEDY
    assert model.generate(prompt, max_new_tokens=1, **options).shape == (1, 41)
    assert model.generate(prompt, max_length=50, **options).shape == (1, 50)
    assert model.generate(prompt, max_length=50, max_new_tokens=3, **options).shape == (1, 43)
    assert model.generate(prompt, **options).shape == (1, 60)  # 20, as in transformers
    assert model.generate(prompt, max_new_tokens=89, **options).shape == (1, 129)  # the last fits
    long = np.resize(prompt, 120)
    assert model.generate(long, **options).shape == (1, 128)  # the default is cut to the context
    rows = model.generate([prompt[:10], prompt], max_length=50, **options)
    assert [len(row) for row in rows] == [50, 50]


def test_rows_that_end_early_are_filled_up(model: CausalLM, base: Golden) -> None:
    rows = np.stack([base.prompt, base.prompt[::-1]])
    other = greedy(model, rows)[1, 40:].tolist()
    end = next(token for token in other if token not in base.greedy)
    new = other.index(end) + 1
    for options, pad in (({"pad_token_id": 99}, 99), ({}, 0)):
        out = greedy(model, rows, eos_token_id=end, return_dict_in_generate=True, **options)
        assert isinstance(out, GenerateOutput)
        assert isinstance(out.sequences, np.ndarray)
        assert out.sequences[0, 40:].tolist() == base.greedy.tolist()
        assert out.sequences[1, 40:].tolist() == other[:new] + [pad] * (24 - new)
        assert out.finish_reasons == ["length", "stop"]
    assert model.config.pad_token_id == 0
    as_list = greedy(model, [rows[0], rows[1, 1:]], eos_token_id=end, return_dict_in_generate=True)
    assert isinstance(as_list.sequences, list)  # without any padding


def test_stop_strings_that_span_tokens(model: CausalLM, base: Golden) -> None:
    text = Letters.decode(base.greedy.tolist())
    for stop in (text[4:7], text[9:10], ["absent", text[11:13]]):
        first = stop if isinstance(stop, str) else stop[1]
        expected = text.index(first) + len(first)
        options: Any = {"stop_strings": stop, "tokenizer": Letters}
        out = greedy(model, base.prompt, return_dict_in_generate=True, **options)
        assert out.sequences[0, 40:].tolist() == base.greedy[:expected].tolist()
        assert out.finish_reasons == ["stop"]
    # A text that only the prompt has does not count.
    inside = Letters.decode(base.prompt[:3].tolist())
    assert inside not in text
    assert greedy(model, base.prompt, stop_strings=inside, tokenizer=Letters).shape == (1, 64)
    pair = np.stack([base.prompt, base.prompt[::-1]])
    out = greedy(model, pair, stop_strings=text[4:7], tokenizer=Letters)
    assert out[0, 40:47].tolist() == base.greedy[:7].tolist()
    assert np.array_equal(out[1], greedy(model, pair)[1])
    with pytest.raises(ValueError, match="stop_strings needs tokenizer="):
        greedy(model, base.prompt, stop_strings="x")


# -- drawing --


def sample(model: CausalLM, ids: Any, **options: Any) -> Any:
    fixed = {**PLAIN_GREEDY, "do_sample": True, "temperature": 1.0, "top_k": 0}
    return model.generate(ids, max_new_tokens=30, **{**fixed, **options})


def test_seeds(model: CausalLM, base: Golden) -> None:
    one = sample(model, base.prompt, seed=1)
    assert np.array_equal(one, sample(model, base.prompt, seed=1))
    assert not np.array_equal(one, sample(model, base.prompt, seed=2))
    assert not np.array_equal(sample(model, base.prompt), sample(model, base.prompt))
    assert sample(model, base.prompt, seed=2**64 - 1).shape == (1, 70)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_draws_the_same_whatever_runs_beside_it(base: Golden, dtype: str) -> None:
    """Row i of a batch has the i-th stream of random numbers of its seed."""
    alone = sample(golden_models.load(base.name, dtype), base.prompt, seed=5)[0]
    for threads in (1, 2):
        model = golden_models.load(base.name, dtype, threads)
        batch = sample(model, [base.prompt, base.prompt[:7], base.prompt], seed=5)
        assert np.array_equal(batch[0], alone)
        assert not np.array_equal(batch[2], alone)  # the same prompt, another stream
        other = sample(model, [base.prompt[:3], base.prompt[:9], base.prompt], seed=5)
        assert np.array_equal(other[2], batch[2])


def test_sampling_options_matter(model: CausalLM, base: Golden) -> None:
    expected = base.greedy.tolist()
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        found = sample(model, base.prompt, seed=3, **options)[0, 40:64].tolist()
        assert found == expected, options
    plain = greedy(model, base.prompt)
    assert not np.array_equal(greedy(model, base.prompt, repetition_penalty=1.5), plain)
    # Greedy decoding does not look at the others.
    ignored = {"temperature": 5.0, "top_k": 3, "top_p": 0.1, "min_p": 0.5, "seed": 9}
    assert np.array_equal(greedy(model, base.prompt, **ignored), plain)


# -- configuration --


def test_the_checkpoints_generation_config_is_the_default(model: CausalLM, base: Golden) -> None:
    config = model.generation_config
    assert (config.temperature, config.top_k, config.repetition_penalty) == (0.1, 50, 1.05)
    assert config.eos_token_id == [7, 2]
    given = {"repetition_penalty": 1.05, "eos_token_id": [7, 2]}
    plain = model.generate(base.prompt, max_new_tokens=24)
    assert np.array_equal(plain, greedy(model, base.prompt, **given))
    # A whole configuration replaces it; keywords go before both.
    config = GenerationConfig(max_new_tokens=9, eos_token_id=[])
    found = model.generate(base.prompt, config)
    assert found[0, 40:].tolist() == base.greedy[:9].tolist()
    assert model.generate(base.prompt, config, max_new_tokens=2).shape == (1, 42)
    assert model.generate(base.prompt, generation_config=config).shape == (1, 49)
    assert config.max_new_tokens == 9


def test_options_that_do_not_exist_name_themselves(model: CausalLM, base: Golden) -> None:
    for option, value in (
        ("num_beam_groups", 4),
        ("output_attentions", True),
        ("use_cache", False),
    ):
        with pytest.raises(ValueError, match=f"{option}=.* is not supported"):
            model.generate(base.prompt, **{option: value})
    with pytest.raises(TypeError, match="unknown generation option 'max_tokens'"):
        model.generate(base.prompt, max_tokens=5)
    assert greedy(model, base.prompt, num_beams=1, use_cache=True).shape == (1, 64)


# -- streamers --


def test_a_streamer_gets_the_prompt_each_token_and_the_end(model: CausalLM, base: Golden) -> None:
    streamer = Recorder()
    greedy(model, base.prompt, streamer=streamer)
    tokens = [[token] for token in base.greedy.tolist()]
    assert streamer.calls == [[base.prompt.tolist()], *tokens, "end"]
    padded = np.concatenate([[0, 0], base.prompt])[None]
    mask = (np.arange(42) >= 2)[None]
    streamer = Recorder()
    greedy(model, padded, attention_mask=mask, streamer=streamer)
    assert streamer.calls == [[base.prompt.tolist()], *tokens, "end"]
    with pytest.raises(ValueError, match="streamer works with one prompt"):
        greedy(model, np.stack([base.prompt] * 2), streamer=Recorder())


def test_text_streamer(
    model: CausalLM, base: Golden, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    tokenizer = tiny_tokenizer.load(tmp_path)
    greedy(model, base.prompt, streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == tokenizer.decode(base.greedy.tolist()) + "\n"


def test_iterator_streamer_in_a_thread(model: CausalLM, base: Golden) -> None:
    streamer = TextIteratorStreamer(Letters, skip_prompt=True, timeout=30)
    thread = threading.Thread(
        target=greedy, args=(model, base.prompt), kwargs={"streamer": streamer}
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert pieces == [Letters.decode([token]) for token in base.greedy.tolist()]


def test_an_error_reaches_the_iterating_thread(model: CausalLM) -> None:
    streamer = TextIteratorStreamer(Letters, timeout=30)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            greedy(model, [500], streamer=streamer)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    with pytest.raises(ValueError, match="input_ids holds 500"):
        list(streamer)
    thread.join()
    assert len(errors) == 1


def test_an_error_in_a_streamer_stops_the_generation(model: CausalLM, base: Golden) -> None:
    class Full(Recorder):
        def put(self, value: Any) -> None:
            super().put(value)
            if len(self.calls) == 4:
                raise BufferError("full")

    streamer = Full()
    with pytest.raises(BufferError, match="full"):
        greedy(model, base.prompt, streamer=streamer)
    assert len(streamer.calls) == 4
    assert greedy(model, base.prompt)[0, 40:].tolist() == base.greedy.tolist()
