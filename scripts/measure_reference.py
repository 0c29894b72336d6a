"""Prints the greedy scores of a model folder on the bundled test files, or on another split of the grammar."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from flab import assets
from reference import bundle, measure


def main() -> None:
    """Parses the command line, measures, prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", default=assets.model_path())
    parser.add_argument("--split", help="draw the problems from this split instead, e.g. calibration")
    args = parser.parse_args()
    if args.split is None:
        print(json.dumps(measure.scores(args.model, assets.HERE)))
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle.write_tests(Path(folder), args.split)
        print(json.dumps(measure.scores(args.model, Path(folder))))


if __name__ == "__main__":
    main()
