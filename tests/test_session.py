"""Sessions: after any operation the logits are those of a prefill from scratch, bit for bit."""

from __future__ import annotations

import json
import struct
import threading
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import golden_models
from golden_models import DTYPES, PLAIN_GREEDY, Golden
from lfm_engine import AutoModelForCausalLM, CausalLM, Session
from lfm_engine.tokenizer import Tokenizer

pytestmark = pytest.mark.engine

VOCAB = 131
PAIRS = [(dtype, "auto") for dtype in DTYPES] + [("float32", "int8"), ("int8", "float32")]
Ids = npt.NDArray[Any]


@pytest.fixture(scope="module")
def load(long_folder: Path) -> Callable[[str, str], CausalLM]:
    """load(dtype, kv_dtype): lfm2-base without a limit of its context, on two threads."""

    @cache
    def loaded(dtype: str, kv_dtype: str) -> CausalLM:
        return AutoModelForCausalLM.from_pretrained(
            long_folder, dtype=dtype, kv_dtype=kv_dtype, num_threads=2
        )

    return loaded


def random_ids(count: int, seed: int) -> Ids:
    return np.random.default_rng(seed).integers(0, VOCAB, count)


def scratch(model: CausalLM, ids: Ids) -> Ids:
    """Logits of the last token, by a prefill of all."""
    return model.core.forward(model.core.new_state(), ids, "last")[0]


def check(session: Session, expected: Ids) -> None:
    assert session.tokens.tolist() == expected.tolist()
    assert len(session) == len(expected)
    if len(expected):
        assert np.array_equal(session.logits(), scratch(session.model, expected))


# Lengths around the border of a page, and around the reach of the convolutions.
COUNTS = st.one_of(st.integers(1, 30), st.sampled_from([1, 2, 63, 64, 65, 100]))
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "generate", "rewind", "truncate", "fork", "switch", "edit", "save", "logits"]
        ),
        COUNTS,
        st.integers(0, 5),
    ),
    min_size=4,
    max_size=14,
)


@pytest.mark.parametrize("dtype, kv_dtype", PAIRS)
@settings(max_examples=12)
@given(operations=OPERATIONS)
def test_any_operations_are_bit_equal_to_a_prefill_from_scratch(
    load: Callable[[str, str], CausalLM],
    tmp_path: Path,
    dtype: str,
    kv_dtype: str,
    operations: list[tuple[str, int, int]],
) -> None:
    model = load(dtype, kv_dtype)
    sessions = [model.session()]
    expected = [random_ids(0, 0)]
    at = 0
    for what, count, seed in operations:
        session, tokens = sessions[at], expected[at]
        if what == "append":
            assert session.append(random_ids(count, seed)) == count
            expected[at] = np.concatenate([tokens, random_ids(count, seed)])
        elif what == "generate" and len(tokens):
            options = {"max_new_tokens": min(count, 12), "do_sample": seed > 2, "seed": seed}
            options = {**PLAIN_GREEDY, **options}
            new = session.generate(**options)
            expected[at] = np.concatenate([tokens, new])
            plain = model.generate(tokens, **options)
            assert plain[0].tolist() == expected[at].tolist()
        elif what == "rewind":
            count = min(count, len(tokens))
            session.rewind(count)
            expected[at] = tokens[: len(tokens) - count]
        elif what == "truncate":
            session.truncate(min(count, len(tokens)))
            expected[at] = tokens[:count]
        elif what == "fork":
            sessions.append(session.fork())
            expected.append(tokens)
        elif what == "switch":
            at = seed % len(sessions)
        elif what == "edit" and len(tokens):
            place = count % len(tokens)
            changed = tokens.copy()
            changed[place] = (changed[place] + 1) % VOCAB
            assert session.update(changed) == place
            expected[at] = changed
        elif what == "save":
            session.save(tmp_path / "session")
            sessions[at] = model.load_session(tmp_path / "session")
        elif what == "logits":
            check(session, tokens)
    for session, tokens in zip(sessions, expected, strict=True):
        check(session, tokens)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rewind_to_every_token(golden: Golden, dtype: str) -> None:
    """Each architecture and every distance, across the first page border too."""
    core = golden_models.load(golden.name, dtype, 2).core
    ids = np.concatenate([golden.prompt, golden.greedy, golden.prompt])[:100]
    expected = core.forward(core.new_state(), ids)
    full = core.new_state()
    core.forward(full, ids, "last")
    for length in range(len(ids)):
        state = full.snapshot()
        state.truncate(length)
        assert state.length == length
        assert state.tokens.tolist() == ids[:length].tolist()
        count = 1 + length % 3
        assert np.array_equal(
            core.forward(state, ids[length : length + count]), expected[length : length + count]
        )
        rest = core.forward(state, ids[length + count :]) if length + count < len(ids) else None
        assert rest is None or np.array_equal(rest, expected[length + count :])
    assert full.tokens.tolist() == ids.tolist()


