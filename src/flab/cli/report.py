"""``flab measure``, ``sweep`` and ``report``: costs, many budgets, the page of a run, and what they print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model, check_sweep
from flab.cli.options import Json, Model, emit, takes
from flab.errors import FlabError
from flab.files import as_path, check_result
from flab.footprint.figures import Ratio, ratio_of
from flab.footprint.settings import Measuring, carbon_intensity
from flab.models.options import Options
from flab.progress import add, reply, say, show, table_of
from flab.pruning.recipe import Recipe

MEASURE_EXAMPLE = "Example: flab measure SMALLER --against MODEL -o measure.json"
SWEEP_EXAMPLE = "Example: flab sweep MODEL --remove 0.2 0.4 0.6 -o SWEEP"
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
REPORT_EXAMPLE = "Example: flab run recipes/quickstart.yml -o RUN && flab report RUN --sweep SWEEP"


@takes(settings=Measuring, options=Options, without=("unsandboxed", "in_memory"))
def measure(
    model: Model,
    settings: Any,
    options: Any,
    against: Annotated[
        str | None, typer.Option(metavar="PATH", help="The original model. Both models are measured in turn.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="PATH", help="JSON file for the figures.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Run of flab eval on MODEL, for the energy per solved problem.")
    ] = None,
    against_results: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Run of flab eval on the original, for the energy per solved problem."),
    ] = None,
    json_: Json = False,
) -> None:
    """Measure memory, speed and energy of a model.

    Each figure comes with its method. Without a sensor a figure is left blank.
    """
    if output is not None:
        given = (against, settings.text, results, against_results)
        read = [model, *(one for one in given if one is not None)]
        check_result(as_path(output), options.overwrite, read)
    if settings.grid is not None:
        carbon_intensity(settings.grid)
    for one in filter(None, (model, against)):
        check_model(one)
    from flab.files import write_json
    from flab.footprint.measure import measure as run

    report = run(model, against, settings, options, results, against_results)
    if output is not None:
        write_json(as_path(output), report)
    emit(report) if json_ else show_measure(report)


@takes(recipe=Recipe, options=Options, without=("remove", "finalists", "finalist_tokens", "overwrite"))
def sweep(
    model: Model,
    recipe: Any,
    options: Any,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="PATH", help="Folder of the sweep, in which a stopped sweep resumes."),
    ],
    more: Annotated[
        list[float] | None, typer.Argument(metavar="BUDGET", help="Further budgets, as in --remove 0.2 0.4 0.6.")
    ] = None,
    budgets: Annotated[
        list[float] | None,
        typer.Option(
            "--remove",
            metavar="X",
            help="Fractions of all parameters to remove. Repeatable.",
            show_default="0.1 0.2 0.3 0.4 0.5 0.6",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", metavar=" ", help="Also save the model of each budget.")] = False,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task", metavar="[KIND:]FILE", help="Evaluate the model of each budget on this task. Repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first N problems of each task.")] = None,
    json_: Json = False,
) -> None:
    """Plan many budgets in one search.

    Fits every budget and runs its tests, and draws the curve of what is kept
    over what is removed.
    """
    wanted = [*(budgets or ()), *(more or ())] or BUDGETS
    check_sweep(model, as_path(output), recipe, wanted, tasks or (), limit)
    from flab.runs.report.curve import write_curve
    from flab.runs.sweep import sweep as run

    try:
        report = run(model, wanted, output, recipe, options, save, tasks or (), limit)
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: finished budgets are in {output}; the same command resumes.") from None
    write_curve(report, as_path(output))
    emit(report) if json_ else show_sweep(report, str(output))


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that flab run wrote.")],
    sweep: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Folder of a flab sweep, whose curve is shown. Default: RUN/sweep if it exists."
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Write the report page and model cards of a run.

    Writes report.html (one file that works offline), report.md, report.json,
    and README.md in each model's folder.
    """
    from flab.runs.report import make_report

    made = make_report(as_path(run), as_path(sweep) if sweep is not None else None)
    if json_:
        emit(made)
        return
    reply(made["verdict"]["sentence"] if isinstance(made["verdict"], dict) else str(made["verdict"]))
    for part, why in made["missing"].items():
        reply(f"missing: {part}: {why}")
    reply(f"written: {', '.join(map(str, made['files']))}")


PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
PLAIN = ("tokens/s",)  # units that take no prefix


