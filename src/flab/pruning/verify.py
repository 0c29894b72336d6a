"""The checks of a saved folder, run in a fresh process: ``python -m flab.pruning.verify FOLDER [ORIGINAL [PYTHON]]``.

It prints one line of JSON. :func:`flab.pruning.check.check` starts it and reads that line.
"""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flab.errors import FlabError
from flab.models.checkpoint import Checkpoint, load, read_config
from flab.models.compatibility import loads_in
from flab.models.families import family_of, layers_of, shape_of
from flab.models.folder import INDEX, PICKLED, WHOLE, headers
from flab.models.probes import ask_oldest, last_logits, machine_of, probe_ids, same_logits
from flab.models.tokenizer import PROBES, token_change
from flab.pruning.check import PROOF, read_proof
from flab.pruning.cuts.vocabulary import named_ids
from flab.pruning.plan import Plan

NUM_ROUND_TRIPS = 300
STALE = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
SAME_TOKENS = "texts are tokenised as when the folder was written"
Step = tuple[str, Callable[[], tuple[bool | None, str]]]


@dataclass
class _Findings:
    """The results of the checks, one for each."""

    lines: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, ok: bool | None, detail: str = "") -> None:
        self.lines.append({"name": name, "ok": ok, "detail": detail})

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Run a block as one check. Any exception in it is a failed check, not a crash."""
        try:
            yield
        except Exception as error:
            self.add(name, False, f"{type(error).__name__}: {error}".splitlines()[0])

    @property
    def ok(self) -> bool:
        return all(line["ok"] is not False for line in self.lines)


def verify(folder: Path, against: Path | None, oldest: str | None = None) -> dict[str, Any]:
    """Run every check in this process; the command behind :func:`check`."""
    findings = _Findings()
    plan = Plan.read(folder / "plan.json") if (folder / "plan.json").is_file() else None
    checkpoint = load(folder)  # demands that no weight is missing, unexpected or of another shape
    findings.add("reloads with every weight in place", True)
    findings.add("AutoTokenizer equals tokenizer.json", not checkpoint.warnings, "; ".join(checkpoint.warnings))
    if checkpoint.warnings:
        findings.lines[-1]["ok"] = None  # the original may lack them too; compared with it below
    steps: list[Step] = [
        ("only safetensors, no stale tokenizer files", lambda: _files(folder, plan)),
        ("token ids lie inside the vocabulary", lambda: _ids(checkpoint)),
        ("logits equal those before saving", lambda: _proof(folder, checkpoint)),
        (SAME_TOKENS, lambda: _tokens_as_written(folder, checkpoint)),
        ("the oldest transformers gives the same", lambda: _oldest(folder, checkpoint, oldest)),
        ("cached generation equals uncached", lambda: _cache(checkpoint)),
    ]
    if plan is not None:
        steps.append(("sizes are those of the plan", lambda: _sizes(checkpoint, plan)))
        steps.append(("kept tokens are those of the plan", lambda: _kept_tokens(folder, plan)))
    if against is not None and plan is not None:
        steps += _against_steps(folder, checkpoint, against, plan)
    elif against is not None:
        findings.add("compared with the original", None, "no plan.json in the folder: rows cannot be matched")
    for name, step in steps:
        with findings.step(name):
            findings.add(name, *step())
    return {
        "ok": findings.ok,
        "checks": findings.lines,
        "loads_in": loads_in(
            checkpoint.model.config,
            findings.ok,
            checkpoint.warnings,
            plan is not None and _is_renumbered(plan),
            headers(folder),
            (read_config(against), headers(against)) if against is not None else None,
            # Whether layers are gone from a family whose kinds of layers repeat.
            plan is not None and family_of(checkpoint.model.config).periodic and plan.layers.after < plan.layers.before,
        ),
    }


def _is_renumbered(plan: Plan) -> bool:
    """Return whether any token of the original is gone, so that the ids after it have changed."""
    return plan.vocabulary.after < plan.vocabulary.before


def _files(folder: Path, plan: Plan | None) -> tuple[bool, str]:
    bad = [p.name for pattern in (*PICKLED, "*.py") for p in folder.glob(pattern)]
    if plan is not None and _is_renumbered(plan):
        bad += [name for name in STALE if (folder / name).exists()]
    if (folder / WHOLE).exists() and (folder / INDEX).exists():  # transformers reads the one, other programs the other
        bad.append(INDEX)
    return not bad, ", ".join(bad)


def _ids(checkpoint: Checkpoint) -> tuple[bool, str]:
    """Check the ids that the configs name and those that the tokenizer produces on hostile text."""
    rows = checkpoint.model.get_input_embeddings().num_embeddings
    configs = {"config": checkpoint.model.config, "generation_config": checkpoint.model.generation_config}
    wrong = [f"{n}.{key}={i}" for n, c in configs.items() for key, i in named_ids(c.to_dict()) if not 0 <= i < rows]
    highest = max(i for text in _hostile_texts() for i in [*checkpoint.tokenizer.encode(text).ids, 0])
    return not wrong and highest < rows, ", ".join(wrong)


def _hostile_texts() -> list[str]:
    chooser = random.Random(0)
    limits = (0x7F, 0x24F, 0xFFFF, 0x10FFFF)
    texts = []
    for number in range(NUM_ROUND_TRIPS):
        # ASCII, Latin, the basic plane and all of Unicode in turn, without surrogates, which cannot be encoded.
        limit = limits[number % len(limits)]
        points = (chooser.randrange(limit) for _ in range(chooser.randrange(1, 30)))
        texts.append("".join(chr(p) for p in points if not 0xD800 <= p <= 0xDFFF))
    return texts


def _proof(folder: Path, checkpoint: Checkpoint) -> tuple[bool | None, str]:
    if not (folder / PROOF).is_file():
        return None, "no proof.json: not written by flab"
    proof = read_proof(folder)
    return _as_recorded(last_logits(checkpoint.model, proof["ids"]), proof)


def _as_recorded(logits: list[list[float]], proof: dict[str, Any]) -> tuple[bool, str]:
    """Compare logits that were computed here with the recorded ones. Older proofs do not say where they were computed."""
    here = machine_of(torch.device("cpu"))
    return same_logits(logits, proof["logits"], proof["dtype"], proof.get("machine", here) == here)


def _tokens_as_written(folder: Path, checkpoint: Checkpoint) -> tuple[bool | None, str]:
    """Compare the tokenizer with the record in the proof: every engine reads the folder's, so all would share its fault."""
    record = read_proof(folder).get("tokens")
    if record is None:
        return None, f"no record of it in {PROOF}: written by an earlier flab, or not by flab"
    change = token_change(checkpoint.tokenizer, record)
    return change is None, change or ""


