"""A mistake costs no torch: every command finds what is wrong with its arguments before it imports anything heavy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from flab import assets

HEAVY = ("torch", "transformers", "tokenizers", "datasets", "scipy", "matplotlib", "pyarrow")
CHILD = f"""
import atexit, sys
atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))
from flab.cli import main
main()
"""
MODEL, TASK, ROWS = assets.model_path(), assets.problems_path(), assets.recovery_path()
DATA = ["data", MODEL, "-o", "new.jsonl", "--instructions", ROWS]
RECOVER = ["recover", MODEL, "--teacher", MODEL, "--data", ROWS, "-o", "new"]
EVAL = ["eval", MODEL, "--task", TASK]
OLD, NEW = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj_weigh2"
MISTAKES = {  # what is typed, and words of the answer
    "plan, no model": (["plan", "./none"], "no model folder"),
    "plan, output exists": (["plan", MODEL, "-o", "there.json"], "exists: pass --overwrite"),
    "plan, dtype": (["plan", MODEL, "--dtype", "int4"], "--dtype: got 'int4'"),
    "plan, device": (["plan", MODEL, "--device", "gpu"], "--device: got 'gpu'"),
    "plan, more layers than weights": (["plan", "large"], "asks for about"),
    "plan, a normalizer that explodes": (["plan", "bomb"], "its normalizer makes a text up to 1e+15 times"),
    "plan, no tokenizer": (["plan", "speechless"], "has no tokenizer.json"),
    "plan, a tokenizer without a model": (["plan", "damaged"], "tokenizer.json is damaged"),
    "plan, a deep tokenizer": (["plan", "deep"], "tokenizer.json cannot be read as JSON (nested too deeply)"),
    "plan, a template of others": (["plan", "borrowed"], "chat_template.jinja is a link to"),
    "plan, a deep tokenizer config": (["plan", "unread"], "tokenizer_config.json cannot be read as JSON (nested"),
    "plan, weights of others": (["plan", "renamed"], "has consolidated.safetensors, but neither"),
    "plan, threads": (["plan", MODEL, "--threads", "4"], "No such option: --threads here: give it before the command"),
    "prune, refit": (["prune", MODEL, "-o", "new", "--refit", "magic"], "--refit: got 'magic'"),
    "prune, no calibration": (["prune", MODEL, "-o", "new", "--calibration", "none.jsonl"], "does not exist"),
    "plan, a renamed tensor": (["plan", "misnamed"], f"1 missing keys in the weights ({OLD}), but it has {NEW}"),
    "eval, another family": (["eval", "foreign", "--task", TASK], "model_type 'gpt2' cannot be cut"),
    "plan, a percentage": (["plan", MODEL, "--remove", "40%"], "--remove: got '40%', expected a number such as 0.4 ("),
    "plan, a GGUF file": (["plan", "small.gguf"], "it is a GGUF file of llama.cpp; give the Hugging Face folder"),
    "plan, a workbook": (["plan", MODEL, "--calibration", "rows.xlsx"], "an Excel workbook: save the sheet with the"),
    "info, no model": (["info", "./none"], "no model folder"),
    "text, no model": (["text", "./none", "-o", "new"], "no model folder"),
    "text, not multimodal": (["text", MODEL, "-o", "new"], "is not multimodal"),
    "text, output exists": (["text", MODEL, "-o", "there"], "exists"),
    "info, no text": (["info", MODEL, "--calibration", "none.jsonl"], "does not exist"),
    "apply, no plan": (["apply", MODEL, "none.json", "-o", "new"], "cannot read the plan"),
    "check, no folder": (["check", "./none"], "not a model folder"),
    "check, no original": (["check", MODEL, "--against", "./none"], "no model folder"),
    "export, no model": (["export", "gguf", "./none", "-o", "new.gguf"], "no model folder"),
    "export, format": (["export", "onnx", MODEL, "-o", "new.onnx"], "FORMAT: got 'onnx'"),
    "export, output exists": (["export", "gguf", MODEL, "-o", "there.json"], "exists: pass --overwrite"),
    "data, no instructions": ([*DATA, "--instructions", "./none.jsonl"], "none.jsonl: cannot be read"),
    "data, no model": (["data", "./none", *DATA[2:]], "no model folder"),
    "data, output exists": ([*DATA, "-o", "there.json"], "exists: pass --overwrite"),
    "data, no task": ([*DATA, "--against", "./none.jsonl"], "none.jsonl: cannot be read"),
    "data, dtype": ([*DATA, "--dtype", "int4"], "--dtype: got 'int4'"),
    "data, shard": ([*DATA, "--shard", "5"], "--shard: got '5'"),
    "recover, no model": (["recover", "./none", *RECOVER[2:]], "no model folder"),
    "recover, no teacher": ([*RECOVER, "--teacher", "./none"], "no model folder"),
    "recover, never pruned": (RECOVER, "has no plan.json"),
    "recover, no data": ([*RECOVER[:1], "pruned", *RECOVER[2:], "--data", "none.jsonl"], "none.jsonl does not exist"),
    "recover, output exists": ([*RECOVER, "-o", "there"], "exists: pass --overwrite"),
    "recover, dtype": ([*RECOVER, "--dtype", "int4"], "--dtype: got 'int4'"),
    "eval, no task": (["eval", MODEL], "--task: got none"),
    "eval, task missing": ([*EVAL, "--task", "./none.jsonl"], "none.jsonl: cannot be read"),
    "eval, a folder as task": (["eval", MODEL, "--task", "there"], "there: a folder without any file of rows"),
    "eval, task of no kind": ([*EVAL, "--task", "bad.jsonl"], "fit no task"),
    "eval, preset": ([*EVAL, "--preset", "magic"], "--preset: got magic"),
    "eval, backend": ([*EVAL, "--backend", "magic"], "--backend: got magic"),
    "eval, perturbation": ([*EVAL, "--perturb", "magic"], "--perturb: got 'magic'"),
    "eval, another folder": ([*EVAL, "-o", "there"], "holds no run"),
    "eval, dtype": ([*EVAL, "--dtype", "int4"], "--dtype: got 'int4'"),
    "eval, no data": ([*EVAL, "--against-data", "none"], "none does not exist"),
    "eval, references": (["eval", "--gold", "--task", TASK, "-o", "new"], "--gold writes no run folder"),
    "compare, no run": (["compare", "none", "none"], "none does not exist"),
    "measure, no model": (["measure", "./none"], "no model folder"),
    "measure, no results": (["measure", MODEL, "--results", "none"], "none does not exist"),
    "measure, no text": (["measure", MODEL, "--text", "none"], "none does not exist"),
    "measure, dtype": (["measure", MODEL, "--dtype", "int4"], "--dtype: got 'int4'"),
    "measure, output exists": (["measure", MODEL, "-o", "there.json"], "exists: pass --overwrite"),
    "report, no run": (["report", "none"], "none"),
    "sweep, no model": (["sweep", "./none", "-o", "new"], "no model folder"),
    "sweep, budget": (["sweep", MODEL, "--remove", "1.5", "-o", "new"], "got 1.5"),
    "sweep, another folder": (["sweep", MODEL, "-o", "there"], "does not hold a sweep"),
    "sweep, no task": (["sweep", MODEL, "-o", "new", "--task", "./none.jsonl"], "none.jsonl: cannot be read"),
    "sweep, limit": (["sweep", MODEL, "-o", "new", "--limit", "3"], "--limit"),
    "sweep, dtype": (["sweep", MODEL, "-o", "new", "--dtype", "int4"], "--dtype: got 'int4'"),
    "run, no recipe": (["run", "none.yml", "-o", "new"], "none.yml: cannot be read"),
    "run, unknown key": (["run", "key.yml", "-o", "new"], "did you mean 'model'"),
    "run, no model": (["run", "model.yml", "-o", "new"], "no model folder"),
    "run, no task": (["run", "task.yml", "-o", "new"], "none.jsonl: cannot be read"),
    "run, no calibration": (["run", "text.yml", "-o", "new"], "gone.jsonl does not exist"),
    "run, dtype": (["run", "dtype.yml", "-o", "new"], "`dtype`: got 'int4'"),
    "demo, another folder": (["demo", "-o", "there"], "does not hold a run"),
    "demo, a file": (["demo", "-o", "there.json"], "is a file"),
    "run, another folder": (["run", "good.yml", "-o", "there"], "does not hold a run"),
}
FILES = {
    "there/file": "mine",
    "there.json": "mine",
    "bad.jsonl": '{"prompt": "x"}\n',
    "cot.jsonl": json.dumps({"prompt": "a", "cot": "b"}) + "\n",
    "key.yml": "modle: bundled\n",
    "model.yml": "model: ./none\nevaluate: {tasks: cot.jsonl}\n",
    "task.yml": "model: bundled\nevaluate: {tasks: none.jsonl}\n",
    "text.yml": "model: bundled\nprune: {remove: 0.4, calibration: gone.jsonl}\nevaluate: {tasks: cot.jsonl}\n",
    "dtype.yml": "model: bundled\nevaluate: {tasks: cot.jsonl}\noptions: {dtype: int4}\n",
    "good.yml": "model: bundled\nevaluate: {tasks: cot.jsonl}\n",
}


def changed(folder, name, **values):
    """The bundled model with other values in one of its JSON files."""
    folder.mkdir()
    for path in MODEL.iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    (folder / name).write_text(json.dumps(json.loads((MODEL / name).read_text()) | values))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with files to stumble over."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "there").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for path in MODEL.iterdir():  # a pruned folder, as far as can be told without reading its plan
        (folder / "pruned").mkdir(exist_ok=True)
        (folder / "pruned" / path.name).symlink_to(path)
    (folder / "pruned" / "plan.json").write_text("{}")
    for name, settings in (("misnamed", {}), ("foreign", {"model_type": "gpt2"})):
        changed(folder / name, "config.json", **settings)
    (folder / "misnamed" / "model.safetensors").unlink()
    weights = (MODEL / "model.safetensors").read_bytes().replace(OLD.encode(), NEW.encode())
    (folder / "misnamed" / "model.safetensors").write_bytes(weights)
    (folder / "small.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with zipfile.ZipFile(folder / "rows.xlsx", "w") as workbook:
        workbook.writestr("xl/workbook.xml", "")
    changed(folder / "large", "config.json", num_hidden_layers=10**7)
    for name, text in (("speechless", ""), ("damaged", "{}"), ("deep", '{"a":' * 100_000)):
        changed(folder / name, "tokenizer.json")
        (folder / name / "tokenizer.json").write_text(text)
    (folder / "speechless" / "tokenizer.json").unlink()
    shutil.copytree(MODEL, folder / "unread")
    (folder / "unread" / "tokenizer_config.json").write_text('{"a":' * 100_000)
    changed(folder / "renamed", "config.json")
    (folder / "renamed" / "model.safetensors").rename(folder / "renamed" / "consolidated.safetensors")
    changed(folder / "borrowed", "generation_config.json")
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": 1000 * "a"}
    changed(folder / "bomb", "tokenizer.json", normalizer={"type": "Sequence", "normalizers": 5 * [step]})
    return folder


def heavy_modules(folder, *arguments):
    """The exit code, the last line of stderr, and the heavy modules that were imported."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return done.returncode, (done.stderr.splitlines() or [""])[-1], done.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_before_torch_is_imported(name, place):
    before = sorted(place.rglob("*"))
    arguments, words = MISTAKES[name]
    code, said, imported = heavy_modules(place, *arguments)
    assert code == 2, said
    assert said.startswith("flab: ")
    assert words in said
    assert imported == "[]"
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["prune", "--help"]])
def test_help_imports_nothing_heavy(arguments, place):
    assert heavy_modules(place, *arguments) == (0, "", "[]")


def test_every_command_has_a_mistake_here():
    from flab.cli.app import app

    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names - {"families"} == {arguments[0] for arguments, _ in MISTAKES.values()}  # which takes no arguments
