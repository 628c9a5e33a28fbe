"""`parse_tool_calls`: every form that models write, never a crash, and exact round trips."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lfm_engine import ToolCallError, parse_tool_calls, render_tool_calls, split_tool_calls

START, END = "<|tool_call_start|>", "<|tool_call_end|>"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def parsed(text: str, tools: Any = None) -> list[dict[str, Any]]:
    """The calls between LFM2's tokens, as exact types."""
    return parse_tool_calls(f"{START}{text}{END}", tools)


def same(found: Any, expected: Any) -> bool:
    """Equal with types: 1, 1.0 and True differ."""
    return repr(found) == repr(expected)


# -- Pythonic calls --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[f(a="x", n=3)]', [call("f", a="x", n=3)]),
        ("[f()]", [call("f")]),
        ("[ f ( ) , g( b = [1, 2] ,) , ]", [call("f"), call("g", b=[1, 2])]),
        (
            '[f(a="x"), g.h(b=[1, 2]), f(a="y")]',
            [call("f", a="x"), call("g.h", b=[1, 2]), call("f", a="y")],
        ),
        ("[a.b-c.d_e(x=1)]", [call("a.b-c.d_e", x=1)]),
        ("[f(a=True, b=False, c=None)]", [call("f", a=True, b=False, c=None)]),
        ("[f(a=true, b=false, c=null)]", [call("f", a=True, b=False, c=None)]),
        (
            '[f(from="a", class="b", in=1, lambda=2)]',
            [call("f", **{"from": "a", "class": "b", "in": 1, "lambda": 2})],
        ),
        ('[f(a="line 1\nline 2\r\n\tend")]', [call("f", a="line 1\nline 2\r\n\tend")]),
        ("[f(\n    a=1,\n    b=2,\n)]", [call("f", a=1, b=2)]),
        ("[f(a=007, b=-01, c=00.5)]", [call("f", a=7, b=-1, c=0.5)]),
        (
            "[f(a=1_000, b=0x1F, c=1e3, d=.5, e=5., f=+2, g=-1.5E-3, h=0b11)]",
            [call("f", a=1000, b=31, c=1000.0, d=0.5, e=5.0, f=2, g=-0.0015, h=3)],
        ),
        (
            '[f(a=\'it\\\'s\', b="say \\"hi\\"", c=\'"\', d="\'")]',
            [call("f", a="it's", b='say "hi"', c='"', d="'")],
        ),
        (
            '[f(a="""say "hi" and\nmore""", b=\'\'\'x\'\'\')]',
            [call("f", a='say "hi" and\nmore', b="x")],
        ),
        ('[f(a="", b="a" "b"\n\'c\')]', [call("f", a="", b="abc")]),
        (
            r'[f(a="\d+\.\w", b="\x41\u00e9\U0001F642\101\N{BULLET}\n\t\\", c="\/")]',
            [call("f", a=r"\d+\.\w", b="Aé🙂A•\n\t\\", c="/")],
        ),
        (r'[f(a="\ud83d\ude42", b="\ud83d")]', [call("f", a="🙂", b="\ufffd")]),
        (
            r"[f(a=r'C:\new', b=f'{x}', c=b'y', d=u'z')]",
            [call("f", a=r"C:\new", b="{x}", c="y", d="z")],
        ),
        (
            '[f(a={"k": [1, {"m": None}], \'n\': (1, 2)}, b=(3), c=(3,), d=(), e={1, 2})]',
            [call("f", a={"k": [1, {"m": None}], "n": [1, 2]}, b=3, c=[3], d=[], e=[1, 2])],
        ),
        (
            "[f(a={}, b=[], c={1: 2, true: 3, key: 'v'})]",
            [call("f", a={}, b=[], c={"1": 2, "true": 3, "key": "v"})],
        ),
        (
            "[f(unit=celsius, city=New York, day=2024-05-06, t=10:30, v=1.2.3)]",
            [call("f", unit="celsius", city="New York", day="2024-05-06", t="10:30", v="1.2.3")],
        ),
        ("[f(a=[red, green], b={k: red})]", [call("f", a=["red", "green"], b={"k": "red"})]),
        ('[f("a"=1, "b": 2, **{"c d": 3})]', [call("f", a=1, b=2, **{"c d": 3})]),
        ('[f(größe="ü", 名前="漢字")]', [call("f", größe="ü", 名前="漢字")]),
        (
            f'[f(a="{END}", b="{START}[g()]", c="[f()]")]',
            [call("f", a=END, b=f"{START}[g()]", c="[f()]")],
        ),
        # Missing brackets, several lists, lines.
        ("f(a=1)", [call("f", a=1)]),
        ("f(a=1)\ng(b=2); h(), i()", [call("f", a=1), call("g", b=2), call("h"), call("i")]),
        ("[f(a=1)]\n[g(b=2)]", [call("f", a=1), call("g", b=2)]),
        ("[f(a=1), g(b=2)", [call("f", a=1), call("g", b=2)]),
        ("[]", []),
    ],
)
def test_pythonic_calls(text: str, expected: Any) -> None:
    assert same(parsed(text), expected)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"he said "hi" to me"', 'he said "hi" to me'),
        ("'it's mine'", "it's mine"),
        ('"SELECT "a", "b" FROM t"', 'SELECT "a", "b" FROM t'),
        ("'don't, won't'", "don't, won't"),
        ('["a "b" c", "d"]', ['a "b" c', "d"]),
        ('{"k": "a "b" c", "m": 1}', {"k": 'a "b" c', "m": 1}),
        ('"print("x")"', 'print("x")'),
    ],
)
def test_quotes_inside_quotes(text: str, value: Any) -> None:
    assert parsed(f"[f(a={text}, n=1), g()]") == [call("f", a=value, n=1), call("g")]
    assert parsed(f"[f(n=1, a={text})]") == [call("f", n=1, a=value)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "f", "arguments": {"a": [1, true, null]}}', [call("f", a=[1, True, None])]),
        (
            '[{"name": "f", "parameters": {}}, {"name": "g.h", "arguments": {"b": 2}}]',
            [call("f"), call("g.h", b=2)],
        ),
        ('{"name": "f"}\n{"name": "g"}', [call("f"), call("g")]),
        (
            '[{"name": "f", "arguments": "{\\"a\\": 1}"}, {"name": "g", "arguments": ""}]',
            [call("f", a=1), call("g")],
        ),
        (
            '{"type": "function", "function": {"name": "f", "arguments": {"a": "x\ny"}}}',
            [call("f", a="x\ny")],
        ),
        ("{'name': 'f', 'arguments': {'a': True}}", [call("f", a=True)]),
        ('[f(a=1), {"name": "g", "arguments": {}}]', [call("f", a=1), call("g")]),
    ],
)
def test_json_calls(text: str, expected: Any) -> None:
    assert same(parsed(text), expected)


