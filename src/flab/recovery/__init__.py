"""Recovery: training data in the original model's own verified words, and distillation from it.

``data`` makes the training file, ``train`` reads it; neither reads a file that a model is measured on.
"""