def _oldest(folder: Path, checkpoint: Checkpoint, python: str | None) -> tuple[bool | None, str]:
    """Compare logits and tokens of the oldest supported transformers with the proof. Skipped if it is not given."""
    if python is None:
        return None, "give `oldest` with the python of an environment that has transformers 4.57"
    if (folder / PROOF).is_file():
        proof = read_proof(folder)
    else:  # not written by flab: compared with what this transformers makes of it
        ids = probe_ids(checkpoint.model.config.vocab_size)
        dtype = str(checkpoint.model.dtype).removeprefix("torch.")
        proof = {"ids": ids, "logits": last_logits(checkpoint.model, ids), "dtype": dtype}
    made = ask_oldest(python, folder, proof["ids"], PROBES)
    if "error" in made:
        return False, made["error"]
    # Logits must agree. The split of the probes must too, unless a warning says that AutoTokenizer splits otherwise.
    same, detail = _as_recorded(made["logits"], proof)
    truth = [checkpoint.tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES]
    differ = sum(one != other for one, other in zip(made["tokens"], truth, strict=True))
    found = [f"transformers {made['version']}: {detail}", *(f"without {name}" for name in made["lost"][:3])]
    found += [f"{differ} of {len(PROBES)} probe texts are split differently"] if differ else []
    return same and not made["lost"] and (not differ or bool(checkpoint.warnings)), "; ".join(found)


