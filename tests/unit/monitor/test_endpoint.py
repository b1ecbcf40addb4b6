"""The Prometheus endpoint, scraped for real over 127.0.0.1."""

import http.client
import json
import math
import socket
import threading
import urllib.request

import pytest
from prometheus_client import REGISTRY
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from dtrain.comm.host import host_addresses
from dtrain.errors import InputError
from dtrain.monitor.endpoint import MetricsEndpoint
from dtrain.monitor.exporter import Handler, make_registry
from dtrain.monitor.records import EvalRecord, StepRecord
from dtrain.monitor.run_metrics import RunMetrics
from dtrain.monitor.table import METRICS

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def metrics():
    metrics = RunMetrics(clock=lambda: 1700000000.25)
    metrics.describe_job(name="digits", run="r1", spec_digest="ab", version="0.1.0")
    metrics.started(10, parameters={'layers.0."w"\n': 4})
    metrics.generation(1, [0, 1], 0)
    phases = {0: {"compute": 0.25, "wait": 0.125}, 1: {"compute": 0.5}}
    norms = {'layers.0."w"\n': 0.5}
    record = StepRecord(
        step=0,
        epoch=0,
        loss=math.nan,
        gradient_norm=2.0,
        clip_scale=1.0,
        learning_rate=0.1,
        samples=32,
        seconds=1.5,
        parameter_norms=norms,
        phases=phases,
        weight_norms=norms,
        update_norms=norms,
        noise={"variance": 2.0, "square": -1.0, "scale": math.inf},
        barrier_skew=0.25,
        slowest_worker=1,
        resident_bytes={"coordinator": 1 << 20},
    )
    metrics.steps([record])
    metrics.evaluation(EvalRecord(1, 0, 0.25, {"accuracy": 0.9, "bits": 3.0}))
    metrics.checkpoint(1, seconds=0.5, size=1000)
    return metrics


@pytest.fixture
def endpoint(metrics):
    with MetricsEndpoint(metrics) as endpoint:
        yield endpoint


def request(endpoint, path="/metrics", method="GET", token=True, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
    if token:
        headers.setdefault("Authorization", f"Bearer {endpoint.token}")
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response, body


def test_every_metric_of_the_table_is_exported_and_no_other(endpoint):
    response, body = request(endpoint)
    assert (response.status, response.getheader("Content-Type").split(";")[0]) == (200, "text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    samples = {sample.name for family in families.values() for sample in family.samples}
    assert samples == {metric.name for metric in METRICS}
    for metric in METRICS:
        family = families[metric.name.removesuffix("_total")]
        assert family.type == ("gauge" if metric.kind == "info" else metric.kind)
        assert family.documentation == metric.help
        assert all(set(sample.labels) == set(metric.labels) for sample in family.samples)


def test_openmetrics_is_served_to_who_asks_for_it(endpoint):
    response, body = request(endpoint, Accept=OPENMETRICS)
    assert response.getheader("Content-Type").startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(body)}
    names = {sample.name for family in families.values() for sample in family.samples}
    assert names == {metric.name for metric in METRICS}
    assert families["dtrain_phase_seconds"].unit == "seconds"
    assert families["dtrain_job"].type == "info"


def test_values_and_labels_arrive(endpoint):
    _, body = request(endpoint)
    values = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }
    assert math.isnan(values["dtrain_loss", ()])
    assert values["dtrain_parameter_gradient_norm", (("parameter", 'layers.0."w"\n'),)] == 0.5
    assert values["dtrain_phase_seconds_total", (("phase", "compute"), ("worker", "1"))] == 0.5
    assert values["dtrain_last_step_timestamp_seconds", ()] == 1700000000.25
    assert values["dtrain_steps_total", ()] == 1


def test_a_run_that_has_not_begun_can_be_scraped():
    with MetricsEndpoint(RunMetrics()) as endpoint:
        _, body = request(endpoint)
    names = {family.name for family in text_string_to_metric_families(body)}
    assert names == {metric.name.removesuffix("_total") for metric in METRICS}


def test_the_global_registry_is_left_alone(metrics):
    before = {family.name for family in REGISTRY.collect()}
    make_registry(metrics)
    assert {family.name for family in REGISTRY.collect()} == before


def test_the_token_may_be_in_the_address(endpoint):
    assert request(endpoint, f"/metrics?token={endpoint.token}", token=False)[0].status == 200


