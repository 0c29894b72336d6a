"""Tables for people, on stderr. Reads only the JSON that the library functions return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flab.progress import add, console, say, table_of


def show_plan(report: Mapping[str, Any], closing: str) -> None:
    """Candidates, before and after, KL, warnings."""
    show_candidates(report["candidates"])
    table = table_of("Before and after", ["", "before", "after", "removed"])
    body = report["body_removed_fraction"]
    table.add_row(
        "parameters",
        f"{report['parameters_before']:,}",
        f"{report['parameters_after']:,}",
        f"{report['removed_fraction']:.1%} (body {body:.1%})",
    )
    for name in ("vocabulary", "layers", "width"):
        before, after = report[name]["before"], report[name]["after"]
        table.add_row(name, f"{before:,}", f"{after:,}", f"{1 - after / before:.1%}")
    console.print(table)
    say(
        f"KL of the cut and refit: {report['kl_nats_per_token']:.4f} nats per token; "
        f"of the vocabulary: {report['kl_vocabulary']:.5f}"
    )
    if "generality" in report:
        show_generality(report["generality"])
    for warning in report["warnings"]:
        say(f"warning: {warning}")
    say(closing)


def show_generality(generality: Mapping[str, Any]) -> None:
    """Bits per byte of other code, before and after."""
    before, after = generality["bits_per_byte_before"], generality["bits_per_byte_after"]
    say(f"other code ({generality['text']}): {before:.3f} -> {after:.3f} bits per byte ({after / before - 1:+.1%})")


def show_candidates(candidates: Sequence[Mapping[str, Any]]) -> None:
    """Every split that was built, the chosen one marked."""
    columns = ["layers x width", "parameters", "removed", "MFLOP/token", "KL (search)", "KL", "KL (answers)", "tests"]
    table = table_of("Candidates", columns)
    for row in candidates:
        tests = f"{row['task_passed']}/{row['task_total']}" if row["task_total"] else "-"
        table.add_row(
            f"{row['layers']} x {row['width']}" + (" <- chosen" if row["chosen"] else ""),
            f"{row['parameters']:,}",
            f"{row['removed_fraction']:.1%}",
            f"{row['flops_per_token'] / 1e6:,.2f}",
            f"{row['kl_search']:.4f}",
            _number(row["kl"]),
            _number(row["kl_answer"]),
            tests,
            style="bold" if row["chosen"] else None,
        )
    console.print(table)


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def show_check(verdict: Mapping[str, Any]) -> None:
    """Every check with its outcome, then the table of programs the folder loads in."""
    table = table_of("Checks in a fresh process", ["check", "outcome", "detail"])
    for line in verdict["checks"]:
        outcome = {True: "ok", False: "FAILED", None: "not checked"}[line["ok"]]
        add(table, line["name"], outcome, line["detail"])
    console.print(table)
    loads, table = verdict["loads_in"], table_of("Loads in", ["program", "", "how"])
    transformers, sizes = loads["transformers"], loads["vllm"]["tensor_parallel_sizes"]
    how = f"{transformers['how']}; {transformers['tokenizer']}"
    add(table, "transformers", "yes" if transformers["ok"] else "no", how)
    add(table, "vLLM", f"tensor parallel {', '.join(map(str, sizes))}", loads["vllm"]["how"])
    add(table, "llama.cpp", "needs", f"{loads['llama.cpp']['needs']} ({loads['llama.cpp']['how']})")
    add(table, "k-quants", "yes" if loads["k-quants"]["ok"] else "no", loads["k-quants"]["why"])
    for name, found in loads.get("quantised", {}).items():
        add(
            table,
            f"{name} (rows of {found['block']})",
            "whole" if not found["falls_back"] else "in part",
            _fallback(found),
        )
    console.print(table)
    if "engines" in verdict:
        show_engines(verdict["engines"])


def show_engines(engines: Mapping[str, Mapping[str, Any]]) -> None:
    """What each engine made of the folder when it was run."""
    table = table_of("Run beside transformers", ["engine", "outcome", "detail"])
    for name, found in engines.items():
        if not found["ran"]:
            add(table, name, "not run", f"not installed ({found['why']}): by rules alone, above")
            continue
        if "why" in found:
            add(table, name, "FAILED", found["why"])
            continue
        texts = (
            "no tokeniser of its own"
            if found["same_texts"] is None
            else f"{found['same_texts']}/{found['texts']} texts"
        )
        ties = f", {found['ties']} of them up to a tie" if found["ties"] else ""
        detail = f"{texts}; version {found['version']}{ties}"
        outcome = f"run: {found['same_answers']}/{found['prompts']}"
        add(table, name, outcome, f"{detail}; {found['first_difference']}" if found["first_difference"] else detail)
    console.print(table)


def _fallback(found: Mapping[str, Any]) -> str:
    """How many matrices a quantised format cannot take, and what that costs, beside the original's."""
    original = found.get("original")
    what = (
        f"falls back to {found['to']}: {found['falls_back']} of {found['of']} tensors, {found['more_bytes']:+.1%} bytes"
    )
    if original is None:
        return what
    return (
        f"{what} (original: {original['falls_back']} of {original['of']}, {original['more_bytes']:+.1%}); "
        f"bytes {found['bytes_ratio']:.3f} of the original's, parameters {found['parameters_ratio']:.3f}"
    )


def show_demo(report: Mapping[str, Any]) -> None:
    """One row for each model: size, KL, pass@1, paired counts, bits per byte."""
    columns = [
        "model",
        "parameters",
        "MB",
        "layers x width",
        "tokens",
        "KL",
        "pass@1 (95 %)",
        "kept",
        "lost/won",
        "bits/byte",
    ]
    table = table_of("Bundled model, cut and refitted, not recovered", columns)
    for row in report["rows"]:
        low, high = row["interval_95"]
        table.add_row(
            row["name"],
            f"{row['parameters']:,}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['layers']} x {row['width']}",
            f"{row['vocabulary']:,}",
            _number(row["kl_nats_per_token"]),
            f"{row['pass@1']:.3f} ({low:.2f}-{high:.2f})",
            "-" if row["retention"] is None else f"{row['retention']:.3f}",
            "-" if row["only_original"] is None else f"{row['only_original']}/{row['only_pruned']}",
            f"{row['bits_per_byte']:.3f}",
        )
    console.print(table)
    say("kept: pass@1 over the original's. lost/won: problems that only the original / only the pruned model solves.")
    say(f"bits/byte: on {report['text']}, which no model was calibrated on. authors: the paper's public scripts.")
    say(
        f"{report['problems']} problems, sandbox {report['sandbox']}; {report['seconds']:.0f} s; models in {report['output']}"
    )
