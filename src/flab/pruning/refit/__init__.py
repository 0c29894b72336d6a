"""Refits: correct the weights that stay, layer by layer."""
