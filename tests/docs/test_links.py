"""Links lead somewhere, and what pages name exists."""

import re
from pathlib import Path

import pytest
from tests.documents import HISTORY, HOME, PAGES, ROOT, anchors, inline_code, is_there, links, read

from xycodec.models.registry import MODELS

RAW = HOME.replace("github.com", "raw.githubusercontent.com") + "/main/"
OWN = re.compile(rf"{re.escape(HOME)}/(?:blob|tree)/main/|{re.escape(RAW)}")
FOLDERS = ("src/", "tests/", "docs/", "benchmarks/", "examples/", "runs/", ".ci/")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        place, _, anchor = link.partition("#")
        if OWN.match(place):
            target = ROOT / OWN.sub("", place)
        elif place.startswith(("https://", "mailto:")):
            continue
        else:
            target = (ROOT / page).parent / place if place else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}"


def test_links_of_the_readme_are_whole():
    """A package registry shows the README without the files beside it."""
    assert [link for link in links("README.md") if not link.startswith("https://")] == []
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", read("README.md"))
    assert images
    assert all(image.startswith(RAW) for image in images)


def test_links_of_the_guides_stay_within_them():
    """MkDocs builds docs/ alone: what lies outside it needs a whole address."""
    for page in PAGES:
        if page.startswith("docs/"):
            for link in links(page):
                if not link.startswith(("https://", "#")):
                    target = (ROOT / page).parent / link.partition("#")[0]
                    assert target.resolve().is_relative_to(ROOT / "docs"), f"{page} links to {link}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in HISTORY])
def test_what_a_page_names_exists(page):
    """Paths that begin with a folder of the repository, and dotted names of the package."""
    for name in inline_code(page):
        if name.startswith(FOLDERS) and " " not in name:
            pattern = name.partition("::")[0].rstrip("/")
            assert any(ROOT.glob(pattern)), f"{page} names {name}"
        elif re.fullmatch(r"xycodec(\.\w+)+", name):
            assert is_there(name), f"{page} names {name}"


def test_the_check_of_names_sees_stale_ones():
    assert is_there("xycodec.models.base.Codec")
    assert not is_there("xycodec.models.base.Codek")
    assert not is_there("xycodec.audio.read_audio")


def test_the_readme_lists_the_models_there_are():
    rows = re.findall(r"^\| (`[^|]*) \|([^|]*)\|", read("README.md"), re.MULTILINE)
    names = [name for first, _ in rows for name in re.findall(r"`([^`]+)`", first)]
    assert set(names) <= set(MODELS)
    # X-Codec has more published models than the table has room for.
    assert {name for name in MODELS if not name.startswith("x-codec-")} <= set(names)
    for first, ids in rows:
        for name in re.findall(r"`([^`]+)`", first):
            source = MODELS[name].source
            told = re.findall(r"`([^`*]+)", ids)
            expected = source in ("bundled", "seeded") and not told
            assert expected or any(source.startswith(prefix) for prefix in told), name


def test_the_source_points_to_nothing_outside_the_repository():
    outside = re.compile(r"\bdesign\.md\b|\bspec/|\.\./shared|\banchors\.md\b|\bperformance\.md\b")
    for path in sorted(Path(ROOT / "src").rglob("*")):
        if path.suffix in (".py", ".yaml", ".md"):
            text = path.read_text(encoding="utf-8")
            assert not outside.search(text), path
            for cited in re.findall(r"docs/[\w/]+\.md", text):
                assert (ROOT / cited).is_file(), f"{path} cites {cited}"


def test_sections_that_the_source_cites_exist():
    """`docs/models/x_codec.md, Training` in a docstring names a heading of that page."""
    cited = re.compile(r"(docs/models/\w+\.md), \"?([A-Z][\w-]*(?: [\w-]+)?)")
    seen = 0
    for path in sorted(Path(ROOT / "src").rglob("*.py")):
        for page, section in cited.findall(path.read_text(encoding="utf-8")):
            headings = anchors(page)
            words = section.lower().split()
            seen += 1
            assert {"-".join(words), words[0]} & headings, f"{path} cites {page}, {section}"
    assert seen > 20
