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

from flab.errors import DataError
from flab.evaluation.generate import Decoding, FakeGenerator, Generation, Request
from flab.evaluation.store import Store, fill, fingerprint, stored

MADE = Generation("a\u2028b\n\ud800é\x00", 3, "stop")
ROOT = Path(__file__).parents[2]


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


def test_fill_makes_what_is_missing_in_the_same_batches(tmp_path):
    wanted, decoding = wanted_for(7, samples=2), Decoding(batch_size=4)

    def run(path):
        calls = []

        class Noting(FakeGenerator):
            def generate(self, requests, decoding):
                calls.append([request.prompt for request in requests])
                return super().generate(requests, decoding)

        with Store(path, "f") as store:
            fill(store, Noting(lambda request: request.prompt.upper()), wanted, decoding)
            made = stored(store, [key for key, _ in wanted])
        assert [one.text for one in made] == [request.prompt.upper() for _, request in wanted]
        return calls

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "whole") == []
    lines = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    part = tmp_path / "part"
    part.write_bytes(b"".join(lines[:6]))
    assert run(part) == whole[1:]
    assert part.read_bytes() == b"".join(lines)


def test_fingerprints_depend_on_every_part_and_not_on_their_order():
    parts = {"model": "m", "decoding": {"temperature": 0.0, "top_p": 1.0}}
    assert fingerprint(parts) == fingerprint(dict(reversed(parts.items())))
    assert fingerprint(parts) != fingerprint(parts | {"model": "n"})
    with pytest.raises(ValueError):
        fingerprint({"x": float("nan")})


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/evaluation")
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

    from flab.evaluation.backend import TransformersGenerator
    from flab.evaluation.prompts import requests_for
    from flab.evaluation.tasks import read_task

    torch.set_num_threads(1)
    assets = ROOT / "src" / "flab" / "assets"
    model = AutoModelForCausalLM.from_pretrained(assets / "model", dtype=torch.float32)
    generator = TransformersGenerator(model, Tokenizer.from_file(str(assets / "model" / "tokenizer.json")))
    wanted = requests_for(read_task(assets / "problems.jsonl", limit=40), "completion")
    with Store(path, "f") as store:
        fill(store, generator, wanted, Decoding(64, temperature=0.8, batch_size=8))
