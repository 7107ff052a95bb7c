"""The report as a page, looked at in a real browser: what it says, that it fits, and that it can be read in light and dark."""

import base64
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from finetuning.cli.data import main
from finetuning.cli.data_check import previews_of
from finetuning.config.strategy import PackPlan
from finetuning.data.batches.packing_statistics import packing_facts
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.check import scan_sources
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import find_sources, read_samples_at
from finetuning.data.report.html import report_page
from finetuning.data.report.preview import make_preview
from finetuning.errors import InputError
from finetuning.i18n import set_language
from tests.data.defects import write_defects

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLE = ROOT / "examples" / "data" / "alpaca"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# Runs in the page: does anything stick out, and how well does text stand out from what is behind it (WCAG 2.1)?
PROBE = """
<script>
function luminance(color) {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
function background(node) {
  for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor;
    if (!/rgba\\(.*, 0\\)/.test(color)) return color;
  }
  return 'rgb(255, 255, 255)';
}
window.addEventListener('load', () => {
  let worst = 99, where = '';
  for (const node of document.querySelectorAll('h1, h2, h3, p, td, th, li, span, b, .card')) {
    if (!node.textContent.trim()) continue;
    const pair = [luminance(getComputedStyle(node).color), luminance(background(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < worst) { worst = ratio; where = node.outerHTML.slice(0, 80); }
  }
  const result = {
    dark: matchMedia('(prefers-color-scheme: dark)').matches, width: document.documentElement.scrollWidth,
    window: innerWidth, contrast: worst, where: where, text: document.body.innerText,
    requests: performance.getEntriesByType('resource').length,
  };
  const encoded = btoa(unescape(encodeURIComponent(JSON.stringify(result))));
  document.body.insertAdjacentHTML('beforeend', '<pre id="probe">' + encoded);
});
</script>
"""


