"""Pruned pico models for the tests of files and engines."""

from __future__ import annotations

import pytest

from flab import apply
from flab.pruning.pipeline import plan


@pytest.fixture(scope="session")
def smaller(pico_folder, recipe, tmp_path_factory):
    """The pruned pico model of a family: a cut vocabulary, four of five layers, a smaller width."""
    root = tmp_path_factory.mktemp("smaller")

    def give(family, **settings):
        source = pico_folder(family, **settings)
        folder = root / source.name
        if not folder.exists():
            decided = plan(source, recipe(remove=0.35, layers=4, finalists=1))
            assert decided.vocabulary.after < decided.vocabulary.before
            apply(source, decided, folder)
        return folder

    return give
