"""One reader for every text file: the same rows give the same samples, whatever the file is called and packed as."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from flab.data.rows import read_rows
from flab.data.samples import Sample, files_under, read_samples
from flab.errors import DataError
from flab.files.foreign import OLD_PYTORCH

BUGS = Path(__file__).parents[2].parent / "shared" / "cases" / "bugs"
ROWS = [
    {"prompt": "def one():\n", "completion": "    return 1  # a\u2028b\u0085c\x0c\x1d\n"},
    {"prompt": 'say "hi",\t\r\nthen:', "completion": " naïve 漢字 🚀\r\n"},
]
EXPECTED = [(row["prompt"], row["completion"]) for row in ROWS]


def table(sign: str) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["prompt", "completion"], delimiter=sign)
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), out)
    return out.getvalue()


RAW = [json.dumps(row, ensure_ascii=False) for row in ROWS]  # U+2028 and U+0085 stand there as they are
CONTENT = {
    "lines": ("\n".join(RAW) + "\n").encode(),
    "lines with CRLF": ("\r\n".join(RAW) + "\r\n").encode(),
    "lines without a last end": "\n".join(RAW).encode(),
    "blank lines": ("\n\n".join(RAW) + "\n\n").encode(),
    "array": json.dumps(ROWS).encode(),
    "indented array": json.dumps(ROWS, indent=1, ensure_ascii=False).encode(),
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "CSV": table(",").encode(),
    "TSV": table("\t").encode(),
    "Parquet": parquet(),
}
NAMES = ("rows.jsonl", "rows.json", "rows.JSON", "rows", "rows.txt", "rows.dat", "rows.csv", "rows.parquet")


def pairs(path: Path) -> list[tuple[str, str]]:
    return [(sample.prompt, sample.completion) for sample in read_samples(path)]


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("bom", [False, True], ids=["no mark", "mark"])
@pytest.mark.parametrize("content", sorted(CONTENT))
def test_content_decides_whatever_the_name(content, bom, packed, tmp_path):
    data = CONTENT[content]
    data = b"\xef\xbb\xbf" + data if bom and content != "Parquet" else data
    for name in NAMES:
        file = tmp_path / (name + ".gz" * packed)
        file.write_bytes(gzip.compress(data) if packed else data)
        assert pairs(file) == EXPECTED, name
        rows = [row for _, row in read_rows(str(file), "train", None)]
        assert [(row["prompt"], row["completion"]) for row in rows] == EXPECTED, name
        file.unlink()


def test_rows_under_the_name_of_source_code_are_rows_and_code_is_code(tmp_path):
    (tmp_path / "rows.py").write_bytes(CONTENT["lines"])
    assert pairs(tmp_path / "rows.py") == EXPECTED
    for number, code in enumerate(('{"a": 1}\n', "[1, 2]\n", "{1: x}\n", "[x for x in y]\n", "x = 1\n")):
        file = tmp_path / f"code{number}.py"
        file.write_text(code)
        assert pairs(file) == [("", code)]


def test_a_packed_source_file_is_source(tmp_path):
    (tmp_path / "a.py.gz").write_bytes(gzip.compress(b"x = 1\n"))
    assert pairs(tmp_path / "a.py.gz") == [("", "x = 1\n")]


USER, ANSWER = {"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}
CALL = {"type": "function", "function": {"name": "run", "arguments": {"x": 1}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
MBPP = {"text": "Add two.", "code": "def add(a, b):\n    return a + b\n", "test_list": ["assert add(1, 2) == 3"]}
HUMANEVAL = {
    "prompt": "def f():\n",
    "canonical_solution": "    pass\n",
    "test": "def check(c): pass\n",
    "entry_point": "f",
}
FORMS = {
    "prompt and completion": ({"prompt": "p", "completion": "c"}, ("p", "c")),
    "an empty completion": ({"prompt": "p", "completion": ""}, ("p", "")),
    "HumanEval": (HUMANEVAL, ("def f():\n", "    pass\n")),
    "MBPP": (MBPP, ('def add(a, b):\n    """Add two.\n    """\n', "    return a + b\n")),
    "text": ({"text": "x = 1"}, ("", "x = 1")),
    "chain of thought": ({"prompt": "p", "cot": "Step 1."}, ("p", "Step 1.")),
    "messages": ({"messages": [USER, ANSWER]}, ("Add.\n\n", "a + b")),
    "a chat without an answer": ({"messages": [USER]}, ("Add.\n\n", "")),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "a + b"}]},
        ("Add.\n\n", "a + b"),
    ),
    "ShareGPT with a system text": (
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "c"}]},
        ("Be brief.\n\nAdd.\n\n", "c"),
    ),
    "Alpaca": ({"instruction": "Add.", "input": "", "output": "a + b"}, ("Add.\n\n", "a + b")),
    "Alpaca with input": ({"instruction": "Add.", "input": "1 2", "output": "3"}, ("Add.\n\n1 2\n\n", "3")),
    "TRL's lists": ({"prompt": [USER], "completion": [ANSWER]}, ("Add.\n\n", "a + b")),
    "TRL's list and text": ({"prompt": [USER], "completion": "c"}, ("Add.\n\n", "c")),
    "content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Ad"}, {"type": "text", "text": "d."}]}, ANSWER]},
        ("Add.\n\n", "a + b"),
    ),
    "a tool call": (
        {"messages": [USER, CALLING, {"role": "tool", "content": "3"}, ANSWER]},
        ("Add.\n\n" + json.dumps(CALL) + "\n\n3\n\n", "a + b"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_of_a_row_is_a_sample(form, tmp_path):
    row, expected = FORMS[form]
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert pairs(tmp_path / "rows.json") == [expected]


def test_chats_keep_their_messages_for_the_template(tmp_path):
    rows = [FORMS[name][0] for name in ("ShareGPT", "TRL's lists", "a tool call", "Alpaca", "prompt and completion")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [sample.messages for sample in read_samples(tmp_path / "rows.jsonl")]
    assert found[0] == found[1] == found[3] == (USER, ANSWER)
    assert found[2][1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found[4] == ()


def test_tests_and_ids_come_along(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"task_id": "T/1", **HUMANEVAL}) + "\n" + json.dumps(MBPP))
    first, second = read_samples(tmp_path / "rows.jsonl")
    assert (first.task_id, first.test, first.entry_point) == ("T/1", "def check(c): pass\n", "f")
    assert (second.task_id, second.test, second.entry_point) == ("2", "assert add(1, 2) == 3\n", "add")


def test_parquet_with_nested_fields(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [USER, ANSWER | {"tool_calls": None}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert pairs(tmp_path / "rows.parquet") == [("Add.\n\n", "a + b")]


def zipped(*names):
    """The bytes of a zip archive with these empty files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return made.getvalue()


