"""Whole runs: a recipe file, its stages and their folder, sweeps over budgets, and the report."""