def test_rewind_beyond_the_attention_split(load: Callable[[str, str], CausalLM]) -> None:
    for dtype, kv_dtype in PAIRS:
        core = load(dtype, kv_dtype).core
        ids = random_ids(700, 1)
        expected = core.forward(core.new_state(), ids)
        state = core.new_state()
        core.forward(state, ids, "last")
        for length in (690, 530, 513, 512, 511, 300):
            state.truncate(length)
            branch = state.snapshot()
            assert np.array_equal(core.forward(branch, ids[length:]), expected[length:])
        assert state.length == 300


def test_rewound_states_in_a_batch_and_in_pieces(model: CausalLM) -> None:
    core = model.core
    ids = random_ids(120, 2)
    expected = core.forward(core.new_state(), ids)
    states = [core.new_state() for _ in range(3)]
    for state in states:
        core.forward(state, ids, "last")
    for state, length in zip(states, (5, 40, 100), strict=True):
        state.truncate(length)
    states.append(core.new_state())
    logits = core.forward_batch(states, [ids[5:9], ids[40:41], ids[100:], ids[:20]])
    assert np.array_equal(logits, expected[[8, 40, 119, 19]])
    states[2].truncate(90)
    states[2].truncate(70)  # again before anything was computed
    assert np.array_equal(core.forward(states[2], ids[70:], chunk=3), expected[70:])
    with pytest.raises(ValueError, match="length must be between 0 and 120, not 121"):
        states[2].truncate(121)
    with pytest.raises(ValueError, match="between 0 and 120, not -1"):
        states[2].truncate(-1)
    states[2].truncate(60)
    with pytest.raises(ValueError, match="outside the vocabulary"):
        core.forward(states[2], np.array([1, VOCAB]))
    assert np.array_equal(core.forward(states[2], ids[60:]), expected[60:])


def test_forks_share_their_pages(long_model: CausalLM) -> None:
    session = long_model.session()
    session.append(random_ids(2_001, 3))
    fork = session.fork()
    alone = session.nbytes
    before = resident_bytes()
    forks = [session.fork() for _ in range(100)]
    assert resident_bytes() - before < alone / 2
    layer = long_model.config.layer_types.index("full_attention")

    def address(of: Session, page: int) -> int:
        return int(of._state.key_page(layer, page).ctypes.data)

    for page in range(32):
        assert all(address(other, page) == address(fork, page) for other in forks)
    page_nbytes = fork._state.page(0).nbytes
    assert fork.shared_nbytes == 32 * page_nbytes
    del forks
    fork.append([1, 2])
    fork.prefill()  # writes to the last page alone
    assert session.shared_nbytes == fork.shared_nbytes == 31 * page_nbytes
    del fork
    assert session.shared_nbytes == 0


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_memory_does_not_leak(long_model: CausalLM, tmp_path: Path) -> None:
    def work() -> None:
        session = long_model.session()
        session.append(random_ids(500, 4))
        for _ in range(3):
            fork = session.fork()
            fork.generate(max_new_tokens=3, **PLAIN_GREEDY)
            fork.rewind(200)
            fork.append(random_ids(100, 5))
            fork.prefill()
        session.save(tmp_path / "session")
        long_model.load_session(tmp_path / "session").logits()

    for _ in range(5):
        work()
    before = resident_bytes()
    for _ in range(40):
        work()
    assert resident_bytes() - before < 3_000_000  # one session has 0.3 MB


def test_nothing_is_computed_twice(long_model: CausalLM) -> None:
    """A turn costs its own tokens, not those before it."""
    steps: list[int] = []

    class Counter:
        def put(self, ids: Any) -> None:
            steps.append(ids.size)

        def end(self) -> None:
            pass

    session = long_model.session()
    session.append(random_ids(300, 6))
    session.generate(max_new_tokens=4, streamer=Counter(), **PLAIN_GREEDY)
    assert steps == [300, 1, 1, 1, 1]
    assert session._state.length == 303
    session.append([5, 6, 7])
    assert session._state.length == 303
    session.rewind(2)
    session.prefill()
    assert session._state.length == 304
    session.prefill()
    assert session.update(session.tokens[:250]) == 250
    assert session._state.length == 250


