"""params.yaml, damaged in any way: parameters, or one ParamsError that says where, at once."""

import re
import time

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dsd.utils.errors import ParamsError
from pipeline.params.model import Params
from pipeline.params.reader import load_params
from sandbox import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
LINES = TEXT.splitlines()
VALUES = [n for n, line in enumerate(LINES) if re.match(r" *\w+: +[^#\s]", line)]
KEYS = [n for n, line in enumerate(LINES) if re.match(r" *\w+:", line)]

ODD_VALUES = [
    ".nan", ".inf", "-.inf", "1e999", "-1", "0", "9" * 30, "9" * 4300, "-0.0", "1e-400", "0x10",
    "null", "~", "", "true", "yes", "'1'", '"\\0"', '"\\ud800"', "[]", "[1, [2, [3]]]", "{}",
    "{a: b}", "{kind: mask}", "{number: 3}", "{auto: 1}", "[{a: 1}]", "[{}, 1]",
    "2026-01-01", "1:30", "1_000", "*x", "&x 1", "!!python/none",
    "!!binary aGk=", "|", ">", "@", "`", "%", "- 1", "? a", "<<: {a: 1}", "a: b", "\t1", "é",
    "\u2028", "\ufeff", "\x7f", "\x00", "../../etc/passwd", "x" * 5000, "os:system", "a.ts",
]  # fmt: skip
ODD_BYTES = [
    b"\xff", b"\x00", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", b"\x1b[2J", b"\t", b"\r", b"\n",
    b"\xe2\x80\xa8", b"\xc2\x85", b"{", b"]", b": ", b"#", b"'", b'"', b"&a ", b"---\n",
]  # fmt: skip


def with_line(number, line):
    return "\n".join([*LINES[:number], line, *LINES[number + 1 :], ""]).encode(
        "utf-8", "surrogatepass"
    )


@st.composite
def other_value(draw):
    number = draw(st.sampled_from(VALUES))
    key = re.match(r" *\w+: ", LINES[number])[0]
    value = st.sampled_from(ODD_VALUES) | st.floats().map(repr) | st.integers().map(str)
    return with_line(number, key + draw(value | st.text(max_size=12)))


@st.composite
def other_key(draw):
    """A key that is there twice, missing, misspelt, indented otherwise, or no text."""
    number = draw(st.sampled_from(KEYS))
    indent, key, rest = re.match(r"( *)(\w+)(:.*)", LINES[number]).groups()
    line = draw(
        st.sampled_from(
            [
                f"{LINES[number]}\n{LINES[number]}", "", f"{indent}{key}x{rest}",
                f" {LINES[number]}", f"{LINES[number][1:]}", f"{indent}{key.upper()}{rest}",
                f"{indent}1{rest}", f"{indent}null{rest}", f"{indent}[a, b]{rest}",
                f"{indent}__class__{rest}", f"{indent}{key}", f"{indent}{key}{rest}{rest}",
            ]
        )
    )  # fmt: skip
    return with_line(number, line)


@st.composite
def other_bytes(draw):
    raw = TEXT.encode()
    at = draw(st.integers(0, len(raw)))
    kind = draw(st.sampled_from(["cut", "insert", "replace", "utf-16", "swap"]))
    if kind == "cut":
        return raw[:at]
    if kind == "utf-16":
        return TEXT.encode("utf-16")
    if kind == "swap":
        return raw[at:] + raw[:at]
    odd = draw(st.sampled_from(ODD_BYTES))
    return raw[:at] + odd + raw[at + (len(odd) if kind == "replace" else 0) :]


@settings(max_examples=100)
@given(other_value() | other_key() | other_bytes())
@example(with_line(KEYS[0], "seed: " + "9" * 4301))
@example(with_line(KEYS[0], "seed: 0\n\u200b\u202eseed: 0"))
@example(with_line(KEYS[0], "seed: 1.0e+400"))
@example(TEXT.replace("micro_batch_size: auto", "micro_batch_size: {}").encode())
@example(TEXT.replace("micro_batch_size: auto", "micro_batch_size: {number: 3}").encode())
@example(TEXT.replace("\n", "\r\n").encode())
def test_any_damage_gives_parameters_or_one_message_that_says_where(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "params.yaml"
    file.write_bytes(content)
    start = time.process_time()
    try:
        params = load_params(file)
    except ParamsError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(tells_where(line) for line in lines), lines
    else:
        assert isinstance(params, Params)
    assert time.process_time() - start < 1
    assert file.read_bytes() == content


def tells_where(line):
    """The file, and in it a line, a byte, or a key; nothing that a terminal would obey."""
    place = r"line \d+: .|not UTF-8 text \(byte \d+\)|not valid YAML: .|the file is|top level: ."
    key = r"\S.*? (is not a known key|is missing|must be|is|=|does not go) "
    found = re.fullmatch(rf"params\.yaml: ({place}|{key}).*", line)
    return found is not None and line.isprintable() and len(line) < 1000