DEEP = "[" * 100_000
FOREIGN = {
    "a zip archive": ("rows.jsonl", b"PK\x03\x04rest", "looks like a zip archive: unpack it first"),
    "an Excel workbook": ("rows.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook: save the sheet"),
    "a Word document": ("text.docx", zipped("word/document.xml"), "a Word document: save its text as .txt"),
    "an OpenDocument file": ("text.odt", zipped("content.xml", "META-INF/manifest.xml"), "an OpenDocument file: save a"),
    "an old Office file": ("rows.xls", b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Office file"),
    "an archive of others": ("rows.zip", zipped("rows.jsonl"), "looks like a zip archive: unpack it first"),
    "a PyTorch file": ("rows.pt", zipped("archive/data.pkl", "archive/data/0"), "a PyTorch file, which can run code: save"),
    "an old PyTorch file": ("pytorch_model.bin", OLD_PYTORCH + b"\x80\x02", "a PyTorch file, which can run code"),
    "a pickle": ("rows.pkl", pickle.dumps([{"text": "a"}]), "a Python pickle, which can run code"),
    "a GGUF file": ("model.gguf", b"GGUF\x03\0\0\0", "a GGUF file of llama.cpp: give text or rows"),
    "safetensors": ("model.safetensors", (30).to_bytes(8, "little") + b'{"a":{}}', "a file of safetensors weights: give text"),
    "a packed PDF": ("text.txt.gz", gzip.compress(b"%PDF-1.7"), "a PDF: save its text as .txt"),
    "a tar archive": ("rows.tar", b"rows.jsonl".ljust(257, b"\0") + b"ustar\0", "a tar archive: unpack it first"),
    "UTF-16": ("rows.jsonl", '{"text": "a"}'.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    "Latin-1": ("rows.jsonl", b'{"text": "\xe9"}', "not UTF-8 text"),
    "a damaged archive": ("rows.jsonl.gz", gzip.compress(b"x" * 999)[:-9], "is damaged or truncated"),
    "an LFS pointer": ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
    "a web page": ("rows.jsonl", b"<!doctype HTML><p>Not found", "a web page"),
    "a notebook": ("a.ipynb", b'{"cells": [{"a": 1}], "nbformat": 4}', "Jupyter notebook: export its code as .py"),
    "rows under a name": ("r.json", b'{"data": [{"text": "a"}]}', "rows seem to be under 'data'"),
    "the same on lines": ("r.json", b'{\n "data": [\n{"text": "a"}]}\n', "rows seem to be under 'data'"),
    "text of no known kind": ("notes.xyz", b"hello there\n", "looks like plain text, and its name does not say"),
    "text under the name of rows": ("rows.jsonl", b"\nhello there\n", "rows.jsonl:2: not JSON: it looks like plain text"),
    "a deep array": ("rows.json", DEEP.encode(), "nested too deeply"),
    "a deep object": ("rows.json", ('{"a":' * 100_000).encode(), "nested too deeply"),
    "a deep line": ("rows.jsonl", ('{"text": "a"}\n{"text": ' + DEEP).encode(), "rows.jsonl:2: not JSON"),
    "a cut array": ("rows.json", b'[\n{"text": "a"},\n{"tex', "rows.json:3: not JSON"),
    "a cut object": ("rows.json", b'{\n"text": "a",\n"te', "rows.json:3: not JSON"),
    "numbers": ("rows.json", b"[1, 2]", "rows.json:item 1: got int, not an object"),
    "settings": ("rows.json", b'{"name": "x", "version": 2}', "field 'prompt' is missing"),
    "a short table": ("rows.csv", b"prompt,completion\na\n", "rows.csv:2: 1 fields, the header has 2"),
    "cut Parquet": ("rows.parquet", b"PAR1" + b"x" * 50, "is not a complete Parquet file"),
    "an image in a chat": (
        "rows.jsonl",
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}).encode(),
        r"not text \(image_url\)",
    ),
    "a turn without role": ("rows.jsonl", b'{"messages": [{"text": "a"}]}', "objects with role and content"),
    "half a surrogate pair": ("rows.jsonl", b'{"text": "a"}\n{"text": "a\\ud800"}', r"rows.jsonl:2: holds \\ud800, half of a"),
    "an empty chat": ("rows.jsonl", b'{"messages": []}', "holds no question"),
    "Alpaca with a number": ("rows.jsonl", b'{"instruction": "a", "output": 3}', "output is int, not text"),
}  # fmt: skip


