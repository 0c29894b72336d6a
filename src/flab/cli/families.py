"""``flab families``: which models can be cut, which of their parts, and where the result loads."""

from __future__ import annotations

from typing import Any

from flab.cli.options import Json, emit

FAMILIES_EXAMPLE = "Example: flab families --json"


def families(json_: Json = False) -> None:
    """List the model families that can be pruned.

    Also lists families that are refused, and what is missing for each.
    """
    from flab.models.families import REFUSED

    rows = family_rows()
    refused = [{"model_type": name, "missing": missing} for name, missing in sorted(REFUSED.items())]
    if json_:
        emit({"families": rows, "refused": refused})
        return
    from flab.progress import add, console, table_of

    table = table_of("Families", ["model_type", "cuts", "transformers", "llama.cpp"])
    for row in rows:
        add(table, row["model_type"], ", ".join(row["cuts"]), f"{row['transformers']} and later", row["llama.cpp"])
    console.print(table)
    table = table_of("Refused", ["model_type", "flab lacks"])
    for row in refused:
        add(table, row["model_type"], row["missing"])
    console.print(table)


def family_rows() -> list[dict[str, Any]]:
    """Return one row for each family, by name."""
    from flab.models.compatibility import PERIODIC
    from flab.models.families import FAMILIES
    from flab.models.gguf.architectures import ARCHITECTURES
    from flab.pruning.plan import DENSE, MIXTURE

    return [
        {
            "model_type": name,
            # The layers of a hybrid differ in size, and all of them stay.
            "cuts": [
                cut
                for cut in (MIXTURE if family.experts else DENSE)
                if not (cut == "layers" and family.linear_attention)
            ],
            "transformers": family.since,
            "llama.cpp": "flab export gguf" if name in ARCHITECTURES else PERIODIC if family.periodic else "not tried",
        }
        for name, family in sorted(FAMILIES.items())
    ]
