"""Files for other evaluators: their form, read back as their readers would."""

import json
from pathlib import Path

import pytest

from flab.errors import OptionError
from flab.evaluation.exports import CODE_EVAL, SAMPLES, TASKS, clear_exports, evalplus_samples, lm_eval_task
from flab.evaluation.prompts import COMPLETION_STOP, LINE_STOP
from flab.evaluation.robustness import perturb
from flab.evaluation.tasks import Explanation, Prediction, Problem, make_task
from flab.models.engines.protocol import Generation

TEST = "def check(candidate):\n    assert candidate() == 1\n"
PROBLEMS = [
    Problem("MBPP/11", "def one():\n", "one", TEST, "    return 1\n"),
    Problem("b", "def two_ones():\n", "two_ones", "assert two_ones()\n", "    return 1\n"),
]


def code_task(name="Set~x:y"):
    return make_task(name, "code", PROBLEMS, "set.jsonl")


def read_yaml(path):
    """Read as lm-evaluation-harness does: ``!function`` names a function beside the file."""
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: ("function", loader.construct_scalar(node)))
    return yaml.load(path.read_text(), Loader)


def test_evalplus_rows_are_whole_programs():
    made = [[Generation("    return 1\n", 3, "stop"), Generation("é", 3, "stop")], [Generation("", 0, "eos")] * 2]
    rows = evalplus_samples(code_task(), made)
    assert [row["task_id"] for row in rows] == ["Mbpp/11", "Mbpp/11", "b", "b"]
    assert rows[0] == {"task_id": "Mbpp/11", "solution": "def one():\n    return 1\n"}
    assert rows[1]["solution"] == "def one():\né"


def test_evalplus_takes_code_under_its_own_names():
    outputs = make_task("o", "output", [Prediction("1", "def f(): pass", "", "1", "f")], "o")
    for task in (outputs, perturb(code_task(), "rename-function")):
        with pytest.raises(OptionError, match="EvalPlus"):
            evalplus_samples(task, [[Generation("", 0, "eos")]])


def test_code_for_lm_eval(tmp_path):
    path = lm_eval_task(code_task(), tmp_path / "new", max_new_tokens=99)
    config = read_yaml(path)
    assert path.name == "Set_x_y.yaml"
    assert (config["task"], config["dataset_path"], config["output_type"]) == ("flab_Set_x_y", "json", "generate_until")
    assert config["generation_kwargs"] == {"until": list(COMPLETION_STOP), "max_gen_toks": 99, "do_sample": False}
    assert (config["unsafe_code"], config["num_fewshot"], config["target_delimiter"]) == (True, 0, "")
    file = Path(config["dataset_kwargs"]["data_files"][config["test_split"]])
    rows = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    fields = (config["doc_to_text"], config["doc_to_target"])
    assert [tuple(row[name] for name in fields) for row in rows] == [
        ("def one():\n", TEST + "\ncheck(one)\n"),
        ("def two_ones():\n", "assert two_ones()\n"),
    ]
    assert config["metric_list"][0]["metric"] == ("function", f"{CODE_EVAL}.pass_at_k")
    assert config["filter_list"][0]["filter"][0]["filter_fn"] == ("function", f"{CODE_EVAL}.programs")


def test_the_exported_metric_joins_prompt_and_answer(tmp_path, monkeypatch):
    import sys
    import types

    lm_eval_task(code_task(), tmp_path)
    asked = []

    class Metric:
        def compute(self, **settings):
            asked.append(settings)
            return {"pass@1": 1.0}, {}

    monkeypatch.setitem(sys.modules, "evaluate", types.SimpleNamespace(load=lambda name: Metric()))
    names = {}
    exec((tmp_path / f"{CODE_EVAL}.py").read_text(), names)
    programs = names["programs"]([["    return 1\n"]], [{"prompt": "def one():\n"}])
    assert programs == [["def one():\n    return 1\n"]]
    assert names["pass_at_k"](references=["check"], predictions=programs, k=[1]) == {"pass@1": 1.0}
    assert asked == [{"references": ["check"], "predictions": programs, "k": [1]}]


def test_outputs_and_explanations_for_lm_eval(tmp_path):
    outputs = make_task("o", "output", [Prediction("1", "def f(x):\n    return x", "[1]", " [1] ", "f")], "o")
    config = read_yaml(lm_eval_task(outputs, tmp_path))
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert row["target"] == "[1]"
    assert row["prompt"].endswith("assert f([1]) ==")
    assert config["generation_kwargs"]["until"] == list(LINE_STOP)
    assert config["metric_list"][0]["metric"] == "exact_match"
    cots = make_task("c", "cot", [Explanation("1", "p\u2028\n", " Step 1. é\n")], "c")
    config = read_yaml(lm_eval_task(cots, tmp_path))
    assert json.loads((tmp_path / "c.jsonl").read_text()) == {
        "task_id": "1",
        "prompt": "p\u2028\n",
        "target": "Step 1. é",
    }
    assert config["metric_list"][0]["metric"] == "bleu"
    assert not (tmp_path / f"{CODE_EVAL}.py").exists()


def test_datasets_loads_the_rows(tmp_path, monkeypatch):
    import datasets
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    config = read_yaml(lm_eval_task(code_task(), tmp_path))
    table = datasets.load_dataset(config["dataset_path"], **config["dataset_kwargs"])[config["test_split"]]
    assert [row["task_id"] for row in table] == ["MBPP/11", "b"]


def test_nothing_is_overwritten(tmp_path):
    lm_eval_task(code_task(), tmp_path)
    with pytest.raises(OptionError, match="exists already"):
        lm_eval_task(code_task(), tmp_path)


# --- what is exported again ---


@pytest.fixture
def exported(tmp_path):
    """A folder of exports as flab leaves it."""
    folder = tmp_path / "exports"
    task = make_task(
        "t", "code", [Problem("t/0", "def one():\n", "one", "def check(candidate):\n    pass\n")], "t.jsonl"
    )
    lm_eval_task(task, folder / TASKS)
    (folder / f"t{SAMPLES}").write_text("{}\n")
    return folder


def test_what_flab_exported_is_replaced(exported, tmp_path):
    clear_exports(exported)
    assert not exported.exists()
    clear_exports(tmp_path / "never")


@pytest.mark.parametrize("name", ["notes.txt", "lm_eval/mine.yaml", "lm_eval/t.txt", "more/x", "lm_eval/rows.jsonl"])
def test_what_flab_did_not_write_stays(exported, name):
    (exported / name).parent.mkdir(exist_ok=True)
    (exported / name).write_text("task: mine\n")
    before = sorted(exported.rglob("*"))
    with pytest.raises(OptionError, match=name):
        clear_exports(exported)
    assert sorted(exported.rglob("*")) == before


def test_a_link_is_not_followed(exported, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(exported)
    with pytest.raises(OptionError, match="a file or a link"):
        clear_exports(link)
    assert (exported / TASKS).is_dir()
