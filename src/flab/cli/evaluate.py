"""``flab eval`` and ``flab compare``, and what they print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model
from flab.cli.info import DryRun, show_estimate
from flab.cli.options import ADVANCED, Json, ShardOf, emit, show_shard, takes
from flab.errors import FlabError, OptionError
from flab.evaluation.prompts import Settings
from flab.evaluation.tasks import named_task, parse_task_argument
from flab.files import as_path, check_result
from flab.models.options import Options
from flab.progress import add, reply, say, show, table_of

EVAL_EXAMPLE = "Example: flab eval MODEL --task HumanEval.jsonl --perturb all -o RUN"
COMPARE_EXAMPLE = "Example: flab compare RUN_OF_MODEL RUN_OF_SMALLER"


Task = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "--problems",
        metavar="[KIND:]FILE",
        help="Problems: a file, a hub id, or humaneval, mbpp, cruxeval, humaneval_plus or mbpp_plus. Put code:, cot: or "
        "output: before it if the kind is not clear. Repeatable.",
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", metavar="PATH", help="Folder of the run, in which a stopped run resumes, or a file NAME.json."
    ),
]
Perturb = Annotated[
    list[str] | None,
    typer.Option(
        "--perturb",
        metavar="NAME",
        help="Also evaluate the problems with this perturbation, or with all of them. Repeatable.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="Folder with the files of named tasks, such as HumanEval.jsonl for humaneval."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Use only the first N problems of each task.")]
Gold = Annotated[
    bool | None,
    typer.Option(
        "--gold/--no-gold",
        metavar=" ",
        help="Run only the reference solutions, without a model. With --no-gold, never run them.",
    ),
]
Seen = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        help="Data that the model has seen, which is searched for the problems. Repeatable.",
        rich_help_panel=ADVANCED,
    ),
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="Engine: transformers or vllm.", rich_help_panel=ADVANCED)]
Export = Annotated[
    bool,
    typer.Option(
        "--export",
        metavar=" ",
        help="Also write files for EvalPlus and lm-evaluation-harness.",
        rich_help_panel=ADVANCED,
    ),
]


@takes(settings=Settings, options=Options, without=("in_memory",))
def evaluate(
    settings: Any,
    options: Any,
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="Folder of a Hugging Face model, or its hub id.")
    ] = None,
    tasks: Task = None,
    output: Run = None,
    perturbations: Perturb = None,
    limit: Limit = None,
    data_dir: DataDir = None,
    gold: Gold = None,
    against_data: Seen = None,
    backend: Backend = "transformers",
    export: Export = False,
    shard: ShardOf = None,
    dry_run: DryRun = False,
    json_: Json = False,
) -> None:
    """Evaluate a model on tasks, and run its code in a sandbox.

    Code is scored by its tests, chains of thought by BLEU, predicted outputs
    by exact match. The reference solutions are run as well.
    """
    asked = [named_task(one, as_path(data_dir) if data_dir is not None else None) for one in tasks or ()]
    given: dict[str, Any] = {"limit": limit, "perturbations": perturbations or [], "options": options}
    if gold:
        _gold(model, asked, output, given | {"seed": settings.seed}, json_)
        return
    if model is None:
        raise OptionError("no MODEL: give a folder or a hub id, or --gold to run only the references of the tasks.")
    read = [model, *(parse_task_argument(one)[1] for one in asked), *(against_data or ())]
    if output is not None and output.suffix == ".json":
        check_result(as_path(output), options.overwrite, read)
    check_model(model)
    if dry_run:
        from flab.runs.dry_run import estimate_eval

        given |= {"gold": gold is not False}
        show_estimate(estimate_eval(model, asked, settings, out=output, **given), json_)
        return
    given |= {"gold": gold is not False, "against_data": against_data or [], "backend": backend, "export": export}
    _show_run(_run(model, asked, output, settings, given, shard), output, json_, shard)


def _run(
    model: str, tasks: list[str], output: Path | None, settings: Any, given: dict[str, Any], shard: str | None
) -> dict[str, Any]:
    """Evaluate the model. An interrupted run in a folder says how it continues."""
    from flab.evaluation.evaluate import evaluate as run

    try:
        return run(model, tasks, output, settings, **given, shard=shard)
    except KeyboardInterrupt:
        if output is None or output.suffix == ".json":
            raise
        raise FlabError(f"interrupted: the answers so far are in {output}; the same command resumes.") from None


def _show_run(report: Mapping[str, Any], output: Path | None, json_: bool, shard: str | None) -> None:
    if shard is not None:
        emit(report) if json_ else show_shard(report)
    elif json_:
        emit(without_rows(report))
    else:
        show_run(report, str(output) if output is not None else None)


def without_rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report without its rows. With one task, its figures also stand at the top."""
    tasks = [{name: value for name, value in task.items() if name != "rows"} for task in report["tasks"]]
    top = tasks[0]["summary"] if len(tasks) == 1 else {}
    return {**top, **report, "tasks": tasks}


