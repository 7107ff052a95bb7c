"""docs/flags.md and its Chinese twin, written from the settings: `python -m finetuning.cli.flags_page` (part of `make fix`)."""

from pathlib import Path

from finetuning.cli.main import shown_default
from finetuning.config.settings import FLAGS, field_types
from finetuning.i18n import set_language, t, translated

PAGES = {"en": "flags.md", "zh-TW": "flags.zh-TW.md"}


def flags_page(language: str) -> str:
    """The page in a language; the language of messages is English again afterwards."""
    set_language(language)
    try:
        lines = [
            f"# {t('Flags')}",
            "",
            t("Of `finetune train`, which is `python finetune.py`. `--help` shows the same groups in short."),
            t("This page is written from the code; `make fix` writes it anew."),
        ]
        for title in dict.fromkeys(flag.group for flag in FLAGS.values()):
            lines += [
                "",
                f"## {translated(title)}",
                "",
                f"| {t('Flag')} | {t('Default')} | {t('What it is for')} |",
                "| --- | --- | --- |",
            ]
            lines += [_row(name) for name, flag in FLAGS.items() if flag.group == title]
        return "\n".join(lines) + "\n"
    finally:
        set_language("en")


def _row(name: str) -> str:
    flag, default = FLAGS[name], shown_default(name)
    shown = f"`{default}`" if default and flag.default_means is None else default
    if not shown:
        required = name in ("hf_model_id", "dataset_path")
        shown = t("required") if required else t("off") if field_types()[name] is bool else t("none")
    if field_types()[name] is bool:
        shown = t("off")
    names = f"`{flag.short}`, `--{name}`" if flag.short else f"`--{name}`"
    choices = f" ({', '.join(f'`{choice}`' for choice in flag.choices)})" if flag.choices else ""
    needs = t("; only with {needed}", needed=f"`{flag.needs}`") if flag.needs else ""
    return f"| {names} | {shown} | {translated(flag.details or flag.help)}{choices}{needs} |"


def main(folder: Path = Path("docs")) -> None:
    for language, name in PAGES.items():
        (folder / name).write_text(flags_page(language), encoding="utf-8")


if __name__ == "__main__":
    main()
