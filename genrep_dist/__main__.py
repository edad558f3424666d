"""`python -m genrep_dist` is `genrep`."""

from __future__ import annotations

from genrep_dist.cli import main

if __name__ == "__main__":
    main()