# -- where calls stand --


def test_text_before_between_and_after() -> None:
    text = f"Let me look.\n{START}[f(a=1)]{END} And\n{START}[g()]{END}\nOne moment.<|im_end|>"
    assert split_tool_calls(text) == (
        "Let me look.\nAnd\nOne moment.",
        [call("f", a=1), call("g")],
    )
    assert split_tool_calls("No call (at all) [1].") == ("No call (at all) [1].", [])
    assert split_tool_calls("") == ("", [])


def test_a_missing_end_token() -> None:
    for text in (f"{START}[f(a=1)]", f"{START}[f(a=1)]\n", f"{START}[f(a=1)]<|im_end|>\n"):
        assert parse_tool_calls(text) == [call("f", a=1)]
    assert split_tool_calls(f"{START}[f(a=1)]\nThe tool was called (once).") == (
        "The tool was called (once).",
        [call("f", a=1)],
    )
    assert parse_tool_calls(f"{START}f(a=1)<|im_end|>") == [call("f", a=1)]


def test_bare_lists() -> None:
    assert parse_tool_calls('[f(a="x"), g()]') == [call("f", a="x"), call("g")]
    assert split_tool_calls('I call [f(a="]")] now.') == ("I call\nnow.", [call("f", a="]")])
    # With tools at hand only they are calls.
    tools = [{"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}]
    assert parse_tool_calls("[g(a=1)]", tools) == []
    assert parse_tool_calls("[g(a=1)] [f(a=1)]", tools) == [call("f", a=1)]
    # Prose and code are not: values without names, broken lists, thoughts.
    for text in (
        "see [f(1)](url)",
        "x = [f(a=1)",
        "[f(a=1) for a in b]",
        "[f(a=g(1))]",
        "[not a call]",
        "<think>[f(a=1)]</think>Done.",
        '[f(a="he said "x" and")]',
    ):
        assert split_tool_calls(text) == (text, []), text
    assert split_tool_calls("<think>[g()]</think>[f(a=1)]")[1] == [call("f", a=1)]


def test_json_without_tokens() -> None:
    one = '{"name": "f", "arguments": {"a": 1}}'
    for text in (one, f"[{one}]", f"```json\n{one}\n```", f" {one}\n"):
        assert parse_tool_calls(text) == [call("f", a=1)], text
    assert split_tool_calls(f"<think>hm</think>\n{one}") == ("<think>hm</think>", [call("f", a=1)])
    for text in ('{"name": "Ada", "age": 36}', f"Look: {one}", '{"name": "f", "arguments": 3}'):
        assert split_tool_calls(text) == (text, []), text
    assert parse_tool_calls(one, [{"name": "g"}]) == []


def test_what_tools_tell() -> None:
    schema = {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}, "n": {"type": "integer"}, "any": {}},
        },
    }
    for tools in ([schema], [{"type": "function", "function": schema}]):
        assert parsed("[f(code=02139, n=007)]", tools) == [call("f", code="02139", n=7)]
        assert parsed("[f(code=true, any=true)]", tools) == [call("f", code="true", any=True)]
        assert parsed('[f("x", 3, any=1)]', tools) == [call("f", code="x", n=3, any=1)]
        with pytest.raises(ToolCallError, match="f: an argument has no name"):
            parsed('[f("x", 3, 4, 5)]', tools)
    with pytest.raises(ValueError, match=r"tools\[0\] has no name"):
        parse_tool_calls("", [{"parameters": {}}])
    with pytest.raises(ValueError, match="two tools named f"):
        parse_tool_calls("", [{"name": "f"}, schema])
    with pytest.raises(ValueError, match="tool f: parameters must be"):
        parse_tool_calls("", [{"name": "f", "parameters": 3}])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[f(a=1", "',' or '\\)' is expected"),
        ("[f(a=1)", "',' or '\\]' is expected"),
        ("[f(a=1), g(b=", "the text ends"),
        ('[f(a="x', "a string has no end"),
        ("[f(a=)]", "a value is expected, not '\\)'"),
        ("[f(a=[1, 2)]", "',' or '\\]'"),
        ('[f(a={"b" 1})]', "',' or '}'"),
        ("[f(a=1, a=2)]", "argument a is given twice"),
        ("[f(3)]", "f: an argument has no name"),
        ("[f(a=g(1))]", "',' or '\\)' is expected"),
        ("[f(a=1) + g()]", "',' or '\\]' is expected"),
        ("hello", "a call is expected"),
        ("", "a call is expected"),
        ("[1, 2]", "a call is expected"),
        ('{"arguments": {}}', "needs a name"),
        ('{"name": "f", "arguments": [1]}', "must be an object"),
        ("[f(a=1e999)]", "1e999 is too large"),
        ("[f(a=" + "9" * 5000 + ")]", "a number cannot be read"),
        ("[f(a=" + "[" * 100 + "]" * 100 + ")]", "more than 64 levels"),
        ("[f(**3)]", "a dict is expected"),
    ],
)
def test_broken_calls_raise(text: str, message: str) -> None:
    with pytest.raises(ToolCallError, match=f"^tool call, character [0-9]+: .*{message}") as error:
        parse_tool_calls(f"Hm. {START}{text}")
    assert len(f"Hm. {START}") <= error.value.position <= len(f"Hm. {START}{text}")
    assert isinstance(error.value, ValueError)
    # The same without LFM2's tokens is text.
    assert parse_tool_calls(f"Hm. {text}") == []


