"""Recipes in YAML: what is read as what, and what is refused with one line that says where and what instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from flab import assets
from flab.errors import DataError, OptionError
from flab.models.options import Options
from flab.pruning.recipe import Recipe
from flab.recovery.settings import Training
from flab.recovery.strategies import Making
from flab.runs.recipe_file import Data, RecipeFile, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yml"))
MINIMAL = "model: bundled\nevaluate: {tasks: bundled}\n"
TRAINED = MINIMAL + "data: {instructions: bundled}\nrecover:\n"
BUNDLED_TASKS = tuple(map(str, (assets.problems_path(), assets.cot_path(), assets.outputs_path())))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recipe's folder, which is not the working one."""
    for name in ("recipes", "elsewhere"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return (tmp_path / "recipes").resolve()


@pytest.fixture
def read(place: Path):
    """Read a recipe of this text."""

    def give(text: str | bytes) -> RecipeFile:
        path = place / "r.yml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_recipe(path)

    return give


@pytest.fixture
def refused(read):
    """The one line that a recipe of this text is refused with."""

    def give(text: str | bytes, *words: str) -> str:
        with pytest.raises(OptionError) as caught:
            read(text)
        line = str(caught.value)
        assert "r.yml" in line
        assert "\n" not in line
        assert "<unicode string>" not in line
        for word in words:
            assert word in line, line
        return line

    return give


# --- what is read ---


def test_there_are_recipes():
    assert {"quickstart.yml", "qwen2.5-coder-7b-instruct.yml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_comes_with_flab_reads(path):
    recipe = read_recipe(path)
    assert recipe.path == path
    assert recipe.data is not None
    assert recipe.recover is not None
    assert recipe.evaluate.tasks
    assert recipe.data.against == recipe.evaluate.tasks  # or it would train on what it is measured with


def test_the_quickstart_needs_nothing_but_what_is_bundled():
    recipe = read_recipe(next(path for path in RECIPES if path.stem == "quickstart"))
    files = [recipe.model, *recipe.data.instructions, *recipe.data.against, *recipe.evaluate.tasks]
    assert all(Path(file).exists() for file in files)
    assert recipe.prune.calibration is None
    assert recipe.options == Options()


def test_what_is_left_out_has_the_defaults_of_the_commands(read):
    recipe = read(MINIMAL)
    assert (recipe.prune, recipe.data, recipe.recover, recipe.options) == (Recipe(), None, None, Options())
    assert (recipe.evaluate.samples, recipe.evaluate.limit, recipe.evaluate.perturb) == (1, None, ())
    assert recipe.evaluate.settings.max_new_tokens == 256


def test_a_section_with_nothing_in_it_is_all_defaults(read):
    recipe = read(MINIMAL + "data: {instructions: bundled}\nprune:\nrecover:\noptions:\n")
    assert (recipe.prune, recipe.recover, recipe.options) == (Recipe(), Training(), Options())
    assert recipe.data == Data((str(assets.recovery_path()),), making=Making())


def test_null_is_the_default_where_nothing_is_a_choice(read):
    text = """
model: bundled
prune: {calibration: null, corpus: null, layers: null, drop_layers: null}
data: {instructions: bundled, against: null, text: null, limit: null, mix: null}
recover: {learning_rate: null, minutes: null}
evaluate: {tasks: bundled, perturb: null, limit: null}
"""
    recipe = read(text)
    assert recipe.prune == Recipe()
    assert recipe.data == Data((str(assets.recovery_path()),))
    assert recipe.recover == Training()
    assert recipe.evaluate == read(MINIMAL).evaluate


def test_bundled_names_what_comes_with_flab(read):
    recipe = read(
        "model: bundled\nprune: {calibration: bundled}\ndata: {instructions: [bundled, bundled], against: bundled}\n"
        "recover:\nevaluate: {tasks: [bundled, more.jsonl]}\n"
    )
    assert recipe.model == str(assets.model_path())
    assert recipe.prune.calibration is None  # the bundled samples
    assert recipe.data.instructions == (str(assets.recovery_path()),) * 2
    assert recipe.data.against == BUNDLED_TASKS
    assert recipe.evaluate.tasks[:3] == BUNDLED_TASKS
    assert len(recipe.evaluate.tasks) == 4


def test_paths_are_relative_to_the_recipe(read, place):
    for folder in (place, Path()):  # the same names in the working folder do not count
        (folder / "model").mkdir()
        for name in ("a.jsonl", "b.jsonl", "c.py"):
            (folder / name).touch()
    recipe = read(
        "model: model\nprune: {calibration: a.jsonl, corpus: [b.jsonl, c.py]}\n"
        "data: {instructions: a.jsonl, against: [b.jsonl, 'output:a.jsonl'], text: c.py}\nrecover:\n"
        "evaluate: {tasks: [a.jsonl, 'cot:b.jsonl', ../up.jsonl]}\n"
    )
    assert recipe.model == str(place / "model")
    assert recipe.prune.calibration == place / "a.jsonl"
    assert recipe.prune.corpus == (place / "b.jsonl", place / "c.py")
    assert recipe.data.instructions == (str(place / "a.jsonl"),)
    assert recipe.data.against == (str(place / "b.jsonl"), f"output:{place / 'a.jsonl'}")
    assert recipe.data.text == (str(place / "c.py"),)
    assert recipe.evaluate.tasks == (str(place / "a.jsonl"), f"cot:{place / 'b.jsonl'}", str(place / "../up.jsonl"))


def test_files_that_are_not_there_are_not_looked_for_in_the_working_folder(read, place):
    for name in ("rows.jsonl", "tasks.jsonl"):
        Path(name).touch()
    (Path() / "model").mkdir()
    recipe = read("model: ./model\ndata: {instructions: rows.jsonl}\nrecover:\nevaluate: {tasks: 'code:tasks.jsonl'}\n")
    assert recipe.model == str(place / "model")
    assert recipe.data.instructions == (str(place / "rows.jsonl"),)
    assert recipe.evaluate.tasks == (f"code:{place / 'tasks.jsonl'}",)


def test_the_home_folder_and_absolute_paths(read, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = read(
        f"model: ~/model\nprune: {{calibration: ~/rows.jsonl, corpus: {tmp_path}/more}}\n"
        f"data: {{instructions: ~/rows.jsonl, text: ~/text}}\nrecover:\n"
        f"evaluate: {{tasks: [~/tasks.jsonl, 'code:~/tasks.jsonl', {tmp_path}/x.csv]}}\n"
    )
    assert recipe.model == f"{tmp_path}/model"
    assert recipe.prune.calibration == tmp_path / "rows.jsonl"
    assert recipe.prune.corpus == (tmp_path / "more",)
    assert recipe.data.instructions == (f"{tmp_path}/rows.jsonl",)
    assert recipe.data.text == (f"{tmp_path}/text",)
    assert recipe.evaluate.tasks == (
        f"{tmp_path}/tasks.jsonl",
        f"code:{tmp_path}/tasks.jsonl",
        f"{tmp_path}/x.csv",
    )


def test_hub_ids_stay_as_they_are_unless_there_is_a_folder_of_that_name(read, place):
    (place / "here").mkdir()
    (place / "here" / "set").mkdir()
    recipe = read(
        "model: owner/name\ndata: {instructions: [owner/rows, here/set]}\nrecover:\n"
        "evaluate: {tasks: [openai/openai_humaneval, 'output:owner/set:config']}\n"
    )
    assert recipe.model == "owner/name"
    assert recipe.data.instructions == ("owner/rows", str(place / "here" / "set"))
    assert recipe.evaluate.tasks == ("openai/openai_humaneval", "output:owner/set:config")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1.e-3", 1e-3),
        (".5e-2", 5e-3),
        (".5e2", 50.0),
        ("2.5e-4", 2.5e-4),
        ("1e+0", 1.0),
        ("1", 1.0),
        ("0.001", 0.001),
    ],
)
def test_numbers_are_read_however_they_are_written(read, written, value):
    recipe = read(TRAINED.replace("recover:", f"recover: {{learning_rate: {written}}}"))
    assert recipe.recover.learning_rate == value
    assert type(recipe.recover.learning_rate) is float


def test_a_number_in_quotes_is_text(refused):
    refused(TRAINED.replace("recover:", 'recover: {learning_rate: "1e-3"}'), "learning_rate: got '1e-3'", "a number")


def test_a_mix_is_a_mapping_of_shares(read):
    recipe = read(TRAINED.replace("bundled}\nrecover", "bundled, mix: {code: 2, cot: 0.5, chat: 1e-1}}\nrecover"))
    assert recipe.data.making.mix == (("code", 2.0), ("cot", 0.5), ("chat", 0.1))


def test_every_value_arrives(read):
    text = """
model: bundled
prune: {remove: 0.3, drop_layers: [1, 3], refit: none, closure: false, tokens: 4096}
data: {instructions: bundled, limit: 7, strategy: mixed, untested: drop, tries: 2, max_new_tokens: 9}
recover: {method: lora, alpha: 0.5, kl_on: all, epochs: 2, packing: no, gradient_checkpointing: true, lora_rank: 4}
evaluate: {tasks: bundled, perturb: [all, rename-function], limit: 5, samples: 3, temperature: 1, batch_size: 8}
options: {device: "cuda:1", dtype: bfloat16, unsandboxed: true}
"""
    recipe = read(text)
    assert recipe.prune == Recipe(remove=0.3, drop_layers=(1, 3), refit="none", closure=False, tokens=4096)
    assert recipe.data.limit == 7
    assert recipe.data.making == Making("mixed", "drop", 2, max_new_tokens=9)
    wanted = {"method": "lora", "alpha": 0.5, "kl_on": "all", "epochs": 2.0, "packing": False}
    assert recipe.recover == Training(**wanted, gradient_checkpointing=True, lora_rank=4)
    assert recipe.evaluate.perturb == ("all", "rename-function")
    assert recipe.evaluate.limit == 5
    settings = recipe.evaluate.settings
    assert (settings.samples, settings.temperature, settings.batch_size) == (3, 1.0, 8)
    assert recipe.options == Options(device="cuda:1", dtype="bfloat16", unsandboxed=True)


def test_a_byte_order_mark_anchors_and_merges_are_yaml(read):
    tasks = "evaluate: {<<: &few {tasks: bundled, limit: 3}, limit: 4}"  # what is beside a merge wins: no second key
    recipe = read(f"\ufeffmodel: bundled\n{tasks}\ndata: {{instructions: bundled}}\nrecover: {{<<: {{alpha: 0.5}}}}\n")
    assert recipe.evaluate.limit == 4
    assert recipe.recover.alpha == 0.5


def test_where_it_is_read_from_changes_no_path(read, place, monkeypatch):
    text = "model: ./m\nprune: {calibration: rows.jsonl}\nevaluate: {tasks: 'code:t.jsonl'}\n"
    whole = read(text)
    monkeypatch.chdir(place)
    here = read_recipe(Path("r.yml"))
    assert (here.model, here.prune, here.evaluate) == (whole.model, whole.prune, whole.evaluate)


# --- what is refused ---

UNKNOWN = {
    "the top": (MINIMAL + "evalute: {}\n", "r.yml: unknown key 'evalute': did you mean 'evaluate'"),
    "prune": (MINIMAL + "prune: {remov: 0.1}\n", "r.yml: prune: unknown key 'remov': did you mean 'remove'"),
    "data": (
        TRAINED.replace("bundled}\nrecover", "bundled, strateg: self}\nrecover"),
        "r.yml: data: unknown key 'strateg': did you mean 'strategy'",
    ),
    "data, its own": (
        TRAINED.replace("data: {instructions", "data: {instruction"),
        "r.yml: data: unknown key 'instruction': did you mean 'instructions'",
    ),
    "recover": (
        TRAINED.replace("recover:", "recover: {lerning_rate: 1}"),
        "r.yml: recover: unknown key 'lerning_rate': did you mean 'learning_rate'",
    ),
    "evaluate": (
        MINIMAL.replace("tasks: bundled", "taks: bundled"),
        "r.yml: evaluate: unknown key 'taks': did you mean 'tasks'",
    ),
    "options": (MINIMAL + "options: {devise: cuda}\n", "r.yml: options: unknown key 'devise': did you mean 'device'"),
    "overwrite": (MINIMAL + "options: {overwrite: true}\n", "r.yml: options: overwrite is only for single commands"),
}


@pytest.mark.parametrize("where", sorted(UNKNOWN))
def test_an_unknown_key_names_its_section_and_the_nearest(refused, where):
    text, line = UNKNOWN[where]
    refused(text, line)


def test_a_key_that_is_near_nothing_gets_the_list(refused):
    line = refused(MINIMAL + "options: {zzz: 1}\n", "unknown key 'zzz': allowed are")
    assert "device, dtype, batch_tokens" in line
    assert "did you mean" not in line


def section(name: str, content: str) -> str:
    """A recipe whose one section holds this."""
    parts = {"model": "bundled", "evaluate": "{tasks: bundled}"}
    if name in ("data", "recover"):
        parts |= {"data": "{instructions: bundled}", "recover": "{}"}
    return "".join(f"{key}: {value}\n" for key, value in (parts | {name: content}).items())


WRONG = {
    "text for a number": ("prune", "{remove: much}", "remove: got 'much', expected a number."),
    "true for a number": ("prune", "{remove: true}", "remove: got True, expected a number."),
    "null for a number": ("prune", "{remove: null}", "remove: got None, expected a number."),
    "list for a number": ("prune", "{remove: [0.1]}", "remove: got [0.1], expected a number."),
    "true for a whole number": ("prune", "{tokens: yes}", "tokens: got True, expected a whole number or null."),
    "fraction for a whole number": (
        "prune",
        "{tokens: 1000.5}",
        "tokens: got 1000.5, expected a whole number or null.",
    ),
    "exponent for a whole number": (
        "prune",
        "{tokens: 1e6}",
        "tokens: got 1000000.0, expected a whole number or null.",
    ),
    "number for text": ("prune", "{refit: 3}", "refit: got 3, expected text."),
    "list for text": ("recover", "{method: [lora]}", "method: got ['lora'], expected text."),
    "yaml's no for text": ("data", "{instructions: bundled, untested: no}", "untested: got False, expected text."),
    "number for true": ("recover", "{packing: 1}", "packing: got 1, expected true or false."),
    "text for true": ("recover", '{packing: "yes"}', "packing: got 'yes', expected true or false."),
    "text for a number or null": ("recover", "{minutes: two}", "minutes: got 'two', expected a number or null."),
    "number for layers": ("prune", "{drop_layers: 3}", "drop_layers: got 3, expected a list or null."),
    "thousands of digits": ("prune", f"{{tokens: {'9' * 3000}}}", "expected a whole number of at most 19 digits."),
    "text in layers": ("prune", "{drop_layers: [1, x]}", "drop_layers: got 'x', expected a whole number."),
    "true in layers": ("prune", "{drop_layers: [1, true]}", "drop_layers: got True, expected a whole number."),
    "number for a file": ("prune", "{calibration: 5}", "prune: calibration: got 5, expected text."),
    "list for a file": ("prune", "{calibration: [a, b]}", "prune: calibration: got ['a', 'b'], expected text."),
    "nothing in the corpus": ("prune", "{corpus: [a.py, null]}", "prune: corpus: got None, expected text or a list"),
    "mapping for files": ("data", "{instructions: {a: b}}", "data: instructions: got {'a': 'b'}, expected text or"),
    "blank file": ("data", '{instructions: bundled, against: " "}', "data: against: got ' ', expected text or"),
    "number for text files": ("data", "{instructions: bundled, text: 5}", "data: text: got 5, expected text or"),
    "text for the limit": ("data", "{instructions: bundled, limit: few}", "data: limit: got 'few', expected a whole"),
    "true for the limit": ("evaluate", "{tasks: bundled, limit: true}", "evaluate: limit: got True, expected a whole"),
    "list for the mix": ("data", "{instructions: bundled, mix: [code]}", "data: mix: got ['code'], expected names"),
    "text in the mix": ("data", "{instructions: bundled, mix: {code: x}}", "data: mix: code: got 'x', expected a"),
    "number for a task": ("evaluate", "{tasks: [bundled, 7]}", "evaluate: tasks: got 7, expected text or"),
    "number for a perturbation": ("evaluate", "{tasks: bundled, perturb: 1}", "evaluate: perturb: got 1, expected"),
    "number for the model": ("model", "7", "model: got 7, allowed a folder, a hub id, or bundled."),
    "nothing for the model": ("model", "", "model: got None, allowed a folder"),
    "list for a section": ("options", "[cuda]", "options: got ['cuda'], expected names with values."),
    "text for a section": ("prune", "hard", "prune: got 'hard', expected names with values."),
    "number for a key": ("prune", "{1: 2}", "prune: got the key 1, expected a name."),
    "not a number": ("prune", "{remove: .nan}", "remove: got nan, expected a finite number."),
    "infinite": ("recover", "{minutes: .inf}", "minutes: got inf, expected a finite number."),
    "a percentage": ("prune", "{remove: 40%}", "remove: got '40%', expected a number, such as 0.4."),
    "a comma": ("prune", "{layers: '1,000'}", "layers: got '1,000', expected a whole number or null, such as 1000."),
    "too large": ("recover", "{minutes: 1e999}", "minutes: got inf, expected a finite number."),
    "far too large": ("recover", f"{{minutes: {'9' * 400}}}", "expected a finite number."),
}


@pytest.mark.parametrize("kind", sorted(WRONG))
def test_a_value_of_the_wrong_type_is_refused(refused, kind):
    name, content, line = WRONG[kind]
    refused(section(name, content), f"r.yml: {name}", line)


OUTSIDE = {
    "remove": ("prune", "{remove: 1.5}", "got 1.5, allowed 0 <= x < 1"),
    "refit": ("prune", "{refit: magic}", "got 'magic', allowed reconstruction, newton"),
    "general": ("prune", "{general: 0.95}", "allowed 0 to 0.9"),
    "tokens": ("prune", "{tokens: 3}", "got 3, allowed 256 or more"),
    "strategy": ("data", "{instructions: bundled, strategy: best}", "got 'best', allowed verified-self"),
    "tries": ("data", "{instructions: bundled, tries: -1}", "got -1, allowed 0 or more"),
    "mix kind": ("data", "{instructions: bundled, mix: {cod: 1}}", "got cod=1, allowed code"),
    "mix share": ("data", "{instructions: bundled, mix: {code: 0}}", "got code=0, allowed code"),
    "data limit": ("data", "{instructions: bundled, limit: 0}", "limit: got 0, allowed 1 or more"),
    "alpha": ("recover", "{alpha: 2}", "got 2.0, allowed 0"),
    "method": ("recover", "{method: prayer}", "got 'prayer', allowed auto"),
    "two budgets": ("recover", "{steps: 5, minutes: 1}", "`steps`, `minutes`: only one budget is allowed"),
    "no budget": ("recover", "{minutes: 0}", "got 0, allowed more than 0"),
    "batch": ("recover", "{batch: 6, micro_batch: 4}", "got 6, allowed a multiple of"),
    "samples": ("evaluate", "{tasks: bundled, samples: 3}", "at `temperature` 0 all samples are equal"),
    "preset": ("evaluate", "{tasks: bundled, preset: x}", "got x, allowed completion"),
    "new tokens": ("evaluate", "{tasks: bundled, max_new_tokens: 0}", "got 0, allowed 1 or more"),
    "eval limit": ("evaluate", "{tasks: bundled, limit: 0}", "limit: got 0, allowed 1 or more"),
}


@pytest.mark.parametrize("kind", sorted(OUTSIDE))
def test_a_value_out_of_range_is_refused_with_its_section(refused, kind):
    name, content, line = OUTSIDE[kind]
    refused(section(name, content), f"r.yml: {name}: ", line)


NO_RECIPE = {
    "nothing": ("", "model and evaluate missing"),
    "a comment": ("# soon\n", "model and evaluate missing"),
    "no model": ("evaluate: {tasks: bundled}\n", "r.yml: model missing"),
    "no evaluate": ("model: bundled\n", "r.yml: evaluate missing"),
    "no tasks": ("model: bundled\nevaluate:\n", "evaluate: tasks missing"),
    "empty tasks": ("model: bundled\nevaluate: {tasks: []}\n", "evaluate: tasks missing"),
    "data alone": (MINIMAL + "data: {instructions: bundled}\n", "data and recover go together"),
    "recover alone": (MINIMAL + "recover: {minutes: 1}\n", "data and recover go together"),
    "no instructions": (MINIMAL + "data:\nrecover:\n", "data: instructions missing"),
    "a list": ("- model\n- evaluate\n", "got ['model', 'evaluate'], expected names with values."),
    "a word": ("recipe\n", "got 'recipe', expected names with values."),
    "not YAML": ("model: [bundled\n", "cannot be read as YAML"),
    "not YAML, a tab": ("model: bundled\n\tevaluate: x\n", "cannot be read as YAML"),
    "two documents": (MINIMAL + "---\n" + MINIMAL, "cannot be read as YAML", "single document"),
    "not UTF-8": (b"model: \xff\xfe\n", "cannot be read as YAML", "utf-8"),
    "a zero byte": (b"model: a\0b\n", "cannot be read as YAML", "#x0000"),
    "no such date": (MINIMAL + "prune: {remove: 2024-99-99}\n", "cannot be read as YAML", "month"),
    "too deep": (
        "model: " + "[" * 5000 + "]" * 5000,
    ),  # by the parser, or where the recursion limit was raised, as no text
    "a loop": ("model: bundled\nevaluate: &x {tasks: *x}\n", "aliases (*name) are not supported"),
    "key twice": (MINIMAL + "model: other\n", "key 'model' is given twice", "line 3"),
    "key twice, inside": (section("recover", "{alpha: 1, length: 64, alpha: 0}"), "key 'alpha' is given twice"),
    "key twice, in quotes": (section("recover", "{alpha: 1, 'alpha': 0}"), "key 'alpha' is given twice"),
}


@pytest.mark.parametrize("kind", sorted(NO_RECIPE))
def test_what_is_no_recipe_is_refused(refused, kind):
    text, *words = NO_RECIPE[kind]
    refused(text, *words)


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"]
)
def test_yaml_that_names_python_is_refused_and_not_run(refused, place, tag):
    refused(f"model: !!{tag} ['touch {place}/made']\nevaluate: {{tasks: bundled}}\n", "cannot be read as YAML", tag)
    assert [path.name for path in place.iterdir()] == ["r.yml"]


@pytest.mark.parametrize("name", ["none.yml", "folder/r.yml", "folder"])
def test_a_file_that_cannot_be_read(place, name):
    (place / "folder").mkdir()
    with pytest.raises(OptionError, match=f"{name}: cannot be read .*; give a recipe, e.g. recipes/quickstart.yml"):
        read_recipe(place / name)


def test_a_recipe_is_no_data(refused):
    refused("model: bundled\nprune: {remove: 0.4, " + ", ".join(f"k{n}: 1" for n in range(9000)) + "}\n", "not data")


def test_calibration_that_is_not_there_is_missed_before_anything_is_written(place, tmp_path):

    from flab.cli.early import check_run

    recipe = place / "recipe.yml"
    recipe.write_text("model: bundled\nprune: {remove: 0.4, calibration: gone.jsonl}\nevaluate: {tasks: bundled}\n")
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        check_run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
