"""Decide what stays under one parameter budget, and cut the rest."""