def test_a_row_of_any_depth_is_read_or_refused_in_one_line(tmp_path):
    """The parser takes a few levels more than the writer, which once ended in a traceback."""
    file = tmp_path / "rows.jsonl"
    said = set()
    for depth in range(700, 1010):
        file.write_text(f'{{"text": "a", "more": {"[" * depth}{"]" * depth}}}\n')
        try:
            assert [sample.text for sample in read_samples(file)] == ["a"]
        except DataError as error:
            said.add(str(error).partition(": ")[2])
    assert said
    assert all("nested too deeply" in line for line in said)


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_what_is_neither_rows_nor_code_is_refused_in_one_line(kind, tmp_path):
    name, data, words = FOREIGN[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_samples(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    for path in (tmp_path / "rows.jsonl", Path("/dev/zero")):
        with pytest.raises(DataError, match="a pipe, a socket or a device"):
            read_samples(path)
        with pytest.raises(DataError, match="a pipe, a socket or a device"):
            read_rows(str(path), "train", 1)


def test_an_archive_that_unpacks_to_far_too_much_is_refused(tmp_path):
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b"\0" * (65 * 2**20)))
    with pytest.raises(DataError, match="unpacks to more than 64 MiB"):
        read_samples(tmp_path / "bomb.jsonl.gz")


def test_a_folder_gives_rows_and_code_and_leaves_settings_out(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "sizes.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.json").write_bytes(CONTENT["array"])
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(CONTENT["lines"]))
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "d.py").write_text("x = 1\n")
    os.mkfifo(tmp_path / "pipe.py")
    assert [path.name for path in files_under(tmp_path)] == ["b.json", "c.jsonl.gz", "d.py"]
    assert pairs(tmp_path) == [*EXPECTED, *EXPECTED, ("", "x = 1\n")]


def shared(name: str) -> Path:
    if not (BUGS / name).exists():
        pytest.skip(f"no {BUGS / name}")
    return BUGS / name


@pytest.mark.parametrize("name", ["rows.json", "array.json"])
def test_reported_rows_under_another_name(name):
    wanted = read_samples(shared("rows-json-calibration") / "rows.jsonl")
    found = read_samples(shared("rows-json-calibration") / name)
    assert [(one.prompt, one.completion) for one in found] == [(one.prompt, one.completion) for one in wanted]
    assert len(found) == 40


@pytest.mark.parametrize(("name", "sign"), [("cal-2028", "\u2028"), ("cal-85", "\u0085"), ("cal-bom", None)])
def test_reported_separators_and_marks(name, sign):
    found = read_samples(shared("separators-bom") / f"{name}.jsonl")
    assert len(found) == len((shared("separators-bom") / f"{name}.jsonl").read_bytes().splitlines())
    assert not found[0].prompt.startswith("\ufeff")
    assert sign is None or any(sign in one.text for one in found)


def test_reported_mbpp_plus_is_decided_by_its_script():
    from flab.evaluation.tasks import read_task

    (problem,) = read_task(shared("mbppplus") / "mbppplus.jsonl").problems
    assert problem.entry_point == "double_all"
    assert "inputs = [[[1,2,3,4,5]]]" in problem.test


@pytest.mark.parametrize("name", ["seen.jsonl", "seen.json"])
def test_reported_copies_of_problems_are_found_in_both_forms(name):
    from flab import assets
    from flab.evaluation.evaluate import find_overlaps
    from flab.evaluation.tasks import read_task

    data = shared("rows-json-calibration") / name
    (found,) = find_overlaps("no/model", [read_task(assets.problems_path())], [data])
    assert len(found["exact"]) == 5


def test_a_sample_without_messages_is_as_before():
    assert Sample("a", "b") == Sample("a", "b", None, None, "", ())
