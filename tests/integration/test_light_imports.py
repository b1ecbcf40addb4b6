"""What is heavy is loaded when it is needed, not before."""

import ast
import subprocess
import sys


def test_importing_the_spec_brings_pydantic_and_yaml_only():
    code = """
import sys, dtrain
before = set(sys.modules)
import dtrain.jobs.spec
names = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(sorted(names))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    known = {"annotated_types", "dtrain", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection", "yaml"}
    assert {name for name in ast.literal_eval(done.stdout) if "cython" not in name and name[0] != "_"} <= known


def test_an_unscraped_endpoint_loads_no_server():
    code = """
import sys
from dtrain.monitor.endpoint import MetricsEndpoint
from dtrain.monitor.run_metrics import RunMetrics
MetricsEndpoint(RunMetrics()).close()
print({"prometheus_client", "http.server"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_run_loads_what_hands_figures_out_only_when_it_does():
    code = """
import sys
import dtrain.jobs.run
print({"prometheus_client", "http.server", "tensorboard"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rich_is_not_loaded_for_plain_lines():
    code = """
import io, sys
from dtrain.monitor.progress import Progress, final_summary
from dtrain.monitor.records import StepRecord
with Progress(3, 3, stream=io.StringIO()) as progress:
    progress.update(StepRecord(0, 0, 0.5, 1.25, 1.0, 1e-3, 128, 0.1))
print("rich" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
