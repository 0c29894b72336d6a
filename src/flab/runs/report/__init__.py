"""Write the report of a run: an HTML page, Markdown, JSON and model cards, from the files that ``flab run`` left.

``inputs`` reads the JSON files, ``gather`` combines them into one value, and ``pages`` and ``card`` render it. The sentence
at the top comes from ``verdict``. The package loads no model, and importing it loads neither torch nor matplotlib.
"""

from flab.runs.report.make import make_report

__all__ = ["make_report"]
