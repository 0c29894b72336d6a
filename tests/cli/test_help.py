"""What people read first: short summaries that are never cut, options in two groups, help and defaults from one place."""

from __future__ import annotations

import inspect

import pytest
import typer

from flab.cli.app import app
from flab.cli.options import ADVANCED
from flab.models.options import HELP, settings_of
from flab.pruning.recipe import Recipe

LONGEST_SUMMARY = 60  # characters
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def shown(flab, monkeypatch):
    """What a command prints at 80 columns."""

    def run(*arguments: str) -> str:
        monkeypatch.setenv("COLUMNS", "80")
        code, out, err = flab(*arguments)
        assert (code, err) == (0, "")
        return out

    return run


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_fits_and_is_a_sentence(name, shown):
    summary = inspect.cleandoc(COMMANDS[name].help).split("\n\n")[0]
    assert len(summary) <= LONGEST_SUMMARY
    assert summary.endswith(".")
    assert "\n" not in summary
    assert summary in shown("--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_at_80_columns(name, shown):
    assert "…" not in shown(name, "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_text_is_one_clause(name):
    for option in COMMANDS[name].params:
        if option.name in ("help", "recipe"):
            continue
        assert option.help[0].isupper(), option.name
        assert option.help.endswith("."), option.name


def test_the_bare_command_prints_the_help(shown):
    assert shown() == shown("--help")
    assert "Commands" in shown()


def test_what_few_people_need_stands_in_a_group_of_its_own():
    panels = {option.name: option.rich_help_panel for option in COMMANDS["prune"].params}
    assert panels["remove"] is None
    assert panels["neuron_criterion"] == ADVANCED
    assert panels["no_output_projection"] == ADVANCED


def test_an_option_is_what_its_field_says():
    options = {option.name: option for option in COMMANDS["plan"].params}
    for name, field in settings_of(Recipe).items():
        option = options.get(name) or options[f"no_{name}"]
        assert option.help.lower().endswith(field.metadata[HELP].lower())
    assert options["remove"].default == Recipe.remove
    assert options["drop_layers"].opts == ["--drop-layers"]


def test_what_is_on_can_be_turned_off(flab, tmp_path):
    """The two fields that are on by default are the only ones whose option is a no."""
    code, _, err = flab("prune", tmp_path, "-o", tmp_path / "x", "--no-output-projection", "--refit", "reconstruction")
    assert code == 2
    assert "reconstruction moves the attention too" in err


def test_the_help_of_tokens_says_how_many_are_fitted():
    from flab.pruning.calibration import COMPARE_EVERY, Window, calibration_set

    windows = [Window([1] * 16, 16, number) for number in range(100)]
    made = calibration_set(windows)
    assert (made.num_compare_tokens, made.num_fit_tokens) == (320, 1280)
    assert COMPARE_EVERY == 5
    assert "A fifth of them only compares, and the rest is fitted." in settings_of(Recipe)["tokens"].metadata[HELP]


@pytest.mark.parametrize(
    ("name", "keeps"), [("prune", True), ("recover", True), ("plan", False), ("apply", False), ("eval", False)]
)
def test_overwrite_says_where_the_same_output_is_kept(name, keeps):
    option = next(one for one in COMMANDS[name].params if one.name == "overwrite")
    assert option.help.startswith("Replace the output if it exists.")
    assert ("An output of this very command that passes its check is kept" in option.help) == keeps
