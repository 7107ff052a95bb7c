"""The report on data as one HTML file that needs nothing else: findings, token lengths, previews."""

from collections.abc import Sequence
from html import escape

from finetuning import __version__
from finetuning.data.batches.packing_statistics import PackingFacts
from finetuning.data.reading.check import HISTOGRAM_EDGES, Report, SplitReport
from finetuning.data.reading.finding_words import title
from finetuning.data.reading.findings import ERROR, ERRORS, WARNING, Finding
from finetuning.data.report.preview import Preview, PreviewToken
from finetuning.i18n import language, t

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --dim: #5d6775; --page: #fbfbfa; --card: #ffffff; --line: #dfe3e8;
  --error: #b3261e; --warning: #8a5a00; --good: #17693a; --trained: #d3f0dc; --special: #dde8fb; --bar: #4a7bd0; }
@media (prefers-color-scheme: dark) { :root { --text: #e5e9ef; --dim: #9aa5b4; --page: #14171c; --card: #1c2128;
  --line: #343b46; --error: #ff8f85; --warning: #f0c060; --good: #74d69b; --trained: #1d4a30; --special: #24395c;
  --bar: #6f9cec; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, "Noto Sans TC", "Noto Sans CJK TC", "PingFang TC", "Microsoft JhengHei", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
.dim { color: var(--dim); } .error { color: var(--error); } .warning { color: var(--warning); } .good { color: var(--good); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.card b { display: block; font-size: 1.35rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; background: var(--card); font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--dim); font-weight: 600; } td.number, th.number { text-align: right; }
td.place { white-space: nowrap; font-family: ui-monospace, monospace; font-size: .875rem; }
td.excerpt { color: var(--dim); overflow-wrap: anywhere; }
.bar { height: 1rem; min-width: 1px; background: var(--bar); border-radius: .2rem; }
.tokens { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; overflow-wrap: anywhere;
  white-space: pre-wrap; font-family: ui-monospace, "Noto Sans Mono CJK TC", "Noto Sans TC", monospace; font-size: .9rem; }
.tokens span { border-radius: .2rem; box-shadow: inset 0 0 0 1px var(--line); }
.tokens .trained { background: var(--trained); } .tokens .special { background: var(--special); }
.tokens .trained.special { background: var(--trained); text-decoration: underline; }
ul.plain { list-style: none; padding: 0; }
"""


def report_page(
    report: Report, facts: PackingFacts | None, previews: list[Preview], subject: str, mixture: Sequence[str] = ()
) -> str:
    """A whole HTML document. `subject`: what was checked; `mixture`: its sources with their shares, a line each."""
    errors, warnings = report.findings.count(ERROR), report.findings.count(WARNING)
    heading = t("Training data: {subject}", subject=subject)
    body = [f"<header><h1>{escape(heading)}</h1>"]
    if errors:
        body.append(f'<p class="error">✗ {escape(t("{count} error{count:s}: errors stop a training", count=errors))}</p>')
    elif warnings:
        body.append(f'<p class="warning">! {escape(t("no errors, {count} warning{count:s}", count=warnings))}</p>')
    else:
        body.append(f'<p class="good">✓ {escape(t("nothing to complain about"))}</p>')
    body.append("</header><main>")
    body += [_cards(report, facts), _mixture(mixture), _files(report), _findings(report), _lengths(report), _previews(previews)]
    body.append(f'</main><footer class="dim"><p>finetune {escape(__version__)}</p></footer>')
    return (
        f'<!doctype html>\n<html lang="{"zh-Hant-TW" if language() == "zh-TW" else "en"}">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(heading)}</title>'
        f"<style>{STYLE}</style></head>\n<body>" + "\n".join(part for part in body if part) + "</body></html>\n"
    )


def _cards(report: Report, facts: PackingFacts | None) -> str:
    training = report.splits.get("training") or next(iter(report.splits.values()), None)
    cards = [(t("usable samples"), f"{sum(file.samples for file in report.files):,}")]
    if training:
        cards += [
            (t("training tokens"), f"{training.tokens:,}"),
            (t("answer tokens among them"), f"{training.answer_tokens:,}"),
            (t("longest sample, tokens"), f"{training.longest:,}"),
        ]
    if facts:
        cards += [
            (t("steps per epoch, {batch} sample{batch:s} each", batch=facts.global_batch_size), f"{facts.steps_per_epoch:,}"),
            (t("computed positions that are real tokens"), f"{facts.fill:.1%}"),
            (
                t("work of the slowest of {ranks} rank{ranks:s} above the mean", ranks=facts.data_parallel_size),
                f"{facts.imbalance:.1%}",
            ),
            (t("times as much, if padded instead of packed"), f"{facts.padded:.1f}"),
        ]
    items = "".join(f'<div class="card"><b>{escape(value)}</b>{escape(label)}</div>' for label, value in cards)
    return f'<section class="cards">{items}</section>'


def _mixture(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<h2>{escape(t("Mixture"))}</h2><ul class="plain">{items}</ul>' if lines else ""


def _files(report: Report) -> str:
    rows = "".join(
        f'<tr><td class="place">{escape(file.name)}</td><td>{escape(" · ".join(file.formats) or "–")}</td>'
        f'<td class="number">{file.records:,}</td><td class="number">{file.samples:,}</td>'
        f'<td class="number">{file.size / 2**20:.1f}</td></tr>'
        for file in report.files
    )
    head = _head((t("file"), ""), (t("format"), ""), (t("records"), "number"), (t("usable"), "number"), (t("MiB"), "number"))
    return f'<h2>{escape(t("Files"))}</h2><div class="scroll"><table>{head}{rows}</table></div>'


def _findings(report: Report) -> str:
    parts = [f"<h2>{escape(t('Findings'))}</h2>"]
    by_code: dict[str, list[Finding]] = {}
    for finding in report.findings.sorted():
        by_code.setdefault(finding.code, []).append(finding)
    totals = report.findings.by_code()
    if not totals:
        parts.append(f'<p class="good">{escape(t("none"))}</p>')
    for code, total in totals.items():
        css = "error" if code in ERRORS else "warning"
        found = by_code.get(code, [])
        rest = t("the first {shown} of {total}", shown=len(found), total=total) if total > len(found) else str(total)
        parts.append(f'<h3 class="{css}">{escape(title(code))} <span class="dim">({escape(rest)})</span></h3>')
        rows = "".join(
            f'<tr><td class="place">{escape(finding.place)}</td><td>{escape(finding.message)}</td>'
            f'<td class="excerpt">{escape(finding.excerpt)}</td></tr>'
            for finding in found
        )
        parts.append(
            f'<div class="scroll"><table>{_head((t("place"), ""), (t("what"), ""), (t("text"), ""))}{rows}</table></div>'
        )
    return "\n".join(parts)


def _lengths(report: Report) -> str:
    if not report.splits:
        return ""
    parts = [f"<h2>{escape(t('Token lengths'))}</h2>"]
    for name, split in report.splits.items():
        facts = t(
            "{samples:,} sample{samples:s}, median {median:,}, longest {longest:,} token{longest:s}",
            samples=split.samples,
            median=split.median,
            longest=split.longest,
        )
        parts.append(f'<h3>{escape(name)} <span class="dim">{escape(facts)}</span></h3>{_histogram(split)}')
    return "\n".join(parts)


def _histogram(split: SplitReport) -> str:
    most = max(split.histogram, default=0)
    if not most:
        return ""
    filled = [index for index, number in enumerate(split.histogram) if number]
    rows = "".join(
        f'<tr><td class="number place">{HISTOGRAM_EDGES[index] + 1:,} – {HISTOGRAM_EDGES[index + 1]:,}</td>'
        f'<td style="width: 70%"><div class="bar" style="width: {100 * split.histogram[index] / most:.1f}%"></div></td>'
        f'<td class="number">{split.histogram[index]:,}</td></tr>'
        for index in range(filled[0], filled[-1] + 1)
    )
    return (
        f'<div class="scroll"><table>{_head((t("tokens"), "number"), ("", ""), (t("samples"), "number"))}{rows}</table></div>'
    )


def _previews(previews: list[Preview]) -> str:
    if not previews:
        return ""
    legend = (("trained", t("trained")), ("", t("not trained")), ("special", t("control token")))
    samples = " ".join(f'<span class="{css}">{escape(label)}</span>' for css, label in legend)
    parts = [f"<h2>{escape(t('As the model sees it'))}</h2>", f'<p class="tokens">{samples}</p>']
    for preview in previews:
        facts = t("{tokens} token{tokens:s}, {trained} of them trained", tokens=len(preview.tokens), trained=preview.trained)
        place = f"{preview.file}:{preview.line}"
        parts.append(f'<h3>{escape(place)} <span class="dim">{escape(facts)}</span></h3>')
        spans = "".join(
            f'<span class="{_classes(token)}" title="{_title(token)}">{escape(token.text)}</span>' for token in preview.tokens
        )
        parts.append(f'<div class="tokens">{spans}</div>')
        promises = "".join(
            f'<li class="{"good" if holds else "error"}">{"✓" if holds else "✗"} {escape(promise)}</li>'
            for promise, holds in preview.promises
        )
        parts.append(f'<ul class="plain">{promises}</ul>')
    return "\n".join(parts)


def _classes(token: PreviewToken) -> str:
    return " ".join(["trained"] * token.is_trained + ["special"] * token.is_special)


def _title(token: PreviewToken) -> str:
    return str(token.id) if token.weight in (0, 1) else f"{token.id} ×{token.weight:g}"


def _head(*columns: tuple[str, str]) -> str:
    return "<tr>" + "".join(f'<th class="{css}">{escape(label)}</th>' for label, css in columns) + "</tr>"
