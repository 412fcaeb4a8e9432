"""`/`: says what this server is, and links what it has for people."""

from __future__ import annotations

from html import escape
from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lewm_serve.errors import UnknownRoute
from lewm_serve.planner.planner import Planner

HOME_PATH = "/"

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>LeWM planner</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 42rem; margin: 3rem auto;
  padding: 0 1rem }}
a {{ color: LinkText }}
dt {{ font-weight: 600; margin-top: .75rem }}
dd {{ margin: 0 }}
</style>
<h1>LeWM planner</h1>
<p>This server plans robots' actions from camera frames. Version {version}, {state}.
Models: {models}.</p>
<dl>
{links}
</dl>
</html>
"""

CONSOLE_LINK = ("console", "console", "Watch plans, replay them, drive a simulated robot.")
LINKS = (
    (
        "docs",
        "docs",
        "Every request, to try out. The document itself: <a href=openapi.json>openapi.json</a>.",
    ),
    ("models", "models", "The models and their cards, as JSON."),
    ("metrics", "metrics", "Numbers for Prometheus."),
    ("readyz", "readyz", "Whether requests are answered."),
)
"""Relative address, name and description."""

NO_CONSOLE = "The console is off: <code>LEWM_CONSOLE=1</code> turns it on."


def install(app: FastAPI, planner: Planner, *, has_console: bool, has_metrics: bool) -> None:
    """Add `/`. The addresses are relative, so they hold behind a path prefix."""
    links = [link for link in LINKS if link[0] != "metrics" or has_metrics]
    if has_console:
        links.insert(0, CONSOLE_LINK)
    listed = "\n".join(
        f'<dt><a href="{address}">{name}</a></dt><dd>{about}</dd>' for address, name, about in links
    )
    if not has_console:
        listed = f"<dt>console</dt><dd>{NO_CONSOLE}</dd>\n{listed}"

    async def home(request: Request) -> Response:
        if "sec-websocket-key" in request.headers:  # a head that is wrong is no visit
            raise UnknownRoute(
                "there is no '/' for this request: its offer of a WebSocket is wrong"
            )
        names = []
        if planner.state not in ("loading", "failed"):
            names = [model.name for model in planner.describe_models().models]
        page = PAGE.format(
            version=escape(version("lewm-serve")),
            state=planner.state,
            models=escape(", ".join(names) or "none yet"),
            links=listed,
        )
        return HTMLResponse(page, headers=SECURITY_HEADERS)

    app.add_route(HOME_PATH, home, include_in_schema=False)