def test_a_given_token_is_used(metrics):
    with MetricsEndpoint(metrics, token="s3cret") as endpoint:
        assert request(endpoint, Authorization="bearer s3cret")[0].status == 200


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/metrics", {}, 401),
        ("/metrics", {"Authorization": "Bearer wrong"}, 401),
        ("/metrics", {"Authorization": "Bearer \u00e9"}, 401),
        ("/metrics", {"Authorization": "Basic TOKEN"}, 401),
        ("/metrics?token=wrong", {}, 401),
        ("/metrics?token=%ed%a0%80", {}, 401),
        ("/metrics?token=TOKEN", {"Host": "evil.example"}, 403),
        ("/metrics?token=TOKEN", {"Host": "127.0.0.1.evil.example:80"}, 403),
        ("/metrics?token=TOKEN", {"Host": ""}, 403),
        ("/metrics?token=TOKEN", {"Host": "localhost"}, 200),
        ("/metrics?token=TOKEN", {"Host": "LOCALHOST:9000"}, 200),
        ("/metrics?token=TOKEN", {"Host": "[::1]:9000"}, 200),
        ("/metrics?token=TOKEN", {"Origin": "http://127.0.0.1"}, 403),
        ("/metrics?token=TOKEN", {"Origin": "null"}, 403),
        ("/", {"Authorization": "Bearer TOKEN"}, 404),
        ("/metrics/../etc", {"Authorization": "Bearer TOKEN"}, 404),
    ],
)
def test_who_is_answered(endpoint, path, headers, status):
    headers = {name: value.replace("TOKEN", endpoint.token) for name, value in headers.items()}
    response, body = request(endpoint, path.replace("TOKEN", endpoint.token), token=False, **headers)
    assert response.status == status
    assert ("dtrain_loss" in body) == (status == 200)
    assert endpoint.token not in body
    assert "Access-Control-Allow-Origin" not in response.headers


def test_other_methods(endpoint):
    assert request(endpoint, method="HEAD")[0].status == 200
    assert request(endpoint, method="HEAD")[1] == ""
    response, body = request(endpoint, method="POST")
    assert response.status == 501
    assert "dtrain_loss" not in body


def test_a_request_without_a_host_is_refused(endpoint):
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as client:
        client.sendall(f"GET /metrics?token={endpoint.token} HTTP/1.0\r\n\r\n".encode())
        assert b" 403 " in client.makefile("rb").readline()


def test_only_this_machine_can_connect(endpoint):
    assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
    with socket.socket() as other:  # the wildcard address is free, so the endpoint is on 127.0.0.1 alone
        other.bind(("127.0.0.2", endpoint.port))


def test_service_discovery_is_told_the_target_and_the_run(metrics):
    labels = {"dtrain_job": "digits", "dtrain_run": "r1"}
    with MetricsEndpoint(metrics, labels=labels) as endpoint:
        response, body = request(endpoint, "/sd")
        assert (response.status, response.getheader("Content-Type")) == (200, "application/json")
        assert json.loads(body) == [{"targets": [f"127.0.0.1:{endpoint.port}"], "labels": labels}]
        assert request(endpoint, "/sd", token=False)[0].status == 401
        assert request(endpoint, "/sd", Host="evil.example")[0].status == 403


def test_another_address_is_answered_under_any_name_but_not_without_the_token(metrics):
    with MetricsEndpoint(metrics, address="0.0.0.0", token="t" * 16) as endpoint:
        assert not endpoint.target.startswith("0.0.0.0")
        assert endpoint.target == f"{next(iter(host_addresses()), '127.0.0.1')}:{endpoint.port}"
        assert request(endpoint, Host="node7.cluster:9464")[0].status == 200
        assert request(endpoint, Host="node7.cluster:9464", token=False)[0].status == 401
        assert request(endpoint, Origin="http://node7.cluster")[0].status == 403


def test_an_address_of_the_sixth_version(metrics):
    with MetricsEndpoint(metrics, address="::1") as endpoint:
        assert endpoint.url == f"http://[::1]:{endpoint.port}/metrics"
        http_request = urllib.request.Request(endpoint.url, headers={"Authorization": f"Bearer {endpoint.token}"})
        assert b"dtrain_loss" in urllib.request.urlopen(http_request, timeout=20).read()


@pytest.mark.parametrize("address", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_that_is_not_this_hosts_is_one_line(metrics, address):
    with pytest.raises(InputError, match=rf"^monitor\.address: {address} is no address of this host; choose another$"):
        MetricsEndpoint(metrics, address=address)


def test_clients_that_hang_hold_up_nobody(endpoint, metrics):
    hanging = []
    for i in range(40):
        client = socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
        client.sendall([b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: x"][i % 3])
        hanging.append(client)
        metrics.steps([StepRecord(1 + i, 0, 0.5, 2.0, 1.0, 0.1, 32, 1.5)])
    assert request(endpoint)[0].status == 200
    assert threading.active_count() < 40
    endpoint.close()
    for client in hanging:
        client.close()


def test_a_silent_client_is_given_up(endpoint, monkeypatch):
    monkeypatch.setattr(Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as client:
        client.sendall(b"GET /met")
        assert client.recv(1) == b""


def test_closing_leaves_nothing_behind(metrics):
    threads = set(threading.enumerate())
    endpoint = MetricsEndpoint(metrics)
    hanging = socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
    assert request(endpoint)[0].status == 200
    endpoint.close()
    endpoint.close()
    assert set(threading.enumerate()) <= threads
    assert hanging.recv(1) == b""
    hanging.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=20)
    MetricsEndpoint(metrics, port=endpoint.port).close()  # free at once


def test_a_taken_port_is_one_line(metrics, endpoint):
    with pytest.raises(InputError) as caught:
        MetricsEndpoint(metrics, port=endpoint.port)
    assert str(caught.value) == (
        f"monitor.metrics_port: port {endpoint.port} of 127.0.0.1 cannot be used: Address already in use; "
        "choose another, 0 for any free one, or null for none"
    )
