"""Write the tables and the report of a finished run again, on a node that sees its store. Takes the options of `genrep report`.

ray job submit --working-dir . -- python jobs/report.py demo --store /shared/store
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from genrep_dist.cli import main

if __name__ == "__main__":
    sys.argv = ["genrep", "report", *sys.argv[1:]]
    main()
