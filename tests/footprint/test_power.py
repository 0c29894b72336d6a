"""Joules from counters: units, wrap-around, what cannot be read, and that nothing is estimated unasked."""

from __future__ import annotations

import builtins
import sys
from types import SimpleNamespace

import pytest

from flab.errors import OptionError
from flab.footprint import power
from flab.footprint.power import NvmlMeter, RaplMeter, find_meter, metered
from flab.footprint.settings import carbon_intensity


def package(root, number=0, joules=1.0, most=1000.0, name="package-0"):
    """A domain as the kernel shows it, in microjoules."""
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{int(most * 1e6)}\n")
    (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    return folder


def test_rapl_adds_the_packages_and_no_other_domain(tmp_path):
    first, second = package(tmp_path, 0), package(tmp_path, 1, name="package-1")
    package(tmp_path, 2, name="psys")
    package(tmp_path, "0:0", name="core")
    meter, why = find_meter("cpu", False, tmp_path)
    assert isinstance(meter, RaplMeter)
    assert why == ""
    assert [d.name for d in meter.domains] == [first.name, second.name]
    meter.start()
    (first / "energy_uj").write_text("3500000\n")
    (second / "energy_uj").write_text("1250000\n")
    assert meter.stop() == pytest.approx(2.75)
    assert meter.method.startswith("measured: RAPL")


def test_rapl_follows_a_wrap_around(tmp_path):
    folder = package(tmp_path, joules=999.0, most=1000.0)
    meter = RaplMeter([folder])
    meter.start()
    (folder / "energy_uj").write_text("2000000\n")
    assert meter.stop() == pytest.approx(3.0, abs=1e-5)


def test_rapl_polls_so_that_no_wrap_around_is_lost(tmp_path, monkeypatch):
    """Twice around within one window: only who looks in between sees both."""
    folder = package(tmp_path, joules=0.0, most=10.0)
    meter = RaplMeter([folder])
    meter.start()
    for joules in (9.0, 5.0, 2.0):
        (folder / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
        meter._poll()
    assert meter.stop() == pytest.approx(22.0, abs=1e-5)


def test_no_counter_is_no_energy_and_says_why(tmp_path):
    meter, why = find_meter("cpu", False, tmp_path / "nothing")
    assert meter is None
    assert "no power sensor" in why
    assert "--estimate (in a recipe: `estimate: true`)" in why


def test_a_counter_that_may_not_be_read_says_why(tmp_path):
    (package(tmp_path) / "energy_uj").unlink()
    meter, why = find_meter("cpu", False, tmp_path)
    assert meter is None
    assert "cannot be read" in why or "can be read" in why


def test_a_counter_that_stands_still_gives_no_figure(tmp_path, monkeypatch):
    package(tmp_path)
    monkeypatch.setattr(power, "find_meter", lambda device, estimate: find_meter(device, estimate, tmp_path))
    with metered("cpu", False) as energy:
        pass
    assert energy.figure.value is None
    assert "did not move" in energy.figure.reason


def test_the_window_is_closed_when_the_block_fails(tmp_path, monkeypatch):
    package(tmp_path)
    made = []

    def finder(device, estimate):
        made.append(find_meter(device, estimate, tmp_path)[0])
        return made[0], ""

    def fail():
        with metered("cpu", False):
            raise RuntimeError("broken")

    monkeypatch.setattr(power, "find_meter", finder)
    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert made[0].ended.is_set()
    assert not made[0].watcher.is_alive()


def test_a_counter_that_fails_on_the_way_gives_no_figure(tmp_path, monkeypatch):
    folder = package(tmp_path)
    meter = RaplMeter([folder])
    monkeypatch.setattr(power, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(power, "find_meter", lambda device, estimate: (meter, ""))
    with metered("cpu", False) as energy:
        (folder / "energy_uj").unlink()
        meter.watcher.join(5)
        (folder / "energy_uj").write_text("9000000")
    assert energy.figure.value is None
    assert "could not be read" in energy.figure.reason


def test_nvml_counts_millijoules_of_all_its_gpus(monkeypatch):
    counters = {"a": [1000, 3500], "b": [0, 500]}
    monkeypatch.setitem(
        sys.modules, "pynvml", SimpleNamespace(nvmlDeviceGetTotalEnergyConsumption=lambda h: counters[h].pop(0))
    )
    meter = NvmlMeter.__new__(NvmlMeter)
    meter.read, meter.handles = sys.modules["pynvml"].nvmlDeviceGetTotalEnergyConsumption, ["a", "b"]
    meter.start()
    assert meter.stop() == pytest.approx(3.0)


def test_a_gpu_without_a_counter_says_why(monkeypatch):
    import pynvml

    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(power, "is_gpu", lambda device: True)
    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    meter, why = find_meter("cuda", False)
    assert meter is None
    assert "no energy counter of the GPU" in why


def test_an_estimate_is_made_only_when_asked_and_says_what_it_assumes(tmp_path, monkeypatch):
    monkeypatch.setattr(power, "find_meter", lambda device, estimate: find_meter(device, estimate, tmp_path))
    with metered("cpu", False) as energy:
        sum(range(100_000))
    assert energy.figure.value is None
    with metered("cpu", True) as energy:
        sum(range(3_000_000))
    assert energy.figure.value > 0
    assert energy.figure.method.startswith("estimated: codecarbon")
    assert "W" in energy.figure.method


def test_without_codecarbon_an_estimate_says_how_to_get_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("codecarbon"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    meter, why = find_meter("cpu", True, tmp_path)
    assert meter is None
    assert "pip install codecarbon" in why
    with pytest.raises(OptionError, match="pip install codecarbon"):
        carbon_intensity("FRA")


@pytest.mark.parametrize(("grid", "grams"), [("0", 0.0), ("412.5", 412.5)])
def test_a_number_is_grams_per_kwh(grid, grams):
    assert carbon_intensity(grid) == {"grams_per_kwh": grams, "source": "given by the user"}


def test_a_country_has_a_value_with_year_and_source():
    found = carbon_intensity("fra")
    assert 10 < found["grams_per_kwh"] < 200
    assert "France, 20" in found["source"]
    assert found["grams_per_kwh"] < carbon_intensity("POL")["grams_per_kwh"]


@pytest.mark.parametrize("grid", ["FR", "-1", "nan", "inf", "", "XXX"])
def test_what_is_no_grid_is_refused_with_what_is_allowed(grid):
    with pytest.raises(OptionError, match=r"`grid`: got .*allowed"):
        carbon_intensity(grid)
