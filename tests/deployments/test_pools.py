"""Training in containers: what Prefect's Docker and Kubernetes workers are told, and the cluster around them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from docker.models.containers import _create_container_args  # type: ignore[import-untyped]
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.utilities.templating import apply_values

from deployments.deploy import deploy
from deployments.names import ARRIVALS_POOL
from deployments.pools import PoolType, job_template, make_pools, training_pool, with_defaults
from flows.environment import QUIET
from models.settings import Settings
from tests.deployments.conftest import Served

PLACES = Path(__file__).resolve().parents[2] / "deployments"
KUBERNETES = "1.31"
CONTAINERS: tuple[PoolType, ...] = ("docker", "kubernetes")


def job(kind: PoolType, **changed: Any) -> dict[str, Any]:
    """The job of a flow run, as Prefect makes it of the template, the pool's defaults and the deployment's values."""
    template = job_template(kind)
    values = {n: told["default"] for n, told in template["variables"]["properties"].items() if "default" in told}
    given = {"command": "prefect flow-run execute", "name": "a-run", **changed}
    made: dict[str, Any] = apply_values(template["job_configuration"], values | given)
    return made


def manifest(**changed: Any) -> dict[str, Any]:
    """The Job; the worker splits its command."""
    made: dict[str, Any] = job("kubernetes", **changed)["job_manifest"]
    pod = made["spec"]["template"]["spec"]
    pod["containers"][0]["args"] = pod["containers"][0]["args"].split()
    pod["containers"][0]["env"] = [{"name": n, "value": v} for n, v in pod["containers"][0]["env"].items()]
    # Prefect's worker insists on them in this wrong place, and the cluster passes them over.
    assert [pod.pop(name) for name in ("parallelism", "completions")] == [1, 1]
    return made


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((PLACES / "kubernetes" / "nocturne.yaml").read_text(encoding="utf-8")))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for one in documents():
        if one["kind"] == "Deployment":
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
    yield "run", manifest()["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_placeholder_of_a_job_is_a_variable_and_the_other_way_round(kind: PoolType) -> None:
    template = job_template(kind)
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    named = set(re.findall(r"\{\{ *([\w.]+) *\}\}", json.dumps(template["job_configuration"])))
    assert named == set(template["variables"]["properties"])
    WorkPoolCreate(name="a", type=kind, base_job_template=template)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_what_a_variable_is_by_default_is_what_it_may_be(kind: PoolType) -> None:
    for name, told in job_template(kind)["variables"]["properties"].items():
        if "default" in told:
            jsonschema.validate(told["default"], told)
        assert "default" in told or name in ("command", "name", "job_watch_timeout_seconds")


def test_a_job_has_no_secret_in_what_it_is_started_with() -> None:
    assert not job("docker")["env"]
    assert any(volume.endswith(":/var/lib/nocturne") for volume in job("docker")["volumes"])  # its settings file
    (container,) = manifest()["spec"]["template"]["spec"]["containers"]
    assert not container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "nocturne"}}]


def test_docker_is_told_nothing_that_it_does_not_know() -> None:
    made = job("docker", gpus=[{"count": -1, "capabilities": [["gpu"]]}])
    extra = made["container_create_kwargs"]
    told = _create_container_args(
        {"image": made["image"], "command": made["command"], "version": "1.44", "volumes": made["volumes"]}
        | {"mem_limit": made["mem_limit"], "detach": True}
        | extra
    )
    host = told["host_config"]
    assert told["entrypoint"] == ["/usr/bin/env"]  # the image's own is `nocturne`
    assert told["user"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["ShmSize"] == 2 * 1024**3
    assert host["DeviceRequests"][0]["Count"] == -1
    assert not made["privileged"]


def test_a_job_is_what_kubernetes_takes() -> None:
    made = manifest(gpu_limit=1, env={"A": "b"}, labels={"c": "d"})
    kubernetes_validate.validate(made, KUBERNETES, strict=True)
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["command"] + container["args"] == ["/usr/bin/env", "prefect", "flow-run", "execute"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert made["spec"]["backoffLimit"] == 0  # Prefect says what is tried again


@pytest.mark.parametrize("one", documents(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_kubernetes_takes_every_document(one: dict[str, Any]) -> None:
    kubernetes_validate.validate(one, KUBERNETES, strict=True)
    assert one["metadata"]["namespace"] == "nocturne"


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=lambda one: one if isinstance(one, str) else "")
def test_a_pod_is_nobody_and_writes_where_it_was_told(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod.get("automountServiceAccountToken") is (None if name == "worker" else False)
    volumes = {one["name"] for one in pod["volumes"]}
    for container in pod["containers"]:
        closed = container["securityContext"]
        assert closed["readOnlyRootFilesystem"]
        assert not closed["allowPrivilegeEscalation"]
        assert closed["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]
        assert {one["name"] for one in container["volumeMounts"]} == volumes
        told = [variable["name"] for variable in container.get("env", ()) if variable.get("value")]
        assert not [name for name in told if re.search("PASSWORD|AUTH(_STRING)?$|SECRET$|CATALOG_URL|VAULT_KEY", name)]


def test_the_cluster_runs_our_processes_and_lets_in_the_pacs_alone(tmp_path: Path) -> None:
    found = {one["metadata"]["name"]: one for one in documents() if one["kind"] == "Deployment"}
    assert set(found) == {"listener", "relay", "arrivals", "prefect", "worker"}
    for name, one in found.items():
        args = one["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args == ["run", name] if name != "worker" else training_pool("kubernetes") in args
    outside = [one for one in documents() if one["kind"] == "Service" and one["spec"].get("type") == "LoadBalancer"]
    assert [one["metadata"]["name"] for one in outside] == ["listener"]
    policies = {one["metadata"]["name"]: one["spec"] for one in documents() if one["kind"] == "NetworkPolicy"}
    assert "ingress" not in policies["nocturne"]
    assert "ipBlock" in policies["nocturne-dicom"]["ingress"][0]["from"][0]


def test_the_compose_files_are_what_compose_takes() -> None:
    schema = json.loads(
        files("check_jsonschema").joinpath("builtin_schemas/vendor/compose-spec.json").read_text(encoding="utf-8")
    )
    for name in ("compose/compose.yaml", "docker/compose.yaml"):
        jsonschema.validate(yaml.safe_load((PLACES / name).read_text(encoding="utf-8")), schema)


def test_what_somebody_has_set_as_a_default_stays() -> None:
    mine = job_template("docker")
    mine["variables"]["properties"]["image"]["default"] = "registry.example/nocturne:7"
    merged = with_defaults(job_template("docker"), mine)
    assert merged["variables"]["properties"]["image"]["default"] == "registry.example/nocturne:7"
    assert merged["job_configuration"] == job_template("docker")["job_configuration"]


def test_training_is_deployed_to_pools_of_containers_and_back(served: Served) -> None:
    settings: Settings = served.settings
    with served.spoken_to(), get_client(sync_client=True) as client:
        for kind in CONTAINERS:
            make_pools(client, kind)
            assert client.read_work_pool(training_pool(kind)).type == kind
        pool = client.read_work_pool(training_pool("docker"))
        pool.base_job_template["variables"]["properties"]["image"]["default"] = "registry.example/nocturne:7"
        client.update_work_pool(pool.name, WorkPoolUpdate(base_job_template=pool.base_job_template))
    names = deploy(settings, training="docker")
    with served.spoken_to(), get_client(sync_client=True) as client:
        image = client.read_work_pool(pool.name).base_job_template["variables"]["properties"]["image"]
        assert image["default"] == "registry.example/nocturne:7"
        told = {name: client.read_deployment_by_name(name) for name in names}
    pools = {name: one.work_pool_name for name, one in told.items()}
    assert pools.pop("study arrived/arrivals") == ARRIVALS_POOL
    assert set(pools.values()) == {pool.name}
    assert all(QUIET.items() <= told[name].job_variables["env"].items() for name in pools)
    deploy(settings)
    with served.spoken_to(), get_client(sync_client=True) as client:
        assert client.read_deployment_by_name(next(iter(pools))).work_pool_name == training_pool("process")
