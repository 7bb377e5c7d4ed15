"""The sources of `make docs`: the pages it lists, the names it documents, and that nothing comes from elsewhere."""

import importlib.util
import re

import pytest
import yaml
from tests.documents import ROOT, is_there, read

import xycodec

SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
REFERENCE = sorted(path.name for path in (ROOT / "docs" / "api").glob("*.md"))


def listed(nav):
    """The pages of a navigation, which is a page, or a title with a page or a navigation below it."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in listed(entry)]


def documented():
    return [name for page in REFERENCE for name in re.findall(r"^::: (.+)$", read(f"docs/api/{page}"), re.MULTILINE)]


def test_every_page_is_in_the_navigation_once():
    pages = listed(SITE["nav"])
    assert sorted(pages) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))


def test_documented_names_exist():
    names = documented()
    assert len(names) == len(set(names)) > 30
    assert [name for name in names if not is_there(name)] == []


def test_every_public_name_is_documented():
    names = set(documented())
    for name in xycodec.__all__:
        target = getattr(xycodec, name)
        assert {f"{target.__module__}.{target.__qualname__}", target.__module__} & names, name


def test_links_into_the_reference_lead_to_documented_names():
    for page in REFERENCE:
        for name in re.findall(r"\]\[(xycodec\.[\w.]+)\]", read(f"docs/api/{page}")):
            assert name in documented(), page


def test_the_theme_asks_for_nothing_from_elsewhere():
    assert SITE["theme"]["font"] is False
    assert SITE["strict"] is True
    assert "repo_url" not in SITE  # the theme would ask the host for its stars
    for key in ("extra_css", "extra_javascript"):
        assert all((ROOT / "docs" / name).is_file() for name in SITE.get(key, []))


@pytest.fixture
def loads():
    (hook,) = SITE["hooks"]
    spec = importlib.util.spec_from_file_location("offline", ROOT / hook)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.loads


@pytest.mark.parametrize("html", [
    '<script src="https://unpkg.com/x.js"></script>', '<link rel="stylesheet" href="//fonts.example/css">',
    "<img src=http://example.org/a.png>", '<link rel=preconnect href="https://fonts.example">',
])  # fmt: skip
def test_the_build_refuses_what_comes_from_elsewhere(loads, html):
    assert len(loads(f"<p>{html}</p>")) == 1


def test_the_build_takes_what_is_local(loads):
    links = '<a href="https://example.org">x</a><link rel="canonical" href="https://example.org/">'
    assert loads(links + '<script src="assets/x.js"></script><link rel="stylesheet" href="../a.css">') == []
