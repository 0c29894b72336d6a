"""Perturbations of code problems, each a function of one problem."""
