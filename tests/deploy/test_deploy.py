"""The files under deploy/: their commands are real, credentials come from outside, and nobody else gets in.

`make containers` checks their shape; no container is started here.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prefect.settings import Settings
from prefect.settings.legacy import _get_valid_setting_names

from flows.cli.main import app
from stages.processes.kubernetes import filled, parts_of

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
OURS = re.compile(r"(registry\.example/)?fairway(:\d+)?")
SECRET = re.compile(r"PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|CONNECTION_URL")
"""Names of variables whose value is a credential, or has one in it."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = documents(DEPLOY / "compose.yaml")[0]["services"]
    return found


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DEPLOY.glob("kubernetes/*.yaml"):
        for document in documents(path):
            if document["kind"] == "Job":
                yield path.name, document["spec"]["template"]["spec"]


def commands() -> Iterator[list[str]]:
    """What follows `fairway`: of containers that keep the image's entry point, and in comments."""
    for service in services().values():
        if OURS.fullmatch(service["image"]) and "entrypoint" not in service:
            yield service["command"]
    for _, pod in pods():
        [container] = pod["containers"]
        if "command" not in container:
            yield container["args"]
    for path in FILES:
        for line in re.findall(r"^#\s+fairway (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE):
            yield shlex.split(line)


def variables() -> Iterator[tuple[str, str]]:
    for service in services().values():
        yield from service.get("environment", {}).items()
    for _, pod in pods():
        for container in pod["containers"]:
            yield from ((item["name"], item["value"]) for item in container.get("env", ()))


@pytest.mark.parametrize("words", list(commands()), ids=" ".join)
def test_every_command_is_one_of_the_program(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    group.commands[words[0]].make_context(words[0], list(words[1:]))


def test_every_variable_is_read_by_someone() -> None:
    code = "".join(
        path.read_text() for folder in ("flows", "stages") for path in (ROOT / folder).rglob("*.py")
    )
    known = _get_valid_setting_names(Settings)
    for name, _ in variables():
        if name.startswith("FAIRWAY_"):
            assert name in code, name
        elif name.startswith("PREFECT_"):
            assert name in known, name


def test_no_credential_stands_in_a_file() -> None:
    values = {
        name: value for name, value in variables() if SECRET.search(name) and name != "AWS_ACCESS_KEY_ID"
    }
    assert len(values) >= 5
    for name, value in values.items():
        assert re.search(r"\$\{[A-Z0-9_]+(:\?[^}]*)?\}", value), f"{name} = {value}: give it by a variable"
    [pod] = [pod for file, pod in pods() if file == "run.yaml"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "fairway-remote"}}]


def test_compose_shows_one_port_and_only_to_this_machine() -> None:
    ports = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert ports == {"server": ["127.0.0.1:4200:4200"]}
    assert services()["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"].startswith(
        "${PREFECT_LOGIN:?"
    )
    for name in ("database", "s3"):
        assert services()[name]["networks"] == ["inside"]


def test_images_of_others_have_a_version() -> None:
    others = [service["image"] for service in services().values() if not OURS.fullmatch(service["image"])]
    assert len(others) == 2
    assert all(re.search(r":[^:]*\d", image) for image in others)


@pytest.mark.parametrize(
    ("file", "pod"), list(pods()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_pod_has_no_rights_and_room_in_memory(file: str, pod: dict[str, Any]) -> None:
    [container] = pod["containers"]
    assert pod["restartPolicy"] == "Never"
    assert not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert mounted["/srv/fairway"] in volumes


def test_only_the_pods_of_a_training_reach_one_another() -> None:
    shown = "\n".join(json.dumps(document) for document in documents(DEPLOY / "kubernetes" / "nodes.yaml"))
    template, others = parts_of(shown)
    job = filled(template, 3, Path("/srv/fairway/.fairway/work/train/key"), "0123456789abcdef0123")
    labels = job["spec"]["template"]["metadata"]["labels"]
    [policy] = [item for item in others if item["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    [rule] = policy["spec"]["ingress"]
    assert rule == {"from": [{"podSelector": policy["spec"]["podSelector"]}]}
    [service] = [item for item in others if item["kind"] == "Service"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= labels.items()
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_containers_are_built_from_the_file_of_this_checkout() -> None:
    built = [service["build"] for service in services().values() if "build" in service]
    assert len(built) == 2
    for build in built:
        assert (DEPLOY / build["context"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
        assert f"ARG {next(iter(build['args']))}=" in (ROOT / "Dockerfile").read_text()
