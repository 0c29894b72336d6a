"""Run untrusted Python against its tests, in isolation, and report a verdict.

A fresh interpreter inside the sandbox loads the program and then runs the tests on the program's real objects. Code that
a model wrote never runs in this process. ``docs/sandbox.md`` lists what each level stops and what it does not stop.

The package knows nothing of models, tasks or scores. It imports only ``errors`` and ``progress``.
"""

from flab.sandbox.limits import CPU_SECONDS
from flab.sandbox.packages import missing, packages_needed
from flab.sandbox.runner import OUTCOMES, Job, Outcome, Sandbox, Verdict, probe

__all__ = ["CPU_SECONDS", "OUTCOMES", "Job", "Outcome", "Sandbox", "Verdict", "missing", "packages_needed", "probe"]
