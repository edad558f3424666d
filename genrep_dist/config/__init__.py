"""Experiments: their fields, how they are read, and the content addresses derived from them."""

from genrep_dist.config.digests import json_digest as json_digest
from genrep_dist.config.experiment import Experiment as Experiment
from genrep_dist.config.loading import load_experiment as load_experiment
from genrep_dist.config.loading import profile_names as profile_names
from genrep_dist.config.loading import shipped_experiments as shipped_experiments
