"""`/docs` works without the internet, also behind a proxy that adds a path prefix."""

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin

import httpx
import pytest

from tests.lewm_serve.support.browser import open_page
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

PREFIX = "/fleet/planner"
OPERATIONS = {
    "/admin/models/reload",
    "/encode",
    "/predict",
    "/plan",
    "/models",
    "/models/{name}",
    "/healthz",
    "/readyz",
    "/metrics",
}

EXECUTE = """
<script>
const timer = setInterval(() => {
  const button = document.querySelector(".opblock.is-open .execute");
  if (button) { clearInterval(timer); button.click(); }
}, 100);
</script></body>
"""
"""Clicks the button that sends the example of the open operation."""


class PrefixProxy(ThreadingHTTPServer):
    """A reverse proxy that serves everything below a path prefix, and presses a button in `/docs`.

    Attributes:
        paths: the paths that were asked for.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _ProxyHandler)
        self.target = target
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """The address of what the proxy serves."""
        return f"http://127.0.0.1:{self.server_port}{PREFIX}"


class _ProxyHandler(BaseHTTPRequestHandler):
    server: PrefixProxy

    def _forward(self) -> None:
        self.server.paths.append(self.path)
        if not self.path.startswith(f"{PREFIX}/"):
            self.send_error(404)
            return
        answer = httpx.request(
            self.command,
            self.server.target + self.path.removeprefix(PREFIX),
            content=self.rfile.read(int(self.headers.get("content-length", 0))),
            headers={"content-type": self.headers.get("content-type", "")},
            timeout=PATIENCE_S,
        )
        content = answer.content
        if self.path.endswith("/docs"):
            content = content.replace(b"</body>", EXECUTE.encode())
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["content-type"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _forward  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Do not print each request."""


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A ready server with the embedded model, for which the examples of the document are made."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "log.jsonl") as process:
        yield process.wait_ready()


@pytest.fixture
def proxy(embedded: ServerProcess) -> Iterator[PrefixProxy]:
    """A proxy before the server."""
    with PrefixProxy(embedded.url) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def referenced(page: str) -> set[str]:
    """The addresses in a page."""
    return set(re.findall(r"""(?:href=|src=|url: )["']([^"']+)["']""", page))


def test_all_addresses_in_the_page_are_relative(embedded: ServerProcess) -> None:
    page = embedded.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http" not in page.text
    addresses = referenced(page.text)
    assert len(addresses) == 4
    types = {}
    for address in addresses:
        assert not address.startswith(("/", "http"))
        answer = httpx.get(urljoin(f"{embedded.url}/docs", address), timeout=PATIENCE_S)
        assert answer.status_code == 200
        assert answer.content
        types[address] = answer.headers["content-type"].partition(";")[0]
    assert types == {
        "openapi.json": "application/json",
        "docs/swagger-ui.css": "text/css",
        "docs/swagger-ui-bundle.js": "text/javascript",
        "docs/favicon-32x32.png": "image/png",
    }


def test_no_other_file_is_served(embedded: ServerProcess) -> None:
    for name in ("__init__.py", "", "../main.py", "%2e%2e/main.py", "swagger-ui.css/x"):
        answer = embedded.get(f"/docs/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_route")
    for method in ("HEAD", "GET"):
        answer = httpx.request(method, f"{embedded.url}/docs/swagger-ui.css", timeout=PATIENCE_S)
        assert answer.status_code == 200


def test_the_page_is_not_counted_as_a_request(embedded: ServerProcess) -> None:
    def counted() -> list[str]:
        lines = embedded.get("/metrics").text.splitlines()
        return [line for line in lines if line.startswith("lewm_requests_total")]

    before = counted()
    for path in ("/docs", "/docs/swagger-ui.css", "/openapi.json"):
        embedded.get(path)
    assert counted() == before


def test_a_browser_without_the_internet_shows_the_operations(embedded: ServerProcess) -> None:
    document, console = open_page(f"{embedded.url}/docs")
    assert console == []
    assert set(re.findall(r'data-path="([^"]+)"', document)) == OPERATIONS


def test_a_browser_sends_a_plan_through_a_path_prefix(proxy: PrefixProxy) -> None:
    document, console = open_page(f"{proxy.url}/docs#/inference/plan")
    assert not [line for line in console if "Deprecated: escaping deep link" not in line]
    assert set(re.findall(r'data-path="([^"]+)"', document)) == OPERATIONS
    assert f"{PREFIX}/plan" in proxy.paths
    assert all(path.startswith(f"{PREFIX}/") for path in proxy.paths)
    text = re.sub("<[^>]+>", "", document)
    assert re.search(r'"status": "completed"', text)
