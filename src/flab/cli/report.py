"""``flab measure``, ``flab sweep`` and ``flab report``: costs, many budgets, and the page that shows a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flab.cli.early import check_model
from flab.cli.options import Device, Dtype, Json, Overwrite, Trust, emit, planning_options
from flab.errors import FlabError
from flab.files import as_path, check_result
from flab.footprint.grid import carbon_intensity
from flab.footprint.settings import Measuring
from flab.models.options import Options

MEASURE_EXAMPLE = "Example: flab measure SMALLER --against MODEL -o measure.json"
SWEEP_EXAMPLE = "Example: flab sweep MODEL --remove 0.2 0.4 0.6 -o SWEEP"
BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
REPORT_EXAMPLE = "Example: flab run recipes/quickstart.yml -o RUN && flab report RUN --sweep SWEEP"


def measure(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or a hub id.")],
    against: Annotated[str | None, typer.Option(help="The original: both are timed in turn.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="A JSON file for the figures.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Run of flab eval of MODEL: gives energy for each solved problem.")
    ] = None,
    against_results: Annotated[Path | None, typer.Option(help="The same of the original.")] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of every prompt.")] = Measuring.prompt_tokens,
    new_tokens: Annotated[int, typer.Option(help="Tokens of every answer; ends are ignored.")] = Measuring.new_tokens,
    rounds: Annotated[int, typer.Option(help="Timings of each model, after one that warms up.")] = Measuring.rounds,
    max_batch: Annotated[
        int, typer.Option(help="Throughput is measured at 1, 2, 4, ... at once, up to this or saturation.")
    ] = Measuring.max_batch,
    window_seconds: Annotated[
        float, typer.Option(help="Least seconds over which energy is metered.")
    ] = Measuring.window_seconds,
    text: Annotated[
        Path | None, typer.Option(help="Code whose tokens per character are counted; default: library code.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Without a power sensor, let codecarbon estimate.")
    ] = False,
    grid: Annotated[
        str | None, typer.Option(help="For CO2: grams per kWh, or a country's code (FRA, DEU, USA, ...).")
    ] = None,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    overwrite: Overwrite = False,
    trust_remote_code: Trust = False,
    json_: Json = False,
) -> None:
    """Measure bytes, memory, speed, operations and energy of a model, beside the original's; each figure with its method."""
    settings = Measuring(
        prompt_tokens, new_tokens, rounds, max_batch, window_seconds, as_path(text) if text else None, estimate, grid
    )
    if output is not None:
        given = (against, text, results, against_results)
        read = [model, *(one for one in given if one is not None)]
        check_result(as_path(output), overwrite, read)
    options = Options(device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    if grid is not None:
        carbon_intensity(grid)
    for one in filter(None, (model, against)):
        check_model(one)
    from flab.cli.show_footprint import show_measure
    from flab.files import write_json
    from flab.footprint.measure import measure as run

    report = run(model, against, settings, options, results, against_results)
    if output is not None:
        write_json(as_path(output), report)
    emit(report) if json_ else show_measure(report)


def sweep(
    model: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or a hub id.")],
    recipe: Any,
    options: Any,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the sweep, resumed if there.")],
    more: Annotated[
        list[float] | None,
        typer.Argument(metavar="[BUDGET]...", help="More budgets, so that --remove 0.2 0.4 0.6 works."),
    ] = None,
    budgets: Annotated[
        list[float] | None,
        typer.Option("--remove", help="Budgets; repeat, or write several.", show_default="0.1 0.2 0.3 0.4 0.5 0.6"),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep each budget's model too.")] = False,
    task: Annotated[
        list[str] | None,
        typer.Option(metavar="[KIND:]FILE", help="Measure each budget's model on it (keeps them); repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first N problems of each task.")] = None,
    json_: Json = False,
) -> None:
    """Plan many budgets in one search, each fitted and tried on the tests: the curve of what is kept over what is removed."""
    from flab.cli.show_footprint import show_sweep
    from flab.runs.report.curve import write_curve
    from flab.runs.sweep import sweep as run

    try:
        wanted = [*(budgets or ()), *(more or ())] or BUDGETS
        report = run(model, wanted, output, recipe, options, save, task or (), limit)
    except KeyboardInterrupt:
        raise FlabError(f"interrupted: finished budgets are in {output}; the same command goes on.") from None
    write_curve(report, as_path(output))
    emit(report) if json_ else show_sweep(report, str(output))


sweep = planning_options(sweep, without=("remove", "finalists", "finalist_tokens"))


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder that flab run wrote.")],
    sweep: Annotated[
        Path | None, typer.Option(help="A folder of flab sweep, for the curve; default: RUN/sweep if there.")
    ] = None,
    json_: Json = False,
) -> None:
    """Write report.html (one file, works offline), report.md, report.json and the model cards of a run."""
    from flab.progress import say
    from flab.runs.report import make_report

    made = make_report(as_path(run), as_path(sweep) if sweep is not None else None)
    if json_:
        emit(made)
        return
    say(made["verdict"]["sentence"] if isinstance(made["verdict"], dict) else str(made["verdict"]))
    for part, why in made["missing"].items():
        say(f"missing: {part}: {why}")
    say(f"written: {', '.join(map(str, made['files']))}")
