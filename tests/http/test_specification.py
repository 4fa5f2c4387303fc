"""The specification: committed as it is generated, valid, and true of the daemon that serves it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import yaml
from openapi_spec_validator import validate

from tests.support.house import House
from vmd.http.app import make_specification
from vmd.http.openapi import to_yaml

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,unsupported_method,ignored_auth"
)
UNDOCUMENTED = {"/docs", "/docs/{file}", "/control/doctor"}


def test_the_committed_specification_is_the_generated_one() -> None:
    assert (ROOT / "openapi.yaml").read_text("utf-8") == to_yaml(make_specification()), (
        "run: vmd openapi >openapi.yaml"
    )


def test_it_is_valid_openapi() -> None:
    document = yaml.safe_load((ROOT / "openapi.yaml").read_text("utf-8"))
    assert document["openapi"] == "3.1.0"
    validate(document)


async def test_every_route_is_in_it(house: House) -> None:
    documented = {
        (method.upper(), path) for path, item in make_specification()["paths"].items() for method in item
    }
    app = house.daemon._runner.app
    assert app is not None
    served = {
        (route.method, resource.canonical)
        for resource in app.router.resources()
        for route in resource
        if "/ws/" not in resource.canonical and resource.canonical not in UNDOCUMENTED
    }
    assert served == documented


async def test_generated_requests_get_documented_answers(house: House, tmp_path: Path) -> None:
    """To every endpoint, with made-up ids: no fault, no status or answer that is not documented."""
    await house.ready()
    # The repositories are made up, so that the host of each fails, which is not the daemon's fault.
    (tmp_path / "schemathesis.toml").write_text(
        """
[[operations]]
include-path = "/api/v1/templates/detect"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 502]
"""
    )
    await _schemathesis(house, tmp_path)


async def test_generated_requests_about_real_things_get_documented_answers(
    house: House, tmp_path: Path
) -> None:
    await house.ready()
    workspace = await house.api.make()
    operation = (await house.api.get("/operations")).json["items"][0]
    (tmp_path / "schemathesis.toml").write_text(
        f"""
[[operations]]
include-path-regex = "/workspaces/.id."
parameters = {{ "path.id" = "{workspace["id"]}" }}

[[operations]]
include-path-regex = "/operations/.id."
parameters = {{ "path.id" = "{operation["id"]}", "query.timeout" = 0 }}
"""
    )
    await _schemathesis(house, tmp_path, "--include-path-regex", "/.id.", "--exclude-method", "DELETE")


async def _schemathesis(house: House, directory: Path, *arguments: str) -> None:
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", str(ROOT / "openapi.yaml")),
        *("--url", house.api.url, "--header", f"Authorization: Bearer {house.api.token}"),
        *("--exclude-path", "/api/v1/events"),  # it has no end, and tests of its own
        *("--exclude-path", "/api/v1/snapshots/import"),  # takes no JSON, and has tests of its own
        # One worker: Python 3.11 fails when two threads parse source at a time, as its generators do.
        *("--checks", CHECKS, "--max-examples", "12", "--seed", "7", "--workers", "1", "--no-color"),
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=directory,
    )
    output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()
