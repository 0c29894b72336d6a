"""Prune and quantise: a model and its pruned versions in F16, Q8_0 and Q4_0, run by llama.cpp; bytes against KL.

    python benchmarks/quantise.py --engines-python engines/bin/python -o OUT [--model MODEL] [--pruned FOLDER FOLDER]

Prunes by 22 and 40 % unless the pruned folders are named, writes nine GGUF files, and has llama.cpp read held-out text: the
KL from the original in F16 at each token, among the tokens that the pruned vocabulary keeps, how often the first choice is
the same, and bits per byte. Then it times all, one after the other, in rounds. Writes OUT/quantise.json and OUT/quantise.svg,
and prints Markdown. Pass@1 is not measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flab import Recipe, assets, prune
from flab.errors import OutputError
from flab.models.gguf.write import write_gguf
from flab.runs.report.drawings import drawing

Json = dict[str, Any]
REMOVED = (0.22, 0.4)
TYPES = ("f16", "q8_0", "q4_0")
STYLES = ("ink", "accent", "second")
# The report's drawings take their colours from the page; a file of its own brings them along.
PAGE = "--muted:#555;--accent:#0a6e6e;--second:#b4530a;--line:#bbb;--faint:#ddd;--paper:#fff;color:#222;background:#fff"
WORKER = Path(__file__).with_name("quantise_worker.py")
COLUMNS = (
    "model", "type", "bytes", "of the original's F16", "KL ± s.e.", "KL of the vocabulary", "same first choice", "bits per byte",
    "tokens per CPU second (range)",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> Json:
    """Make what is missing, measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=assets.model_path())
    parser.add_argument("--pruned", type=Path, nargs="+", help="pruned folders, instead of pruning by 22 and 40 %%")
    parser.add_argument("--engines-python", required=True, help="the Python of an environment with xllamacpp")
    parser.add_argument(
        "--types", nargs="+", default=TYPES, help="with one type, timing alternates original and pruned"
    )
    parser.add_argument("--texts", type=Path, default=assets.problems_path(), help="rows that were not calibrated on")
    parser.add_argument("--num-texts", type=int, default=20)
    parser.add_argument("--length", type=int, default=400, help="characters read of each text")
    parser.add_argument("--top", type=int, default=512, help="likeliest tokens whose probabilities are compared")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    folders = [given.model, *(given.pruned or [pruned(given.model, remove, given.output) for remove in REMOVED])]
    lines = given.texts.read_text(encoding="utf-8").splitlines()[: given.num_texts]
    texts = [(row["prompt"] + row["canonical_solution"])[: given.length] for row in map(json.loads, lines)]
    models = [made for folder in folders for made in written(folder, given.output, texts, given.types)]
    asked = {"reference": models[0]["path"], "top": given.top, "rounds": given.rounds, "new_tokens": 64, "context": 512}
    found = ask(given.engines_python, {**asked, "models": models})
    result = {**asked, "model": folders[0].name, "rows": [summary(m, f) for m, f in zip(models, found, strict=True)]}
    del result["reference"]
    (given.output / "quantise.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.output / "quantise.svg").write_text(picture(result["rows"]))
    print(table(result["rows"]))
    return result


def pruned(model: Path, remove: float, out: Path) -> Path:
    """Return the pruned folder, made if it is not there."""
    folder = out / f"pruned-{100 * remove:g}"
    if not folder.exists():
        prune(model, folder, Recipe(remove=remove))
    return folder


def written(folder: Path, out: Path, texts: list[str], types: Sequence[str] = TYPES) -> list[Json]:
    """Write a folder in each type; returns what the worker needs to know of each file."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plan = folder / "plan.json"
    removed = 0.0
    if plan.is_file():
        decided = json.loads(plan.read_text())
        removed = 1 - decided["parameters_after"] / decided["parameters_before"]
    names = folder / "kept_tokens.json"
    common = {
        "like": folder.name,
        "removed": removed,
        "texts": [tokenizer.encode(text).ids for text in texts],
        "text_bytes": sum(len(text.encode()) for text in texts),
        "kept": json.loads(names.read_text()) if names.is_file() else None,
    }
    made = []
    for kind in types:
        path = out / f"{folder.name}-{kind}.gguf"
        write_gguf(folder, path, kind)
        made.append(
            {**common, "name": f"{folder.name} {kind}", "type": kind, "path": str(path), "bytes": path.stat().st_size}
        )
    return made


def ask(python: str, asked: Json) -> list[Json]:
    """Run the worker in the other environment; returns its rows."""
    done = subprocess.run(
        [python, "-I", str(WORKER)], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines() or ["no output"]
        )
        raise OutputError(f"llama.cpp ended with exit code {done.returncode}: {lines[-1]}")
    rows: list[Json] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return rows


def summary(model: Json, found: Json) -> Json:
    """Return one row of the result."""
    kept = {key: model[key] for key in ("removed", "type", "bytes")}
    bits = found.pop("bits")
    return {**kept, **found, "bits_per_byte": bits / model["text_bytes"]}


def table(rows: list[Json]) -> str:
    """Return the rows as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join([*lines, *("| " + " | ".join(cells(row, rows[0]["bytes"])) + " |" for row in rows)])


def cells(row: Json, whole: int) -> list[str]:
    """Return one line of the table."""
    speed = row["tokens_per_cpu_second"]
    return [
        f"−{100 * row['removed']:.1f} %" if row["removed"] else "original",
        row["type"],
        f"{row['bytes']:,}",
        f"{row['bytes'] / whole:.3f}",
        f"{row['kl']:.4f} ± {row['kl_standard_error']:.4f}",
        f"{row['kl_vocabulary']:.4f}",
        f"{row['same_first_choice']:.3f}",
        f"{row['bits_per_byte']:.3f}",
        f"{statistics.median(speed):.0f} ({min(speed):.0f} to {max(speed):.0f})",
    ]


def picture(rows: list[Json]) -> str:
    """Return bytes against KL as SVG, one line for each pruning level."""
    series = []
    for style, removed in zip(STYLES, sorted({row["removed"] for row in rows}), strict=False):
        points = [
            {"x": row["bytes"] / 1e6, "y": row["kl"], "text": row["type"]} for row in rows if row["removed"] == removed
        ]
        label = f"{100 * removed:.0f} % removed" if removed else "original"
        series.append({"label": label, "style": style, "line": True, "points": points})
    data = {"x": "megabytes of the GGUF file", "y": "KL, nats per token", "series": series}
    svg = drawing("lines", "quantise", "Bytes against KL, by pruning level", data)
    return svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" style="{PAGE}" ', 1)


if __name__ == "__main__":
    main()
