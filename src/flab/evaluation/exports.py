"""Files for other evaluators, so that a score can be checked: EvalPlus samples, a task for lm-evaluation-harness.

The formats follow their sources and documentation (EvalPlus' ``load_solutions``; lm-evaluation-harness' task
guide, version 0.4). Neither program is run or imported here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from flab.errors import OptionError
from flab.evaluation.prompts import requests_for
from flab.evaluation.score import check_shape
from flab.evaluation.tasks import Explanation, Item, Prediction, Problem, TaskFile
from flab.models.engines.protocol import Generation

# In the folder of exports: the folder of tasks for the harness, and how the files of samples for EvalPlus end.
TASKS, SAMPLES = "lm_eval", ".samples.jsonl"
OWN_TASK = '"flab_'  # how the name of a task begins that was written here
CODE_EVAL = "flab_code_eval"
CODE_EVAL_SOURCE = '''"""pass@k for lm-evaluation-harness by code_eval of ``evaluate``, which runs code without a jail."""

import evaluate

METRIC = evaluate.load("code_eval")


def programs(resps, docs):
    """Each answer joined to its prompt, as it is."""
    return [[doc["prompt"] + text for text in answers] for answers, doc in zip(resps, docs)]


def pass_at_k(references, predictions, k):
    """The figures of one problem, a dict of pass@k."""
    return METRIC.compute(references=references, predictions=predictions, k=list(k))[0]
'''
METRICS = {  # YAML of the part that differs between the kinds
    "code": f"""unsafe_code: true
metric_list:
  - metric: !function {CODE_EVAL}.pass_at_k
    aggregation: mean
    higher_is_better: true
    k: [1]
filter_list:
  - name: create_test
    filter:
      - function: custom
        filter_fn: !function {CODE_EVAL}.programs
""",
    "cot": """metric_list:
  - metric: bleu
    aggregation: bleu
    higher_is_better: true
""",
    "output": """metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: first_line
    filter:
      - function: remove_whitespace
      - function: take_first
""",
}


def clear_exports(folder: Path) -> None:
    """Remove what an earlier run exported into ``folder``, which may be missing.

    Raises:
        OptionError: it holds files that flab did not write; then nothing is removed.
    """
    check_exports(folder)
    if folder.exists():
        shutil.rmtree(folder)


def check_exports(folder: Path) -> None:
    """Raise OptionError if the folder of exports is not a folder, or holds files that flab did not write."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OptionError(f"`export`: {folder} is a file or a link, not a folder that flab made: move it away.")
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / TASKS]
    if foreign := [str(path.relative_to(folder)) for path in paths if not _is_own(path, folder)]:
        listed = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise OptionError(f"`export`: {folder} holds files that flab did not write ({listed}): move them away.")


def _is_own(path: Path, folder: Path) -> bool:
    """Return whether flab wrote a file into the exports: samples at the top, or a task's three files below it."""
    if path.is_symlink() or not path.is_file():
        return False
    if path.parent == folder:
        return path.name.endswith(SAMPLES)
    if path.name == f"{CODE_EVAL}.py":
        return path.read_text(encoding="utf-8", errors="replace") == CODE_EVAL_SOURCE
    yaml = path.with_suffix(".yaml")
    own = yaml.is_file() and yaml.read_text(encoding="utf-8", errors="replace").startswith(f"task: {OWN_TASK}")
    return own and path.suffix in (".yaml", ".jsonl")


def evalplus_samples(task: TaskFile, generations: Sequence[Sequence[Generation]]) -> list[dict[str, str]]:
    """Return rows of ``samples.jsonl``, whole programs; MBPP ids in EvalPlus' spelling (``Mbpp/11``).

    EvalPlus requires all problems of its own set. Raises OptionError for a task whose functions have
    other names or that is not code.
    """
    if task.kind != "code" or task.perturbation == "rename-function":
        raise OptionError(
            f"{task.name}: EvalPlus scores code under its own function names; export a code task as it is"
        )
    check_shape(len(task.items), generations)
    return [
        {
            "task_id": re.sub(r"^mbpp/", "Mbpp/", problem.task_id, flags=re.IGNORECASE),
            "solution": problem.prompt + made.text,
        }
        for problem, samples in zip(task.problems, generations, strict=True)
        for made in samples
    ]


def lm_eval_task(task: TaskFile, folder: Path, max_new_tokens: int = 256) -> Path:
    """Write ``NAME.yaml``, ``NAME.jsonl`` and, for code, a metric; return the YAML's path.

    Prompts and stop strings are those of the preset ``completion``, greedy. Raises OptionError if the files exist.
    """
    name = re.sub(r"[^\w.-]", "_", task.name)
    yaml = folder / f"{name}.yaml"
    rows = folder / f"{name}.jsonl"
    if yaml.exists() or rows.exists():
        raise OptionError(f"{yaml} or {rows.name} exists already; give another folder or remove them")
    folder.mkdir(parents=True, exist_ok=True)
    requests = [request for _, request in requests_for(task, "completion")]
    docs = [_doc(item, request.prompt) for item, request in zip(task.items, requests, strict=True)]
    rows.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    yaml.write_text(_yaml(f"flab_{name}", task.kind, rows, requests[0].stop, max_new_tokens), encoding="utf-8")
    if task.kind == "code":
        (folder / f"{CODE_EVAL}.py").write_text(CODE_EVAL_SOURCE, encoding="utf-8")
    return yaml


def _doc(item: Item, prompt: str) -> dict[str, str]:
    """Return one row with the prompt and the target that the metric expects."""
    if isinstance(item, Problem):
        call = f"\ncheck({item.entry_point})\n" if re.search(r"^def check\(", item.test, re.MULTILINE) else ""
        target = item.test + call
    elif isinstance(item, Explanation):
        target = item.cot.strip()
    else:
        assert isinstance(item, Prediction)
        target = item.output.strip()
    return {"task_id": item.task_id, "prompt": prompt, "target": target}


def _yaml(name: str, kind: str, rows: Path, stop: Sequence[str], max_new_tokens: int) -> str:
    """Return the task's YAML; text and target are field names, because a template's ``[1, 2]`` would be read as a list."""
    until = "".join(f"    - {json.dumps(one)}\n" for one in stop)
    return (
        f"task: {json.dumps(name)}\n"
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(rows.resolve()))}\n"
        "test_split: test\n"
        "output_type: generate_until\n"
        "doc_to_text: prompt\n"
        "doc_to_target: target\n"
        'target_delimiter: ""\n'
        "num_fewshot: 0\n"
        f"generation_kwargs:\n  until:\n{until}  max_gen_toks: {max_new_tokens}\n  do_sample: false\n"
        f"{METRICS[kind]}"
        "metadata:\n  version: 1.0\n"
    )
