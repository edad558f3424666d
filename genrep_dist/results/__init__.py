"""Results of runs, read from a store."""

from genrep_dist.results.run import Run as Run
from genrep_dist.results.run import SeedProblem as SeedProblem
from genrep_dist.results.run import open_run as open_run
