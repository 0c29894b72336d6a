"""The report of a run: what ``flab run`` left in a folder, as one HTML page, Markdown, JSON and model cards.

``inputs`` reads the JSON files, ``gather`` makes one value of them, ``pages`` and ``card`` write it down. Nothing here
loads a model, and importing the package loads neither torch nor matplotlib.
"""

from flab.runs.report.make import make_report

__all__ = ["make_report"]
