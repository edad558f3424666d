"""Property tests try the same examples everywhere: a red test stays red until it is mended."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