def show_measure(report: Mapping[str, Any]) -> None:
    """Print every figure of each model with its spread, then the gains, the methods and the missing figures."""
    models = report["models"]
    names = list(dict.fromkeys(name for model in models for name in model["figures"]))
    table = table_of("Costs", ["", *(model["name"] for model in models), *(["ratio"] if len(models) == 2 else [])])
    for name in names:
        figures = [model["figures"].get(name) for model in models]
        if any(figure is not None and figure["value"] is not None for figure in figures):
            ratio = [_ratio(*figures)] if len(models) == 2 else []
            add(table, name.replace("_", " "), *map(_cell, figures), *ratio)
    show(table)
    show_throughput(models)
    if len(models) == 2:
        single = report["settings"]["rounds"] == 1
        reply(
            f"*: {'one round has no range' if single else 'the ranges of both models overlap'}, so no difference was shown"
        )
    show_gains(report["gains"])
    _show_methods(models, names)
    if report["grid"] is not None:
        reply(f"grid: {report['grid']['grams_per_kwh']:g} g CO2 per kWh ({report['grid']['source']})")
    facts = report["machine"]
    where = facts["gpu"] or f"{facts['processor']}, {facts['threads']} threads"
    reply(
        f"on {where}, computing in {report['dtype']}; each cell: median (lowest-highest) of {report['settings']['rounds']} rounds"
    )


def show_gains(gains: Mapping[str, Any]) -> None:
    """Print how many times better each figure is and what was predicted, or that no difference was shown."""
    for name, gain in gains.items():
        found = Ratio.of_gain(gain)
        spread = f"{found.low:.2f}-{found.high:.2f}"
        said = f"no difference was shown ({spread} times better)"
        if found.is_single:
            said = f"one round shows no difference ({found.value:.2f} times better in it)"
        reply(
            f"{name.replace('_', ' ')}: {said if found.is_open else f'{found.value:.2f} times better ({spread})'}; "
            f"predicted {gain['predicted']:.2f} ({gain['prediction']}); measured over predicted {gain['of_predicted']:.2f}"
        )


def show_throughput(models: Sequence[Mapping[str, Any]]) -> None:
    """Print the tokens per second at each batch size."""
    table = table_of("Tokens per second", ["answers at once", *(str(row["batch"]) for row in models[-1]["throughput"])])
    for model in models:
        add(table, model["name"], *(f"{row['tokens_per_second']['value']:,.0f}" for row in model["throughput"]))
    show(table)


def _show_methods(models: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Print the method of each figure, and once for each reason the figures that are missing."""
    missing: dict[str, list[str]] = {}
    for name in names:
        figure = models[-1]["figures"].get(name)
        if figure is not None and figure["value"] is not None:
            reply(f"  {name.replace('_', ' ')}: {figure['method']}")
        elif figure is not None:
            missing.setdefault(figure["reason"], []).append(name.replace("_", " "))
    for reason, without in missing.items():
        reply(f"not measured: {', '.join(without)}: {reason}")


def _cell(figure: Mapping[str, Any] | None) -> str:
    """Return the value with its unit, and its extremes at the same scale."""
    if figure is None or figure["value"] is None:
        return "-"
    factor, unit = _scale(figure["value"], figure["unit"])
    value, low, high = (f"{(figure[name] or 0) / factor:,.4g}" for name in ("value", "low", "high"))
    spread = "" if figure["low"] is None or figure["low"] == figure["high"] else f" ({low}-{high})"
    return f"{value} {unit}".rstrip() + spread


def _scale(value: float, unit: str) -> tuple[float, str]:
    """Return the factor that gives a readable number, and the unit with its prefix: ``8.12 MB``, ``3.74 ms``."""
    if unit in PLAIN or value == 0 or (not unit and abs(value) < 1000):
        return 1.0, unit
    factor, prefix = next(((f, p) for f, p in PREFIXES if abs(value) >= f), PREFIXES[-1])
    return factor, f"{prefix}{unit}"


def _ratio(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str:
    """Return the second figure over the first, with a star if their ranges overlap."""
    found = ratio_of(new, old)
    return "-" if found is None else f"{found.value:.3f}" + (" *" if found.is_open else "")


def show_sweep(report: Mapping[str, Any], folder: str) -> None:
    """Print one row for each budget, and mark the best ones."""
    tasks = list(dict.fromkeys(name for row in report["budgets"] for name in row.get("scores") or {}))
    columns = ["budget", "removed", "tokens", "layers x width", "KL", "tests", "s", *tasks]
    table = table_of("Budgets", columns)
    for row in report["budgets"]:
        tests = f"{row['task_passed']}/{row['task_total']}" if row["task_total"] else "-"
        scores = row.get("scores") or {}
        add(table, f"{100 * row['remove']:g} %" + (" *" if row["pareto"] else ""), f"{row['removed_fraction']:.1%}",
            f"{row['vocabulary']['after']:,}", f"{row['layers']['after']} x {row['width']['after']}",
            f"{row['kl_nats_per_token']:.4f}", tests, f"{row['seconds']:.0f}",
            *(_score(scores.get(name)) for name in tasks))  # fmt: skip
    show(table)
    reply(
        "*: no other budget here keeps as much with as few parameters. tests: calibration problems that were not used for "
        "fitting."
    )
    for warning in dict.fromkeys(w for row in report["budgets"] for w in row["warnings"] if "were not built" not in w):
        say(f"warning: {warning}")
    reply(f"plans, sweep.json and the curve are in {folder}; this took {report['seconds']['now']:.0f} s")


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    kept = f", kept {score['passed'] / score['original']:.3f}" if score["original"] else ""
    return f"{score['passed']}/{score['total']}{kept}"