def test_the_position_of_an_error() -> None:
    text = f"{START}[f(a=1), g(b=@(3))]{END}"
    with pytest.raises(ToolCallError) as error:
        parse_tool_calls(text)
    assert text[error.value.position :].startswith("(3)")


# -- properties --

names = st.from_regex(r"[A-Za-z_]\w{0,8}(\.[A-Za-z_]\w{0,5})?", fullmatch=True)
keys = names | st.text(min_size=0, max_size=6)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)
calls = st.lists(
    st.builds(
        lambda name, arguments: {"name": name, "arguments": arguments},
        names,
        st.dictionaries(keys, values, max_size=4),
    ),
    max_size=3,
)


@given(calls)
@example([{"name": "A", "arguments": {"0\r": None}}])
def test_rendered_calls_are_read_back_exactly(expected: list[dict[str, Any]]) -> None:
    text = render_tool_calls(expected)
    assert same(parse_tool_calls(text), expected)
    assert same(parse_tool_calls(f"Hm.\n{text}"), expected)
    if expected:
        bare = render_tool_calls(expected, markers=False)
        if START not in bare:
            assert same(parse_tool_calls(bare), expected)


@given(calls)
def test_json_calls_are_read_back_exactly(expected: list[dict[str, Any]]) -> None:
    for ascii_only in (True, False):
        text = json.dumps(expected, ensure_ascii=ascii_only)
        assert same(parsed(text), expected)


