"""The figures of a run among those of Ray: each node's agent exports them, where Ray's service-discovery file says.

Gauges and counters of the table go out under their own names (Ray puts ``ray_`` before them) with the run as a label.
Our own endpoint has all of them, and is the one to read where it can be reached.
"""

from __future__ import annotations

import threading
import time

from dtrain.monitor.run_metrics import RunMetrics

_EVERY_SECONDS = 2.0


def export(metrics: RunMetrics, run: str) -> None:
    """Keep Ray's figures up to date from now on, in a thread that ends with the process."""
    threading.Thread(target=_export, args=(metrics, run), name="dtrain ray metrics", daemon=True).start()


def _export(metrics: RunMetrics, run: str) -> None:
    from ray.util.metrics import Gauge

    gauges: dict[str, Gauge] = {}
    while True:
        for metric, values in metrics.snapshot():
            if metric.kind == "info":
                continue
            if metric.name not in gauges:  # a counter of Ray's can only be added to; ours are absolute
                gauges[metric.name] = Gauge(metric.name, metric.help, tag_keys=(*metric.labels, "run"))
            for labels, value in values.items():
                tags = dict(zip(metric.labels, labels, strict=True))
                gauges[metric.name].set(float(value), tags | {"run": run})
        time.sleep(_EVERY_SECONDS)
