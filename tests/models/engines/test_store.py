"""The store: append-only, keyed, and the same after any number of kills as without one."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flab.errors import DataError, OptionError
from flab.models.engines.protocol import Decoding, FakeGenerator, Generation, Request
from flab.models.engines.store import Shard, Store, fill, fingerprint, stored

MADE = Generation("a\u2028b\n\ud800é\x00", 3, "stop")
ROOT = Path(__file__).parents[3]


def wanted_for(count, samples=1):
    return [
        (("task", f"t/{n}", sample), Request("x" * (n % 7 + 1) + f"#{n}/{sample}", ()))
        for n in range(count)
        for sample in range(samples)
    ]


def lines_of(path):
    return sorted(path.read_bytes().splitlines(keepends=True))


def test_what_is_appended_is_read_back(tmp_path):
    path = tmp_path / "new" / "generations.jsonl"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE), (("t", "0", 1), Generation("", 0, "eos"))])
        assert store.get("t", "0", 0) == MADE
        assert len(store) == 2
    again = Store(path, "f")
    assert again.get("t", "0", 0) == MADE
    assert again.get("t", "0", 1) == Generation("", 0, "eos")
    assert again.get("t", "1", 0) is None
    row = json.loads(path.read_bytes().splitlines()[0])
    assert list(row) == ["fingerprint", "task", "task_id", "sample", "text", "num_tokens", "finish_reason"]


def test_only_missing_lines_are_added(tmp_path):
    with Store(tmp_path / "g", "f") as store:
        store.append([(("t", "0", 0), MADE)])
        store.append([(("t", "0", 0), MADE), (("t", "0", 1), MADE)])
        store.append([])
    assert len(lines_of(tmp_path / "g")) == 2


def test_other_fingerprints_stay_and_are_not_read(tmp_path):
    path = tmp_path / "g"
    with Store(path, "old") as store:
        store.append([(("t", "0", 0), MADE)])
    before = path.read_bytes()
    with Store(path, "new") as store:
        assert store.get("t", "0", 0) is None
        store.append([(("t", "0", 0), Generation("other", 1, "eos"))])
    assert path.read_bytes().startswith(before)
    assert Store(path, "old").get("t", "0", 0) == MADE
    assert Store(path, "new").get("t", "0", 0).text == "other"


def test_a_torn_last_line_is_cut_off_at_the_first_append_and_not_before(tmp_path):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole) - 1):
        path.write_bytes(whole[:size])
        with Store(path, "f") as store:
            assert len(store) == 1
            assert path.stat().st_size == size
            store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
        assert path.read_bytes() == whole
    path.write_bytes(whole[:first] + b"\x00" * 40)
    with Store(path, "f") as store:
        store.append([(("t", "1", 0), MADE)])
    assert path.read_bytes() == whole


def test_a_whole_last_line_without_a_line_break_is_kept(tmp_path):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with Store(path, "f") as store:
        assert len(store) == 2
        store.append([(("t", "2", 0), MADE)])
    assert path.read_bytes().startswith(whole)
    assert len(Store(path, "f")) == 3


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", '{"fingerprint": "f"}', "\x00\x00", "é"],
    ids=["blank", "torn", "list", "fields", "nul", "text"],
)
def test_other_damage_names_the_line(tmp_path, line):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line.encode() + b"\n" + second)
    with pytest.raises(DataError, match=r"g:2: not a generation .*; remove the line"):
        Store(path, "f")


@pytest.mark.parametrize(
    "change", [{"sample": True}, {"num_tokens": "3"}, {"finish_reason": "why"}, {"text": None}, {"more": 1}]
)
def test_a_field_of_another_type_is_damage(tmp_path, change):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE)])
    row = json.loads(path.read_bytes()) | change
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="g:1: not a generation"):
        Store(path, "f")


def test_a_repeated_line_is_harmless_and_a_contradiction_is_not(tmp_path):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE)])
    line = path.read_bytes()
    path.write_bytes(line * 2)
    assert len(Store(path, "f")) == 1
    path.write_bytes(line + line.replace(b'"stop"', b'"eos"'))
    with pytest.raises(DataError, match="g:2: another text for sample 0 of 0 in t"):
        Store(path, "f")


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "g"
    with Store(path, "f") as first:
        first.append([(("t", "0", 0), MADE)])
        second = Store(path, "f")
        first.append([(("t", "1", 0), MADE)])
        with pytest.raises(DataError, match="another run is writing it"):
            fill(second, FakeGenerator({}), wanted_for(1), Decoding())
    second.append([(("t", "1", 0), MADE), (("t", "2", 0), MADE)])  # reads again what came in between
    second.close()
    assert len(lines_of(path)) == 3


def test_a_full_disk_is_one_error_and_leaves_the_file_whole(tmp_path):
    path = tmp_path / "g"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE)])
        before = path.read_bytes()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        try:
            with pytest.raises(DataError, match=r"g: cannot be written \(File too large\)") as caught:
                store.append([(("t", "1", 0), MADE)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        assert store.get("t", "1", 0) is None
        store.append([(("t", "1", 0), MADE)])
    assert len(Store(path, "f")) == 2


def test_a_place_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "g", tmp_path):
        with pytest.raises(DataError, match=r"cannot be (read|opened)"):
            Store(path, "f").lock()


class Noting(FakeGenerator):
    """Notes the prompts of each batch."""

    def __init__(self, answers):
        super().__init__(answers)
        self.batches = []

    def generate(self, requests, decoding):
        self.batches.append([request.prompt for request in requests])
        return super().generate(requests, decoding)


def upper(request):
    return request.prompt.upper()


def test_fill_makes_what_is_missing_in_the_same_batches(tmp_path):
    wanted, decoding = wanted_for(7, samples=2), Decoding(batch_size=4)

    def run(path):
        generator = Noting(upper)
        with Store(path, "f") as store:
            fill(store, generator, wanted, decoding)
            made = stored(store, [key for key, _ in wanted])
        assert [one.text for one in made] == [request.prompt.upper() for _, request in wanted]
        return generator.batches

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "whole") == []
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    part = tmp_path / "part"
    part.write_bytes(b"".join(lines[:6]))
    assert run(part) == whole[1:]
    assert part.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("text", "number", "count"),
    [("1/1", 1, 1), ("2/4", 2, 4), (" 12/12\n", 12, 12), ("1/999999", 1, 999999)],
)
def test_a_part_is_read_from_its_name(text, number, count):
    shard = Shard.parse(text)
    assert (shard.number, shard.count) == (number, count)
    assert str(shard) == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "1", "/", "1/", "/2", "0/2", "3/2", "1/0", "-1/2", "1/-2", "1.0/2", "01/2", "1 / 2", "1/2/3", "a/b", "1\n/2",
     "1/1٣", "٣/٤", f"1/{'9' * 5000}"],
)  # fmt: skip
def test_other_names_of_parts_are_refused(text):
    with pytest.raises(OptionError, match=r"`shard`: got .*, allowed I/N with 1 <= I <= N") as caught:
        Shard.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("size", [0, 1, 7, 10])
def test_the_parts_share_everything_and_differ_by_one_at_most(count, size):
    parts = [Shard(number, count).part(range(size)) for number in range(1, count + 1)]
    assert sorted(one for part in parts for one in part) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_part_has_a_file_beside_the_whole_one(tmp_path):
    assert Shard(2, 4).file(tmp_path / "generations.jsonl") == tmp_path / "generations.2-of-4.jsonl"
    assert Shard(2, 4).file(tmp_path / "a.b.jsonl") == tmp_path / "a.b.2-of-4.jsonl"


@pytest.mark.parametrize("name", ["g.jsonl", "g", "a.b.jsonl", "[g]*?.jsonl"])
def test_all_stores_read_all_files_and_each_writes_its_own(tmp_path, name):
    path = tmp_path / name
    stores = [None, Shard(1, 2), Shard(2, 2), Shard(3, 3)]
    for number, shard in enumerate(stores):
        with Store(path, "f", shard) as store:
            assert len(store) == number
            store.append([(("t", str(number), 0), MADE)])
    for shard in stores:
        assert len(Store(path, "f", shard)) == 4
    assert [len(lines_of(file)) for file in tmp_path.iterdir()] == [1, 1, 1, 1]
    assert {file.name for file in tmp_path.iterdir()} == {path.name} | {one.file(path).name for one in stores[1:]}


def test_files_of_another_output_are_not_read(tmp_path):
    for name in ("h.jsonl", "hg.jsonl", "g.other.jsonl"):
        with Store(tmp_path / name, "f", Shard(1, 2)) as store:
            store.append([(("t", name, 0), MADE)])
    assert len(Store(tmp_path / "g.jsonl", "f")) == 0


def test_parts_are_written_at_the_same_time_and_a_part_by_one_only(tmp_path):
    path = tmp_path / "g.jsonl"
    with Store(path, "f", Shard(1, 2)) as first, Store(path, "f", Shard(2, 2)) as second:
        first.append([(("t", "0", 0), MADE)])
        second.append([(("t", "1", 0), MADE)])
        with pytest.raises(DataError, match=r"g\.1-of-2\.jsonl: another run is writing it"):
            Store(path, "f", Shard(1, 2)).lock()
    assert len(Store(path, "f")) == 2


def test_what_another_writer_has_begun_is_neither_read_nor_cut_off(tmp_path):
    path, other = tmp_path / "g.jsonl", tmp_path / "g.1-of-2.jsonl"
    with Store(path, "f", Shard(1, 2)) as store:
        store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
    torn = other.read_bytes()[:-10]
    other.write_bytes(torn)
    with Store(path, "f", Shard(2, 2)) as store:
        assert len(store) == 1
        store.append([(("t", "1", 0), MADE), (("t", "2", 0), MADE)])
    assert other.read_bytes() == torn
    assert len(Store(path, "f")) == 3


def test_a_parts_own_torn_line_is_cut_off_at_its_first_append(tmp_path):
    shard = Shard(1, 2)
    with Store(tmp_path / "g.jsonl", "f", shard) as store:
        store.append([(("t", "0", 0), MADE), (("t", "1", 0), MADE)])
    part = shard.file(tmp_path / "g.jsonl")
    whole = part.read_bytes()
    part.write_bytes(whole[:-10])
    with Store(tmp_path / "g.jsonl", "f", shard) as store:
        store.append([(("t", "1", 0), MADE)])
    assert part.read_bytes() == whole


def test_damage_and_contradictions_in_another_file_name_it(tmp_path):
    path, other = tmp_path / "g.jsonl", tmp_path / "g.1-of-2.jsonl"
    with Store(path, "f") as store:
        store.append([(("t", "0", 0), MADE)])
    other.write_bytes(path.read_bytes().replace(b'"stop"', b'"eos"'))
    with pytest.raises(DataError, match=r"g\.1-of-2\.jsonl:1: another text for sample 0 of 0 in t"):
        Store(path, "f")
    other.write_bytes(b"{\n")
    with pytest.raises(DataError, match=r"g\.1-of-2\.jsonl:1: not a generation"):
        Store(path, "f", Shard(2, 2))


def test_parts_of_another_fingerprint_stay_and_are_not_read(tmp_path):
    path = tmp_path / "g.jsonl"
    with Store(path, "old", Shard(1, 2)) as store:
        store.append([(("t", "0", 0), MADE)])
    assert Store(path, "new").get("t", "0", 0) is None
    assert Store(path, "old").get("t", "0", 0) == MADE


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_the_parts_meet_the_batches_of_the_whole(tmp_path, count):
    wanted, decoding = wanted_for(7, samples=2), Decoding(batch_size=4)
    whole = Noting(upper)
    with Store(tmp_path / "whole", "f") as store:
        fill(store, whole, wanted, decoding)
    for number in range(1, count + 1):
        shard, part = Shard(number, count), Noting(upper)
        with Store(tmp_path / "g", "f", shard) as store:
            fill(store, part, wanted, decoding, shard)
        assert part.batches == whole.batches[number - 1 :: count]
    silent = Noting([])
    with Store(tmp_path / "g", "f") as store:
        fill(store, silent, wanted, decoding)
        assert len(store) == len(wanted)
    assert silent.batches == []
    assert not (tmp_path / "g").exists()
    parts = [line for file in tmp_path.glob("g.*") for line in lines_of(file)]
    assert sorted(parts) == lines_of(tmp_path / "whole")


def test_fingerprints_depend_on_every_part_and_not_on_their_order():
    parts = {"model": "m", "decoding": {"temperature": 0.0, "top_p": 1.0}}
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    assert fingerprint(parts) != fingerprint(parts | {"model": "n"})
    with pytest.raises(ValueError):
        fingerprint({"x": float("nan")})


RUN = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/models/engines"]
import test_store
print("go", flush=True)
getattr(test_store, sys.argv[1])(Path(sys.argv[2]))
"""


