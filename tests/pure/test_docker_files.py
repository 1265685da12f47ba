"""The files in `docker/` are what engines and clusters take, and say the same as the worker does."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from gen_worker.http.app import PATHS
from gen_worker.rundir import make_private
from gen_worker.settings import VARIABLES

DOCKER = Path(__file__).parents[2] / "docker"
INSTRUCTIONS = {"ARG", "FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "EXPOSE", "STOPSIGNAL"}
INSTRUCTIONS |= {"HEALTHCHECK", "ENTRYPOINT"}
PORT = 8082  # of probes and metrics
SETTINGS = {name for variable in VARIABLES.values() for name in variable.names}


def instructions(name: str) -> list[tuple[str, str]]:
    """Return what a Dockerfile consists of, with its lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DOCKER / name).read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("name", ["runtime.Dockerfile", "endpoint.Dockerfile"])
def test_a_dockerfile_has_known_instructions_and_arguments_for_its_images(name: str) -> None:
    found = instructions(name)
    assert {instruction for instruction, _ in found} <= INSTRUCTIONS
    arguments = {text.partition("=")[0] for instruction, text in found if instruction == "ARG"}
    images = [text for instruction, text in found if instruction == "FROM"]
    used = {each for text in images for each in re.findall(r"\$\{(\w+)\}", text)}
    assert used <= arguments
    assert len(images) == 2


def test_an_endpoint_image_runs_as_nobody_special_and_is_asked_to_end_gently() -> None:
    found = dict(instructions("endpoint.Dockerfile"))
    assert found["USER"] == "worker"
    assert found["STOPSIGNAL"] == "SIGTERM"
    assert found["ENTRYPOINT"] == '["python", "-m", "gen_worker.entrypoint"]'
    assert 'CMD ["gen-worker", "ps", "--json"]' in found["HEALTHCHECK"]


def test_an_endpoint_image_is_built_on_the_default_base() -> None:
    (base, *_) = [text for instruction, text in instructions("endpoint.Dockerfile") if instruction == "ARG"]
    assert base == "BASE_IMAGE=gen-runtime:cuda12.8-torch2.9"
    tags = re.findall(r"gen-runtime:([\w.-]+)", (DOCKER / "docker-bake.hcl").read_text())
    assert tags == ["cpu-torch2.9", "cuda12.6-torch2.9", "cuda12.8-torch2.9", "cuda13-torch2.9"]


def test_the_base_has_what_the_control_plane_needs_and_folders_that_its_user_may_write() -> None:
    text = " ".join(text for _, text in instructions("runtime.Dockerfile"))
    assert "gen-worker[torch,images,audio,http]" in text
    written = {"/cache", "/run/gen-worker", "/state"}
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    mounted = {volume.split(":")[1] for each in compose["services"].values() for volume in each.get("volumes", [])}
    assert mounted <= written
    assert all(f" {folder}" in text for folder in written)


def test_an_endpoint_gets_the_gen_worker_and_the_python_of_its_base() -> None:
    text = " ".join(text for _, text in instructions("runtime.Dockerfile"))
    assert "UV_INDEX=file:///opt/index" in text
    assert "UV_PYTHON=/opt/venv/bin/python" in text
    assert "UV_PYTHON_DOWNLOADS=never" in text


def test_no_secret_and_no_state_goes_into_an_image() -> None:
    ignored = (DOCKER / "endpoint.dockerignore").read_text().splitlines()
    assert {".env", ".gen-worker-*", ".venv", "*.pem", "*.jwt"} <= set(ignored)


def test_the_base_has_an_argument_for_each_version() -> None:
    arguments = {
        text.partition("=")[0] for instruction, text in instructions("runtime.Dockerfile") if instruction == "ARG"
    }
    named = set(re.findall(r"^\s+(?:args = \{ )?(\w+)\s+= ", (DOCKER / "docker-bake.hcl").read_text(), re.MULTILINE))
    assert {"PYTHON_VERSION", "TORCH_VERSION", "TORCH_INDEX"} <= arguments
    assert {"PYTHON_VERSION", "TORCH_VERSION"} <= named


