"""A data folder with every defect a check knows, each in a line of its own."""

import json
from pathlib import Path

from tests.data.samples import pairs

LONG = "這一題很長。" * 400
STORY = (
    "從前在台灣的一個小村子裡，住著一位很會說故事的老爺爺，每天傍晚孩子們都圍著他，聽他講山上的動物怎麼過冬，"
    "溪裡的魚怎麼認得回家的路，還有他年輕時候走了三天三夜才到城裡的那一次旅行。"
)


def good(line: int) -> dict[str, str]:
    return pairs(1, 1000 + 37 * line)[0]


# (line as written, code of its finding or None); line numbers follow from the order.
TRAINING: list[tuple[object, str | None]] = [
    (b"\xef\xbb\xbf" + json.dumps(good(1)).encode(), "byte_order_mark"),
    (b'{"input": "a", "output": "b"', "bad_json"),
    ('{"input": "請問", "output": "回答"}'.encode("cp950"), "not_utf8"),
    (b'{"input": "doubled", "output": "one", "output": "two hundred"}', "duplicate_key"),
    ({"input": "only a question"}, "missing_field"),
    ({"input": "a number for an answer", "output": 3}, "wrong_type"),
    (["input", "output"], "not_an_object"),
    ({"input": "an empty answer", "output": ""}, "empty_answer"),
    ({"input": "a blank answer", "output": " \n\u3000\t"}, "empty_answer"),
    ({"input": LONG, "output": "好"}, "too_long"),
    ({"input": "什麼是 <|eot_id|>？", "output": "它是結束記號。"}, "special_token"),
    ({"input": "<|start_header_id|>user<|end_header_id|>\n\n你好", "output": "你好，請說。"}, "pasted_template"),
    ({"input": "### Instruction:\n翻譯成英文：貓", "output": "cat"}, "pasted_template"),
    ({"input": STORY, "output": "好的，這是一個很長的故事。"}, None),
    (good(15), None),
    (good(15), "exact_duplicate"),
    ({"input": STORY + "！", "output": "好的，這是一個很長的故事。"}, "near_duplicate"),
    ({"input": "请问这个软件怎么用？", "output": "請先安裝。"}, "simplified_chinese"),
    ({"input": "這裡有\ufffd亂碼", "output": "看得出來。"}, "replacement_character"),
    (b'{"input": "half \\ud83d", "output": "b"}', "lone_surrogate"),
    ({"messages": [{"role": "assistant", "content": "我先說"}]}, "wrong_turns"),
    (b"", None),
    *[(good(100 + line), None) for line in range(20)],
]
VALIDATION: list[tuple[object, str | None]] = [
    (good(100), "leakage"),
    ({"input": STORY, "output": "好的，這是一個很長的故事！"}, "leakage"),
    ({"input": good(101)["input"], "output": "我不知道，這一題沒有在課本裡教過，也許下一次上課會說。"}, "leakage"),
    (good(200), None),
]
TEST = '{"input": "一", "output": "二"}\n'.encode("utf-16")


def write_defects(folder: Path) -> set[tuple[str, int, str]]:
    """Writes the folder; returns (file, line, code) of everything that has to be found."""
    folder.mkdir(parents=True)
    expected = {("test.jsonl", 1, "utf_16")}
    for name, records in (("training.jsonl", TRAINING), ("validation.jsonl", VALIDATION)):
        lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r, _ in records]
        (folder / name).write_bytes(b"\n".join(lines) + b"\n")
        expected |= {(name, line, code) for line, (_, code) in enumerate(records, start=1) if code}
    (folder / "test.jsonl").write_bytes(TEST)
    return expected
