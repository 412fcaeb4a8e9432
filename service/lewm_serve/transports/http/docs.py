"""`/docs`: Swagger UI, made of files that the server sends itself.

The page needs no internet. All its addresses are relative, so it also works behind a proxy that
adds a path prefix. The package `fastapi-swagger` contains the unchanged files of Swagger UI; its
own code is not used, because it writes absolute addresses.
"""

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, Response

DOCS_PATH = "/docs"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"
ASSET_PATHS = tuple(f"{DOCS_PATH}/{name}" for name in (SCRIPT, STYLE, ICON))
ASSET_FOLDER = Path(str(files("fastapi_swagger"))) / "resources"
ASSET_HEADERS = {"Cache-Control": "max-age=3600"}

SWAGGER_UI_PARAMETERS = {
    "validatorUrl": None,  # otherwise the page sends the document's address to a public validator
    "tryItOutEnabled": True,
    "displayRequestDuration": True,
}


def install(app: FastAPI) -> None:
    """Add `/docs` and its files to an application that was made without ``docs_url``."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=app.title,
        swagger_js_url=f"docs/{SCRIPT}",
        swagger_css_url=f"docs/{STYLE}",
        swagger_favicon_url=f"docs/{ICON}",
        swagger_ui_parameters=SWAGGER_UI_PARAMETERS,
    )

    async def docs(_request: Request) -> Response:
        return HTMLResponse(page.body)

    async def asset(request: Request) -> Response:
        path = ASSET_FOLDER / request.scope["path"].rpartition("/")[2]
        return FileResponse(path, headers=ASSET_HEADERS)

    app.add_route(DOCS_PATH, docs, include_in_schema=False)
    for path in ASSET_PATHS:
        app.add_route(path, asset, include_in_schema=False)
