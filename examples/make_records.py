"""Writes `data/records`: what somebody did on some day, as a sentence and as a record.

A model that has not seen them cannot guess the five keys, their order, or that a number in words becomes digits; a reader
sees at once whether an answer is right. English and Traditional Chinese in turn, 100 samples to train, 20 to validate, 20 to
test, no record twice. The same seed gives the same bytes.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "data" / "records"
SIZES = {"training": 100, "validation": 20, "test": 20}
SEED = 1234


@dataclass(frozen=True)
class Language:
    """Words are separated by blanks."""

    sentences: tuple[str, ...]
    names: str
    deeds: str
    things: str
    days: str
    numbers: str  # in words, from 2 on


ENGLISH = Language(
    sentences=(
        "{name} {deed} {number} {thing} on {day}.",
        "On {day}, {name} {deed} {number} {thing}.",
        "On {day} {number} {thing} were {deed} by {name}.",
        "It was {day} when {name} {deed} {number} {thing}.",
        '{name} says: "On {day} I {deed} {number} {thing}."',
        "{Number} {thing}: that is what {name} {deed} on {day}.",
        "Did you hear? {name} {deed} {number} {thing} last {day}!",
        "{day}: {number} {thing} {deed} ({name})",
    ),
    names="Alice Ben Carol David Emma Frank Grace Henry Ivy Jack Karen Leo Maria Nina Oscar Paula Robert Susan",
    deeds="sold bought packed mailed painted repaired ordered returned cleaned delivered",
    things="boxes chairs lamps books bottles tables clocks umbrellas jackets bicycles plates mirrors keys boats",
    days="Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    numbers="two three four five six seven eight nine ten eleven twelve",
)
CHINESE = Language(
    sentences=(
        "{name}在{day}{deed}{number}{thing}。",
        "{day}，{name}{deed}了{number}{thing}。",
        "{day}那天，{number}{thing}由{name}{deed}。",
        "{name}說：「我{day}{deed}了{number}{thing}。」",
        "{number}{thing}，是{name}在{day}{deed}的。",
        "聽說了嗎？{name}上{day}{deed}了{number}{thing}！",
        "{day}：{deed}{number}{thing}（{name}）",
    ),
    names="王小明 林美華 陳大文 張淑芬 李志豪 黃雅婷 吳建宏 蔡佩珊 劉家豪 許文山 鄭心怡 謝明哲",
    deeds="賣出 買進 修好 寄出 訂購 退回 送出 做好",
    things="張椅子 盞檯燈 本書 把雨傘 件外套 台腳踏車 個蛋糕 顆鳳梨 杯奶茶 盒餅乾 雙鞋子 支手機",  # each after its measure word
    days="星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    numbers="兩 三 四 五 六 七 八 九 十 十一 十二",
)


def make_sample(language: Language, draw: random.Random) -> dict[str, str]:
    name, deed, thing, day = (
        draw.choice(words.split()) for words in (language.names, language.deeds, language.things, language.days)
    )
    numbers = language.numbers.split()
    count = draw.randint(2, len(numbers) + 1)
    number = draw.choice([numbers[count - 2], str(count)])
    if language is CHINESE and number.isdecimal():
        number = f" {number} "  # digits stand apart from Chinese characters, as is usual in Taiwan …
    sentence = draw.choice(language.sentences).format(
        name=name, deed=deed, day=day, number=number, Number=number.capitalize(), thing=thing
    )
    sentence = sentence.replace("， ", "，").strip()  # … but not from punctuation
    what = thing[1:] if language is CHINESE else thing
    record = {"who": name, "did": deed, "count": count, "what": what, "day": day}
    return {"input": sentence, "output": json.dumps(record, ensure_ascii=False)}


def make_records(seed: int = SEED) -> dict[str, list[dict[str, str]]]:
    """The splits, by name."""
    draw, seen = random.Random(seed), set()
    splits = {}
    for split, size in SIZES.items():
        samples: list[dict[str, str]] = []
        while len(samples) < size:
            sample = make_sample((ENGLISH, CHINESE)[len(samples) % 2], draw)
            if sample["output"] not in seen:
                seen.add(sample["output"])
                samples.append(sample)
        splits[split] = samples
    return splits


def write_records(folder: Path, seed: int = SEED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, samples in make_records(seed).items():
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write sentences and their records, in English and Traditional Chinese.")
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="default: examples/data/records")
    write_records(parser.parse_args().folder)


if __name__ == "__main__":
    main()