PIECES = [
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ",",
    ":",
    "=",
    '"',
    "'",
    '"""',
    "\\",
    "\n",
    "**",
    START,
    END,
    "f",
    "g.h(",
    "a=",
    "True",
    "null",
    "007",
    "1e999",
    "-",
    ".",
    "r'",
    "\\u12",
    "\\ud83d",
    "\\N{x}",
    '{"name": "f", "arguments": ',
    "</think>",
    "```",
    "é",
    "\x00",
    ";",
    "<",
]


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_nothing_but_the_documented_error(text: str) -> None:
    for candidate in (text, f"{START}{text}", f"{START}[f({text})]{END}"):
        try:
            content, found = split_tool_calls(candidate)
        except ToolCallError as error:
            assert START in candidate
            assert 0 <= error.position <= len(candidate)
            continue
        assert isinstance(content, str)
        for entry in found:
            assert entry.keys() == {"name", "arguments"}
            json.dumps(entry, allow_nan=False)
        assert same(parse_tool_calls(render_tool_calls(found)), found)


@given(calls, st.data())
def test_a_call_cut_short_is_an_error_or_a_prefix(
    expected: list[dict[str, Any]], data: st.DataObject
) -> None:
    text = render_tool_calls(expected)
    cut = data.draw(st.integers(len(START), len(text)))
    try:
        found = parse_tool_calls(text[:cut])
    except ToolCallError:
        return
    assert same(found, expected)  # only the end token may be missing


def test_long_input_takes_linear_time() -> None:
    for piece in ("[f(a='", "[[", "((", '"', "[f(a=1), ", '{"a": ', "x=", "\\", '[f(a="b"c", '):
        text = piece * (60_000 // len(piece))
        assert parse_tool_calls(text) == []
        with pytest.raises(ToolCallError):
            parse_tool_calls(START + text)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"name": "a b", "arguments": {}}, "'a b' cannot be the name"),
        ({"name": "", "arguments": {}}, "'' cannot be the name"),
        ({"name": "f", "arguments": {"a": float("nan")}}, "nan cannot be written"),
        ({"name": "f", "arguments": {"a": {1: 2}}}, "dict cannot be written"),
        ({"name": "f", "arguments": {"a": object()}}, "object cannot be written"),
    ],
)
def test_what_cannot_be_rendered_is_named(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_tool_calls([bad])
