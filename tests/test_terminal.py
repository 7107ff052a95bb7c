"""No text of data, of files or of a model can write over a terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from finetuning.cli import data, logs
from finetuning.cli.main import main
from finetuning.i18n import printable, t
from finetuning.terminal import SafeConsole, open_console

pytestmark = pytest.mark.unit

EVIL = "a\x1b[2J\x1b]0;title\x07\x9b1m\rb"


def test_control_characters_and_halves_of_characters_are_replaced_and_lines_stay() -> None:
    assert printable("a\x1b[2J\tb\n\x07\x7f\x9b\udcff") == "a\ufffd[2J\tb\n\ufffd\ufffd\ufffd\ufffd"
    assert printable("a\u202eb\u202a\u2066c\u2069") == "a\ufffdb\ufffd\ufffdc\ufffd", "nothing turns a line around"
    assert printable("👩‍👧 עברית 中文\u200f") == "👩‍👧 עברית 中文\u200f", "what writes a text is no control character"


def test_messages_are_printable_whatever_is_put_into_them() -> None:
    assert "\x1b" not in t("{file}: {error}", file=Path(EVIL), error=ValueError(EVIL))
    printable(t("{file}", file=Path("\udcff.jsonl"))).encode()


@pytest.mark.parametrize("shown", [EVIL, Text(EVIL)])
def test_a_screen_writes_its_own_colors_and_nobody_elses(shown: str | Text) -> None:
    written = io.StringIO()
    console = SafeConsole(file=written, force_terminal=True, color_system="standard", markup=False)
    table = Table()
    table.add_column("x")
    table.add_row(shown)
    for item in (shown, table):
        console.print(item, style="bold")
    assert "\x1b[1m" in written.getvalue(), "rich's own"
    assert "\x1b[2J" not in written.getvalue() and "\x1b]0" not in written.getvalue() and "\x9b" not in written.getvalue()


def test_a_console_takes_brackets_and_colons_as_they_are() -> None:
    written = io.StringIO()
    open_console(written).print("[bold] :smile: " + "x" * 200)
    assert written.getvalue() == "[bold] :smile: " + "x" * 200 + "\n"


def test_what_was_given_is_shown_without_escape_codes_where_argparse_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    for parse in (main, data.main, logs.main):
        with pytest.raises(SystemExit):
            parse([*(["check", "x"] if parse is data.main else ["x"]), f"--unknown{EVIL}"])
        shown = capsys.readouterr().err
        assert "--unknown" in shown and "\x1b" not in shown and "\x9b" not in shown


def test_findings_of_data_and_of_file_names_hold_no_escape_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "\x1b[31mred.jsonl"
    records = ({"input": EVIL, "output": ""}, {EVIL: 1}, {"input": "x", "output": "y"})
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert data.main(["check", str(file)]) == 2
    shown = capsys.readouterr().out
    assert "red.jsonl" in shown and "\x1b" not in shown