def _cache(checkpoint: Checkpoint) -> tuple[bool, str]:
    """Compare greedy tokens with and without the key-value cache."""
    model = checkpoint.model
    prompt = torch.tensor([probe_ids(model.config.vocab_size)[1]])
    plain: dict[str, Any] = {
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "do_sample": False,
        "attention_mask": torch.ones_like(prompt),
    }
    # In float32, because in 16 bits a near-tie between two tokens may be broken differently with and without a cache.
    model.float()
    cached, uncached = (model.generate(prompt, use_cache=c, pad_token_id=0, **plain)[0].tolist() for c in (True, False))
    return cached == uncached, "" if cached == uncached else f"{cached} != {uncached}"


def _sizes(checkpoint: Checkpoint, plan: Plan) -> tuple[bool, str]:
    shape = shape_of(checkpoint.model, family_of(checkpoint.model.config))
    got = (*shape.counts(plan.cuts), shape.total)
    want = (*(cut.after for cut in plan.cuts.values()), plan.parameters_after)
    return got == want, f"{', '.join(plan.cuts)}, parameters: got {got}, planned {want}"


def _kept_tokens(folder: Path, plan: Plan) -> tuple[bool | None, str]:
    file = folder / "kept_tokens.json"
    if not file.is_file():
        return None, f"no {file.name}"
    return json.loads(file.read_text()) == plan.vocabulary.kept, file.name


def _against_steps(folder: Path, checkpoint: Checkpoint, against: Path, plan: Plan) -> list[Step]:
    """Return the comparisons with the original, which is loaded here once."""
    original = load(against)
    if read_proof(folder).get("trained"):  # then none equals the original's
        weights: list[Step] = [("tied and untied as the original", lambda: _tied_equal(checkpoint, original))]
    else:
        weights = [
            ("kept embedding and head rows are the original's", lambda: _rows_equal(checkpoint, original, plan)),
            (
                "tensors that no cut touches are the original's",
                lambda: _untouched_equal(checkpoint, original, plan, read_proof(folder).get("refit", plan.refit.kind)),
            ),
        ]
    return [
        *weights,
        ("kept tokens have the same text, probes the same split", lambda: _tokens_equal(checkpoint, original, plan)),
        ("any text survives encode -> decode as before", lambda: _round_trips(checkpoint, original)),
        (
            "AutoTokenizer is as true as the original's",
            lambda: (bool(original.warnings) or not checkpoint.warnings, "; ".join(checkpoint.warnings)),
        ),
        ("special ids and chat template are intact", lambda: _roles_equal(folder, checkpoint, original, plan)),
    ]


def _rows_equal(checkpoint: Checkpoint, original: Checkpoint, plan: Plan) -> tuple[bool, str]:
    model = checkpoint.model
    old = original.model
    kept = torch.tensor(plan.vocabulary.kept)
    same = torch.equal(model.get_input_embeddings().weight, old.get_input_embeddings().weight[kept].to(model.dtype))
    same &= torch.equal(model.get_output_embeddings().weight, old.get_output_embeddings().weight[kept].to(model.dtype))
    tied, detail = _tied_equal(checkpoint, original)
    return same and tied, detail


def _tied_equal(checkpoint: Checkpoint, original: Checkpoint) -> tuple[bool, str]:
    """Check that embedding and head are one tensor in both models, or two in both."""
    models = (checkpoint.model, original.model)
    tied = [m.get_input_embeddings().weight is m.get_output_embeddings().weight for m in models]
    return tied[0] == tied[1], f"tied: {tied[0]}, original: {tied[1]}"


