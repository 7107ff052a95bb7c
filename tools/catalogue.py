"""Brings the catalogue of translations up to what the source says: `python tools/catalogue.py`, in `make fix`.

In: the English texts of the package (templates of t(…), texts of settings and verbs) and the catalogue, finetuning.po.
Out: the same file with new texts, not yet translated, added and old ones removed, in the order of the source. The program
reads it as it stands. `tests/test_messages.py` fails while a text is not translated.
"""

import ast
import io
import sys
from functools import cache
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from finetuning.cli.main import VERBS  # noqa: E402
from finetuning.config.settings import FLAGS  # noqa: E402
from finetuning.i18n import CATALOGUE  # noqa: E402

PACKAGE = ROOT / "finetuning"
DEMO = ROOT / "examples" / "demo.py"


def main() -> None:
    old, new = read_catalogue(), empty_catalogue()
    for place, text in translated_texts():
        known = old.get(text)
        new.add(text, known.string if known is not None else "", locations=[(place, 0)])
    CATALOGUE.write_bytes(written(new))
    missing = [message.id for message in new if message.id and not message.string]
    print(f"{len(new)} messages, {len(missing)} not translated" + "".join(f"\n  {text!r}" for text in missing))


def translated_texts() -> list[tuple[str, str]]:
    """(file, English text) of everything that is shown through the translations, each once."""
    texts = {text: place for place, text in reversed(calls_of_t()) if text is not None}
    for flag in FLAGS.values():
        of_flag = (flag.group, flag.help, flag.default_means, flag.details)
        texts |= {text: "finetuning/config/settings.py" for text in of_flag if text is not None and text not in texts}
    texts |= {text: "finetuning/cli/main.py" for _, text in VERBS.values() if text not in texts}
    return sorted(((place, text) for text, place in texts.items()), key=lambda entry: entry[0])


@cache
def calls_of_t() -> list[tuple[str, str | None]]:
    """(file, template) of every call t(…) in the package and the demo; None where the template is not a literal."""
    calls: list[tuple[str, str | None]] = []
    for file in [*sorted(PACKAGE.rglob("*.py")), DEMO]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t":
                first = node.args[0] if node.args else None
                text = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
                calls.append((str(file.relative_to(ROOT)), text))
    return calls


def read_catalogue() -> Catalog:
    with CATALOGUE.open("rb") as file:
        return read_po(file, locale="zh_TW")


def empty_catalogue() -> Catalog:
    return Catalog(locale="zh_TW", project="llama-finetuning", charset="utf-8", fuzzy=False, header_comment="# zh-TW")


def written(catalogue: Catalog) -> bytes:
    buffer = io.BytesIO()
    write_po(buffer, catalogue, width=120, omit_header=False, sort_output=False)
    # Dates would change the file each time.
    lines = [
        line for line in buffer.getvalue().splitlines(keepends=True) if b"-Date:" not in line and b"Generated-By" not in line
    ]
    return b"".join(lines)


if __name__ == "__main__":
    main()
