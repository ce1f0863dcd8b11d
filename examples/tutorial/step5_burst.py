"""A burst of readers is served: the kernel's queue for those not yet accepted is a long one.

python step5_burst.py PORT POEM
"""

from __future__ import annotations

from step4_stop import Poems, serve

BACKLOG = 4096
"""Readers that may wait to be accepted: the most that Linux allows by default (somaxconn)."""

if __name__ == "__main__":
    serve(Poems, backlog=BACKLOG)
