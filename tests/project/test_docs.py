"""The documentation: the code of every page runs, what pages show is what comes out, and nothing is left out."""

import re
import sys
from pathlib import Path

import pytest

import hbpcompiler as hbp
from tests.pages import Run, blocks, excerpt, needs
from tests.selection import few

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ADVICE = "review the change, then pytest tests/project/test_docs.py --refresh-golden"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The page's own folder, cache and modules: what `hbp tune` measures there is gone with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.setenv("HBP_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@few(12, "other pages")
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_runs_and_shows_what_comes_out(path, folder, request):
    for package in needs(path.read_text(encoding="utf-8")):
        pytest.importorskip(package)
    now = Run(path.read_text(encoding="utf-8")).refreshed()
    if request.config.getoption("--refresh-golden"):
        path.write_text(now, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == now, ADVICE


def test_every_quantity_is_explained():
    for page in (README, ROOT / "docs" / "quantities.md"):
        missing = [name for name in hbp.QUANTITIES if f"`{name}`" not in page.read_text(encoding="utf-8")]
        assert not missing, page.name


def test_every_option_is_explained():
    text = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert [name for name in hbp.compile.__annotations__ if f"`{name}`" not in text and name != "return"] == []


def test_every_error_is_explained():
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    public = [name for name in hbp.__all__ if name.endswith(("Error", "Warning"))]
    assert [name for name in public if f"`hbp.{name}`" not in text] == []


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []
    pages = {f"docs/{path.name}" for path in PAGES if path != README}
    assert pages - set(links) == set(), "the README leads to every page"


# -- the machinery itself --------------------------------------------------------------------------------------------

PAGE = """# A page

```python
print(1 + 1)
```

```text title="output"
3
```

```python title="made.py"
NAME = "made"
```

```python
from made import NAME
class compiled:
    code = "-> Result:\\n    # 0: one\\n    a = 1\\n\\n    # 1: two\\n"

print(NAME, 0.123456)
```

```text title="output"
made 0.12...
```

<!-- generated: forward / 0: one -->
```python
b = 1
```
"""


def test_a_page_is_written_anew(folder):
    now = Run(PAGE).refreshed()
    assert now == PAGE.replace("\n3\n", "\n2\n").replace("b = 1\n", "# 0: one\na = 1\n")
    assert Run(now).refreshed() == now


def test_what_differs_beside_an_ellipsis_is_refused(folder):
    with pytest.raises(AssertionError, match=r"0\.123456"):
        Run(PAGE.replace("0.12...", "0.13...")).refreshed()


def test_a_page_says_what_else_it_needs():
    assert needs("# A page\n\n<!-- needs: laplace, opacus -->\n") == ["laplace", "opacus"]
    assert needs(PAGE) == []


def test_no_block_escapes():
    with pytest.raises(AssertionError, match="2 fences, but 0 blocks"):
        blocks("1. in a list\n\n    ```python\n    x = 1\n    ```\n")
    with pytest.raises(AssertionError, match="nobody runs a block of 'julia'"):
        Run("```julia\n1\n```\n").refreshed()


def test_an_excerpt_that_is_not_there_is_an_error():
    with pytest.raises(AssertionError, match="0 blocks"):
        excerpt("-> Result:\n    # 0: one\n    a = 1\n", "forward / 2: three")


def test_a_command_must_succeed(folder):
    with pytest.raises(AssertionError, match="No such command"):
        Run("```bash\nhbp nonsense\n```\n").refreshed()