# --- compose ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_compose_runs_two_workers_and_a_control_plane(compose: Any) -> None:
    assert {"orchestrator", "worker-1", "worker-2"} <= set(compose["services"])
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"], name
        for needed in service.get("depends_on", {}):
            assert needed in compose["services"], name


def test_the_control_plane_in_compose_is_started_with_options_that_there_are(compose: Any) -> None:
    from gen_worker.cli.orchestrator import command

    service = compose["services"]["orchestrator"]
    words = [*service["entrypoint"], *service["command"]]
    assert words[:2] == ["gen-worker", "orchestrator"]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_workers_with_gpus_are_those_without(compose: Any) -> None:
    gpus = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text())["services"]
    assert set(gpus) == {name for name in compose["services"] if name.startswith("worker")}


def test_workers_in_compose_are_named_apart_and_have_time_to_drain(compose: Any) -> None:
    workers = {name: service for name, service in compose["services"].items() if name.startswith("worker")}
    assert len({worker["environment"]["WORKER_ID"] for worker in workers.values()}) == len(workers)
    for worker in workers.values():
        assert worker["read_only"] is True
        assert int(worker["stop_grace_period"].removesuffix("s")) >= 60
        assert set(worker["environment"]) <= SETTINGS
        assert "WORKER_JWT" not in worker["environment"]
        (secret,) = worker["secrets"]
        assert secret == {"source": worker["environment"]["WORKER_ID"], "target": "WORKER_JWT"}


# --- kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pod() -> Any:
    (deployment,) = yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text())
    assert (deployment["apiVersion"], deployment["kind"]) == ("apps/v1", "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    return deployment["spec"]["template"]["spec"]


def set_by(container: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_a_pod_ends_after_its_drain(pod: Any) -> None:
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_a_pod_has_no_more_rights_than_it_needs(pod: Any) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_a_pod_asks_for_a_gpu_and_the_same_as_its_limit(pod: Any) -> None:
    (container,) = pod["containers"]
    asked, limit = container["resources"]["requests"], container["resources"]["limits"]
    assert asked["nvidia.com/gpu"] == limit["nvidia.com/gpu"]


def test_what_a_pod_mounts_is_there_and_writable_where_the_worker_writes(pod: Any) -> None:
    (container,) = pod["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert {"/cache", "/run", "/tmp", "/run/secrets"} == set(mounts.values())


def test_the_run_directory_of_a_pod_is_no_volume_as_everyone_may_write_to_those(pod: Any, tmp_path: Path) -> None:
    (place,) = re.findall(r"GEN_WORKER_RUN_DIR=(\S+)", (DOCKER / "runtime.Dockerfile").read_text())
    (container,) = pod["containers"]
    assert place not in {mount["mountPath"] for mount in container["volumeMounts"]}
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o2777)
    with pytest.raises(PermissionError, match="other users can write to it"):
        make_private(volume)
    make_private(volume / "gen-worker")


def test_a_pod_is_probed_where_its_worker_answers_and_no_child_can_hold_that_up(pod: Any) -> None:
    (container,) = pod["containers"]
    assert set_by(container)["GEN_WORKER_HTTP"] == f"0.0.0.0:{PORT}"
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"http": PORT}
    probes = {name: container[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {probe["path"] for probe in probes.values()} <= set(PATHS)


def test_workers_in_compose_are_asked_where_they_answer_and_nobody_else_can_ask(compose: Any) -> None:
    for name, worker in compose["services"].items():
        if name.startswith("worker"):
            assert worker["environment"]["GEN_WORKER_HTTP"] == f"0.0.0.0:{PORT}"
            assert f"http://127.0.0.1:{PORT}/health" in worker["healthcheck"]["test"][-1]
            assert "ports" not in worker


def test_an_endpoint_image_names_the_port_of_its_probes() -> None:
    assert dict(instructions("endpoint.Dockerfile"))["EXPOSE"] == str(PORT)


def test_a_pod_sets_what_there_is_to_set(pod: Any) -> None:
    (container,) = pod["containers"]
    assert {each["name"] for each in container["env"]} <= SETTINGS
