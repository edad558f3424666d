"""The command line: commands, and how they display results."""

from genrep_dist.cli.main import app as app
from genrep_dist.cli.main import main as main
