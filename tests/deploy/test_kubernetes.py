"""The manifests of Kubernetes: core kinds and all pods by its schemas, the other kinds by what is known of them here.

The schemas of the custom kinds are an excerpt, written for these files: they refuse a misspelt key at the levels that
they know. Nothing is applied to a cluster.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from dtrain import __version__

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
FILES = sorted(FOLDER.glob("*.yaml"))
DOCUMENTS: list[dict[str, Any]] = [d for file in FILES for d in yaml.safe_load_all(file.read_text())]
CORE = [d for d in DOCUMENTS if d["apiVersion"] in ("v1", "networking.k8s.io/v1")]
VERSION = kubernetes_validate.latest_version()

TEXT, NUMBER, POD = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "object"}


def keys(required: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these keys, and no others."""
    return {"type": "object", "required": required.split(), "properties": properties, "additionalProperties": False}


GROUP = {"rayStartParams": {"type": "object", "additionalProperties": TEXT}, "template": POD}
CLUSTER = keys(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=keys("mode", mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    headGroupSpec=keys("template", **GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": keys(
            "groupName template", groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, **GROUP
        ),
    },
)
REPLICAS = keys(
    "replicas template", replicas=NUMBER, restartPolicy={"enum": ["Never", "OnFailure", "Always"]}, template=POD
)
SPECS = {
    "ray.io/v1 RayJob": keys(
        "rayClusterSpec",
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes={"type": "boolean"},
        entrypoint=TEXT,
        rayClusterSpec=CLUSTER,
    ),
    "kubeflow.org/v2beta1 MPIJob": keys(
        "mpiReplicaSpecs",
        mpiImplementation={"enum": ["OpenMPI", "Intel", "MPICH"]},
        slotsPerWorker=NUMBER,
        sshAuthMountPath=TEXT,
        runPolicy=keys(
            "",
            cleanPodPolicy={"enum": ["None", "Running", "All"]},
            backoffLimit=NUMBER,
            ttlSecondsAfterFinished=NUMBER,
        ),
        mpiReplicaSpecs=keys("Launcher Worker", Launcher=REPLICAS, Worker=REPLICAS),
    ),
    "monitoring.coreos.com/v1 PodMonitor": keys(
        "selector podMetricsEndpoints",
        jobLabel=TEXT,
        selector=keys("", matchLabels={"type": "object", "additionalProperties": TEXT}),
        podMetricsEndpoints={
            "type": "array",
            "items": keys(
                "port",
                port=TEXT,
                path={"type": "string", "pattern": "^/"},
                interval={"type": "string", "pattern": r"^\d+s$"},
                relabelings={
                    "type": "array",
                    "items": keys(
                        "sourceLabels action",
                        sourceLabels={"type": "array", "items": TEXT},
                        regex=TEXT,
                        action={"enum": ["keep", "drop", "replace", "labelmap", "labeldrop", "labelkeep"]},
                    ),
                },
                authorization=keys("credentials", type=TEXT, credentials=keys("name key", name=TEXT, key=TEXT)),
            ),
        },
    ),
}
CUSTOM = [d for d in DOCUMENTS if d not in CORE]


def kind(document: dict[str, Any]) -> str:
    return f"{document['apiVersion']} {document['kind']}"


def templates(document: Any) -> list[dict[str, Any]]:
    """The pod templates anywhere in a document."""
    if isinstance(document, list):
        return [t for item in document for t in templates(item)]
    if not isinstance(document, dict):
        return []
    own = [document["template"]] if "template" in document else []
    return own + [t for key, value in document.items() if key != "template" for t in templates(value)]


TEMPLATES = [t for d in CUSTOM for t in templates(d)]


def as_pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {**template["metadata"], "name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


@pytest.mark.parametrize("document", CORE, ids=kind)
def test_core_kinds_are_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_mistake_in_a_core_kind_is_found() -> None:
    wrong = copy.deepcopy(next(d for d in CORE if d["kind"] == "PersistentVolumeClaim"))
    wrong["spec"]["accessMode"] = wrong["spec"].pop("accessModes")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_there_are_pods_of_both_operators() -> None:
    assert len(TEMPLATES) == 4  # head and workers, launcher and ranks


@pytest.mark.parametrize("template", TEMPLATES)
def test_pods_are_valid_and_may_do_no_more_than_they_must(template: dict[str, Any]) -> None:
    kubernetes_validate.validate(as_pod(template), VERSION, strict=True)
    assert template["spec"]["securityContext"]["runAsNonRoot"] is True
    assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is False
    for container in template["spec"]["containers"]:
        assert container["image"] == f"dtrain:{__version__}"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}


@pytest.mark.parametrize("document", CUSTOM, ids=kind)
def test_custom_kinds_have_the_keys_that_they_may_have(document: dict[str, Any]) -> None:
    assert document.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert document["metadata"]["namespace"] == "dtrain"
    jsonschema.validate(document["spec"], SPECS[kind(document)])


def test_the_monitor_finds_the_coordinators_and_knows_their_token() -> None:
    monitor = next(d for d in CUSTOM if d["kind"] == "PodMonitor")["spec"]
    wanted = monitor["selector"]["matchLabels"].items()
    chosen = [t for t in TEMPLATES if wanted <= t["metadata"]["labels"].items()]
    assert len(chosen) == 2  # Ray's head; the ranks, of which one is the coordinator
    (endpoint,) = monitor["podMetricsEndpoints"]
    secret = endpoint["authorization"]["credentials"]["name"]
    for template in chosen:
        ports = {port["name"]: port["containerPort"] for c in template["spec"]["containers"] for port in c["ports"]}
        assert ports[endpoint["port"]] == 9464
        assert secret in [v["secret"]["secretName"] for v in template["spec"]["volumes"] if "secret" in v]


def test_the_version_of_ray_is_that_of_the_image() -> None:
    ray = next(d for d in CUSTOM if d["kind"] == "RayJob")["spec"]["rayClusterSpec"]["rayVersion"]
    assert f"\nray=={ray} \\\n" in (FOLDER.parent / "requirements.txt").read_text()
