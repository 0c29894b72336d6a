"""Training the pruned model: what comes out, what a stop leaves, and what stops it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flab import Options, Plan, check
from flab.errors import CheckpointError, DataError, OptionError, PlanError, TrainingError
from flab.models.checkpoint import fingerprint
from flab.recovery import train as module
from flab.recovery.callbacks import COMPLETE, last_whole
from flab.recovery.train import recover
from support import pico


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(a: Path, b: Path) -> bool:
    """Whether two folders hold the same weights, bit for bit."""
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture
def go(pruned_folder, trained_folder, data_file, training, check_here):
    """Recover the pruned pico model into a folder, with changed settings."""

    def run(out: Path, options: Options | None = None, **changes: object) -> dict:
        return recover(pruned_folder, trained_folder, data_file, out, training(**changes), options)

    return run


def test_distillation_lowers_the_held_out_kl_and_saves_a_stock_folder(go, pruned_folder, trained_folder, tmp_path):
    before = fingerprint(pruned_folder), fingerprint(trained_folder)
    report = go(tmp_path / "out", steps=12, learning_rate=5e-3)
    held_out = report["held_out"]
    assert held_out["after"]["kl"] < 0.7 * held_out["before"]["kl"]
    assert report["check"]["ok"], report["check"]
    assert (fingerprint(pruned_folder), fingerprint(trained_folder)) == before
    assert not (tmp_path / "out.training").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert Plan.read(tmp_path / "out" / "plan.json") == Plan.read(pruned_folder / "plan.json")
    assert json.loads((tmp_path / "out" / "recovery.json").read_text())["steps"] == 12
    assert not equal(tmp_path / "out", pruned_folder)


def test_the_check_in_a_fresh_process_knows_that_weights_were_trained(
    pruned_folder, trained_folder, data_file, training, tmp_path
):
    report = recover(pruned_folder, trained_folder, data_file, tmp_path / "out", training(steps=2))
    names = [line["name"] for line in report["check"]["checks"]]
    assert report["check"]["ok"], report["check"]
    assert "tied and untied as the original" in names
    assert not any("rows are the original's" in name for name in names)


@pytest.mark.parametrize("family", ["llama", "qwen2", "starcoder2", "granite", "gemma2", "phi3"])
def test_lora_is_merged_and_tied_heads_stay_tied(
    family, pico_folder, recipe, data_file, training, check_here, verify_here, tmp_path
):
    from flab import prune

    model, cut = pico_folder(family), tmp_path / "cut"
    prune(model, cut, recipe(remove=0.3, refit="none", output_projection=False, finalists=1))
    report = recover(cut, model, data_file, tmp_path / "out", training(method="lora", lora_rank=4, learning_rate=2e-3))
    assert report["check"]["ok"], report["check"]
    assert report["held_out"]["after"]["kl"] < report["held_out"]["before"]["kl"]
    before, after = weights(cut), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert {"qkv_proj" if family == "phi3" else "q_proj", "o_proj"} <= changed
    assert not changed & {"embed_tokens", "lm_head", "norm"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == bool(loaded.config.tie_word_embeddings)


def test_packing_accumulation_and_checkpointing_change_no_step(go, tmp_path):
    """The same batches in smaller parts, and recomputed activations: the same weights up to rounding."""
    for name, changes in {
        "plain": {},
        "accumulated": {"micro_batch": 1},
        "recomputed": {"gradient_checkpointing": True},
    }.items():
        go(tmp_path / name, steps=3, **changes)
    plain = weights(tmp_path / "plain")
    for name in ("accumulated", "recomputed"):
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, plain[key], rtol=1e-3, atol=2e-4)


def test_cross_entropy_alone_needs_no_teachers_distribution(go, tmp_path):
    report = go(tmp_path / "out", alpha=0.0, learning_rate=5e-3)
    assert report["held_out"]["after"]["cross_entropy"] < report["held_out"]["before"]["cross_entropy"]
    assert "kl" not in report["held_out"]["after"]


class Stop(BaseException):
    """Something that ends the process from outside."""


def test_a_stopped_run_resumes_to_the_same_weights(go, tmp_path, monkeypatch):
    go(tmp_path / "whole")
    seen: list[int] = []
    step = module.RecoveryTrainer.compute_loss

    def dying(self, *given, **more):
        seen.append(self.state.global_step)
        if self.model.training and self.state.global_step == 5:
            raise Stop
        return step(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module.RecoveryTrainer, "compute_loss", dying)
        with pytest.raises(Stop):
            go(tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists()
    newest, spent = last_whole(tmp_path / "stopped.training")
    assert newest is not None
    assert newest.name == "checkpoint-4"
    assert spent > 0
    report = go(tmp_path / "stopped")
    assert equal(tmp_path / "whole", tmp_path / "stopped")
    assert report["steps"] == 6
    assert [entry["step"] for entry in report["curve"] if "eval_loss" in entry] == [0, 2, 4, 6]


@pytest.fixture
def trained(go, tmp_path, monkeypatch):
    """The working folder of a training that was killed just before it would have removed it."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "discard", lambda folder: None)
        go(tmp_path / "out")
    return tmp_path / "out.training"


