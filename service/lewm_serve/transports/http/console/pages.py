"""`/console`: the page, its files, and the session of a key.

The page and its files hold nothing that is secret, so they need no key: the page asks for one.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from lewm_serve.access.keys import READ, Keys
from lewm_serve.api.fields import RequestModel
from lewm_serve.transports.exchange import RequestMemory
from lewm_serve.transports.http.access import CONSOLE_PATH, SESSION_COOKIE, SESSION_PATH
from lewm_serve.transports.http.console.requests import check_page, read_document

STATIC_FOLDER = Path(__file__).parent / "static"
PAGE = "index.html"
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class SessionStart(RequestModel):
    """The key that a person enters."""

    key: str


def install(app: FastAPI, *, keys: Keys | None, memory: RequestMemory) -> None:
    """Add the page, its files, and the start and end of a session."""

    async def page(_request: Request) -> Response:
        return HTMLResponse((STATIC_FOLDER / PAGE).read_text(), headers=SECURITY_HEADERS)

    async def file(request: Request) -> Response:
        path = STATIC_FOLDER / request.scope["path"].rpartition("/")[2]
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=SECURITY_HEADERS)

    async def start_session(request: Request) -> Response:
        """Keep a key that opens the console in a cookie, which no script can read.

        The cookie belongs to the paths below the page's, whatever prefix a proxy adds, and ends
        with the browser. The key is checked anew with every request.
        """
        check_page(request)
        start = await read_document(request, SessionStart, memory)
        response = Response(status_code=204)
        if keys is not None:
            await keys.find(start.key, READ, CONSOLE_PATH)
            response.set_cookie(
                SESSION_COOKIE,
                start.key,
                path=None,
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return response

    async def end_session(request: Request) -> Response:
        check_page(request)
        response = Response(status_code=204)
        response.set_cookie(SESSION_COOKIE, "", max_age=0, path=None, httponly=True)
        return response

    app.add_route(CONSOLE_PATH, page, include_in_schema=False)
    for name in sorted(path.name for path in STATIC_FOLDER.iterdir() if path.name != PAGE):
        app.add_route(f"{CONSOLE_PATH}/static/{name}", file, include_in_schema=False)
    app.add_route(SESSION_PATH, start_session, methods=["POST"], include_in_schema=False)
    app.add_route(SESSION_PATH, end_session, methods=["DELETE"], include_in_schema=False)
