"""The commands of ``dtrain``, with Ray's words for jobs and ``--json`` for machines. Each module registers its own."""

from dtrain.commands import training, looking, jobs, machine  # isort: skip  (the order of the help)
from dtrain.commands.app import app

__all__ = ["app", "jobs", "looking", "machine", "training"]
