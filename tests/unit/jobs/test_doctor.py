"""What the doctor makes of what it finds; the machine's own state is looked at in the integration tests."""

import importlib.metadata
import importlib.util
import sys

import pytest

from dtrain.jobs import doctor
from dtrain.jobs.doctor import Check, Report

MPICH = "MPICH Version: 5.0.2 MPICH Release date: Mon Jan 1 MPICH ABI: 17:0:5"
OPEN_MPI = "Open MPI v5.0.11, package: Open MPI root@x Distribution, ident: 5.0.11, repo rev: v5.0.11"
VERSIONS = {
    "hydra": "HYDRA build details:\n    Version: 5.0.2\n",
    "openrte": "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/\n",
    "prrte": "mpiexec (Open MPI) 5.0.11\n",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.14\n",
}


@pytest.fixture
def machine(monkeypatch):
    """Pretend what is installed and what it says of itself."""

    def pretend(library=None, launcher=None, revocable="yes", installed=("mpi4py", "ray", "aiohttp"), ray="2.60.0"):
        def run(command):
            if command[0] == sys.executable:
                return (0, f"noise\n{library}\n{revocable}\n", "") if library else (1, "", "RuntimeError: no libmpi")
            return 0, VERSIONS[launcher], ""

        monkeypatch.setattr(doctor, "_run", run)
        monkeypatch.setattr(doctor, "_mpiexec", lambda: "/bin/mpiexec" if launcher else None)
        monkeypatch.setattr(doctor, "_cluster", lambda: Check("ray", "cluster", "missing", "none"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
        monkeypatch.setattr(importlib.metadata, "version", lambda name: {"ray": ray, "mpi4py": "4.1.2"}[name])
        return [(check.name, check.state, check.text) for check in (*doctor._mpi(), *doctor._ray())]

    return pretend


@pytest.mark.parametrize(
    ("library", "launcher", "text"),
    [
        (MPICH, "hydra", "/bin/mpiexec, MPICH"),
        (OPEN_MPI, "openrte", "/bin/mpiexec, Open MPI"),
        (OPEN_MPI, "prrte", "/bin/mpiexec, Open MPI"),
        ("Intel(R) MPI Library 2021.14 for Linux* OS", "intel", "/bin/mpiexec, Intel MPI"),
    ],
)
def test_library_and_launcher_of_one_kind_are_fine(machine, library, launcher, text):
    (_, library_state, about), launcher_check, *_ = machine(library, launcher)
    assert library_state == "ok"
    assert about.startswith("4.1.2 on ")
    assert about.endswith(", with ULFM")
    assert launcher_check == ("mpiexec", "ok", text)


def test_library_and_launcher_of_two_kinds_are_broken(machine):
    _, (_, state, text), *_ = machine(MPICH, "prrte", revocable="no")
    assert state == "broken"
    assert text.startswith("/bin/mpiexec is of Open MPI, mpi4py is on MPICH: its ranks would not see each other")


def test_what_is_missing_is_named_with_its_remedy(machine):
    assert machine(installed=()) == [
        ("mpi4py", "missing", "install it with pip install 'dtrain[mpi]'"),
        ("mpiexec", "missing", "not on PATH; pip install mpich, or your system's MPI"),
        ("ray", "missing", "install it with pip install 'dtrain[ray]'"),
    ]
    (_, state, text), *_ = machine(launcher="hydra")
    assert (state, "RuntimeError: no libmpi" in text) == ("broken", True)
    assert machine(ray="2.9.3")[-1] == ("ray", "broken", "2.9.3 is too old; pip install 'ray[default]>=2.59'")
    assert machine(installed=("ray",))[-1][1] == "broken"  # without its job API
    assert machine(ray="2.59.0")[-2:] == [("ray", "ok", "2.59.0"), ("cluster", "missing", "none")]


def test_versions_are_read_from_what_libraries_say():
    assert doctor._library(MPICH) == "MPICH 5.0.2"
    assert doctor._library(OPEN_MPI) == "Open MPI 5.0.11"


def test_a_part_works_if_all_of_it_does_and_ray_also_before_there_is_a_cluster():
    report = Report(
        (
            Check("local", "memory", "ok", ""),
            Check("mpi", "mpi4py", "ok", ""),
            Check("mpi", "mpiexec", "broken", "of another kind"),
            Check("ray", "ray", "ok", ""),
            Check("ray", "cluster", "missing", ""),
        )
    )
    found = report.to_json()
    assert (found["local"], found["mpi"], found["ray"]) == (True, False, True)
    assert report.text().splitlines()[2] == "broken   mpi    mpiexec   of another kind"
