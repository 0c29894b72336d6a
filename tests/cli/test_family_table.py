"""``flab families``: every row of the table, and what is missing for the others."""

from __future__ import annotations

import json

from flab.models.families import FAMILIES, REFUSED


def test_every_family_is_listed_with_what_can_be_cut(flab):
    code, out, _ = flab("families", "--json")
    assert code == 0
    rows = json.loads(out)["families"]
    assert [row["model_type"] for row in rows] == sorted(FAMILIES)
    cuts = {row["model_type"]: row["cuts"] for row in rows}
    assert cuts["qwen2"] == ["vocabulary", "layers", "width"]
    assert cuts["qwen3_moe"] == ["vocabulary", "layers", "experts", "width"]
    since = {row["model_type"]: row["transformers"] for row in rows}
    assert since["qwen2"] == "4.57"
    assert since["ministral3"] == "5"


def test_the_refused_are_listed_with_what_is_missing(flab):
    code, out, err = flab("families")
    assert (code, err) == (0, "")
    for name in REFUSED:
        assert name in out
    assert "dense layers beside mixtures" in out


def test_no_family_is_both_supported_and_refused():
    assert not set(FAMILIES) & set(REFUSED)
