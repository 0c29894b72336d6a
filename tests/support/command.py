"""How tests read what a command answered."""

from __future__ import annotations


def assert_refused(result: tuple[int, str, str], *words: str) -> str:
    """Exit code 2 and exactly one line that starts with ``flab: `` and holds the words."""
    code, out, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1, lines
    assert lines[0].startswith("flab: ")
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]
