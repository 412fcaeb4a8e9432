"""Links between the repository's documents lead somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("client/*.md"),
        *ROOT.glob("examples/*.md"),
    ]
)

CODE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def dead_links(document: Path) -> Iterator[str]:
    """The document's links to a file or a heading that is not there; those to the web are left."""
    for link in LINK.findall(CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


def anchors(document: Path) -> set[str]:
    """Headings as GitHub names them, leaving out the numbers of those that occur twice."""
    headings = HEADING.findall(CODE.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_link_is_dead(document: Path) -> None:
    assert list(dead_links(document)) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    other, page = tmp_path / "other.md", tmp_path / "page.md"
    other.write_text("# What `it` is, and why\n\n```\n# no heading\n```\n")
    page.write_text(
        "## Here\n[a](other.md) [b](#here) [c](other.md#what-it-is-and-why) [d](https://x.example)\n"
        "[e](gone.md) [f](#there)\n![g](gone.png) [h](other.md#no-heading)\n"
        "```\n[i](gone.md)\n```\n"
    )
    assert list(dead_links(page)) == ["gone.md", "#there", "gone.png", "other.md#no-heading"]
