"""docs/flags.md and its Chinese twin are what the settings say."""

import re
from pathlib import Path

import pytest

from finetuning.cli.flags_page import PAGES, flags_page
from finetuning.config.settings import FLAGS

pytestmark = pytest.mark.unit

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.mark.parametrize(("language", "name"), PAGES.items())
def test_the_page_is_written_from_the_settings(language: str, name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == flags_page(language), "run `make fix`"


@pytest.mark.parametrize("language", PAGES)
def test_every_flag_has_a_row_with_a_default(language: str) -> None:
    rows = re.findall(r"^\| .*?`--(\w+)` \| (.+?) \| .+ \|$", flags_page(language), re.MULTILINE)
    assert [name for name, _ in rows] == list(FLAGS)
    assert all(default for _, default in rows)
