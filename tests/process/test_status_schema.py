"""What `ps --json`, `top --json`, `GET /status`, the client and the subscription give is one document, as published."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.wire.status import SCHEMA
from tests.served import Serve, Server

pytestmark = pytest.mark.process

PUBLISHED = json.loads((Path(__file__).parents[2] / "docs" / "reference" / "status.schema.json").read_bytes())
KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def faults(value: Any, schema: dict[str, Any], at: str = "") -> Iterator[str]:
    """Yield where a value is not as the schema has it; a field that the schema does not name is one, too."""
    if "$ref" in schema:
        schema = PUBLISHED["$defs"][schema["$ref"].rpartition("/")[2]]
    if "anyOf" in schema:
        if all(any(faults(value, each, at)) for each in schema["anyOf"]):
            yield f"{at}: {value!r} is none of its kinds"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: {value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is none of {schema['enum']}"
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{at}: {value!r} is no {kind}"
    elif kind == "array":
        for number, each in enumerate(value):
            yield from faults(each, schema.get("items", {}), f"{at}[{number}]")
    elif kind == "object":
        yield from _faults_inside(value, schema, at)


def _faults_inside(value: dict[str, Any], schema: dict[str, Any], at: str) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    yield from (f"{at}.{name} is missing" for name in fields if name not in value)
    for name, each in value.items():
        if name in fields or others:
            yield from faults(each, fields.get(name, others), f"{at}.{name}")
        else:
            yield f"{at}.{name} is not in the schema"


def documents(server: Server) -> dict[str, Any]:
    """Return a server's status document from everywhere that gives it."""
    url = server.status().http
    assert url is not None
    with urllib.request.urlopen(f"{url}/status") as answer:
        over_http = answer.read()
    watched = server.client.watch(0.1)
    given = {
        "http": over_http,
        "client": server.client.list_json(),
        "watch": next(watched),
        "ps --json": server.run("ps", "--json").stdout,
        "top --once": server.run("top", "--once", "--json").stdout,
        "top --json": server.run("top", "--json", "-n", "1").stdout,
    }
    watched.close()
    return {name: json.loads(text) for name, text in given.items()}


def test_every_way_gives_the_published_document(serve: Serve) -> None:
    server = serve(devices="cpu:2", variables={"GEN_WORKER_HTTP": "0"})
    server.ask("echo", "ended", text="x")
    server.ask("die", "dead", text="SIGSEGV")
    with server.connect() as connection:
        for name in ("first", "second", "third", "fourth"):
            connection.send("gated", name, gate="go")
        server.until_running("first", "second")
        given = documents(server)
        server.open("go")
        connection.frames(4)
    for way, document in given.items():
        assert list(faults(document, PUBLISHED, way)) == []
        assert {job["id"] for job in document["jobs"]} == {"first", "second", "third", "fourth"}
    assert {tuple(document) for document in given.values()} == {tuple(PUBLISHED["$defs"]["Status"]["properties"])}


def test_the_schema_says_its_number_and_which_dialect_it_is_in() -> None:
    assert PUBLISHED["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert PUBLISHED["$defs"]["Status"]["properties"]["schema"] == {"const": SCHEMA}
