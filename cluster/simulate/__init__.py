"""Several hosts on one machine, to try multi-host runs and their failures; see `cluster/README.md`."""

from cluster.simulate.hosts import Host, Hosts, SimulationError, clean
from cluster.simulate.proxy import Proxy
from cluster.simulate.ray_cluster import RayCluster

__all__ = ["Host", "Hosts", "Proxy", "RayCluster", "SimulationError", "clean"]
