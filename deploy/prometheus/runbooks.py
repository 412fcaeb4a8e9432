"""Write the runbooks as a page that Prometheus serves: `python -m deploy.prometheus.runbooks`.

Who is paged reads it in a browser. It needs neither the internet nor one of the planning servers,
because Prometheus runs whenever it sends an alert.
"""

from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

SOURCE = Path(__file__).parents[2] / "docs" / "runbooks.md"
PAGE = Path(__file__).parent / "assets" / "runbooks.html"

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LeWM: runbooks</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 sans-serif; max-width: 50rem; margin: 1rem auto; padding: 0 1rem }}
h2 {{ border-top: 1px solid; margin-top: 2rem; padding-top: 1rem }}
:target {{ color: #c4162a }}
table {{ border-collapse: collapse }}
th, td {{ border: 1px solid; padding: 0.2rem 0.5rem; text-align: left; vertical-align: top }}
</style>
</head>
<body>
{content}\
</body>
</html>
"""


def page() -> str:
    """The page. Each heading has an id, and links to other documents are plain text."""
    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(SOURCE.read_text())
    for token, following in pairwise(tokens):
        if token.type == "heading_open":
            token.attrSet("id", following.content.lower())
        is_elsewhere = False
        for part in token.children or ():
            if part.type == "link_open":
                is_elsewhere = not str(part.attrGet("href")).startswith("#")
            if part.type in ("link_open", "link_close"):
                part.hidden = is_elsewhere
    return TEMPLATE.format(content=parser.renderer.render(tokens, parser.options, {}))


if __name__ == "__main__":
    PAGE.write_text(page())
