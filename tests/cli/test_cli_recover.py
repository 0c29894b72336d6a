"""``flab data``, ``flab recover`` and ``flab run`` on the command line: one line and exit code 2 for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flab.cli.options import read_shares
from flab.errors import OptionError
from flab.recovery.settings import Training
from flab.recovery.strategies import Making
from support import pico
from support.command import assert_refused

GOOD = "model: bundled\nevaluate: {tasks: bundled}\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which a command that fails leaves nothing."""
    folder = tmp_path / "place"
    folder.mkdir()
    pico.write_calibration(folder / "rows.jsonl", 4)
    (folder / "empty.jsonl").touch()
    (folder / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    (folder / "fields.jsonl").write_text('{"a": 1}\n')
    (folder / "taken.jsonl").write_text("mine\n")
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("mine\n")
    (folder / "good.yml").write_text(GOOD)
    (folder / "typo.yml").write_text(GOOD + "options: {devise: cuda}\n")
    (folder / "list.yml").write_text("- model\n")
    (folder / "half.yml").write_text(GOOD + "recover: {minutes: 1}\n")
    (folder / "tasks.yml").write_text("model: bundled\nevaluate: {tasks: none.jsonl}\n")
    (folder / "model.yml").write_text("model: ./none\nevaluate: {tasks: bundled}\n")
    monkeypatch.chdir(folder)
    return folder


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# "M" stands for a model's folder, "S" for a pruned one.
ROWS = ["--instructions", "rows.jsonl"]
BAD_DATA = {
    "nothing": ([], ["Missing argument 'model'"]),
    "no output": (["M", *ROWS], ["Missing option '-o'"]),
    "no instructions": (["M", "-o", "d.jsonl"], ["--instructions: got none"]),
    "no model there": (["./none", *ROWS, "-o", "d.jsonl"], ["no model folder at ./none"]),
    "missing file": (["M", "--instructions", "none.jsonl", "-o", "d.jsonl"], ["none.jsonl", "no such file"]),
    "empty file": (["M", "--instructions", "empty.jsonl", "-o", "d.jsonl"], ["empty.jsonl: no instruction"]),
    "broken file": (["M", "--instructions", "broken.jsonl", "-o", "d.jsonl"], ["broken.jsonl:2: not JSON"]),
    "foreign fields": (["M", "--instructions", "fields.jsonl", "-o", "d.jsonl"], ["fields.jsonl:1", "the fields a"]),
    "missing evaluation": (["M", *ROWS, "--against", "none.jsonl", "-o", "d.jsonl"], ["none.jsonl", "no such file"]),
    "missing text": (["M", *ROWS, "--text", "none.py", "-o", "d.jsonl"], ["none.py does not exist"]),
    "strategy": (
        ["M", *ROWS, "--strategy", "best", "-o", "d.jsonl"],
        ["--strategy: got 'best', allowed verified-self"],
    ),
    "untested": (["M", *ROWS, "--untested", "x", "-o", "d.jsonl"], ["--untested: got 'x', allowed reference"]),
    "tries": (["M", *ROWS, "--tries", "-1", "-o", "d.jsonl"], ["--tries: got -1, allowed 0 or more"]),
    "tries, a word": (
        ["M", *ROWS, "--tries", "few", "-o", "d.jsonl"],
        ["--tries: got 'few', expected a whole number such as 4"],
    ),
    "temperature": (["M", *ROWS, "--temperature", "0", "-o", "d.jsonl"], ["--temperature: got 0, allowed more than 0"]),
    "top p": (["M", *ROWS, "--top-p", "2", "-o", "d.jsonl"], ["--top-p: got 2"]),
    "text share": (["M", *ROWS, "--text-share", "1", "-o", "d.jsonl"], ["--text-share: got 1, allowed a share"]),
    "own texts": (["M", *ROWS, "--own-texts", "-1", "-o", "d.jsonl"], ["--own-texts: got -1, allowed 0 or more"]),
    "new tokens": (["M", *ROWS, "--max-new-tokens", "0", "-o", "d.jsonl"], ["--max-new-tokens: got 0"]),
    "batch size": (["M", *ROWS, "--batch-size", "0", "-o", "d.jsonl"], ["--batch-size: got 0"]),
    "mix, no share": (["M", *ROWS, "--mix", "code", "-o", "d.jsonl"], ["--mix: got 'code', allowed KIND=SHARE"]),
    "mix, no number": (["M", *ROWS, "--mix", "code=x", "-o", "d.jsonl"], ["--mix: got 'code=x', allowed KIND=SHARE"]),
    "mix, no kind": (["M", *ROWS, "--mix", "=2", "-o", "d.jsonl"], ["--mix: got =2, allowed code"]),
    "mix, unknown": (["M", *ROWS, "--mix", "poems=2", "-o", "d.jsonl"], ["--mix: got poems=2, allowed code"]),
    "mix, nothing of it": (["M", *ROWS, "--mix", "code=-1", "-o", "d.jsonl"], ["--mix: got code=-1"]),
    "limit": (["M", *ROWS, "--limit", "0", "-o", "d.jsonl"], ["--limit: got 0, allowed 1 or more"]),
    "shard": (["M", *ROWS, "--shard", "3/2", "-o", "d.jsonl"], ["--shard: got '3/2', allowed I/N"]),
    "a folder for the output": (["M", *ROWS, "-o", "taken"], ["taken is a folder"]),
    "no folder for the output": (["M", *ROWS, "-o", "no/d.jsonl"], ["no folder no"]),
    "a taken output": (["M", *ROWS, "-o", "taken.jsonl"], ["taken.jsonl exists: pass --overwrite"]),
    "precision": (["M", *ROWS, "--dtype", "int4", "-o", "d.jsonl"], ["--dtype: got 'int4', allowed auto"]),
    "unknown option": (["M", *ROWS, "--frobnicate", "-o", "d.jsonl"], ["--frobnicate"]),
}
GIVEN = ["S", "--teacher", "M", "--data", "rows.jsonl", "-o", "out"]
BAD_RECOVERIES = {
    "nothing": ([], ["Missing argument"]),
    "no teacher": (["S", "--data", "rows.jsonl", "-o", "out"], ["Missing option '--teacher'"]),
    "no data": (["S", "--teacher", "M", "-o", "out"], ["Missing option '--data'"]),
    "no output": (["S", "--teacher", "M", "--data", "rows.jsonl"], ["Missing option '-o'"]),
    "no folder": (["./none", *GIVEN[1:]], ["no model folder at ./none"]),
    "no pruned folder": (["M", *GIVEN[1:]], ["has no plan.json", "flab prune"]),
    "no teacher there": (["S", "--teacher", "./none", *GIVEN[3:]], ["no model folder at ./none"]),
    "missing data": ([*GIVEN[:4], "none.jsonl", "-o", "out"], ["none.jsonl does not exist"]),
    "empty data": ([*GIVEN[:4], "empty.jsonl", "-o", "out"], ["empty.jsonl is empty"]),
    "broken data": ([*GIVEN[:4], "broken.jsonl", "-o", "out"], ["broken.jsonl:2: not JSON"]),
    "a taken output": ([*GIVEN[:-1], "taken"], ["taken exists: pass --overwrite"]),
    "an output that is no model": (
        [*GIVEN[:-1], "taken", "--overwrite"],
        ["taken holds files that flab did not write (mine"],
    ),
    "method": ([*GIVEN, "--method", "prayer"], ["--method: got 'prayer', allowed auto, full, lora"]),
    "target": ([*GIVEN, "--kl-on", "some"], ["--kl-on: got 'some', allowed answers, all"]),
    "alpha": ([*GIVEN, "--alpha", "2"], ["--alpha: got 2.0, allowed 0 (cross entropy alone)"]),
    "alpha, not a number": ([*GIVEN, "--alpha", "nan"], ["--alpha: got nan"]),
    "alpha, a word": ([*GIVEN, "--alpha", "half"], ["--alpha: got 'half', expected a number such as"]),
    "temperature": ([*GIVEN, "--temperature", "0"], ["--temperature: got 0.0, allowed more than 0"]),
    "two budgets": ([*GIVEN, "--steps", "2", "--minutes", "1"], ["--steps, --minutes: only one budget is allowed"]),
    "no steps": ([*GIVEN, "--steps", "0"], ["--steps: got 0, allowed more than 0"]),
    "negative minutes": ([*GIVEN, "--minutes", "-1"], ["--minutes: got -1, allowed more than 0"]),
    "length": ([*GIVEN, "--length", "8"], ["--length: got 8, allowed 16 or more"]),
    "batch": (
        [*GIVEN, "--batch", "6", "--micro-batch", "4"],
        ["--batch: got 6, allowed a multiple of --micro-batch 4"],
    ),
    "micro batch": ([*GIVEN, "--micro-batch", "-1"], ["--micro-batch: got -1, allowed 1 or more"]),
    "learning rate": ([*GIVEN, "--learning-rate", "0"], ["--learning-rate: got 0.0, allowed more than 0"]),
    "warmup": ([*GIVEN, "--warmup", "1"], ["--warmup: got 1.0, allowed a share"]),
    "held out": ([*GIVEN, "--held-out", "0.9"], ["--held-out: got 0.9, allowed a share"]),
    "patience": ([*GIVEN, "--patience", "0"], ["--patience: got 0, allowed 1 or more"]),
    "rank": ([*GIVEN, "--lora-rank", "0"], ["--lora-rank: got 0, allowed 1 or more"]),
    "precision": ([*GIVEN, "--dtype", "int4"], ["--dtype: got 'int4', allowed auto"]),
}
BAD_RUNS = {
    "nothing": ([], ["Missing argument"]),
    "no output": (["good.yml"], ["Missing option '-o'"]),
    "missing recipe": (["none.yml", "-o", "run"], ["none.yml: cannot be read", "recipes/quickstart.yml"]),
    "a folder for the recipe": (["taken", "-o", "run"], ["taken: cannot be read (Is a directory)"]),
    "typo": (["typo.yml", "-o", "run"], ["typo.yml: options: unknown key 'devise': did you mean 'device'?"]),
    "a list": (["list.yml", "-o", "run"], ["list.yml: got ['model'], expected names with values."]),
    "half of the training": (["half.yml", "-o", "run"], ["half.yml: data and recover go together"]),
    "no tasks there": (["tasks.yml", "-o", "run"], ["place/none.jsonl", "no such file"]),
    "no model there": (["model.yml", "-o", "run"], ["no model folder at", "place/none"]),
    "a file for the output": (["good.yml", "-o", "rows.jsonl"], ["-o rows.jsonl is a file"]),
    "another folder": (["good.yml", "-o", "taken"], ["-o taken is a folder but does not hold a run of a recipe"]),
    "a file above the output": (["good.yml", "-o", "rows.jsonl/run"], ["rows.jsonl/run"]),
}
BAD = {
    (command, kind): case
    for command, cases in (("data", BAD_DATA), ("recover", BAD_RECOVERIES), ("run", BAD_RUNS))
    for kind, case in cases.items()
}


@pytest.mark.parametrize(("command", "kind"), sorted(BAD))
def test_bad_arguments_are_one_line_and_exit_code_2(command, kind, flab, place, request):
    arguments, words = BAD[command, kind]
    stands = {"M": "trained_folder", "S": "pruned_folder"}
    given = [request.getfixturevalue(stands[one]) if one in stands else one for one in arguments]
    before = listing(place)
    assert_refused(flab(command, *given), *words)
    assert listing(place) == before


def test_a_micro_batch_of_no_rows_is_refused(flab, place, pruned_folder, trained_folder):
    given = [{"M": trained_folder, "S": pruned_folder}.get(one, one) for one in GIVEN]
    assert_refused(flab("recover", *given, "--micro-batch", "0"), "--micro-batch: got 0, allowed 1 or more")


def test_defaults_of_the_commands_are_those_of_the_library(flab, place, trained_folder, pruned_folder, monkeypatch):
    """The arguments arrive by name: an option that is not passed on, or lands on another, shows here."""
    given = {}
    monkeypatch.setattr("flab.recovery.data.make_data", lambda *arguments: given.update(data=arguments) or SHARD)
    monkeypatch.setattr("flab.recovery.train.recover", lambda *arguments: given.update(recover=arguments) or {})
    assert flab("data", trained_folder, *ROWS, "--shard", "1/2", "-o", "d.jsonl")[0] == 0
    model, instructions, out, making, _, against, text, limit, shard = given["data"]
    assert (model, instructions, out) == (str(trained_folder), [Path("rows.jsonl")], Path("d.jsonl"))
    assert (making, list(against), list(text), limit, shard) == (Making(), [], [], None, "1/2")
    assert flab("recover", pruned_folder, *["--teacher", trained_folder, "--data", "rows.jsonl", "-o", "out"])[0] == 0
    assert given["recover"][4] == Training()


SHARD = {"shard": "1/2", "file": "x", "generated": 1, "wanted": 2}


def test_every_option_arrives_where_it_belongs(flab, place, trained_folder, pruned_folder, monkeypatch):
    given = {}
    monkeypatch.setattr("flab.recovery.data.make_data", lambda *arguments: given.update(data=arguments) or SHARD)
    monkeypatch.setattr("flab.recovery.train.recover", lambda *arguments: given.update(recover=arguments) or {})
    making = {
        "strategy": "mixed",
        "untested": "drop",
        "tries": 2,
        "temperature": 0.5,
        "top_p": 0.75,
        "text_share": 0.25,
    }
    making |= {"own_texts": 6, "max_new_tokens": 9, "batch_size": 3, "seed": 7}
    assert {*making, "mix"} == set(Making.__dataclass_fields__)
    flags = [str(part) for name, value in making.items() for part in (f"--{name.replace('_', '-')}", value)]
    more = ["--mix", "code=2", "--mix", "cot=0.5", "--limit", "5", "--against", "a", "--text", "b", "--shard", "2/2"]
    assert flab("data", trained_folder, *ROWS, *flags, *more, "--unsandboxed", "-o", "d.jsonl")[0] == 0
    _, _, _, made, options, against, text, limit, shard = given["data"]
    assert made == Making(**making, mix=(("code", 2.0), ("cot", 0.5)))
    assert (list(against), list(text), limit, shard) == (["a"], [Path("b")], 5, "2/2")
    assert options.unsandboxed
    training = {"method": "lora", "alpha": 0.5, "temperature": 2.0, "kl_on": "all", "epochs": 1.5, "length": 64}
    training |= {"batch": 6, "micro_batch": 3, "learning_rate": 1e-3, "warmup": 0.25, "weight_decay": 0.125, "seed": 7}
    training |= {"held_out": 0.5, "evaluations": 4, "patience": 2, "lora_rank": 5, "template": "none"}
    others = {"steps", "tokens", "minutes", "packing", "gradient_checkpointing"}  # one budget; and switches
    assert {*training, *others} == set(Training.__dataclass_fields__)
    flags = [str(part) for name, value in training.items() for part in (f"--{name.replace('_', '-')}", value)]
    more = ["--no-packing", "--gradient-checkpointing", "--dtype", "bfloat16", "--overwrite"]
    fixed = [pruned_folder, "--teacher", trained_folder, "--data", "rows.jsonl", "-o", "out"]
    assert flab("recover", *fixed, *flags, *more)[0] == 0
    *_, trained, options = given["recover"]
    assert trained == Training(**training, packing=False, gradient_checkpointing=True)
    assert (options.dtype, options.overwrite) == ("bfloat16", True)


def test_a_mix_is_read_as_it_is_written():
    assert read_shares([]) == ()
    assert read_shares(["code=2", " cot = 0.5"]) == (("code", 2.0), ("cot", 0.5))
    with pytest.raises(OptionError, match="--mix: got 'code=1=2'"):
        read_shares(["code=1=2"])


INTERRUPTED = {
    "data": ("flab.recovery.data.make_data", "interrupted: the answers so far are kept; the same command resumes."),
    "recover": (
        "flab.recovery.train.recover",
        "interrupted: checkpoints are in out.training; the same command resumes.",
    ),
    "run": ("flab.runs.stages.run_recipe", "interrupted: finished stages are in out; the same command resumes."),
}


@pytest.mark.parametrize("command", sorted(INTERRUPTED))
def test_an_interrupt_says_how_to_go_on(command, flab, place, trained_folder, pruned_folder, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    name, words = INTERRUPTED[command]
    monkeypatch.setattr(name, interrupt)
    arguments = {
        "data": [trained_folder, *ROWS],
        "recover": [pruned_folder, "--teacher", trained_folder, "--data", "rows.jsonl"],
        "run": ["good.yml"],
    }
    assert_refused(flab(command, *arguments[command], "-o", "out"), words)


def test_a_recovery_that_fails_its_check_is_exit_code_1(flab, place, trained_folder, pruned_folder, monkeypatch):
    report = {"output": "out", "check": {"ok": False}}
    monkeypatch.setattr("flab.recovery.train.recover", lambda *_: report)
    arguments = [pruned_folder, "--teacher", trained_folder, "--data", "rows.jsonl", "-o", "out", "--json"]
    code, out, _ = flab("recover", *arguments)
    assert code == 1
    assert json.loads(out) == report


@pytest.mark.parametrize("command", ["data", "recover", "run"])
def test_every_command_has_help_with_an_example(command, flab):
    code, out, _ = flab(command, "--help")
    assert code == 0
    assert f"Example: flab {command}" in out