def slow_fill(path, seconds=0.002):
    """480 samples in batches of 4."""
    wanted = wanted_for(240, samples=2)

    def answer(request):
        time.sleep(seconds)
        return f"{request.prompt} " * 500

    with Store(path, "f") as store:
        fill(store, FakeGenerator(answer), wanted, Decoding(max_new_tokens=10**6, batch_size=4))


def start(function, path):
    process = subprocess.Popen([sys.executable, "-c", RUN, function, path], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"go\n"
    return process


def test_killed_at_20_random_moments_it_ends_as_uninterrupted(tmp_path):
    slow_fill(tmp_path / "whole", 0)
    whole = lines_of(tmp_path / "whole")
    assert len(set(whole)) == 480
    rng, paths, part_way = random.Random(), [tmp_path / "killed-0"], 0
    for _ in range(20):
        process = start("slow_fill", paths[-1])
        time.sleep(rng.uniform(0, 0.06))
        process.send_signal(signal.SIGKILL)
        process.wait()
        size = paths[-1].stat().st_size if paths[-1].exists() else 0
        part_way += 0 < size < (tmp_path / "whole").stat().st_size
        if size and rng.random() < 0.5:  # a kill hardly ever meets a write: tear the last line ourselves
            os.truncate(paths[-1], max(0, size - rng.randint(1, 1000)))
        if paths[-1].exists() and len(lines_of(paths[-1])) >= 480:
            paths.append(tmp_path / f"killed-{len(paths)}")
    assert part_way > 5
    for path in paths:
        slow_fill(path, 0)
        assert lines_of(path) == whole


@pytest.mark.slow
def test_killed_with_the_bundled_model_it_ends_as_uninterrupted(tmp_path):
    model_fill(tmp_path / "whole")
    path = tmp_path / "killed"
    process = start("model_fill", path)
    while not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(lines_of(path)) < len(lines_of(tmp_path / "whole"))
    model_fill(path)
    assert lines_of(path) == lines_of(tmp_path / "whole")


def model_fill(path):
    """40 problems by the bundled model, sampled, in batches of 8."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    from flab.evaluation.prompts import requests_for
    from flab.evaluation.tasks import read_task
    from flab.models.engines.transformers import TransformersGenerator

    torch.set_num_threads(1)
    assets = ROOT / "src" / "flab" / "assets"
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=torch.float32)
    generator = TransformersGenerator(model, Tokenizer.from_file(str(assets / "model" / "tokenizer.json")))
    wanted = requests_for(read_task(assets / "problems.jsonl", limit=40), "completion")
    with Store(path, "f") as store:
        fill(store, generator, wanted, Decoding(64, temperature=0.8, batch_size=8))
