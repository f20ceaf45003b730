"""docs/add_a_page.md, followed word by word."""

import re
import sys

from tests.envs.web.browsers import require_browser
from tests.test_docs import ROOT, blocks, commands, compose, execute

PAGE = "docs/add_a_page.md"


def test_the_page_works_when_followed_literally(tmp_path, monkeypatch):
    require_browser(miniwob=False)
    text = (ROOT / PAGE).read_text()
    files = {
        "ticket.html": re.search(r"`ticket\.html`:\n\n```html\n(.*?)^```$", text, re.MULTILINE | re.DOTALL),
        "ticket_expert.py": re.search(r"`ticket_expert\.py`:\n\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL),
    }
    for name, found in files.items():
        assert found
        (tmp_path / name).write_text(found[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [block.file for block in blocks(PAGE, "python")] == ["", "", "ticket_expert.py", ""]
    execute(PAGE)
    from envs.web.experts import EXPERTS

    del EXPERTS["ticket"], sys.modules["ticket_expert"]
    composed = [words for words in commands(PAGE) if words[0] == "flowhand"]
    assert len(composed) == 4
    for words in composed:
        compose([word for word in words if not word.startswith("modules=")])
