"""What is said of a collector that does not take spans."""

import logging

import pytest

pytestmark = pytest.mark.needs("opentelemetry.sdk", "requests", "urllib3")


def test_why_a_collector_is_out_of_reach_is_said_without_its_url() -> None:
    import requests
    import urllib3

    from gen_worker.otlp.taking import reason_of

    refused = urllib3.exceptions.ProtocolError("HTTPConnection(host='collector', port=4318): Connection refused")
    pool = urllib3.HTTPConnectionPool("collector", 4318)
    tried = requests.ConnectionError(urllib3.exceptions.MaxRetryError(pool, "/v1/traces?key=canary", refused))
    assert "canary" in str(tried)
    record = logging.LogRecord("exporter", logging.WARNING, "", 0, "error %s of %s", (tried, "spans"), None)
    assert reason_of(record) == "Connection refused"


def test_what_a_collector_answers_is_said_as_the_exporter_says_it() -> None:
    from gen_worker.otlp.taking import reason_of

    record = logging.LogRecord("exporter", logging.ERROR, "", 0, "code: %s, reason: %s", (401, "Unauthorized"), None)
    assert reason_of(record) == "code: 401, reason: Unauthorized"
