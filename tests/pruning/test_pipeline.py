"""Plan, apply, prune, evaluate on pico models: the plan carries every decision, and replays to the byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flab import Options, Recipe, apply, evaluate, prune
from flab.errors import CheckpointError, DataError, FlabError, OptionError, PlanError, SandboxError
from flab.evaluation.prompts import Settings
from flab.models.checkpoint import load
from flab.pruning import planner
from flab.pruning.advice import deep_cut_hint
from flab.pruning.pipeline import build, plan
from flab.pruning.plan import Plan
from flab.pruning.refit.walk import Walk
from flab.pruning.search import PATIENCE, Candidate, Split, _worsening, decide
from flab.sandbox import Sandbox
from support import pico


def files_of(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def decided(pico_folder, recipe) -> Plan:
    return plan(pico_folder("qwen2"), recipe(remove=0.3))


@pytest.fixture(scope="module")
def applied(decided, pico_folder, tmp_path_factory):
    return apply(pico_folder("qwen2"), decided, tmp_path_factory.mktemp("applied") / "out")


# --- the public surface ---


@pytest.mark.parametrize("name", ["plan", "apply", "prune", "check", "evaluate"])
def test_public_functions_are_functions_whatever_was_imported(name):
    script = (
        "import flab, flab.pruning.pipeline, flab.pruning.plan, flab.pruning.planner, flab.pruning.check\n"
        "import flab.evaluation.evaluate, flab.pruning.search, flab.runs.sweep, flab.footprint.measure\n"
        f"assert type(flab.{name}).__name__ == 'function', type(flab.{name})\n"
        f"from flab import {name}\nassert callable({name})"
    )
    scope: dict = {}
    exec(script, scope)
    assert callable(scope[name])


def test_public_names_all_resolve():
    import flab

    for name in flab.__all__:
        assert getattr(flab, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        flab.nonsense  # noqa: B018


def test_importing_flab_and_its_help_load_no_torch():
    script = (
        "import sys, contextlib, io, flab, flab.cli.app\n"
        "sys.argv = ['flab', 'prune', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit): flab.cli.app.main()\n"
        "assert '--remove' in out.getvalue(), out.getvalue()\n"
        "print([m for m in ('torch', 'transformers', 'tokenizers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# --- the plan ---


def test_a_plan_survives_json(decided, tmp_path):
    decided.write(tmp_path / "plan.json")
    again = Plan.read(str(tmp_path / "plan.json"))
    assert json.dumps(asdict(again)) == json.dumps(asdict(decided))
    again.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()
    (tmp_path / "again.json").unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_the_plan_meets_the_budget_and_names_its_sources(decided, calibration_file):
    assert decided.removed_fraction >= 0.3
    assert decided.calibration["path"] == str(calibration_file.resolve())
    assert [s["path"] for s in decided.calibration["sources"]] == [str(calibration_file.resolve())]
    assert len(decided.model["sha256"]) == 64
    assert decided.kl_vocabulary > 0
    assert decided.body_removed_fraction < decided.removed_fraction + 0.3


def test_the_same_recipe_gives_the_same_plan(decided, pico_folder, recipe):
    again = plan(pico_folder("qwen2"), recipe(remove=0.3))
    drop = {"seconds"}
    assert {k: v for k, v in vars(again).items() if k not in drop} == {
        k: v for k, v in vars(decided).items() if k not in drop
    }


def test_the_chosen_candidate_is_the_best_of_those_printed(decided):
    judged = [c for c in decided.candidates if c["kl"] is not None]
    (chosen,) = [c for c in decided.candidates if c["chosen"]]
    assert len(decided.candidates) > 1
    assert chosen["kl_answer"] == min(c["kl_answer"] for c in judged)
    searched = sorted(c["kl_search"] for c in decided.candidates)
    assert max(c["kl_search"] for c in judged) <= searched[len(judged) - 1]
    assert decided.kl_nats_per_token == chosen["kl"]
    assert (decided.layers.after, decided.width.after) == (chosen["layers"], chosen["width"])
    assert all(c["parameters"] <= 0.7 * decided.parameters_before for c in decided.candidates)


def test_a_plan_with_pins_and_dropped_layers(pico_folder, recipe):
    pinned = plan(pico_folder("qwen2"), recipe(remove=0.3, drop_layers=(1, 3), finalists=1))
    assert pinned.layers.kept == [0, 2, 4]
    pinned = plan(pico_folder("qwen2"), recipe(remove=0.2, width=32, layers=4, vocabulary=384, finalists=1))
    assert (pinned.vocabulary.after, pinned.layers.after, pinned.width.after) == (384, 4, 32)
    assert all(len(k) == 32 for k in pinned.width.kept)


def test_a_plan_that_cuts_only_tokens_reads_no_text_in_the_layers(pico_folder, recipe, monkeypatch):
    seen = []
    walk = Walk.__init__

    def counted(self, runner, cut, fit, compare, streams=None):
        seen.append(sum(batch.ids.numel() for batch in [*fit, *compare]))
        walk(self, runner, cut, fit, compare, streams)

    monkeypatch.setattr(Walk, "__init__", counted)
    monkeypatch.setattr(planner, "WHOLE_BODY_TOKENS", 1)
    decided = plan(pico_folder("qwen2"), recipe(remove=0.02))
    assert decided.kl_nats_per_token == 0
    assert decided.vocabulary.after < decided.vocabulary.before
    assert decided.layers.after == decided.layers.before
    assert decided.width.kept == [list(range(decided.width.before))] * decided.layers.before
    assert max(seen) < decided.calibration["fit_tokens"] / 2


@pytest.mark.parametrize("criteria", [("last-token", "first"), ("perplexity", "fisher"), ("angular", "entropy")])
def test_other_criteria_make_valid_plans(criteria, pico_folder, recipe, tmp_path):
    settings = {"layer_criterion": criteria[0], "neuron_criterion": criteria[1], "refit": "none", "layers": 3}
    made = plan(pico_folder("llama"), recipe(remove=0.45, finalists=1, closure=criteria[1] != "first", **settings))
    made.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json").removed_fraction >= 0.45
    if criteria[1] == "first":
        assert made.width.kept == [list(range(made.width.after))] * 3


def with_cut(d, name, **changes):
    """The plan with one cut changed, in the layout of its format."""
    if d["format"] == 1:
        return json.dumps(d | {name: d[name] | changes})
    return json.dumps(d | {"cuts": d["cuts"] | {name: d["cuts"][name] | changes}})


def cuts_of(d):
    return d if d["format"] == 1 else d["cuts"]


def with_refit(d, **changes):
    return json.dumps(d | {"refit": d["refit"] | changes})


BROKEN = {
    "not JSON": lambda d: "{",
    "a list": lambda d: "[]",
    "another format": lambda d: json.dumps(d | {"format": 99}),
    "the other format": lambda d: json.dumps(d | {"format": 3 - d["format"]}),
    "missing field": lambda d: json.dumps({k: v for k, v in d.items() if k not in ("layers", "cuts")}),
    "unknown field": lambda d: json.dumps(d | {"surprise": 1}),
    "unknown cut": lambda d: json.dumps(d | {"cuts": {**d.get("cuts", {}), "surprise": {}}}),
    "no cuts": lambda d: json.dumps(d | {"cuts": 1}),
    "descending layers": lambda d: with_cut(d, "layers", kept=cuts_of(d)["layers"]["kept"][::-1]),
    "layer out of range": lambda d: with_cut(d, "layers", before=5, after=1, kept=[5]),
    "neurons missing": lambda d: with_cut(d, "width", kept=cuts_of(d)["width"]["kept"][1:]),
    "unknown refit": lambda d: with_refit(d, kind="magic"),
    "a ridge too few": lambda d: with_refit(d, ridge_ffn=d["refit"]["ridge_ffn"][1:]),
    "a rate below zero": lambda d: with_refit(d, ridge_attention=[-1] * cuts_of(d)["layers"]["after"]),
    "steps that are no numbers": lambda d: with_refit(d, newton_steps=["x"] * cuts_of(d)["layers"]["after"]),
}


@pytest.mark.parametrize("junk", [None, "x", -1, 1e9, [], {}], ids=str)
@pytest.mark.parametrize("part", ["model", "calibration", "refit"])
def test_junk_in_a_plan_is_one_error_or_harmless(part, junk, decided, pico_folder, tmp_path):
    """A plan edited by hand: every field that ``apply`` reads, replaced."""
    decided.write(tmp_path / "good.json")
    good, refused = json.loads((tmp_path / "good.json").read_text()), 0
    for name in good[part]:
        (tmp_path / "bad.json").write_text(json.dumps(good | {part: good[part] | {name: junk}}))
        try:
            apply(pico_folder("qwen2"), tmp_path / "bad.json", tmp_path / "out", Options(overwrite=True))
        except FlabError as error:
            refused += "\n" not in str(error)
    assert refused


@pytest.mark.parametrize("format_", [1, 2])
@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_plan_is_one_error(kind, format_, decided, tmp_path):
    replace(decided, format=format_).write(tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    bad.write_text(BROKEN[kind](json.loads((tmp_path / "good.json").read_text())))
    with pytest.raises(PlanError, match="flab plan") as caught:
        Plan.read(bad)
    assert "bad.json" in str(caught.value)


def test_a_missing_plan_is_one_error(tmp_path):
    with pytest.raises(PlanError, match=r"nowhere\.json"):
        Plan.read(tmp_path / "nowhere.json")


# --- apply ---


def test_a_plan_of_format_1_is_read_and_written_as_it_was(decided, tmp_path):
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    decided.write(new)
    data = json.loads(new.read_text())
    before = {}
    for name, value in data.items():
        before |= value if name == "cuts" else {name: value}
    old.write_text(json.dumps(before | {"format": 1}, indent=1) + "\n")
    assert list(before)[list(before).index("calibration") :][:4] == ["calibration", "vocabulary", "layers", "width"]
    read = Plan.read(old)
    assert replace(read, format=2) == Plan.read(new) == decided
    read.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == old.read_bytes()


def test_a_plan_of_format_1_is_applied_to_the_same_bytes(applied, decided, pico_folder, tmp_path):
    replace(decided, format=1).write(tmp_path / "old.json")
    again = files_of(apply(pico_folder("qwen2"), tmp_path / "old.json", tmp_path / "again"))
    assert again.pop("plan.json") == (tmp_path / "old.json").read_bytes()
    first = files_of(applied)
    del first["plan.json"]
    assert again == first


def test_applying_twice_is_byte_identical(applied, decided, pico_folder, tmp_path):
    decided.write(tmp_path / "plan.json")
    again = apply(pico_folder("qwen2"), tmp_path / "plan.json", tmp_path / "again")
    first, second = files_of(applied), files_of(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert {"model.safetensors", "plan.json", "kept_tokens.json", "tokenizer.json", "LICENSE"} <= set(first)


@pytest.mark.parametrize("refit", ["newton", "residual", "none"])
def test_build_writes_what_plan_and_apply_write(refit, pico_folder, recipe, tmp_path):
    """One walk instead of two; only the seconds in the plan may differ."""
    source = pico_folder("starcoder2")
    decided = build(source, tmp_path / "built", recipe(remove=0.3, refit=refit))
    built, applied = files_of(tmp_path / "built"), files_of(apply(source, decided, tmp_path / "applied"))
    assert [name for name in applied if built.get(name) != applied[name]] == []
    assert built.keys() == applied.keys()


def test_the_output_is_stock(applied, decided):
    model = AutoModelForCausalLM.from_pretrained(applied)
    tokenizer = AutoTokenizer.from_pretrained(applied)
    assert sum(p.numel() for p in model.parameters()) == decided.parameters_after
    assert len(tokenizer) == decided.vocabulary.after == model.config.vocab_size
    assert tokenizer.eos_token == pico.SPECIAL[2]
    assert tokenizer.eos_token_id == decided.vocabulary.kept.index(pico.tokenizer().token_to_id(pico.SPECIAL[2]))
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
    assert json.loads((applied / "kept_tokens.json").read_text()) == decided.vocabulary.kept
    assert not list(applied.glob("vocab.json")) + list(applied.glob("merges.txt"))


def test_apply_measures_what_the_plan_promised(applied, decided, pico_folder):
    """The saved model's KL on covered text is that of the plan's order: the weights are really refitted."""
    cut_alone = decided.refit.kind
    assert cut_alone == "newton"
    proof = json.loads((applied / "proof.json").read_text())
    assert proof["refit"] == "newton"


def test_no_refit_is_the_cut_alone(decided, pico_folder, tmp_path):
    out = apply(pico_folder("qwen2"), decided, tmp_path / "out", refit=False)
    original, cut = load(pico_folder("qwen2")).model, load(out).model
    for place, index in enumerate(decided.layers.kept):
        old = original.model.layers[index].mlp.down_proj.weight[:, decided.width.kept[place]]
        assert torch.equal(cut.model.layers[place].mlp.down_proj.weight, old)


def test_the_refit_changes_the_weights(applied, decided, pico_folder):
    original, cut = load(pico_folder("qwen2")).model, load(applied).model
    old = original.model.layers[decided.layers.kept[0]].mlp.down_proj.weight[:, decided.width.kept[0]]
    assert not torch.equal(cut.model.layers[0].mlp.down_proj.weight, old)


def test_changed_calibration_data_is_refused_by_name(pico_folder, recipe, tmp_path):
    rows = pico.write_calibration(tmp_path / "mine.jsonl", 40)
    made = plan(pico_folder("qwen2"), recipe(calibration=rows, remove=0.3, finalists=1))
    rows.write_text(rows.read_text() + '{"text": "one more"}\n')
    with pytest.raises(PlanError, match=r"mine\.jsonl.*`refit`"):
        apply(pico_folder("qwen2"), made, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.jsonl"]
    rows.unlink()
    with pytest.raises(FlabError, match=r"mine\.jsonl"):
        apply(pico_folder("qwen2"), made, tmp_path / "out")
    assert apply(pico_folder("qwen2"), made, tmp_path / "out", refit=False).is_dir()


def test_a_plan_for_another_model_is_refused(decided, pico_folder, tmp_path):
    with pytest.raises(PlanError, match="another model"):
        apply(pico_folder("qwen2", seed=1), decided, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_existing_output_needs_overwrite(applied, decided, pico_folder, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(applied, out)
    (out / "kept_tokens.json").write_text("old")
    with pytest.raises(OptionError, match="`overwrite`"):
        apply(pico_folder("qwen2"), decided, out)
    assert (out / "kept_tokens.json").read_text() == "old"
    apply(pico_folder("qwen2"), decided, out, Options(overwrite=True))
    assert json.loads((out / "kept_tokens.json").read_text()) == decided.vocabulary.kept
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_does_not_replace_a_folder_that_is_no_model(decided, pico_folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match=r"holds files that flab did not write \(thesis.tex\)"):
        apply(pico_folder("qwen2"), decided, tmp_path, Options(overwrite=True))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("family", ["llama", "starcoder2"])
def test_models_stored_in_bf16_stay_in_bf16(family, tmp_path, recipe, verify_here):
    source = pico.build(family, tmp_path / "source", dtype=torch.bfloat16)
    report = prune(source, tmp_path / "out", recipe(remove=0.3, finalists=1))
    assert report["check"]["ok"], report["check"]["checks"]
    saved = load(tmp_path / "out").model
    assert {p.dtype for p in saved.parameters()} == {torch.bfloat16}
    made = Plan.read(tmp_path / "out" / "plan.json")
    assert (made.model["stored_dtype"], made.model["compute_dtype"]) == ("bfloat16", "float32")


def test_prune_reports_bits_per_byte_of_other_code(pico_folder, recipe, tmp_path, verify_here):
    report = prune(pico_folder("qwen2"), tmp_path / "out", recipe(remove=0.2, finalists=1))
    before, after = report["generality"]["bits_per_byte_before"], report["generality"]["bits_per_byte_after"]
    assert 0 < before < 20
    assert after == pytest.approx(before, rel=0.2)
    assert before != after
    assert report["seconds"]["total"] == pytest.approx(sum(v for k, v in report["seconds"].items() if k != "total"))


# --- finalists ---


@pytest.fixture(scope="module")
def isolation() -> Sandbox:
    try:
        return Sandbox.detect()
    except SandboxError as error:
        pytest.skip(f"no namespaces on this machine: {error}")


def rows_with_tests(path):
    """Functions that are right already in the prompt, so that whatever the model adds as a comment passes."""
    rows = []
    for number in range(24):
        prompt = f"def one_{number}(values):\n    return 1\n#"
        test = f"def check(candidate):\n    assert candidate([]) == {1 if number % 2 else 2}\n"
        rows.append(
            {"prompt": prompt, "completion": f" add items {number}\n", "test": test, "entry_point": f"one_{number}"}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_finalists_are_decided_by_their_tests(trained_folder, recipe, tmp_path, isolation):
    rows = rows_with_tests(tmp_path / "tested.jsonl")
    made = plan(trained_folder, recipe(calibration=rows, remove=0.3, finalists=2))
    judged = [c for c in made.candidates if c["task_total"]]
    assert len(judged) == 2
    assert {c["task_total"] for c in judged} == {made.calibration["judge_problems"]}
    assert made.calibration["judge_problems"] >= 2
    assert made.calibration["sandbox"] == isolation.level
    (chosen,) = [c for c in made.candidates if c["chosen"]]
    assert chosen["task_passed"] == max(c["task_passed"] for c in judged)


def candidate(layers: int, kl_search: float) -> Candidate:
    return Candidate(
        Split({"vocabulary": 10, "layers": layers, "width": 8}, 100), list(range(layers)), 0.1, 10, kl_search
    )


def test_task_success_beats_kl_and_kl_breaks_ties():
    found = [candidate(n, kl) for n, kl in ((5, 0.1), (4, 0.2), (3, 0.3), (2, 0.05))]
    success = {5: (0.5, 0.1), 4: (0.9, 0.2), 2: (0.9, 0.3)}

    def judge(c: Candidate) -> None:
        c.task_success, c.kl = success[c.split.layers]  # a KeyError where the fourth best is judged

    winner = decide(found, 3, judge)
    assert winner.split.layers == 4
    assert [c.chosen for c in found] == [False, True, False, False]


def test_without_tests_the_answers_kl_decides():
    found = [candidate(n, kl) for n, kl in ((5, 0.1), (4, 0.2))]

    def judge(c: Candidate) -> None:
        c.kl, c.kl_answer = {5: (0.1, 0.4), 4: (0.2, 0.3)}[c.split.layers]

    assert decide(found, 2, judge).split.layers == 4


@pytest.mark.parametrize(
    ("refit", "kl", "said"),
    [("newton", 0.08, 1), ("newton", 0.01, 0), ("residual", 0.08, 0), ("reconstruction", 0.08, 0)],
)
def test_a_deep_cut_by_the_default_refit_names_the_dearer_one(refit, kl, said):
    winner = replace(candidate(4, kl), kl=kl)
    hints = deep_cut_hint(Recipe(refit=refit), winner)
    assert len(hints) == said
    assert all("`refit` reconstruction" in hint and "0.080" in hint for hint in hints)


def test_the_search_stops_after_some_worse_candidates():
    falling = [candidate(n, 1.0 / (n + 1)) for n in range(6)]
    rising = [candidate(n, 0.1 * (n + 1)) for n in range(PATIENCE + 1)]
    assert not _worsening(falling, PATIENCE)
    assert _worsening(rising, PATIENCE)
    assert not _worsening(rising[:PATIENCE], PATIENCE)


# --- evaluate, and what goes wrong ---


def test_evaluate_runs_the_tests(trained_folder, tmp_path, isolation):
    report = evaluate(
        trained_folder, rows_with_tests(tmp_path / "p.jsonl"), limit=6, settings=Settings(max_new_tokens=4)
    )
    (task,) = report["tasks"]
    assert task["summary"]["sandbox_level"] == isolation.level
    assert [row["passed"] for row in task["rows"]][::2] == [False] * 3  # these tests cannot pass
    assert task["summary"]["total"] == len(task["rows"]) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ('{"text": "a"}\n{oops\n', ":2: not JSON"),
        ('{"text": "a"}\n[1]\n', ":2: got list"),
        ('{"prompt": "a"}\n', ":1: field 'canonical_solution' is missing"),
        ('{"prompt": 3, "completion": "x"}\n', ":1: field 'prompt' is 3"),
        ('{"text": "a"}\n', "fewer than two"),
    ],
)
def test_bad_calibration_names_file_and_line(text, message, pico_folder, recipe, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        plan(pico_folder("qwen2"), recipe(calibration=tmp_path / "rows.jsonl", remove=0.3))


def test_few_tokens_are_said(pico_folder, recipe, tmp_path):
    rows = pico.write_calibration(tmp_path / "few.jsonl", 3)
    made = plan(pico_folder("qwen2"), recipe(calibration=rows, remove=0.3, finalists=1, width=16))
    assert any("calibration tokens are few for a width of 64" in w for w in made.warnings)


@pytest.mark.parametrize(("rows", "said"), [(3, True), (40, False)])
def test_too_few_windows_to_hold_any_out_are_said(pico_folder, recipe, tmp_path, rows, said):
    file = pico.write_calibration(tmp_path / "rows.jsonl", rows)
    made = plan(pico_folder("qwen2"), recipe(calibration=file, remove=0.3, finalists=1, width=16, refit="newton"))
    assert any("so none is held out: `refit` newton does no more" in w for w in made.warnings) == said
    assert any(made.refit.newton_steps) != said


def test_a_source_folder_serves_as_calibration(pico_folder, recipe, tmp_path):
    for n, text in enumerate(pico.CODE):
        (tmp_path / f"{n}.py").write_text(text)
    made = plan(pico_folder("qwen2"), recipe(calibration=tmp_path, remove=0.3, finalists=1))
    assert made.calibration["path"] == str(tmp_path)
    assert all(c["kl_answer"] is None for c in made.candidates)


def test_corpus_text_is_covered(pico_folder, recipe, tmp_path):
    (tmp_path / "more.py").write_text("springt über Быстрая " * 3)
    small = plan(pico_folder("qwen2"), recipe(remove=0.5, finalists=1))
    made = plan(pico_folder("qwen2"), recipe(remove=0.5, finalists=1, corpus=(tmp_path / "more.py",)))
    seen = set(pico.tokenizer().encode("springt über Быстрая springt").ids)
    assert seen <= set(made.vocabulary.kept)
    assert not seen <= set(small.vocabulary.kept)
    assert made.calibration["corpus"][0]["path"].endswith("more.py")


def test_a_folder_that_is_no_model_is_refused(recipe, tmp_path):
    with pytest.raises(CheckpointError, match=r"give the folder of a whole model"):
        plan(tmp_path, recipe())


@pytest.mark.parametrize(
    "changes", [{"remove": 1.0}, {"general": 0.95}, {"refit": "x"}, {"tokens": 1}, {"layer_criterion": "vibes"}]
)
def test_recipes_are_checked_when_made(changes):
    (name,) = changes
    with pytest.raises(OptionError, match=f"`{name}`.*allowed"):
        Recipe(**changes)


def test_paths_may_be_text_and_one_corpus_needs_no_list(calibration_file):
    made = Recipe(calibration=str(calibration_file), corpus=str(calibration_file))
    assert made == Recipe(calibration=calibration_file, corpus=(calibration_file,))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"remove": "0.2"}, "`remove`: got '0.2', expected a number"),
        ({"tokens": 1e5}, "`tokens`: got 100000.0, expected a whole number"),
        ({"seed": True}, "`seed`: got True, expected a whole number"),
        ({"closure": 1}, "`closure`: got 1, expected true or false"),
        ({"refit": None}, "`refit`: got None, expected text"),
        ({"layers": "4"}, "`layers`: got '4', expected a whole number"),
        ({"calibration": 3}, "`calibration` and `corpus` are paths: got 3"),
        ({"corpus": 3}, "`calibration` and `corpus` are paths"),
    ],
)
def test_a_wrong_type_is_one_line_that_names_the_field(changes, words):
    with pytest.raises(OptionError, match=words):
        Recipe(**changes)
