"""The command line, `genrep`."""

from genrep_dist.cli.main import app as app
from genrep_dist.cli.main import main as main
