"""Model cards as HTML that cannot act: no tags of their own, no images, no scripts."""

from __future__ import annotations

import re

from markdown_it import MarkdownIt
from markupsafe import Markup

LONGEST = 100_000
"""Maximum characters of a card that is shown."""

_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\s*\n", re.DOTALL)
_HEADINGS_BELOW = 2


def card_html(card: str) -> Markup:
    """A model card without its front matter; headings start at the third level.

    HTML in the card is shown as text. Images are not loaded, because the page asks no other host for
    anything. Links to ``javascript:`` and the like stay text (markdown-it's own check).
    """
    text = _FRONT_MATTER.sub("", card.replace("\r\n", "\n"), count=1)
    if len(text) > LONGEST:
        text = text[:LONGEST] + "\n\n…"
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _HEADINGS_BELOW, 6)}"
        if token.type == "paragraph_open" or token.type == "inline":
            for child in token.children or ():
                if child.type == "link_open":
                    child.attrSet("rel", "noopener noreferrer nofollow")
        if "style" in token.attrs:  # the alignment of a table's cell; the policy allows no inline style
            align = str(token.attrs.pop("style")).rpartition(":")[2]
            token.attrSet("class", f"align-{align}")
    return Markup(parser.renderer.render(tokens, parser.options, {}))
