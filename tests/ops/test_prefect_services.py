"""Who may listen where, and what pools are told, here and on other machines: checks without a server."""

from __future__ import annotations

import importlib.util
import json
import os
import urllib.error
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.server.schemas.actions import DeploymentCreate, validate_base_job_template
from prefect.utilities.schema_tools.validation import ValidationError
from prefect.utilities.templating import apply_values

from inverse_alignment.core.errors import UserError
from tasks import server, services
from tasks.flow_process import close_stale_runs

ROOT = Path(__file__).parents[2]
LOGINS = {
    services.AUTH_STRING: "me:secret",
    "MLFLOW_AUTH_ADMIN_USERNAME": "me",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a long secret",
    services.SECRET_KEY: "a longer secret",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_on_loopback_nobody_needs_a_login(host: str) -> None:
    services.require_login(host, {})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gpu-box.example.org", ""])
@pytest.mark.parametrize("missing", list(LOGINS))
def test_elsewhere_both_servers_are_refused_without_logins(
    host: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    services.require_login(host, LOGINS)
    with pytest.raises(UserError, match="let everybody in") as caught:
        services.require_login(host, {**LOGINS, missing: ""})
    assert missing in caught.value.fix


def test_mlflows_login_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed"):
        services.require_login("0.0.0.0", LOGINS)


def test_nothing_is_started_where_a_login_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(services.AUTH_STRING, raising=False)
    with pytest.raises(UserError, match="let everybody in"):
        services.up(tmp_path, "sqlite:///mlflow.db", "0.0.0.0")
    assert list(tmp_path.iterdir()) == []


def test_a_dead_service_and_a_later_process_with_its_number_are_not_ours(tmp_path: Path) -> None:
    server.home(tmp_path).mkdir()
    values = {"mlflow": {"pid": 1, "start": 5.0, "url": "http://127.0.0.1:5000"}}  # pid 1 lives, and began elsewhen
    (server.home(tmp_path) / "services.json").write_text(json.dumps(values))
    assert services._running(tmp_path) == {}
    assert services.down(tmp_path) == []
    assert services.mlflow_page("sqlite:///x.db", tmp_path) == "mlflow ui --backend-store-uri sqlite:///x.db"
    assert services.mlflow_page("http://somewhere:5000", tmp_path) == "http://somewhere:5000/#/experiments"


@pytest.mark.ops
def test_a_server_with_a_login_lets_nobody_in_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(services.AUTH_STRING, "me:secret")

    def pools(url: str, headers: dict[str, str]) -> set[str]:
        ask = urllib.request.Request(f"{url}/work_pools/filter", b"{}", {"Content-Type": "application/json", **headers})
        with urllib.request.urlopen(ask, timeout=20) as answer:
            return {pool["name"] for pool in json.load(answer)}

    try:
        url = server.start(tmp_path, "localhost")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            pools(url, {})
        assert {"gpu", "cpu"} <= pools(url, server._login())
        with pytest.raises(UserError, match="runs already, on localhost"):
            server.start(tmp_path)
        held = server.SharedServer(tmp_path).begin()
        monkeypatch.chdir(ROOT)
        assert held.wait() == url and close_stale_runs() == []  # a client of ours knows the login
        held.release()
    finally:
        server.stop(tmp_path)


def bundled(package: str, kind: str) -> dict[str, Any]:
    """The template that Prefect's server itself offers for a kind of pool."""
    views = resources.files("prefect.server.api.collections_data.views")
    known = json.loads((views / "aggregate-worker-metadata.json").read_text())
    return dict(known[package][kind]["default_base_job_configuration"])


def check(template: dict[str, Any], variables: dict[str, Any]) -> dict[str, Any]:
    """The job that a worker would make of variables which the server has found to fit the template."""
    validate_base_job_template(template)
    deployment = DeploymentCreate.model_validate(
        {"name": "x", "flow_id": "00000000-0000-0000-0000-000000000000", "job_variables": variables}
    )
    deployment.check_valid_configuration(template)
    schema = template["variables"]["properties"]
    defaults = {name: of["default"] for name, of in schema.items() if "default" in of}
    return dict(apply_values(template["job_configuration"], {**defaults, **variables}))


def test_a_job_on_kubernetes_asks_for_gpus_and_gets_time_to_write_a_checkpoint() -> None:
    template = json.loads((ROOT / "deploy" / "kubernetes-gpu.json").read_text())
    default = bundled("prefect-kubernetes", "kubernetes")
    assert set(default["variables"]["properties"]) <= set(template["variables"]["properties"])
    selector = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    job = check(template, {"gpu_count": 4, "memory_limit": "64Gi", "node_selector": selector, "image": "mine:1"})
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["memory"]) == (4, "64Gi")
    assert (container["image"], pod["nodeSelector"]) == ("mine:1", selector)
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert pod["terminationGracePeriodSeconds"] >= 30
    with pytest.raises(ValidationError, match="gpu_count"):
        check(template, {"gpu_count": "many"})


def test_a_container_of_docker_sees_all_gpus() -> None:
    template = json.loads((ROOT / "deploy" / "docker-gpu.json").read_text())
    job = check(template, {"image": "mine:1", "volumes": ["/data/artifacts:/project/artifacts"]})
    assert job["container_create_kwargs"]["device_requests"] == [{"count": -1, "capabilities": [["gpu"]]}]
    assert job["volumes"] == ["/data/artifacts:/project/artifacts"]
    with pytest.raises(ValidationError, match="volumes"):
        check(template, {"volumes": "/data"})


def test_the_job_variables_of_prefect_yaml_fit_process_pools_that_up_makes() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} <= set(server.WORK_POOLS)
    for deployment in deployments:
        job = check(bundled("prefect", "process"), deployment["work_pool"]["job_variables"])
        assert job["env"]["PYTHONUNBUFFERED"] == "1"


def test_a_run_is_given_up_for_dead_after_three_heartbeats_that_did_not_come() -> None:
    (values,) = yaml.safe_load((ROOT / "deploy" / "crash-silent-runs.yaml").read_text())["automations"]
    automation = AutomationCore.model_validate(values)
    assert isinstance(automation.trigger, EventTrigger) and isinstance(automation.actions[0], ChangeFlowRunState)
    assert automation.trigger.within.total_seconds() >= 3 * services.HEARTBEAT_SECONDS
    assert automation.actions[0].state == "CRASHED"