def look_at(page: str, folder: Path, *, dark: bool, width: int) -> dict:
    """What the probe found in the page, as the browser shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        message = f"this test looks at the page in a real browser, one of {', '.join(BROWSERS)}; apt install chromium"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    file = folder / "page.html"
    file.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        *(["--force-dark-mode"] if dark else []),
        "--dump-dom",
        file.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    found = re.search(r'<pre id="probe">([A-Za-z0-9+/=]+)', run.stdout)
    assert found, run.stdout[-500:] + run.stderr[-500:]
    return json.loads(base64.b64decode(found[1]))


@pytest.fixture(scope="module")
def page_of_defects(tmp_path_factory: pytest.TempPathFactory, prompt_format: PromptFormat) -> str:
    folder = tmp_path_factory.mktemp("page") / "data"
    write_defects(folder)
    sources = find_sources(folder)
    report = scan_sources(sources, ScanSettings(prompt_format, 512))
    facts = packing_facts(
        report.counts["training"], global_batch_size=8, data_parallel_size=2, plan=PackPlan(512, 128, 0.0), seed=1
    )
    return report_page(report, facts, previews_of(sources, report, prompt_format), "data/<seeded>")


@pytest.mark.dist  # starts processes
@pytest.mark.parametrize(("dark", "width"), [(False, 1200), (True, 500)])
def test_the_page_fits_and_can_be_read_in_light_and_dark(page_of_defects: str, tmp_path: Path, dark: bool, width: int) -> None:
    seen = look_at(page_of_defects, tmp_path, dark=dark, width=width)
    assert seen["dark"] == dark
    assert seen["width"] <= seen["window"], "no horizontal scrolling of the page"
    assert seen["contrast"] >= 4.5, seen["where"]  # WCAG 2.1, level AA
    assert seen["requests"] == 0, "self-contained"
    text = seen["text"]
    assert "Training data: data/<seeded>" in text
    assert "training.jsonl:2" in text and "not valid JSON" in text
    assert "validation.jsonl:1" in text and "the model looks better than it is" in text
    assert "steps per epoch" in text and "exactly one begin-of-text token" in text


def test_the_page_speaks_traditional_chinese(tmp_path: Path, prompt_format: PromptFormat) -> None:
    set_language("zh-TW")
    sources = find_sources(EXAMPLE)
    page = report_page(scan_sources(sources, ScanSettings(prompt_format, 1024)), None, [], "data/alpaca")
    assert '<html lang="zh-Hant-TW">' in page
    text = re.sub("<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert set(re.findall(r"[A-Za-z]{3,}", text)) <= {
        "data",
        "alpaca",
        "training",
        "validation",
        "test",
        "jsonl",
        "input",
        "output",
        "MiB",
        "finetune",
        "tokens",
        "token",
    }


def test_text_of_the_data_cannot_become_part_of_the_page(tmp_path: Path, prompt_format: PromptFormat) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"input": "<script>alert(1)</script>", "output": "<b>\ufffd</b>"}\n', encoding="utf-8")
    sample = read_samples_at(file, {1})[1]
    report = scan_sources({"training": find_sources(file)["training"]}, ScanSettings(prompt_format, 512))
    page = report_page(report, None, [make_preview("x.jsonl", sample, prompt_format)], "<i>x</i>")
    assert "<script>" not in page and "<b>\ufffd" not in page and "<i>x" not in page


def test_the_verb_writes_screen_json_and_page(tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = write_defects(tmp_path / "data")
    out = [str(tmp_path / name) for name in ("report.json", "report.html")]
    code = main(
        [
            "check",
            str(tmp_path / "data"),
            "--hf_model_id",
            str(model_path),
            "--seq_length",
            "512",
            "--json",
            out[0],
            "--html",
            out[1],
            "-g",
            "4",
        ]
    )
    assert code == 2
    value = json.loads(Path(out[0]).read_text(encoding="utf-8"))
    assert {(f["file"], f["line"], f["code"]) for f in value["findings"]} == expected
    assert value["packing"]["global_batch_size"] == 4
    screen = capsys.readouterr().out
    assert "training.jsonl:2: not valid JSON (Expecting ',' delimiter at column " in screen
    assert "errors stop a training" in screen
    assert main(["check", str(EXAMPLE)]) == 0
    assert "✓ no errors, 0 warnings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["-m", "0"], "--micro_batch_size 0: must be 1 or more"),
        (["--data_parallel_size", "0"], "--data_parallel_size 0: must be 1 or more"),
        (
            ["--row_length", "5"],
            "--row_length 5: a row must hold the longest sample, --seq_length 512; give 512 or more, or leave it out",
        ),
    ],
)
def test_numbers_that_cannot_be_are_refused_with_the_rule(flags: list[str], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        main(["check", str(EXAMPLE), "--seq_length", "512", *flags])
    assert caught.value.problems == [problem]


def test_packing_is_that_of_the_rows_asked_for(model_path: Path, tmp_path: Path) -> None:
    fills = []
    for row_length in ("512", "4096"):
        out = tmp_path / f"{row_length}.json"
        main(
            [
                "check",
                str(EXAMPLE),
                "--hf_model_id",
                str(model_path),
                "--seq_length",
                "512",
                "--row_length",
                row_length,
                "-g",
                "64",
                "--json",
                str(out),
            ]
        )
        fills.append(json.loads(out.read_text(encoding="utf-8"))["packing"])
    assert fills[0] != fills[1]


def test_a_preview_shows_the_weight_of_an_answer(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [{"role": "assistant", "content": "well", "weight": 0.25}, {"role": "assistant", "content": "so"}]
    turns = [turn for answer in answers for turn in ({"role": "user", "content": "how?"}, answer)]
    (tmp_path / "training.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    page = tmp_path / "page.html"
    assert main(["preview", str(tmp_path), "--hf_model_id", str(model_path), "--html", str(page)]) == 0
    assert page.read_text(encoding="utf-8").count(' ×0.25">') > 1
    shown = capsys.readouterr().out
    assert "[well<|eot_id|>]×0.25<|start_header_id|>" in shown and shown.count("]×") == 1 and "[so<|eot_id|>]\n" in shown


def test_a_preview_shows_what_is_trained_and_keeps_its_promises(model_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", str(EXAMPLE), "--hf_model_id", str(model_path), "--split", "test", "--line", "3"]) == 0
    screen = capsys.readouterr().out
    record = json.loads((EXAMPLE / "test.jsonl").read_text(encoding="utf-8").split("\n")[2])
    assert "test.jsonl:3" in screen and "✗" not in screen
    assert f"[{record['output']}<|eot_id|>]" in screen
    assert screen.count("✓") == 5
