"""The GPU pack, whole, at pico size on the CPU; and that a step which fails or overruns costs the others nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402
import gpu_steps  # noqa: E402

PICO = gpu_steps.SIZES["pico"]


def asked(tmp_path: Path, *more: str):
    """The pack's arguments at pico size."""
    given = gpu.arguments(["--size", "pico", "--device", "cpu", "-o", str(tmp_path / "out.json"), *more])
    given.work = tmp_path
    return given


def test_every_step_runs_and_the_report_holds_its_figures(tmp_path):
    """In this process: a fresh one for each step takes seconds."""

    def start(name, given, limit):
        assert 0 < limit <= gpu.STEPS[name].limit
        result = gpu.STEPS[name].run(gpu_steps.Place(PICO, "cpu", given.work))
        return {"ok": True, "seconds": 0.0, "result": json.loads(json.dumps(result))}

    report = gpu.run_pack(asked(tmp_path), start)
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(report))
    assert list(report["steps"]) == list(gpu.STEPS)
    found = {name: step["result"] for name, step in report["steps"].items()}
    assert found["device"]["forward_share_of_product_rate"] > 0
    assert found["device"]["energy"]["value"] is not None or found["device"]["energy"]["reason"]
    assert found["recovery"]["tokens_per_step"] == PICO.rows * PICO.length
    assert len(found["recovery"]["seconds_per_step"]) == PICO.steps - 1
    assert 0 < found["recovery"]["trainable"] < found["recovery"]["parameters"]
    assert found["recovery"]["predicted_bytes"] > 0
    assert found["evaluation"]["new_tokens"] == PICO.problems * PICO.new_tokens
    original, smaller = found["speed"]["models"]
    assert smaller["figures"]["parameters"]["value"] < original["figures"]["parameters"]["value"]
    assert found["speed"]["gains"]
    assert "path" not in original
    assert found["plan"]["removed_fraction"] >= 0.22
    assert found["plan"]["share_of_product_rate"] > 0
    assert (tmp_path / "applied" / "model.safetensors").is_file()
    assert "skipped" in found["tests"]["outcome"] or "passed" in found["tests"]["outcome"]


def test_the_shape_of_7_b_is_as_large_as_it_says():
    facts = gpu_steps.facts(gpu_steps.SIZES["7b"])
    assert 6.5e9 < facts["parameters"] < 7.0e9
    assert 0.22 <= 1 - facts["smaller_parameters"] / facts["parameters"] < 0.23
    assert gpu.MOST_SECONDS <= 9 * 60


def test_a_step_is_done_by_its_name_and_leaves_its_result(tmp_path, monkeypatch):
    """What the process of a step is given; the command itself is only looked at, because a process takes seconds."""
    monkeypatch.setattr(gpu, "ended", lambda command, answer, limit: {"command": command, "answer": answer})
    made = gpu.in_a_process("evaluation", asked(tmp_path), 60)
    assert made["command"][:2] == [sys.executable, str(BENCHMARKS / "gpu.py")]
    assert gpu.main(made["command"][2:]) == 0
    assert json.loads(made["answer"].read_text())["new_tokens"] == PICO.problems * PICO.new_tokens


def test_what_fails_overruns_or_comes_too_late_is_noted(tmp_path):
    answer = tmp_path / "answer.json"
    failed = gpu.ended([sys.executable, "-c", "raise SystemExit('no such thing')"], answer, 60)
    assert not failed["ok"]
    assert "exit code 1" in failed["why"]
    assert "no such thing" in failed["tail"]
    slow = gpu.ended([sys.executable, "-c", "import time; time.sleep(600)"], answer, 0.2)
    assert "limit of 0 s" in slow["why"]
    report = gpu.run_pack(asked(tmp_path, "--only", "device", "tests"), lambda name, given, limit: failed)
    assert list(report["steps"].values()) == [failed, failed]
    late = gpu.run_pack(asked(tmp_path, "--minutes", "0.1"), lambda name, given, limit: pytest.fail("it was begun"))
    assert {step["why"] for step in late["steps"].values()} == {"not begun: the time of the pack was used up"}


def test_without_a_gpu_it_says_how_to_try_it(monkeypatch, capsys):
    monkeypatch.setattr(gpu_steps, "is_gpu", lambda device: False)
    with pytest.raises(SystemExit) as ended:
        gpu.arguments([])
    assert ended.value.code == 2
    assert "--size pico --device cpu" in capsys.readouterr().err
