"""The console of a server behind nginx, below a path prefix."""

from collections.abc import Sequence
from pathlib import Path

from playwright.sync_api import expect

from tests.fleet.proxies import SERVER_NAME, Nginx, write_certificates
from tests.lewm_serve.support.browser import running_browser
from tests.lewm_serve.support.certificates import HOST, Authority, CertificateFiles
from tests.lewm_serve.support.keys import add_key
from tests.lewm_serve.support.ports import free_port
from tests.lewm_serve.support.server_process import ServerProcess
from tests.patience import PATIENCE_S

COMMENTED = (
    "location /planner-1/console {",
    "    proxy_pass https://192.0.2.11:8000/console",
    "}\n",
)


class NginxWithConsole(Nginx):
    """nginx with the location of a console, which is a comment in the configuration."""

    def replacements(self, server_ports: Sequence[int]) -> dict[str, str]:
        """See `Proxy.replacements`."""
        uncommented = {f"#{line}": line for line in COMMENTED}
        return uncommented | super().replacements(server_ports)


def test_the_console_works_behind_nginx_under_a_prefix(tmp_path: Path) -> None:
    """Every view loads, a key is kept for this path alone, and a robot drives."""
    authority = Authority()
    write_certificates(tmp_path, authority)
    files = CertificateFiles.in_folder(tmp_path)
    files.write(authority.issue(SERVER_NAME))
    files.client_ca.write_bytes(authority.certificate)
    key = add_key(tmp_path / "keys", "anna", "read", "infer")
    flags = (
        *("--keys-file", str(tmp_path / "keys")),
        *files.flags,
        *("--tls-client-ca", str(files.client_ca)),
        *("--http-port", str(port := free_port())),
        *("--metrics-port", "0"),
    )
    with (
        ServerProcess(tmp_path / "log", *flags, LEWM_CONSOLE="1") as server,
        NginxWithConsole(tmp_path, [port, free_port()]) as nginx,
        running_browser() as browser,
    ):
        server.wait_ready()
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.set_default_timeout(1000 * PATIENCE_S)
        expect.set_options(timeout=1000 * PATIENCE_S)
        failed: list[str] = []
        page.on(
            "response",
            lambda answer: failed.append(answer.url) if answer.status not in (200, 204) else None,
        )
        address = f"https://{HOST}:{nginx.port}/planner-1/console"
        page.goto(address)
        page.fill("#key", key)
        page.keyboard.press("Enter")
        expect(page.locator("#server")).to_contain_text("key anna")
        (cookie,) = page.context.cookies()
        assert (cookie["path"], cookie["secure"]) == ("/planner-1/console", True)
        page.goto(f"{address}#drive")
        page.get_by_role("button", name="Start").click()
        page.locator(".goals button").nth(0).click()
        expect(page.locator("table.plans tbody tr").first).to_contain_text("ok")
        page.goto(f"{address}#fleet")
        expect(page.locator("table.fleet tbody")).to_contain_text("drive")
        page.goto(f"{address}#replay")
        page.locator("table.plans tbody a").first.click()
        expect(page.locator("article.plan h2").first).to_have_text("drive")
        # Only the first question, without a key, was refused.
        assert failed == [f"{address}/api/server"]
        page.locator("a.brand").click()
        expect(page.locator("nav a[aria-current]")).to_have_text("Live")
        # Nothing else of the server is passed on.
        for path in ("", "metrics", "admin/models/reload", "console/../metrics"):
            assert page.request.get(f"https://{HOST}:{nginx.port}/planner-1/{path}").status == 404
