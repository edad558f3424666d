"""What the user asked for: experiments, their sections, and the content addresses derived from them."""

from genrep_dist.config.digests import json_digest as json_digest
from genrep_dist.config.experiment import Experiment as Experiment
from genrep_dist.config.experiment import load_experiment as load_experiment
from genrep_dist.config.experiment import profiles_of as profiles_of
from genrep_dist.config.experiment import shipped_experiments as shipped_experiments
