"""docker-compose.yml and the Dockerfile say what the rest of the project says."""

import re
from pathlib import Path

import pytest
import yaml

from deploy.local.containers import CONTAINERS
from deploy.local.postgres import SETTINGS as POSTGRES_SETTINGS
from deploy.local.servers import NAMES
from deploy.local.versions import IMAGES

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
PROCESSES = {
    "migrate": ["migrate"],
    "relay": ["relay"],
    "project-vectors": ["project", "vectors"],
    "project-graph": ["project", "graph"],
    "project-documents": ["project", "documents"],
}


def test_it_runs_the_five_servers_and_the_products_processes():
    assert set(SERVICES) == {*NAMES, *PROCESSES}


@pytest.mark.parametrize("name", NAMES)
def test_every_server_is_pinned_to_the_image_that_testcontainers_run(name):
    assert SERVICES[name]["image"] == IMAGES[name]
    assert re.fullmatch(r"[a-z0-9/]+:\d+\.\d+(\.\d+)?[a-z0-9.-]*", IMAGES[name]), "not a full version"


def test_every_server_can_be_a_container():
    assert set(CONTAINERS) == set(IMAGES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_server_tells_its_health_within_bounds(name):
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", NAMES)
def test_servers_without_passwords_listen_on_the_loopback_interface_only(name):
    assert SERVICES[name]["ports"]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name]["ports"])


@pytest.mark.parametrize("name", NAMES)
def test_every_server_keeps_its_data_in_a_volume_of_its_own(name):
    volumes = [volume.split(":")[0] for volume in SERVICES[name]["volumes"]]
    assert volumes == [name]
    assert name in COMPOSE["volumes"]


def test_postgres_has_the_settings_it_has_without_docker():
    given = dict(option.removeprefix("-c").split("=") for option in SERVICES["postgres"]["command"][1:])
    own = {
        key: value
        for key, value in POSTGRES_SETTINGS.items()
        if key not in ("listen_addresses", "unix_socket_directories")
    }
    assert given == own


@pytest.mark.parametrize(("name", "command"), PROCESSES.items())
def test_every_process_runs_its_command_with_the_servers_addresses(name, command):
    process = SERVICES[name]
    assert process["command"] == command
    assert process["environment"]["OUTBOX_MODE"] == "servers"
    for value in process["environment"].values():
        address = re.fullmatch(r"(?:\w+://)?(?:postgres@)?([\w-]+):\d+(?:/\w+)?", value)
        assert address is None or address[1] in NAMES, value


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_waits_for_what_it_needs(name):
    needs = SERVICES[name]["depends_on"]
    for needed, condition in needs.items():
        expected = "service_completed_successfully" if needed == "migrate" else "service_healthy"
        assert condition == {"condition": expected}
    assert ("postgres" if name == "migrate" else "migrate") in needs


def test_only_the_migration_ends_by_itself():
    restarts = {name: SERVICES[name]["restart"] for name in PROCESSES}
    assert restarts.pop("migrate") == "on-failure"
    assert set(restarts.values()) == {"unless-stopped"}


def test_the_image_does_not_run_as_root_and_copies_only_what_exists():
    text = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE) == ["10001"]
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ") and "--from" not in line]
    assert copied
    for source in sum(copied, []):
        assert (ROOT / source).exists(), source
    kept = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    assert all(f"!{source}" in kept.splitlines() for source in sum(copied, []))
