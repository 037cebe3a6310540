"""A figure as SVG whose bytes depend on nothing but what it shows (no torch)."""

import io
import re
from collections.abc import Sequence
from xml.etree import ElementTree

from matplotlib.figure import Figure

from eqbench.plots.drawing import Titles

SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def svg(figure: Figure, name: str, title: str, description: str, titles: Titles) -> str:
    """The figure as SVG text: no date, a <title> and <desc>, and a <title> on each mark of `titles`.

    Ids begin with `name`, so that several figures can stand in one page. Styles and clips become classes, the
    font is said once, and groups that say nothing dissolve: a third of the bytes.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(out.getvalue())
    shared = {
        element for defs in root.iter(SVG + "defs") for element in defs.iter()
    }  # <use> clones them with their styles
    looks: dict[str, str] = {}
    ids: dict[str, str] = {}
    family = re.search(r"font-family: [^;\"]+", out.getvalue())
    font = family[0] if family else ""

    def renamed(match: re.Match[str]) -> str:
        return match[1] + ids.setdefault(match[2], f"{name}-{len(ids)}")

    for element in list(root.iter()):
        _entitle(element, titles.get(element.get("id", ""), ()))
        if element.tag == SVG + "g":
            element.attrib.pop("id", None)
        for key, value in list(element.items()):
            if key in ("d", "x", "y"):
                element.set(key, _short(value, 2 if element in shared else 1))
            elif key == "id":
                element.set(key, ids.setdefault(value, f"{name}-{len(ids)}"))
            elif key.endswith("href") or "url(#" in value:
                element.set(key, re.sub(r"(^#|url\(#)([^)]+)", renamed, value))
        if element not in shared:
            style = element.attrib.pop("style", "").replace(f"{font}; ", "")
            clip = element.attrib.pop("clip-path", "").replace("url", "clip-path: url")
            kinds = [looks.setdefault(look, f"s{len(looks)}") for look in (style, clip) if look]
            if kinds:
                element.set("class", " ".join(kinds))
    sheet = next(root.iter(SVG + "style"))
    rules = [f"#{name} text {{{font}}}", *(f"#{name} .{label} {{{look}}}" for look, label in looks.items())]
    sheet.text = "\n".join([(sheet.text or "").replace("*", f"#{name} *", 1), *rules])
    for metadata in root.findall(SVG + "metadata"):
        root.remove(metadata)
    _dissolve(root)
    root.attrib = {"id": name, "role": "img", "aria-labelledby": f"{name}-title {name}-desc"} | root.attrib
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        head = ElementTree.Element(SVG + tag, {"id": f"{name}-{tag}"})
        head.text = text
        root.insert(place, head)
    return re.sub(r"\n\s*", "\n", ElementTree.tostring(root, encoding="unicode"))


def _short(path: str, digits: int) -> str:
    """A path's coordinates rounded to what can be seen, and `L` left out where it is implied."""
    rounded = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.{digits}f}".rstrip("0").rstrip("."), path)
    words = " ".join(rounded.split())
    return words if set("CQ") & set(words) else words.replace(" L ", " ")


def _entitle(group: ElementTree.Element, labels: Sequence[str]) -> None:
    """Give the marks of a group their titles: one for the group, or one for each <use> (<path>, where they are few) in it."""
    if not labels:
        return
    places = [group] if len(labels) == 1 else list(group.iter(SVG + "use")) or list(group.iter(SVG + "path"))
    for place, label in zip(places, labels, strict=False):
        title = ElementTree.Element(SVG + "title")
        title.text = label
        place.insert(0, title)


def _dissolve(parent: ElementTree.Element) -> None:
    """Put the children of each group without a word in its place."""
    for child in list(parent):
        _dissolve(child)
        if child.tag == SVG + "g" and not child.attrib and child.find(SVG + "title") is None:
            place = list(parent).index(child)
            parent[place : place + 1] = list(child)
