"""A hook of MkDocs: a page that would load anything from the network fails the build."""

from html.parser import HTMLParser

LOADED = {("script", "src"), ("link", "href"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src")}
"""Tags whose attribute a browser fetches by itself; links that a reader follows are no such."""
NOT_FETCHED = {"canonical", "alternate", "prev", "next"}


class _Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "link" and values.get("rel") in NOT_FETCHED:
            return
        for name, value in values.items():
            if (tag, name) in LOADED and (value or "").startswith(("http:", "https:", "//")):
                self.found.append(value)


def loads(html):
    """The addresses elsewhere that a browser would fetch to show this page."""
    parser = _Loads()
    parser.feed(html)
    return parser.found


def on_post_page(output, page, config):
    """Called by MkDocs with every page that it has made."""
    found = loads(output)
    if found:
        from mkdocs.exceptions import PluginError

        raise PluginError(f"{page.file.src_uri} loads {', '.join(found)}: every page must work without network")
    return output
