"""Structured output: what is generated fits, and costs no step where it is certain."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import golden_models
import tiny_tokenizer
from golden_models import DTYPES
from lfm_engine import AutoModelForCausalLM, AutoTokenizer, CausalLM
from lfm_engine.json_schema import close_objects, has_finite_value
from lfm_engine.tokenizer import Tokenizer
from structured import (
    OBJECT,
    PROMPT,
    SAMPLE,
    SCHEMAS,
    Anything,
    Counted,
    Plain,
    compiled,
    json_format,
    new_text,
)

pytestmark = pytest.mark.engine


# -- what is generated fits --


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_json_always_validates(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, schema: Any
) -> None:
    seen = set()
    for options in (*({"seed": seed, **SAMPLE} for seed in range(6)), {"do_sample": False}):
        out = chat_model.generate(
            [PROMPT] * 2,
            max_new_tokens=400,
            response_format=json_format(schema),
            tokenizer=chat_tokenizer,
            return_dict_in_generate=True,
            **options,
        )
        for row in range(2):
            text = new_text(chat_tokenizer, out, row)
            assert out.finish_reasons[row] == "stop", text
            value = json.loads(text)
            jsonschema.validate(value, schema)
            assert text == json.dumps(value, ensure_ascii=False) or "." in text or "\\" in text
            seen.add(text)
    if schema in (OBJECT, *SCHEMAS[5:10]):
        assert len(seen) > 3


def random_schemas() -> st.SearchStrategy[Any]:
    """Schemas that llguidance supports, with finitely many texts each."""
    leaf = st.one_of(
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.lists(
            st.text(max_size=4) | st.integers(-(2**53), 2**53) | st.none(), min_size=1, max_size=4
        ).map(lambda values: {"enum": values}),
        st.tuples(st.integers(0, 3), st.integers(0, 4)).map(
            lambda n: {"type": "string", "minLength": n[0], "maxLength": n[0] + n[1]}
        ),
        st.tuples(st.integers(-1000, 1000), st.integers(0, 1000)).map(
            lambda n: {"type": "integer", "minimum": n[0], "maximum": n[0] + n[1]}
        ),
    )

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        objects = st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=4).flatmap(
            lambda properties: st.sets(st.sampled_from([*properties, None])).map(
                lambda required: {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(required - {None}),
                    **({} if properties else {"additionalProperties": False}),
                }
            )
        )
        arrays = st.builds(
            lambda items, low, more: {
                "type": "array",
                "items": items,
                "minItems": low,
                "maxItems": low + more,
            },
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        )
        either = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
        return objects | arrays | either

    return st.recursive(leaf, nested, max_leaves=6)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**60), 10**30])
def test_integers_that_would_be_rounded_raise(number: int, chat_tokenizer: Tokenizer) -> None:
    for schema in (
        {"enum": [1, number]},
        {"type": "object", "properties": {"a": {"const": number}}},
    ):
        with pytest.raises(ValueError, match=rf"response_format: .*{number}.*2\*\*53"):
            compiled(json_format(schema), chat_tokenizer)
    compiled(json_format({"enum": [2**53], "default": number}), chat_tokenizer)


@given(random_schemas(), st.integers(0, 2**32))
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_random_schemas(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, schema: Any, seed: int
) -> None:
    plain = compiled(json_format(schema), chat_tokenizer)
    options = {"max_new_tokens": 1500, "seed": seed, "return_dict_in_generate": True, **SAMPLE}
    out = chat_model.generate(PROMPT, constraint=plain.copy(), **options)
    text = new_text(chat_tokenizer, out)
    assert out.finish_reasons == ["stop"], text
    jsonschema.validate(json.loads(text), schema)
    # Every token sampled gives the same.
    slow = chat_model.generate(PROMPT, constraint=Plain(plain.copy()), **options)
    assert np.array_equal(slow.sequences, out.sequences)


@pytest.mark.parametrize(
    ("response_format", "pattern"),
    [
        ({"type": "regex", "regex": r"\d{3}-[a-c]+x"}, r"[0-9]{3}-[a-c]+x"),
        ({"type": "regex", "regex": r"(a/b|\"q\"|\n| é){2,3}"}, r"(a/b|\"q\"|\n| é){2,3}"),
        ({"type": "choice", "choice": ["yes", "no", "yes, maybe"]}, "yes|no|yes, maybe"),
        ({"type": "choice", "choice": ['"', "\\", "\n", "漢", "/", "'"]}, "[\"\\\\\n漢/']"),
        ({"type": "lark", "lark": 'start: "a" b{1,9}\nb: "x" | "<" b ">"'}, r"a[x<>]+"),
    ],
)
def test_text_matches(
    chat_model: CausalLM, chat_tokenizer: Tokenizer, response_format: Any, pattern: str
) -> None:
    seen = set()
    for seed in range(12):
        out = chat_model.generate(
            PROMPT,
            max_new_tokens=600,
            seed=seed,
            response_format=response_format,
            tokenizer=chat_tokenizer,
            return_dict_in_generate=True,
            **SAMPLE,
        )
        text = new_text(chat_tokenizer, out)
        assert out.finish_reasons == ["stop"]
        assert re.fullmatch(pattern, text), text
        seen.add(text)
    assert len(seen) > 1


def test_whitespace(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    texts = set()
    for seed in range(8):
        out = chat_model.generate(
            PROMPT,
            max_new_tokens=2000,
            seed=seed,
            response_format=json_format(schema, whitespace="flexible"),
            tokenizer=chat_tokenizer,
            return_dict_in_generate=True,
            **SAMPLE,
        )
        jsonschema.validate(json.loads(new_text(chat_tokenizer, out)), schema)
        texts.add(new_text(chat_tokenizer, out))
    assert len(texts) > 2


def test_objects_are_closed_where_that_is_safe() -> None:
    one = {"type": "object", "properties": {"a": {}}, "required": ["a"]}
    closed = {**one, "additionalProperties": False}
    assert close_objects(one) == closed
    assert one == {"type": "object", "properties": {"a": {}}, "required": ["a"]}
    assert close_objects({"type": "array", "items": one}) == {"type": "array", "items": closed}
    assert close_objects({"anyOf": [one, {"type": "null"}]})["anyOf"][0] == closed
    assert close_objects({"$defs": {"a": one}, "$ref": "#/$defs/a"})["$defs"]["a"] == closed
    for schema in (
        {**one, "additionalProperties": True},
        {**one, "additionalProperties": {"type": "null"}},
        {**one, "required": ["a", "b"]},
        {**one, "minProperties": 2},
        {**one, "patternProperties": {"x": {}}},
        {"type": "object"},
        {"allOf": [one, {"properties": {"b": {}}}]},
        {"oneOf": [one, {"properties": {"b": {}}}]},
        {**one, "anyOf": [{"properties": {"b": {}}}]},
        {"const": one},
    ):
        assert close_objects(schema) == schema


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, True),
        ({"$ref": "#"}, False),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, False),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, True),
        ({"type": ["object", "null"], "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, True),
        ({"type": "array", "items": {"$ref": "#"}}, True),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, False),
        ({"type": "array", "prefixItems": [{}], "items": {"$ref": "#"}, "minItems": 1}, True),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, True),
        ({"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {}]}}, "$ref": "#/$defs/a"}, False),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, True),
        ({"$ref": "#/nowhere"}, True),
    ],
)
def test_schemas_without_end(schema: Any, expected: bool) -> None:
    assert has_finite_value(schema) == expected


# -- without a step where it is certain --

FORMATS = [
    json_format(OBJECT),
    json_format({"enum": ["category one of the list", "category two of the list"]}),
    json_format(OBJECT, whitespace="flexible"),
    {"type": "json_object"},
    {"type": "regex", "regex": "hello hello [0-9]{2} world(, hello)?"},
    {"type": "choice", "choice": ["hello", "hell", "hello world 12"]},
]


@pytest.mark.parametrize("response_format", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_jump_ahead_changes_nothing(
    chat_tokenizer: Tokenizer, tmp_path: Any, response_format: Any, dtype: str
) -> None:
    folder = golden_models.random_model(tmp_path / "model", vocab_size=300, eos_token_id=2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, num_threads=1)
    constraint = compiled(response_format, chat_tokenizer)
    for options in ({"do_sample": False}, *({"seed": seed, **SAMPLE} for seed in range(3))):
        runs = []
        for kind in (Counted, Plain):
            rows = [kind(constraint.copy()) for _ in range(2)]
            out = model.generate(
                [PROMPT, PROMPT[:2]],
                max_new_tokens=60,
                constraint=rows,
                return_dict_in_generate=True,
                repetition_penalty=1.1,
                **{key: options[key] for key in options if key != "repetition_penalty"},
            )
            runs.append((rows, out))
        (fast_rows, fast), (plain_rows, plain) = runs
        for row in range(2):
            assert fast.sequences[row].tolist() == plain.sequences[row].tolist()
        assert fast.finish_reasons == plain.finish_reasons
        if response_format in (FORMATS[0], FORMATS[1], FORMATS[4]):
            assert sum(r.steps for r in fast_rows) < sum(r.steps for r in plain_rows)


def test_a_certain_answer_needs_no_step(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    value = {"hello": [12, "hello world"], "b": None}
    out = chat_model.generate(
        PROMPT,
        max_new_tokens=100,
        response_format=json_format({"const": value}),
        tokenizer=chat_tokenizer,
        constraint=None,
    )
    text = json.dumps(value)
    assert out[0, len(PROMPT) :].tolist() == [*chat_tokenizer.encode(text, False), 2]
    counted = Counted(compiled(json_format({"const": value}), chat_tokenizer))
    assert np.array_equal(chat_model.generate(PROMPT, max_new_tokens=100, constraint=counted), out)
    assert counted.steps == 0


def test_streamers_see_every_token(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def put(self, value: Any) -> None:
            self.calls.append(np.asarray(value).tolist())

        def end(self) -> None:
            self.calls.append("end")

    streamer = Recorder()
    out = chat_model.generate(
        PROMPT,
        max_new_tokens=200,
        response_format=json_format(OBJECT),
        tokenizer=chat_tokenizer,
        streamer=streamer,
    )
    new = out[0, len(PROMPT) :].tolist()
    assert streamer.calls == [[PROMPT], *([token] for token in new), "end"]


def test_greedy_is_the_argmax_of_what_is_allowed(
    chat_model: CausalLM, chat_tokenizer: Tokenizer
) -> None:
    constraint = compiled(json_format(OBJECT), chat_tokenizer)
    follow = constraint.copy()
    out = chat_model.generate(
        PROMPT, max_new_tokens=200, do_sample=False, constraint=constraint, repetition_penalty=1.3
    )[0]
    for position in range(len(PROMPT), len(out)):
        words = follow.allowed()
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")[:300].astype(bool)
        logits = chat_model(out[:position]).logits[0, -1].copy()
        seen = np.unique(out[:position])
        logits[seen] = np.where(logits[seen] < 0, logits[seen] * 1.3, logits[seen] / 1.3)
        assert out[position] == np.where(bits, logits, -np.inf).argmax()
        if out[position] != 2:
            follow.accept(int(out[position]))


def test_a_batch_is_its_rows(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 120,
        "do_sample": False,
        "response_format": json_format(OBJECT),
        "tokenizer": chat_tokenizer,
    }
    prompts = [PROMPT, PROMPT[:1], PROMPT[::-1] * 3]
    together = chat_model.generate(prompts, **options)
    for row, prompt in zip(together, prompts, strict=True):
        assert row.tolist() == chat_model.generate(prompt, **options)[0].tolist()
    # Beside a row that nothing constrains.
    free = chat_model.generate(PROMPT, max_new_tokens=30, do_sample=False)
    rows = [Anything(), compiled(json_format(OBJECT), chat_tokenizer)]
    mixed = chat_model.generate(
        [PROMPT, PROMPT[:1]], max_new_tokens=30, do_sample=False, constraint=rows
    )
    assert mixed[0].tolist() == free[0].tolist()
    assert mixed[1].tolist() == together[1][:31].tolist()


# -- where it ends --


def test_the_limit_inside_a_structure_is_reported(
    chat_model: CausalLM, chat_tokenizer: Tokenizer
) -> None:
    text = ""
    whole = json.dumps({"hello": "hello", "world": "hello world"})
    schema = {"const": json.loads(whole)}
    for limit in range(1, 30):
        out = chat_model.generate(
            PROMPT,
            max_new_tokens=limit,
            response_format=json_format(schema),
            tokenizer=chat_tokenizer,
            return_dict_in_generate=True,
        )
        text = new_text(chat_tokenizer, out)
        assert out.new_tokens[0] <= limit
        assert whole.startswith(text)
        ended = out.sequences[0][-1] == 2
        assert out.finish_reasons == ["stop" if ended else "length"]
    assert text == whole


def test_end_of_sequence_ids(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 50,
        "response_format": {"type": "regex", "regex": "[a-z]{4}"},
        "tokenizer": chat_tokenizer,
        "return_dict_in_generate": True,
    }
    for eos, end in (([2], [2]), ([5, 2], [5]), ([290], [290]), (3, [3]), ([], [])):
        out = chat_model.generate(PROMPT, eos_token_id=eos, **options)
        assert out.finish_reasons == ["stop"]
        new = out.sequences[0][len(PROMPT) :].tolist()
        ids = [eos] if isinstance(eos, int) else eos
        assert [token for token in new if token in ids] == end
        assert re.fullmatch("[a-z]{4}", chat_tokenizer.decode(new[: len(new) - len(end)]))
    # A plain token as an end: never inside the structure.
    letter = chat_tokenizer.encode("e", False)[0]
    for seed in range(5):
        out = chat_model.generate(PROMPT, eos_token_id=letter, seed=seed, **options, **SAMPLE)
        text = new_text(chat_tokenizer, out)
        assert re.fullmatch("[a-z]{4}e", text)
        assert out.sequences[0][-1] == letter


def test_minimum_length_and_stop_strings(chat_model: CausalLM, chat_tokenizer: Tokenizer) -> None:
    options: dict[str, Any] = {"tokenizer": chat_tokenizer, "return_dict_in_generate": True}
    words = {"type": "regex", "regex": "x{1,30}"}
    out = chat_model.generate(
        PROMPT, max_new_tokens=40, min_new_tokens=20, response_format=words, **options
    )
    assert 20 <= out.new_tokens[0] <= 31
    # A structure that is complete ends, whatever the minimum.
    for regex in ("xx", "x{1,2}"):
        out = chat_model.generate(
            PROMPT,
            max_new_tokens=40,
            min_new_tokens=20,
            response_format={"type": "regex", "regex": regex},
            **options,
        )
        assert new_text(chat_tokenizer, out) == "xx"
        assert out.finish_reasons == ["stop"]
    out = chat_model.generate(
        PROMPT,
        max_new_tokens=40,
        stop_strings="b: ",
        response_format={"type": "choice", "choice": ["a b: hello there", "a b: world"]},
        **options,
    )
    assert new_text(chat_tokenizer, out) in ("a b: h", "a b: hello", "a b: w")  # whole tokens
    assert out.finish_reasons == ["stop"]


# -- the real tokenizer --


@pytest.fixture(scope="module")
def lfm2() -> Tokenizer:
    if not tiny_tokenizer.LFM2_FOLDER.is_dir():
        pytest.skip("needs ../shared")
    return AutoTokenizer.from_pretrained(tiny_tokenizer.LFM2_FOLDER)


def test_forced_tokens_are_the_tokenizers_own(lfm2: Tokenizer) -> None:
    """What is certain as a whole is cut as the tokenizer cuts it."""
    values = [
        {"temperature": 21.5, "conditions": ["partly cloudy", "windy"], "größe": "10 µm"},
        {"orderId": "AB-1234", "orderName": "Müller & Söhne", "漢字": "日本語のテキスト"},
        ["don't", "it's 10:30", "https://example.com/a?b=c", {"a": {"b": {"c": None}}}],
    ]
    for value in values:
        text = json.dumps(value, ensure_ascii=False)
        constraint = compiled(json_format({"const": value}), lfm2, 65536, [7])
        tokens = []
        while forced := constraint.forced():
            tokens += forced
            if forced == [7]:
                break
            for token in forced:
                constraint.accept(token)
        assert tokens == [*lfm2.encode(text, add_special_tokens=False), 7]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_walks_over_the_real_vocabulary(lfm2: Tokenizer, schema: Any) -> None:
    """Random walks through the masks, without a model: with and without the shortcut the same."""
    constraint = compiled(json_format(schema), lfm2, 65536, [7])
    for seed in range(3):
        texts = []
        for jump in (True, False):
            walk, tokens = constraint.copy(), []
            while 7 not in tokens:
                assert len(tokens) < 3000
                forced = list(walk.forced()) if jump else []
                if not forced:
                    bits = np.unpackbits(walk.allowed().view(np.uint8), bitorder="little")
                    allowed = np.flatnonzero(bits)
                    # One draw for each token, as numbered random numbers are.
                    choice = np.random.default_rng([seed, len(tokens)]).integers(len(allowed))
                    forced = [int(allowed[choice])]
                for token in forced:
                    tokens.append(token)
                    if token != 7:
                        walk.accept(token)
            texts.append(tokens)
        assert texts[0] == texts[1]
        jsonschema.validate(json.loads(lfm2.decode(texts[0][:-1])), schema)