def _gold(model: str | None, tasks: list[str], output: Path | None, given: dict[str, Any], json_: bool) -> None:
    """Run only the references. A named model is not opened."""
    from flab.evaluation.evaluate import evaluate_references
    from flab.files import write_json

    if output is not None and output.suffix != ".json":
        raise OptionError(f"-o {output}: --gold writes no run folder; give a file that ends in .json, or leave it out.")
    if output is not None:
        check_result(as_path(output), given["options"].overwrite, [parse_task_argument(one)[1] for one in tasks])
    if model is not None:
        say(f"--gold runs only the references: {model} is not opened")
    report = evaluate_references(tasks, **given)
    if output is not None:
        write_json(as_path(output), report)
    emit(report) if json_ else show_gold(report)


def compare(
    run_a: Annotated[Path, typer.Argument(metavar="RUN_A", help="The first run: a folder, or its results.json.")],
    run_b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The second run, which is compared with the first.")],
    margin_points: Annotated[
        float,
        typer.Option(
            "--margin",
            metavar="X",
            help="Largest drop of pass@1, in percentage points, at which B still counts as being as good as A.",
        ),
    ] = 2.0,
    json_: Json = False,
) -> None:
    """Compare two runs problem by problem.

    Shows what the second run kept of the first, and whether it is as good
    within a margin.
    """
    from flab.evaluation.compare import compare_runs

    report = compare_runs(as_path(run_a), as_path(run_b), margin_points)
    emit(report) if json_ else show_comparison(report)


def show_run(report: Mapping[str, Any], output: str | None) -> None:
    """Print one row for each task, then failures, robustness and warnings."""
    table = table_of("Tasks", ["task", "kind", "passed", "pass@1", "95 %", "more", "references", "cut off"])
    for task in report["tasks"]:
        one = task["summary"]
        low, high = one["interval_95"]
        gold = "-" if task["gold"] is None else f"{task['gold']['passed']}/{task['gold']['total']}"
        add(table, task["name"], task["kind"], f"{one['passed']}/{one['total']}", f"{one['pass@1']:.3f}",
             f"{low:.3f}-{high:.3f}", _more(one), gold, one["num_truncated"])  # fmt: skip
    show(table)
    for task in report["tasks"]:
        if task["summary"]["failures"]:
            reply(f"failures of {task['name']}: {_counts(task['summary']['failures'])}")
        if task["skipped"]:
            reply(f"{task['name']}: {task['skipped']} problems have nothing to change and are left out")
    show_robustness(report["robustness"])
    for row in report.get("contamination", []):
        if row["warning"]:
            say(f"warning: {row['task']} and {row['data']}: {row['warning']}")
    levels = {task["summary"]["sandbox_level"] for task in report["tasks"] if "sandbox_level" in task["summary"]}
    reply(
        "; ".join(
            [*(f"sandbox: {level}" for level in levels), f"results in {output}" if output else "nothing was written"]
        )
    )


def _counts(failures: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in failures.items()) or "-"


def _more(summary: Mapping[str, Any]) -> str:
    """Return the figures that only this kind has."""
    names = [
        n for n in summary if n in ("bleu_paper", "bleu_default", "em_paper", "em_literal") or n.startswith("pass@")
    ]
    return ", ".join(f"{n} {summary[n]:.{2 if 'bleu' in n else 3}f}" for n in names if n != "pass@1") or "-"


