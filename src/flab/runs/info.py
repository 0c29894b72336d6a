"""Tell the facts of a model and the budgets that it can reach (``flab info``), from its config and tensor headers.

No weight is read. The budgets follow from the sizes and, if a text is given, from the tokens that the text needs.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from flab.errors import BudgetError
from flab.files import PathLike, as_path
from flab.models.chat import template_of
from flab.models.checkpoint import held_in_memory
from flab.models.compatibility import loads_in
from flab.models.folder import headers
from flab.models.options import Options, settled
from flab.models.shape import Shape
from flab.pruning.budget import VOCABULARY_MULTIPLE, Pins, feasible_splits
from flab.pruning.calibration import read_texts
from flab.pruning.recipe import Recipe
from flab.pruning.vocabulary import Needs
from flab.runs.costs import PROGRAM_BYTES, eval_memory, needs_of, plan_memory, recover_memory
from flab.runs.facts import ModelFacts, assumed_vocabulary, model_facts

BUDGETS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def info(model: PathLike, options: Options | None = None, calibration: PathLike | None = None) -> dict[str, Any]:
    """Return a model's facts, the size of each part, the budgets that can be reached, and the memory of the commands.

    With a ``calibration`` text each budget keeps the tokens that it needs. Without one, the vocabulary shrinks by the same
    share as the whole model, which is the most that planning keeps.

    Raises:
        CheckpointError, UnsupportedModelError: as when the model is loaded.
        DataError: the text is missing, empty or malformed.
    """
    options = settled(options or Options())
    facts = model_facts(model, options)
    recipe = Recipe(calibration=as_path(calibration)) if calibration is not None else None
    needs = needs_of(facts, read_texts(recipe), recipe) if recipe else None
    shape = facts.shape
    config = facts.config
    held = held_in_memory(facts.path, options)
    options = replace(options, in_memory=held.in_memory)
    return {
        "path": str(facts.path),
        "family": facts.family.model_type,
        "stored_dtype": facts.stored,
        "stored_bytes": facts.weights_bytes,
        "parameters": shape.total,
        "sizes": {
            "vocabulary": shape.vocabulary,
            "layers": shape.layers,
            "width": shape.width,
            "experts": shape.experts,
            "hidden": shape.hidden,
            "heads": config.num_attention_heads,
            "key_value_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            "context": getattr(config, "max_position_embeddings", None),
        },
        "parts": parts_of(facts),
        "tokenizer": tokenizer_facts(facts),
        "budgets": [reachable(facts.shape, remove, needs) for remove in BUDGETS],
        # One layer of the smallest width and the fewest tokens would be left.
        "most_removable": 1 - shape.parameters(VOCABULARY_MULTIPLE, 1, shape.narrowest()) / shape.total,
        "loads_in": _loads_in(facts),
        "planning": {
            "in_memory": held.in_memory,
            "whole_model_bytes": held.whole_bytes,
            "free_bytes": held.free_bytes,
        },
        # The bytes of the weights in the files, and the peak of each command by formula with its default settings. A dry run
        # counts the program itself too.
        "memory": {
            "weights": facts.weights_bytes,
            "plan": PROGRAM_BYTES + plan_memory(facts, options),
            "eval": PROGRAM_BYTES + eval_memory(facts, options),
            "recover": PROGRAM_BYTES + recover_memory(facts),
        },
        "warnings": facts.warnings,
    }


def parts_of(facts: ModelFacts) -> list[dict[str, Any]]:
    """Return the parameters of each part, their share of all parameters, and the parameters of one unit."""
    shape = facts.shape
    rows = shape.vocabulary * shape.per_token
    name = "embedding, which is the head too" if facts.tied else "embedding and head"
    neurons = shape.layers * shape.ffn(shape.width)
    unit = "expert" if shape.experts else "neuron"
    found = [
        (name, rows, f"{shape.per_token:,} for each token"),
        ("attention and norms", shape.layers * shape.per_layer, f"{shape.per_layer:,} for each layer"),
        ("FFN", neurons, f"{shape.ffn(shape.block):,} for each {unit} of each layer"),
        ("final norm and the like", shape.fixed, "not cut"),
    ]
    return [{"name": n, "parameters": p, "share": p / shape.total, "unit": unit} for n, p, unit in found]


def tokenizer_facts(facts: ModelFacts) -> dict[str, Any]:
    """Return the facts of the tokenizer and of the chat template."""
    data = json.loads(facts.tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps(data.get("decoder") or {})
    start = facts.tokenizer.encode("", add_special_tokens=True).tokens
    return {
        "kind": data["model"].get("type", "BPE") + (", byte level" if byte_level else ""),
        "tokens": facts.tokenizer.get_vocab_size(),
        "special": len(facts.named_ids),
        "adds": start,
        "chat_template": bool(template_of(facts.path)),
    }


def reachable(shape: Shape, remove: float, needs: Needs | None = None) -> dict[str, Any]:
    """Return one budget: its deepest and its shallowest split, and how much of the deepest each part contributes."""
    vocabulary = needs.size(shape, remove, Pins()) if needs else assumed_vocabulary(shape, remove)
    try:
        splits = feasible_splits(shape, remove, vocabulary, Pins())
    except BudgetError:
        return {"remove": remove, "reachable": False}
    deepest = splits[0]
    shallowest = splits[-1]
    # The cut consists of tokens, layers (with all of their neurons), and neurons of the kept layers.
    removed = shape.total - deepest.parameters
    tokens = (shape.vocabulary - deepest.vocabulary) * shape.per_token
    layers = (shape.layers - deepest.layers) * (shape.per_layer + shape.ffn(shape.width))
    return {
        "remove": remove,
        "reachable": True,
        "vocabulary": vocabulary,
        "deepest": [deepest.layers, deepest.width],
        "shallowest": [shallowest.layers, shallowest.width],
        "parameters": deepest.parameters,
        "share_vocabulary": tokens / removed,
        "share_layers": layers / removed,
        "share_width": (removed - tokens - layers) / removed,
    }


def _loads_in(facts: ModelFacts) -> dict[str, Any]:
    found = loads_in(facts.config, True, facts.warnings, renumbered=False, stored=headers(facts.path))
    found["transformers"]["how"] = "AutoModelForCausalLM.from_pretrained, by its config; not loaded here"
    return found
