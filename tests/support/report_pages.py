"""Report pages as a test reads them."""

import html.parser
import json
import re

HOSTILE = ("bird", "<i>cat", '"><img src=x onerror=alert(1)>')  # names of folders


class Page(html.parser.HTMLParser):
    """Elements by tag and their attributes, text by section."""

    def __init__(self, path):
        super().__init__()
        self.source, self.elements, self.texts, self._section = path.read_text(), [], {}, ""
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "section":
            self._section = dict(attributes)["id"]

    def handle_data(self, text):
        self.texts[self._section] = f"{self.texts.get(self._section, '')} {text}"

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, section):
        return " ".join(self.texts[section].split())

    def data(self):
        return json.loads(re.search(r'id="data">(.*?)</script>', self.source, re.DOTALL)[1])