def _untouched_equal(checkpoint: Checkpoint, original: Checkpoint, plan: Plan, refit: str) -> tuple[bool | None, str]:
    """Check the tensors that no cut touches: all but the FFN and the attention's output, in layers not reconstructed."""
    family = family_of(checkpoint.model.config)
    layers = layers_of(checkpoint.model, family)
    old_layers = layers_of(original.model, family)
    rates = plan.refit.reconstruction_rates if refit == "reconstruction" else []
    wrong = []
    compared = [place for place in range(len(plan.layers.kept)) if not (rates and rates[place])]
    for place in compared:
        index = plan.layers.kept[place]
        state = layers[place].state_dict()
        old = old_layers[index].state_dict()
        names = [n for n in state if not n.startswith(family.fitted)]
        # A cut copies rows, so tensors are compared bit for bit: even a rounding difference would mean a computation.
        wrong += [f"layer {place}: {n}" for n in names if not torch.equal(state[n], old[n].to(state[n].dtype))]
    if not compared:
        return None, "every layer was reconstructed as a whole, so there is nothing to compare"
    return not wrong, ", ".join(wrong[:3]) or f"{len(compared)} of {len(plan.layers.kept)} layers compared"


def _tokens_equal(checkpoint: Checkpoint, original: Checkpoint, plan: Plan) -> tuple[bool, str]:
    """Check that every kept id has the same text, and that every probe made of kept tokens is split as before."""
    kept = plan.vocabulary.kept
    new_of = {old: new for new, old in enumerate(kept)}
    texts = [i for i, k in enumerate(kept) if checkpoint.tokenizer.id_to_token(i) != original.tokenizer.id_to_token(k)]
    covered = 0
    differ = 0
    for probe in [line for text in PROBES for line in text.splitlines()]:
        # A probe that contains a removed token must be split into other pieces.
        ids = original.tokenizer.encode(probe, add_special_tokens=False).ids
        if all(i in new_of for i in ids):
            covered += 1
            differ += checkpoint.tokenizer.encode(probe, add_special_tokens=False).ids != [new_of[i] for i in ids]
    return not texts and not differ, f"{covered} probe lines covered"


def _round_trips(checkpoint: Checkpoint, original: Checkpoint) -> tuple[bool, str]:
    def there_and_back(tokenizer: Any, text: str) -> str:
        return str(tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids, skip_special_tokens=False))

    lost = [
        t for t in _hostile_texts() if there_and_back(checkpoint.tokenizer, t) != there_and_back(original.tokenizer, t)
    ]
    return not lost, f"{len(lost)} of {NUM_ROUND_TRIPS} texts differ" if lost else ""


def _roles_equal(folder: Path, checkpoint: Checkpoint, original: Checkpoint, plan: Plan) -> tuple[bool, str]:
    """Check that every id of the original's generation config is there, renumbered, and that the chat templates are equal."""
    new_of = {old: new for new, old in enumerate(plan.vocabulary.kept)}
    old_ids, ids = (list(named_ids(c.model.generation_config.to_dict())) for c in (original, checkpoint))
    same = ids == [(key, new_of.get(i)) for key, i in old_ids if i in new_of]
    templates = [
        p
        for p in original.path.glob("chat_template*")
        if not (folder / p.name).is_file() or p.read_bytes() != (folder / p.name).read_bytes()
    ]
    return same and not templates, ", ".join(p.name for p in templates)


def main(arguments: list[str]) -> int:
    """Run the command in the module's docstring; print one line of JSON. Arguments in brackets may be left out or empty."""
    folder, against, oldest = [*arguments, "", ""][:3]
    try:
        print(json.dumps(verify(Path(folder), Path(against) if against else None, oldest or None)))
    except FlabError as error:
        print(json.dumps({"error": str(error)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
