"""`/` says what the server is and links what it has."""

import re
from urllib.parse import urljoin

import httpx

from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S


def test_the_page_links_what_there_is(server: ServerProcess) -> None:
    page = server.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "Models: random." in page.text
    assert "ready" in page.text
    assert "LEWM_CONSOLE=1" in page.text  # this server has no console
    addresses = re.findall(r'href="?([^">]+)', page.text)
    assert set(addresses) == {"docs", "openapi.json", "models", "metrics", "readyz"}
    for address in addresses:
        answer = httpx.get(urljoin(f"{server.url}/", address), timeout=PATIENCE_S)
        assert answer.status_code == 200, address


def test_only_reading_is_answered_and_nothing_is_counted(server: ServerProcess) -> None:
    def counted() -> list[str]:
        lines = server.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith("lewm_requests_total")]

    before = counted()
    server.get("/")
    assert httpx.head(f"{server.url}/", timeout=PATIENCE_S).status_code == 200
    assert counted() == before
    refused = httpx.post(f"{server.url}/", timeout=PATIENCE_S)
    assert refused.json()["code"] == "method_not_allowed"