def test_a_kill_between_saving_and_clearing_is_finished_by_the_same_command_alone(go, trained, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "out", whole)
    with pytest.raises(TrainingError, match="differs in training"):
        go(tmp_path / "out", alpha=0.5)
    assert trained.is_dir()
    assert go(tmp_path / "out")["check"]["ok"]
    assert equal(tmp_path / "out", whole)
    assert not trained.exists()
    with pytest.raises(OptionError, match="exists"):
        go(tmp_path / "out")


def no_training(*given, **more):
    raise AssertionError("trained again")


def test_a_training_that_was_killed_before_its_outcome_was_written_makes_no_step_again(
    go, trained, tmp_path, monkeypatch
):
    whole = (tmp_path / "out").rename(tmp_path / "whole")
    known = json.loads((trained / "checkpoint-6" / "trainer_state.json").read_text())
    best = Path(known["best_model_checkpoint"]).name
    for path in trained.glob("checkpoint-*/trainer_state.json"):  # as if begun from another current folder
        path.write_text(json.dumps(json.loads(path.read_text()) | {"best_model_checkpoint": f"elsewhere/{best}"}))
        mark = json.loads((path.parent / COMPLETE).read_text())
        mark["sizes"][path.name] = path.stat().st_size
        (path.parent / COMPLETE).write_text(json.dumps(mark))
    for name in ("train", "remember_teacher"):
        monkeypatch.setattr(module.RecoveryTrainer, name, no_training)
    report = go(tmp_path / "out")
    assert equal(whole, tmp_path / "out")
    before, after = (json.loads((folder / "recovery.json").read_text()) for folder in (whole, tmp_path / "out"))
    measured = {"seconds", "peak_memory"}
    assert {n: v for n, v in before.items() if n not in measured} == {
        n: v for n, v in after.items() if n not in measured
    }
    assert report["check"]["ok"]
    assert not trained.exists()


def test_what_this_very_training_has_written_is_not_trained_again(go, tmp_path, monkeypatch):
    """A run may be killed after its recovery is whole and before that is on record."""
    again = Options(overwrite=True)
    first = go(tmp_path / "out")
    left = tmp_path / ".out.training.flab-0123abcd.tmp"
    left.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(module.RecoveryTrainer, "train", no_training)
        second = go(tmp_path / "out", again)
        assert {**second, "output": first["output"]} == first | {"written": second["written"], "check": second["check"]}
        assert second["check"]["ok"]
        assert not left.exists()
        with pytest.raises(AssertionError, match="trained again"):
            go(tmp_path / "out", again, alpha=0.5)
    shutil.rmtree(tmp_path / "out.training")
    good = {name: tensor.clone() for name, tensor in weights(tmp_path / "out").items()}  # not the file that is damaged
    file, report = tmp_path / "out" / "model.safetensors", tmp_path / "out" / "recovery.json"
    for damaged, content in (
        (file, file.read_bytes()[:-4] + bytes(4)),  # other weights
        (file, file.read_bytes()[:-4]),
        (report, report.read_bytes()[:-4]),
    ):
        damaged.write_bytes(content)
        assert go(tmp_path / "out", again)["check"]["ok"]
        assert all(torch.equal(weights(tmp_path / "out")[name], tensor) for name, tensor in good.items())


