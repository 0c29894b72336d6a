"""Two models in turn, each in its own process: every figure has a method or a reason, and no CO2 without joules."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from flab.errors import CheckpointError, DataError, FlabError, OptionError
from flab.footprint import measure as module
from flab.footprint import power
from flab.footprint.figures import Figure, MeteredAnswers, Ratio, Throughput, Timing, measured, ratio_of, unknown
from flab.footprint.measure import measure, time_batches, time_rounds
from flab.footprint.payback import Solving, payback, solving
from flab.footprint.rows import energy_figures, gains
from flab.footprint.settings import Measuring
from flab.footprint.subject import OutOfMemoryError, Subject
from flab.models.options import Options
from support import pico

SMALL = Measuring(prompt_tokens=8, new_tokens=4, rounds=2, max_batch=2)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> dict:
    """A measured pair: five layers against two; a grid is given, but nothing meters."""
    root = tmp_path_factory.mktemp("pair")
    old, new = pico.build("qwen2", root / "old"), pico.build("qwen2", root / "new", num_hidden_layers=2)
    settings = Measuring(prompt_tokens=8, new_tokens=4, rounds=2, max_batch=2, grid="400")
    return measure(new, old, settings)


def test_every_figure_has_a_method_or_a_reason(both):
    assert [model["name"] for model in both["models"]] == ["original", "smaller"]
    for model in both["models"]:
        assert len(model["figures"]) >= 15
        for name, figure in model["figures"].items():
            assert (figure["value"] is None) == (figure["method"] is None) == (figure["reason"] is not None), name
            if figure["method"]:
                assert figure["method"].split(":")[0] in ("measured", "formula", "estimated")


def test_timed_figures_have_their_spread(both):
    for model in both["models"]:
        for name in ("time_to_first_token", "time_per_output_token", "throughput", "peak_memory_decode"):
            figure = model["figures"][name]
            assert 0 < figure["low"] <= figure["value"] <= figure["high"], name
            assert figure["rounds"] == SMALL.rounds


def test_sizes_are_those_of_the_models(both):
    old, new = (model["figures"] for model in both["models"])
    assert new["parameters"]["value"] < old["parameters"]["value"]
    assert new["storage_bytes"]["value"] == 4 * new["parameters"]["value"]
    assert old["kv_bytes_per_token"]["value"] == 2.5 * new["kv_bytes_per_token"]["value"]
    assert "(+0.00%)" in old["flops_per_token"]["method"]


def test_memory_is_each_models_own(both):
    """A process of its own: what one holds is not counted to the other, and the start is given too."""
    for model in both["models"]:
        figures = model["figures"]
        assert 0 < figures["memory_before_load"]["value"] <= figures["peak_memory_load"]["value"]
        assert figures["peak_memory_decode"]["value"] < 1.5 * figures["peak_memory_load"]["value"]


def test_throughput_goes_up_to_the_largest_batch_or_saturation(both):
    for model in both["models"]:
        assert [row["batch"] for row in model["throughput"]] == [1, 2]
        top = max(row["tokens_per_second"]["value"] for row in model["throughput"])
        assert model["figures"]["throughput"]["value"] == top


def test_gains_stand_beside_their_predictions(both):
    for gain in both["gains"].values():
        assert gain["low"] <= gain["value"] <= gain["high"]
        assert gain["of_predicted"] == pytest.approx(gain["value"] / gain["predicted"])
        assert gain["predicted"] > 1


def test_without_a_sensor_energy_is_null_and_no_co2_is_anywhere(both):
    for model in both["models"]:
        for name in ("energy_per_1000_tokens", "energy_per_solved_problem"):
            assert model["figures"][name]["value"] is None
            assert model["figures"][name]["reason"]
    assert both["grid"] is None
    text = json.dumps(both).lower()
    assert "co2" not in text
    assert "400" not in json.dumps([both["grid"], both["settings"]])


def test_one_model_alone_has_no_gains(pico_folder):
    report = measure(pico_folder(), settings=Measuring(prompt_tokens=4, new_tokens=2, rounds=1, max_batch=1))
    assert report["gains"] == {}
    assert [model["name"] for model in report["models"]] == ["model"]


def test_what_cannot_be_measured_is_one_line(tmp_path, pico_folder):
    with pytest.raises(CheckpointError, match="no model folder"):
        measure(tmp_path / "nothing")
    with pytest.raises(FlabError, match="prompt and answer take 204 tokens, but the model reads at most 128"):
        measure(pico_folder(), settings=Measuring(prompt_tokens=200, new_tokens=4))
    with pytest.raises(DataError):
        measure(pico_folder(), results=tmp_path / "no-run")
    with pytest.raises(OptionError, match="`grid`"):
        measure(pico_folder(), settings=Measuring(grid="Mordor"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"no \*.safetensors weights"):
        measure(broken)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_tokens", 0),
        ("new_tokens", 1),
        ("rounds", 0),
        ("max_batch", 0),
        ("window_seconds", 0),
        ("window_seconds", 1e9),
    ],
)
def test_settings_out_of_range_name_the_option(name, value):
    with pytest.raises(OptionError, match=f"`{name}`: got"):
        Measuring(**{name: value})


def test_a_process_that_dies_is_one_line(pico_folder, monkeypatch):
    import flab.footprint.subject as subject

    monkeypatch.setattr(subject.sys, "executable", "/bin/false")
    with pytest.raises(FlabError, match=r"the process that measures .* ended"):
        measure(pico_folder(), settings=SMALL, options=Options())


class Fake:
    """A subject whose speed is known; every call is noted."""

    def __init__(self, name: str, log: list, seconds: float = 1.0, most: int = 99, parallel: int = 99) -> None:
        self.name, self.log, self.seconds, self.most, self.parallel = name, log, seconds, most, parallel

    def time(self, batch: int) -> Timing:
        self.log.append((self.name, batch))
        if batch > self.most:
            raise OutOfMemoryError
        return Timing(0.0, self.seconds * max(1.0, batch / self.parallel), 10 * batch, 20 * batch)


def test_models_are_timed_in_turn_after_a_warm_up():
    log: list = []
    found = time_rounds([Fake("A", log), Fake("B", log)], Measuring(rounds=3), 1, "")
    assert [name for name, _ in log] == ["A", "B"] * 4
    assert [len(rows) for rows in found] == [3, 3]


def test_throughput_ends_at_saturation_of_both():
    log: list = []
    rows = time_batches([Fake("A", log, parallel=2), Fake("B", log, parallel=4)], Measuring(rounds=1, new_tokens=10))
    assert [row.batch for row in rows[0]] == [1, 2, 4, 8]
    assert [row.tokens_per_second.value for row in rows[0]] == [10, 20, 20, 20]
    assert [row.tokens_per_second.value for row in rows[1]] == [10, 20, 40, 40]
    assert rows[1][1].peak_bytes == 40


def test_throughput_is_written_as_measure_json_has_always_had_it():
    written = json.dumps(asdict(Throughput(4, measured([2.0, 4.0], "tokens/s", "x"), 80)))
    figure = '{"value": 3.0, "unit": "tokens/s", "method": "measured: x", "low": 2.0, "high": 4.0, "rounds": 2, "reason": null}'
    assert written == f'{{"batch": 4, "tokens_per_second": {figure}, "peak_bytes": 80}}'


def test_throughput_ends_where_one_does_not_fit_and_both_keep_the_same_sizes():
    log: list = []
    rows = time_batches([Fake("A", log), Fake("B", log, most=2)], Measuring(rounds=1))
    assert [[row.batch for row in one] for one in rows] == [[1, 2], [1, 2]]


def test_a_gain_is_the_ratio_of_medians_with_the_widest_ends():
    def row(values):
        speed = measured(values, "s", "x").to_json()
        fast = measured([1 / v for v in values], "tokens/s", "x").to_json()
        flops = {"value": 100.0 * values[0]}
        figures = {"time_per_output_token": speed, "throughput": fast, "flops_prefill": flops, "flops_per_token": flops}
        return {"figures": figures}

    class Sized:
        def __init__(self, size):
            self.facts, self.settings = {"step_bytes": size, "answer_flops": 2 * size}, Measuring()

    found = gains([Sized(300), Sized(100)], [row([2.0, 2.0, 4.0]), row([1.0, 1.0, 1.25])])
    assert found["time_per_output_token"]["value"] == 2.0
    assert (found["time_per_output_token"]["low"], found["time_per_output_token"]["high"]) == (1.6, 4.0)
    assert found["time_per_output_token"]["predicted"] == 3.0
    assert found["throughput"]["value"] == 2.0
    assert found["throughput"]["predicted"] == 3.0
    assert [gain["rounds"] for gain in found.values()] == [3, 3]


def window(joules, tokens=2000, method="measured: NVML"):
    return MeteredAnswers(Figure(joules, "J", method), tokens)


def test_energy_per_token_per_problem_and_co2():
    solved, grid = (
        Solving("HumanEval", tokens=5000, problems=50),
        {"grams_per_kwh": 360.0, "source": "given by the user"},
    )
    found = energy_figures([window(10.0), window(12.0), window(14.0)], 8, solved, grid)
    energy = found["energy_per_1000_tokens"]
    assert (energy.low, energy.value, energy.high, energy.rounds) == (5.0, 6.0, 7.0, 3)
    assert energy.method.startswith("measured: NVML; 8 answers at once")
    assert found["energy_per_solved_problem"].value == pytest.approx(0.6)  # 100 tokens for each
    assert found["co2_per_1000_tokens"].value == pytest.approx(6.0 / 3.6e6 * 360)
    assert "given by the user" in found["co2_per_1000_tokens"].method


def test_an_estimate_stays_an_estimate():
    found = energy_figures([window(10.0, method="estimated: codecarbon, machine mode")], 1, None, None)
    assert found["energy_per_1000_tokens"].method.startswith("estimated: codecarbon")
    assert found["co2_per_1000_tokens"].value is None
    assert "`grid`" in found["co2_per_1000_tokens"].reason
    assert "`results`" in found["energy_per_solved_problem"].reason


def test_no_energy_no_co2():
    found = energy_figures([MeteredAnswers(unknown("J", "no power sensor"), 4)], 1, None, {"grams_per_kwh": 1})
    assert set(found) == {"energy_per_1000_tokens", "energy_per_solved_problem"}
    assert all(figure.value is None and figure.reason == "no power sensor" for figure in found.values())


def report_of(old, new, joules=(None, None)):
    def model(speed, energy):
        known = Figure(energy, "J", "measured: x") if energy is not None else unknown("J", "no power sensor")
        figures = {"throughput": Figure(speed, "tokens/s", "measured: x"), "energy_per_1000_tokens": known}
        return {"figures": {name: figure.to_json() for name, figure in figures.items()}}

    return {"models": [model(old, joules[0]), model(new, joules[1])]}


def stage(seconds, joules=None):
    figure = Figure(joules, "J", "measured: x") if joules is not None else unknown("J", "no power sensor")
    return {"seconds": seconds, "energy": figure.to_json()}


def test_payback_is_cost_over_what_a_token_saves():
    stages = {"prune": stage(60, 100), "recover": stage(40, 20), "evaluate original": stage(1e6, 1e9)}
    found = payback(stages, report_of(10, 20, (8.0, 2.0)), Solving("code", 500, 10))
    assert found["seconds"]["cost"] == 100
    assert found["seconds"]["tokens"]["value"] == pytest.approx(100 / (1 / 10 - 1 / 20))
    assert found["energy"]["tokens"]["value"] == pytest.approx(120 / 0.006)
    assert found["solved_problems"]["value"] == pytest.approx(2000 / 50)


def test_payback_without_a_gain_or_a_sensor_says_so():
    found = payback({"prune": stage(60)}, report_of(20, 10), Solving("code", 500, 10))
    assert "never pays" in found["seconds"]["tokens"]["reason"]
    assert found["energy"]["tokens"]["reason"] == "no power sensor"
    assert "never pays" in found["solved_problems"]["reason"]
    none = payback({"prune": stage(60)}, report_of(10, 20), Solving("code", 500, 0))
    assert none["solved_problems"]["reason"] == "no problem of code was solved"
    no_code = payback({"prune": stage(60)}, report_of(10, 20), None)
    assert no_code["solved_problems"]["reason"] == "no code task was evaluated"


def test_payback_is_left_blank_if_the_ranges_of_both_models_overlap():
    overlapping = {
        "models": [
            {"figures": {
                "throughput": measured(speeds, "tokens/s", "x").to_json(),
                "energy_per_1000_tokens": measured(joules, "J", "x").to_json(),
            }}
            for speeds, joules in (([9.0, 10.0, 12.0], [7.0, 8.0, 9.0]), ([11.0, 20.0, 21.0], [3.0, 4.0, 5.0]))
        ]
    }  # fmt: skip
    found = payback({"prune": stage(60, 100)}, overlapping, None)
    assert found["seconds"]["tokens"]["value"] is None
    assert found["seconds"]["tokens"]["reason"].endswith("overlap, so no saving was shown")
    assert found["seconds"]["saved_per_token"] == pytest.approx(1 / 10 - 1 / 20)
    assert found["energy"]["tokens"]["value"] == pytest.approx(100 / 0.004)


@pytest.mark.parametrize(
    ("one", "other", "ends", "is_open"),
    [
        ([1.0, 1.0, 1.25], [2.0, 2.0, 4.0], (0.25, 0.5, 0.625), False),
        ([1.0, 2.0, 3.0], [2.0, 2.5, 4.0], (0.25, 0.8, 1.5), True),
        ([2.0, 2.0], [2.0, 2.0], (1.0, 1.0, 1.0), False),
        ([1.0], [2.0], (0.5, 0.5, 0.5), True),  # one round has no range, so it shows no difference
        ([1.0, 1.0], [2.0], (0.5, 0.5, 0.5), True),
    ],
)
def test_a_ratio_has_the_widest_range_and_is_open_if_it_contains_1(one, other, ends, is_open):
    found = ratio_of(*(measured(values, "s", "x").to_json() for values in (one, other)))
    assert (found.low, found.value, found.high) == ends
    assert found.is_open is is_open


def test_sizes_need_no_rounds_to_differ():
    found = ratio_of(*(Figure(size, "B", "formula: x").to_json() for size in (500, 1000)))
    assert (found.value, found.rounds, found.is_open) == (0.5, None, False)


def test_a_gain_says_how_many_rounds_it_rests_on():
    assert Ratio.of_gain({"value": 2.0, "low": 1.8, "high": 2.2, "rounds": 5}) == Ratio(2.0, 1.8, 2.2, 5)
    # Files of earlier versions do not say it; one round alone has a range of no width.
    assert not Ratio.of_gain({"value": 2.0, "low": 1.8, "high": 2.2}).is_open
    assert Ratio.of_gain({"value": 2.0, "low": 2.0, "high": 2.0}).is_single


def test_one_round_does_not_pay_back():
    once = {name: measured([speed], "tokens/s", "x").to_json() for name, speed in (("old", 10.0), ("new", 20.0))}
    energy = unknown("J", "no power sensor").to_json()
    models = [{"figures": {"throughput": speed, "energy_per_1000_tokens": energy}} for speed in once.values()]
    found = payback({"prune": stage(60)}, {"models": models}, None)
    assert found["seconds"]["tokens"]["value"] is None
    assert found["seconds"]["tokens"]["reason"] == "one round shows no saving"


def test_a_ratio_needs_both_figures():
    assert ratio_of(unknown("J", "no sensor").to_json(), measured([1.0], "J", "x").to_json()) is None
    assert ratio_of(None, measured([1.0], "J", "x").to_json()) is None


def test_tokens_for_each_solved_problem_come_from_the_code_tasks(tmp_path: Path):
    def task(name, kind, perturbation, rows):
        return {"name": name, "kind": kind, "perturbation": perturbation, "rows": rows}

    rows = [{"num_tokens": 30, "passed": True}, {"num_tokens": 50, "passed": False}]
    tasks = [task("code", "code", None, rows), task("code~x", "code", "x", rows), task("cot", "cot", None, rows)]
    run = {"fingerprint": "f", "settings": {}, "identity": {}, "robustness": [], "tasks": tasks}
    (tmp_path / "r.json").write_text(json.dumps(run))
    assert solving(tmp_path / "r.json") == Solving("code", 80, 1)
    (tmp_path / "r.json").write_text(json.dumps(run | {"tasks": tasks[2:]}))
    with pytest.raises(DataError, match="no code task"):
        solving(tmp_path / "r.json")


def test_figures_demand_a_method_or_a_reason():
    with pytest.raises(AssertionError):
        Figure(1.0, "s")
    with pytest.raises(AssertionError):
        Figure(None, "s")
    assert module.FORMAT == 1


def test_nothing_in_the_folder_where_it_is_started_is_run_or_takes_part(pico_folder, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('a file of the user was run')")
    (tmp_path / "sitecustomize.py").write_text("print('hello')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "noise"))
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "sitecustomize.py").write_text("print('printed before all else')")
    report = measure(pico_folder(), settings=Measuring(prompt_tokens=4, new_tokens=2, rounds=1, max_batch=1))
    assert report["models"][0]["figures"]["parameters"]["value"] > 0


def test_results_of_an_original_that_is_not_measured_are_refused(pico_folder):
    with pytest.raises(OptionError, match="`against_results`"):
        measure(pico_folder(), against_results="run")


def test_a_model_that_does_not_fit_is_one_line(monkeypatch):
    with pytest.raises(OutOfMemoryError) as caught:
        time_batches([Fake("A", [], most=0)], Measuring(rounds=1))
    assert isinstance(caught.value, FlabError)


def test_metering_makes_at_least_one_answer_however_long_the_meter_takes_to_start(pico_folder, monkeypatch):
    import contextlib
    import time

    from flab.footprint import worker

    @contextlib.contextmanager
    def slow(device, estimate):
        time.sleep(0.05)
        yield power.Energy()

    monkeypatch.setattr(worker, "metered", slow)
    order = {
        "folder": pico_folder(),
        "options": {},
        "prompt_tokens": 4,
        "new_tokens": 3,
        "text": None,
        "estimate": False,
    }
    assert worker.Workbench(order).energy(2, 0.001)["tokens"] == 6


def test_a_process_ends_with_its_context_however_that_ends(pico_folder):
    subject = Subject("model", pico_folder(), SMALL, Options())

    def stop():
        with subject:
            assert subject.process.poll() is None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert subject.process.poll() is not None
