"""How hypothesis draws: anew each time at a desk, the same each time in a build; without a deadline
for an example, which says more about the machine's other load than about our code."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