def test_a_checkpoint_that_is_not_whole_is_not_taken(trained):
    """A kill while a checkpoint is written or removed leaves part of it: the checkpoint before it is the last whole one."""
    newest, weights, mark = (trained / "checkpoint-6" / name for name in ("", "model.safetensors", COMPLETE))
    assert last_whole(trained)[0] == newest
    good, said = weights.read_bytes(), mark.read_text()
    for damage in (
        mark.unlink,
        lambda: mark.write_text(""),
        lambda: mark.write_text(said[:20]),
        weights.unlink,
        lambda: weights.write_bytes(good[:-1]),
    ):
        damage()
        assert last_whole(trained)[0] == trained / "checkpoint-4"
        weights.write_bytes(good)
        mark.write_text(said)
        assert last_whole(trained)[0] == newest


def test_what_a_kill_leaves_of_the_working_folder_stops_nothing_and_goes(go, trained, tmp_path):
    """Killed while its record was written; and killed while the folder, already under another name, was being removed."""
    other = Options(overwrite=True)
    (trained / "run.json").rename(trained / ".run.json.flab-0123abcd.tmp")
    for left in trained.glob("checkpoint-*"):
        shutil.rmtree(left)
    aside = tmp_path / ".out.training.flab-0123abcd.tmp"
    (aside / "checkpoint-2").mkdir(parents=True)
    assert go(tmp_path / "out", other)["check"]["ok"]
    assert sorted(path.name for path in tmp_path.glob("*out*")) == ["out"]
    assert not aside.exists()


def test_a_working_folder_of_another_training_is_not_taken_over(go, tmp_path, monkeypatch):
    def stopping(*given, **more):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module.RecoveryTrainer, "train", stopping)
        with pytest.raises(Stop):
            go(tmp_path / "out")
    with pytest.raises(TrainingError, match="differs in training"):
        go(tmp_path / "out", alpha=0.5)
    assert go(tmp_path / "out", Options(overwrite=True), alpha=0.5, steps=2)["check"]["ok"]


def test_a_loss_that_is_no_number_stops_with_a_message_and_keeps_the_last_good_checkpoint(go, tmp_path, monkeypatch):
    real = module.RecoveryTrainer.training_step

    def poisoned(self, model, inputs, *given, **more):
        if self.state.global_step == 5:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
        return real(self, model, inputs, *given, **more)

    monkeypatch.setattr(module.RecoveryTrainer, "training_step", poisoned)
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 5: the last good checkpoint is .*checkpoint-4"
    ) as caught:
        go(tmp_path / "out")
    assert "`learning_rate`" in str(caught.value)
    assert not (tmp_path / "out").exists()
    good, _ = last_whole(tmp_path / "out.training")
    assert good is not None
    assert all(torch.isfinite(value).all() for value in weights(good).values())


