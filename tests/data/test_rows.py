"""Rows from CSV, folders and hub ids, and files that cannot be read."""

import csv
import json

import pytest

from flab.data.rows import read_rows
from flab.errors import DataError, FlabError
from flab.evaluation.tasks import Explanation, read_task

PROBLEM = {
    "task_id": "T/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(candidate):\n    assert candidate() == 1\n",
}
COT = {"prompt": "def one():\n", "cot": "Step 1. Return 1."}
MBPP = {
    "task_id": 11,
    "text": "Write a function to add.",
    "code": "import math\r\n\r\ndef helper(a):\r\n  return a\r\ndef add(a, b):\r\n  return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert set([add(1, 1)]) == {2}"],
    "test_setup_code": "",
}


def write_csv(file, rows, **settings):
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), **settings)
        writer.writeheader()
        writer.writerows(rows)
    return file


def test_csv(tmp_path):
    rows = [{"task_id": "a", **COT, "cot": 'x, "y"\nz' + "é" * 200_000}, {"task_id": "", **COT}]
    first, second = read_task(write_csv(tmp_path / "a.CSV", rows)).items
    assert (first.task_id, first.cot, len(second.task_id)) == ("a", rows[0]["cot"], 12)
    dos = write_csv(tmp_path / "b.csv", [{"\ufeffprompt": "p\r\nq\u2028r", "cot": "c\0"}])
    assert read_task(dos).items[0] == Explanation(read_task(dos).items[0].task_id, "p\r\nq\u2028r", "c\0")
    assert csv.field_size_limit() == 131072


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no problem"),
        ("prompt,cot\n", "holds no problem"),
        ("prompt,cot\n\n", "holds no problem"),
        ('prompt,cot\na,"b\nc', r"t\.csv:2: not CSV"),
        ("prompt,cot\na,b\n\nc,d,e\n", r"t\.csv:4: 3 fields, the header has 2"),
        ("prompt,cot,cot\na,b,c\n", r"t\.csv:1: the header names cot twice"),
        ('prompt,cot\n"a\nb",c\n,d\n', r"t\.csv:4: prompt is missing"),
        ("prompt;cot\na;b\n", r"t\.csv:2: the fields prompt;cot fit no task"),
    ],
)
def test_malformed_csv(tmp_path, text, message):
    (tmp_path / "t.csv").write_text(text, newline="")
    with pytest.raises(DataError, match=message):
        read_task(tmp_path / "t.csv")
    assert csv.field_size_limit() == 131072


def test_unreadable_sources(tmp_path):
    for name in ("none.jsonl", "none.csv", "none.json", "a/b/c", "no file", ""):
        with pytest.raises(DataError, match="cannot be read"):
            read_task(f"{tmp_path}/{name}" if name.startswith("none") else name)
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(DataError, match="cannot be read"):
        read_task(tmp_path / "latin.jsonl")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_folders_load_through_datasets(tmp_path, cache):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [{**PROBLEM, "task_id": f"{split}/{number}"} for number in range(count)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = read_task(folder)
    assert (task.name, [item.task_id for item in task.items]) == ("set", ["test/0", "test/1"])
    assert [row["task_id"] for _, row in read_rows(str(folder), "train", 1)] == ["train/0"]
    assert len(read_task(folder, limit=9).items) == 2
    with pytest.raises(DataError, match="split 'validation' cannot be loaded") as caught:
        read_rows(str(folder), "validation", None)
    assert "\n" not in str(caught.value)


def test_parquet_folders_with_lists_load(tmp_path, cache):
    import datasets

    (tmp_path / "mbpp").mkdir()
    datasets.Dataset.from_list([MBPP]).to_parquet(str(tmp_path / "mbpp" / "test-0.parquet"))
    assert read_task(tmp_path / "mbpp").items[0].entry_point == "add"


def test_hub_ids_go_to_datasets_with_their_config(monkeypatch):
    import datasets

    asked = []
    table = datasets.Dataset.from_list([{**PROBLEM, "task_id": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or table)
    task = read_task("owner/set:main")
    assert asked == [(("owner/set", "main"), {"split": "test"})]
    assert (task.name, task.source) == ("set-main", "owner/set:main")
    assert read_task("owner/set").name == "set"
    assert asked[-1] == (("owner/set", None), {"split": "test"})


def test_random_bytes_never_escape_as_other_errors(tmp_path):
    import random

    rng = random.Random(0)
    file, good = tmp_path / "x.jsonl", (json.dumps(PROBLEM) + "\n").encode()
    for number in range(300):
        damaged = bytearray(good * 2)
        for _ in range(rng.randint(1, 6)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        for name in ("x.jsonl", "x.csv"):
            file = tmp_path / name
            file.write_bytes(bytes(damaged))
            message = ""
            try:
                read_task(file, "code" if number % 2 else None)
            except FlabError as error:
                message = str(error)
            assert "\n" not in message