def test_a_chat_in_a_session(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    session = chat_model.session(chat_tokenizer)
    options = {**PLAIN_GREEDY, "max_new_tokens": 6}
    question = {"role": "user", "content": "hello world 12"}
    session.append([question])
    rendered = chat_tokenizer.apply_chat_template([question], add_generation_prompt=True)
    assert session.tokens.tolist() == rendered["input_ids"]
    answer = session.generate(**options)
    assert session.messages[0] == question
    assert session.messages[1]["role"] == "assistant"
    assert session.messages[1]["content"] == chat_tokenizer.decode(answer)
    session.append([{"role": "user", "content": "he"}])
    whole = chat_tokenizer.apply_chat_template(session.messages, add_generation_prompt=True)
    check(session, np.array(whole["input_ids"]))
    edited = [{"role": "user", "content": "hello world 21"}, *session.messages[1:]]
    kept = session.update(edited)
    assert 5 < kept < len(rendered["input_ids"])
    check(
        session,
        np.array(
            chat_tokenizer.apply_chat_template(edited, add_generation_prompt=True)["input_ids"]
        ),
    )
    fork = session.fork()
    session.rewind(1)
    with pytest.raises(ValueError, match="not a conversation"):
        session.append([question])
    fork.append([question])
    assert len(fork.messages) == 4

    text = chat_model.session(chat_tokenizer)
    assert text.append("hello") == 2  # with the first token of every text
    assert text.append(" world") == len(
        chat_tokenizer(" world", add_special_tokens=False).input_ids
    )
    assert chat_tokenizer.decode(text.tokens, skip_special_tokens=True) == "hello world"
    found = text.generate(
        **options, stop_strings=chat_tokenizer.decode(text.fork().generate(**options)[:2])
    )
    assert len(found) < 6
    check(text, text.tokens.copy())


def test_wrong_arguments(model: CausalLM, chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    session = model.session()
    for call in (session.generate, session.logits):
        with pytest.raises(ValueError, match="the session is empty"):
            call()
    session.append(np.arange(10))
    cases: list[tuple[Any, str]] = [
        ([], "input_ids is empty"),
        ([[1, 2], [3, 4]], "one sequence, not a batch"),
        ([1.5], "must hold integers"),
        ([3, VOCAB], f"input_ids holds {VOCAB}, outside the vocabulary"),
        ([-1], "input_ids holds -1"),
        (np.zeros(119, np.int64), "129 tokens, more than the model's context of 128"),
        ("hello", "text needs a tokenizer"),
        ([{"role": "user", "content": "hello"}], "not a conversation"),
    ]
    for content, message in cases:
        with pytest.raises(ValueError, match=message):
            session.append(content)
    with pytest.raises(ValueError, match="messages need a tokenizer"):
        session.update([{"role": "user", "content": "hello"}])
    with pytest.raises(TypeError, match="tools= is for messages only"):
        session.append([1], tools=[])
    for wrong in (11, -1, True, 2.0):
        with pytest.raises(ValueError, match="length must be"):
            session.truncate(wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="count must be"):
            session.rewind(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions, more than the model's context"):
        session.generate(max_new_tokens=120)
    with pytest.raises(ValueError, match="role"):
        chat_model.session(chat_tokenizer).append([{"content": "hello"}])
    check(session, np.arange(10))
    state = model.core.new_state()
    with pytest.raises(ValueError, match="past_key_values works with one prompt"):
        model.generate([[1, 2], [3, 4]], past_key_values=state)
    with pytest.raises(ValueError, match="the state belongs to another model"):
        model.generate([1], past_key_values=chat_model.core.new_state())
    assert not session.tokens.flags.writeable


def test_a_failed_generation_changes_nothing(model: CausalLM) -> None:
    session = model.session()
    session.append(np.arange(20))

    class Failing:
        count = 0

        def put(self, ids: Any) -> None:
            self.count += 1
            if self.count == 4:
                with pytest.raises(RuntimeError, match="in use by another call"):
                    session.append([1])
                raise KeyError("stop")

        def end(self) -> None:
            pass

    with pytest.raises(KeyError):
        session.generate(max_new_tokens=9, streamer=Failing(), **PLAIN_GREEDY)
    check(session, np.arange(20))


def test_forks_in_several_threads(long_model: CausalLM) -> None:
    trunk = long_model.session()
    trunk.append(random_ids(130, 7))
    forks = [trunk.fork() for _ in range(4)]

    def work(index: int) -> None:
        for turn in range(10):
            forks[index].append(random_ids(5, 10 * index + turn))
            forks[index].generate(max_new_tokens=2, **PLAIN_GREEDY)
            forks[index].rewind(3)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fork in forks:
        assert len(fork) == 130 + 10 * 4
        check(fork, fork.tokens.copy())
    check(trunk, random_ids(130, 7))


# -- files --


@pytest.fixture
def saved(model: CausalLM, tmp_path: Path) -> Path:
    session = model.session()
    session.append(random_ids(100, 8))
    session.save(tmp_path / "session")
    return tmp_path / "session"


def test_saving_again_and_an_empty_session(model: CausalLM, saved: Path) -> None:
    model.load_session(saved).save(saved)
    check(model.load_session(saved), random_ids(100, 8))
    assert [path.name for path in saved.parent.iterdir()] == ["session"]
    model.session().save(saved)
    loaded = Session.load(saved, model)
    assert len(loaded) == 0
    loaded.append([1, 2])
    check(loaded, np.array([1, 2]))
    with pytest.raises(IsADirectoryError, match="is a folder"):
        loaded.save(saved.parent)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.load_session(saved.parent / "nowhere")


def test_a_conversation_is_saved(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    session = chat_model.session(chat_tokenizer)
    session.append([{"role": "user", "content": "hello 12 é"}])
    session.generate(max_new_tokens=3)
    session.save(tmp_path / "chat")
    loaded = chat_model.load_session(tmp_path / "chat", chat_tokenizer)
    assert loaded.messages == session.messages
    loaded.append([{"role": "user", "content": "he"}])
    check(loaded, loaded.tokens.copy())


def test_files_that_are_cut_or_damaged(model: CausalLM, saved: Path) -> None:
    content = saved.read_bytes()
    bad = saved.parent / "bad"
    for size in (0, 7, 8, 20, 31, 32, 100, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"{bad}: .*(cut short|not a session file)"):
            model.load_session(bad)
    for place in [*range(0, 40), *range(40, len(content), 997), len(content) - 1]:
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        bad.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{bad}: "):
            model.load_session(bad)
    bad.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=f"{bad}: damaged"):
        model.load_session(bad)


def rewritten(content: bytes, **changes: Any) -> bytes:
    """The file with other metadata and a right checksum."""
    magic, version, _, _, size = struct.unpack_from("<8sIIQQ", content)
    metadata = {**json.loads(content[32 : 32 + size]), **changes}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    text = json.dumps(metadata).encode()
    body = text + content[32 + size :]
    header = struct.pack("<8sIIQQ", magic, version, zlib.crc32(body), 32 + len(body), len(text))
    return header + body


@pytest.mark.parametrize(
    "changes",
    [
        {"length": None},
        {"length": 10**6},
        {"length": -1},
        {"length": "many"},
        {"computed": 500},
        {"computed": 98},
        {"page_nbytes": 64},
        {"page_nbytes": -1},
        {"extra": 3},
        {"model": 5},
    ],
)
def test_metadata_that_cannot_be(model: CausalLM, saved: Path, changes: dict[str, Any]) -> None:
    saved.write_bytes(rewritten(saved.read_bytes(), **changes))
    if changes == {"computed": 98}:  # a smaller number is not wrong: less is known
        check(model.load_session(saved), random_ids(100, 8))
        return
    with pytest.raises(ValueError, match=f"{saved}: "):
        model.load_session(saved)


def test_tokens_outside_the_vocabulary(model: CausalLM, saved: Path) -> None:
    content = saved.read_bytes()
    size = struct.unpack_from("<8sIIQQ", content)[4]
    for place, value in ((0, VOCAB), (70, -1), (99, 2**31 - 1)):
        at = 32 + size + 4 * place
        changed = content[:at] + struct.pack("<i", value) + content[at + 4 :]
        saved.write_bytes(rewritten(changed))
        with pytest.raises(ValueError, match=f"{saved}: damaged"):
            model.load_session(saved)


def test_files_of_other_models(model: CausalLM, saved: Path, tmp_path: Path, base: Golden) -> None:
    def refused(other: CausalLM, message: str) -> None:
        with pytest.raises(ValueError, match=f"{saved}: {message}"):
            other.load_session(saved)

    refused(golden_models.load("lfm2-base", "int8"), "saved with dtype float32, .* has int8")
    refused(golden_models.load("lfm2-hd128-f32"), "saved by another model: its configuration")
    for_kv = AutoModelForCausalLM.from_pretrained(base.path, dtype="float32", kv_dtype="int8")
    refused(for_kv, "saved with kv_dtype float32, but this model has int8")
    # The same configuration with one other value in each layer.
    folder = golden_models.changed_copy("lfm2-base", tmp_path / "other")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    refused(
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        "saved by another model: its weights",
    )
    # What does not decide the values may differ.
    changed = golden_models.changed_copy(
        "lfm2-base", tmp_path / "longer", max_position_embeddings=500, eos_token_id=9
    )
    longer = AutoModelForCausalLM.from_pretrained(changed, dtype="float32", num_threads=2)
    check(longer.load_session(saved), random_ids(100, 8))


def test_another_cpu_is_a_warning(model: CausalLM, saved: Path) -> None:
    saved.write_bytes(rewritten(saved.read_bytes(), isa="vax"))
    with pytest.warns(RuntimeWarning, match="computed with vax"):
        check(model.load_session(saved), random_ids(100, 8))