def test_weights_that_became_no_number_are_never_saved_as_good(go, tmp_path, monkeypatch):
    """The last step before a checkpoint poisons the weights: the measurement before saving stops the run."""
    real = module.RecoveryTrainer.training_step

    def poisoned(self, model, inputs, *given, **more):
        loss = real(self, model, inputs, *given, **more)
        if self.state.global_step == 3:
            next(model.parameters()).grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(module.RecoveryTrainer, "training_step", poisoned)
    with pytest.raises(TrainingError, match="checkpoint-2"):
        go(tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            OSError(28, "No space left on device"),
            "no space left on the disk of .*no checkpoint was written yet. Free space",
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "no space left on the disk"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: .*`micro_batch`"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
    ],
)
def test_a_full_disk_and_too_little_memory_are_one_line(error, text, go, tmp_path, monkeypatch):
    def failing(*given, **more):
        raise error

    monkeypatch.setattr(module.RecoveryTrainer, "_save_checkpoint", failing)
    with pytest.raises(TrainingError, match=text):
        go(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_error_that_nobody_foresaw_is_not_hidden(go, tmp_path, monkeypatch):
    def failing(*given, **more):
        raise RuntimeError("a bug")

    monkeypatch.setattr(module.RecoveryTrainer, "_save_checkpoint", failing)
    with pytest.raises(RuntimeError, match="a bug"):
        go(tmp_path / "out")


def test_the_budget_decides_the_steps(go, tmp_path):
    assert go(tmp_path / "tokens", steps=None, tokens=900)["planned_steps"] in range(2, 8)
    assert go(tmp_path / "epochs", steps=None, epochs=2.0)["planned_steps"] % 2 == 0
    timed = go(tmp_path / "minutes", steps=None, minutes=0.02)
    assert timed["planned_steps"] >= 1
    assert timed["steps"] <= timed["planned_steps"]


def test_training_stops_early_and_takes_the_best(go, tmp_path):
    report = go(tmp_path / "out", steps=12, evaluations=12, patience=2, warmup=0.9, learning_rate=0.04)
    assert report["stopped_early"]
    assert report["chosen_step"] < report["steps"] < 12, report["curve"]
    best = min((e for e in report["curve"] if "eval_loss" in e), key=lambda e: e["eval_loss"])
    assert report["held_out"]["after"]["loss"] == best["eval_loss"]


def test_a_resumed_training_has_the_patience_of_one_that_was_never_stopped(go, tmp_path, monkeypatch):
    """Killed between two validations without a gain, and after the one that ended the training."""
    settings = {"steps": 12, "evaluations": 12, "patience": 2, "warmup": 0.9, "learning_rate": 0.04}
    whole = go(tmp_path / "whole", **settings)
    step = module.RecoveryTrainer.compute_loss

    def dying(self, *given, **more):
        if self.model.training and self.state.global_step == whole["steps"] - 1:
            raise Stop
        return step(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(module.RecoveryTrainer, "compute_loss", dying)
        with pytest.raises(Stop):
            go(tmp_path / "stopped", **settings)
    resumed = go(tmp_path / "stopped", **settings)
    assert (resumed["steps"], resumed["chosen_step"]) == (whole["steps"], whole["chosen_step"])
    assert equal(tmp_path / "whole", tmp_path / "stopped")


def test_no_evaluation_file_is_read_during_training(go, data_file, tmp_path, monkeypatch):
    """Every file that this process opens is noted; the canary beside the data and the bundled tests are not among them."""
    from flab import assets

    canary = data_file.parent / "problems.jsonl"
    canary.write_text("{}")
    opened: list[str] = []
    listening = [True]
    sys.addaudithook(lambda event, given: opened.append(str(given[0])) if listening[0] and event == "open" else None)
    try:
        go(tmp_path / "out", steps=2)
    finally:
        listening[0] = False
    tests = {canary.name, assets.problems_path().name, assets.cot_path().name, assets.outputs_path().name}
    assert any(str(data_file) in path for path in opened)
    assert not [path for path in opened if Path(path).name in tests]


def test_a_training_that_helps_nothing_ships_nothing(go, tmp_path):
    with pytest.raises(TrainingError, match="training did not help"):
        go(tmp_path / "out", learning_rate=3.0)
    assert not (tmp_path / "out").exists()


def test_another_teacher_is_refused(pruned_folder, data_file, training, pico_folder, tmp_path):
    with pytest.raises(PlanError, match="not the model that the student was cut from"):
        recover(pruned_folder, pico_folder("qwen2", seed=7), data_file, tmp_path / "out", training())


def swapped_ids(model: dict) -> None:
    a, b = sorted(model["vocab"])[:2]
    model["vocab"][a], model["vocab"][b] = model["vocab"][b], model["vocab"][a]


def damaged_tokenizer(pruned_folder: Path, folder: Path, damage) -> Path:
    """A copy of the student whose tokenizer was damaged after the pruning."""
    shutil.copytree(pruned_folder, folder)
    text = json.loads((folder / "tokenizer.json").read_text())
    damage(text["model"])
    (folder / "tokenizer.json").write_text(json.dumps(text))
    return folder


@pytest.mark.parametrize(
    "damage", [swapped_ids, lambda model: model["merges"].pop(), lambda model: model["merges"].reverse()],
    ids=["swapped ids", "a merge less", "merges reversed"],
)  # fmt: skip
def test_a_tokenizer_that_was_damaged_after_the_pruning_is_found_before_a_model_is_loaded(
    damage, pruned_folder, trained_folder, data_file, training, tmp_path, monkeypatch
):
    student = damaged_tokenizer(pruned_folder, tmp_path / "student", damage)
    monkeypatch.setattr(module, "open_model", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(CheckpointError, match=r"its tokenizer is not the one that it was written with .*flab apply"):
        recover(student, trained_folder, data_file, tmp_path / "out", training())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student"]


def test_ids_that_mean_other_tokens_are_refused(pruned_folder, trained_folder, data_file, training, tmp_path):
    """The teacher tells it too, where an old folder has no record of its tokens."""
    swapped = damaged_tokenizer(pruned_folder, tmp_path / "swapped", swapped_ids)
    proof = json.loads((swapped / "proof.json").read_text())
    del proof["tokens"]
    (swapped / "proof.json").write_text(json.dumps(proof))
    with pytest.raises(CheckpointError, match="number tokens differently"):
        recover(swapped, trained_folder, data_file, tmp_path / "out", training())


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"batch": 3, "micro_batch": 2}, OptionError, "multiple of `micro_batch`"),
        ({"alpha": 1.5}, OptionError, "`alpha`"),
        ({"steps": 2, "minutes": 1.0}, OptionError, "only one budget is allowed"),
        ({"steps": 0}, OptionError, "more than 0"),
        ({"method": "magic"}, OptionError, "allowed auto, full, lora"),
        ({"kl_on": "some"}, OptionError, "`kl_on`"),
        ({"length": 17}, DataError, "too few"),
    ],
)
def test_bad_settings_are_one_line(changes, error, text, go, tmp_path):
    with pytest.raises(error, match=text) as caught:
        go(tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_a_plan_is_refused(trained_folder, data_file, training, tmp_path):
    with pytest.raises(CheckpointError, match=r"no plan.json"):
        recover(trained_folder, trained_folder, data_file, tmp_path / "out", training())


def command(pruned: Path, teacher: Path, data: Path, out: Path, *more: str) -> list[str]:
    given = [str(pruned), "--teacher", str(teacher), "--data", str(data), "-o", str(out)]
    sizes = ["--length", "64", "--batch", "4", "--held-out", "0.2", *more]
    return ["-m", "flab", "recover", *given, *sizes]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_kill_9_and_resuming_end_at_the_same_weights(pruned_folder, trained_folder, data_file, tmp_path):
    steps = ["--micro-batch", "4", "--steps", "60", "--evaluations", "20", "--patience", "99"]
    whole, killed = (
        command(pruned_folder, trained_folder, data_file, tmp_path / n, *steps) for n in ("whole", "killed")
    )
    subprocess.run([sys.executable, *whole], check=True, env=ENVIRONMENT, capture_output=True)
    process = subprocess.Popen([sys.executable, *killed], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    while process.poll() is None and last_whole(tmp_path / "killed.training")[0] is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists(), "the kill came too late"
    subprocess.run([sys.executable, *killed], check=True, env=ENVIRONMENT, capture_output=True)
    assert equal(tmp_path / "whole", tmp_path / "killed")


def test_two_processes_give_the_result_of_one(pruned_folder, trained_folder, data_file, go, tmp_path):
    """gloo on the CPU: half of each batch in each process, the same weights up to rounding."""
    one = go(tmp_path / "one", steps=3, batch=4, micro_batch=2)
    steps = ["--micro-batch", "2", "--steps", "3", "--evaluations", "3", "--json"]
    given = command(pruned_folder, trained_folder, data_file, tmp_path / "two", *steps)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, *given], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads(done.stdout.splitlines()[-1])
    assert two["devices"] == 2
    assert two["check"]["ok"]
    assert two["held_out"]["after"]["kl"] == pytest.approx(one["held_out"]["after"]["kl"], rel=1e-3)
    for key, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, weights(tmp_path / "one")[key], rtol=1e-2, atol=1e-3)


def test_the_folder_is_verified_by_the_command_too(pruned_folder, trained_folder, data_file, go, tmp_path):
    go(tmp_path / "out", steps=1)
    assert check(tmp_path / "out", trained_folder)["ok"]
    assert pico.SPECIAL[0] in json.dumps(json.loads((tmp_path / "out" / "tokenizer.json").read_text()))