def show_robustness(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the cost of each perturbation, on the problems that both files hold."""
    if not rows:
        return
    table = table_of("Robustness", ["perturbed", "of", "shared", "pass@1", "perturbed", "drop", "lost/won", "p"])
    for row in rows:
        add(table, row["perturbed"], row["clean"], row["shared"], f"{row['pass@1_clean']:.3f}",
             f"{row['pass@1_perturbed']:.3f}", f"{row['drop']:+.3f}", f"{row['only_clean']}/{row['only_perturbed']}",
             f"{row['mcnemar_p']:.3g}")  # fmt: skip
    show(table)


def show_gold(report: Mapping[str, Any]) -> None:
    """Print how many references pass, and the failures by class."""
    for task in report["tasks"]:
        reply(f"{task['name']}: {task['passed']}/{task['total']} references pass")
        for task_id, kind in task["failed"].items():
            reply(f"  {task_id}: {kind}")
    reply(f"sandbox: {report['sandbox_level']}")


def show_comparison(report: Mapping[str, Any]) -> None:
    """Print what differs besides the model, then one row for each task and the figures of its kind."""
    reply(f"A: {report['a']['run']} ({report['a']['identity'].get('path', '-')})")
    reply(f"B: {report['b']['run']} ({report['b']['identity'].get('path', '-')})")
    for row in report["differences"]:
        reply(f"WARNING: the runs differ in {row['field']}: {row['a']} in A, {row['b']} in B")
    columns = ["task", "A", "B", "B - A (95 %)", "kept (95 %)", "both", "only A", "only B", "neither", "p"]
    table = table_of("Passed by A and by B", columns)
    for task in report["tasks"]:
        for name, one in _passes(task):
            add(table, name, f"{one['pass@1_a']:.3f}", f"{one['pass@1_b']:.3f}", _difference(one["difference"]),
                 _kept(one["retention"]), one["both"], one["only_a"], one["only_b"], one["neither"],
                 f"{one['mcnemar_p']:.3g}")  # fmt: skip
    show(table)
    for task in report["tasks"]:
        for name, one in _passes(task) if task["kind"] != "cot" else ():
            reply(f"{name}: {decision_line(one['decision'])}")
    if report["pooled"] is not None:
        reply(
            f"{' and '.join(report['pooled']['tasks'])} together: {decision_line(report['pooled'])}; "
            f"kept {_kept(report['pooled']['retention'])}"
        )
    for task in report["tasks"]:
        _show_rest(task)
    _show_drops(report["robustness"])
    for run, other in (("a", "B"), ("b", "A")):
        if report[f"only_in_{run}"]:
            reply(f"not in {other}, or there with other items: {', '.join(report[f'only_in_{run}'])}")


VERDICTS = {
    "superior": "B is better than A",
    "non-inferior": "B is as good as A within {margin}",
    "inferior": "B is worse than A by more than {margin}",
    "undecided": "undecided whether B is as good as A within {margin}",
}


def decision_line(found: Mapping[str, Any]) -> str:
    """Return the decision, its interval, and the difference that the data would have found."""
    points = {name: 100 * found[name] for name in ("difference", "low", "high", "detectable")}
    verdict = VERDICTS[found["verdict"]].format(margin=f"{100 * found['margin']:g} points")
    clusters = f" from {found['num_clusters']} sources" if found["num_clusters"] < found["num_items"] else ""
    return (
        f"{verdict}: B - A is {points['difference']:+.1f} points ({points['low']:+.1f} to {points['high']:+.1f}); "
        f"{found['num_items']} problems{clusters} can show differences of {points['detectable']:.1f} points or more"
    )


def _passes(task: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(task["name"], task), *((f"{task['name']} {n}", task[n]) for n in ("em_paper", "em_literal") if n in task)]


def _difference(value: Mapping[str, float], digits: int = 3) -> str:
    return f"{value['value']:+.{digits}f} ({value['low']:+.{digits}f} to {value['high']:+.{digits}f})"


def _kept(value: Mapping[str, float] | None) -> str:
    return "-" if value is None else f"{value['ratio']:.3f} ({value['low']:.3f}-{value['high']:.3f})"


def _show_rest(task: Mapping[str, Any]) -> None:
    if "bleu_paper_a" in task:
        reply(
            f"{task['name']}: BLEU {task['bleu_paper_a']:.2f} and {task['bleu_paper_b']:.2f}, "
            f"B - A {_difference(task['bleu_paper_difference'], 2)}; "
            f"sacrebleu's default {task['bleu_default_a']:.2f} and {task['bleu_default_b']:.2f}"
        )
    reply(f"failures of {task['name']}: A {_counts(task['failures_a'])}; B {_counts(task['failures_b'])}")


def _show_drops(rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    table = table_of("Drop under perturbation", ["perturbed", "shared", "A", "drop of A", "B", "drop of B"])
    for row in rows:
        add(table, row["perturbed"], row["shared_a"], f"{row['pass@1_clean_a']:.3f}", f"{row['drop_a']:+.3f}",
             f"{row['pass@1_clean_b']:.3f}", f"{row['drop_b']:+.3f}")  # fmt: skip
    show(table)
