"""Run untrusted Python against its tests, in isolation, and report a verdict.

One fresh interpreter inside the sandbox loads the program and then runs the tests on its real objects. Nothing that a
model wrote runs in this process. ``docs/sandbox.md`` is the promise: what is stopped, at which level, and what is not.

It knows nothing of models, tasks or scores; it imports ``errors`` and ``progress`` only.
"""

from flab.sandbox.limits import CPU_SECONDS
from flab.sandbox.packages import missing, packages_needed
from flab.sandbox.runner import OUTCOMES, Job, Outcome, Sandbox, Verdict, probe

__all__ = ["CPU_SECONDS", "OUTCOMES", "Job", "Outcome", "Sandbox", "Verdict", "missing", "packages_needed", "probe"]
