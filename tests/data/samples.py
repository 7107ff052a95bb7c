"""Samples that several tests use."""


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    """Different pairs of different lengths."""
    return [
        {"input": f"第 {i} 題：{i} 加 {i * i} 等於多少？", "output": f"答案是 {i + i * i}。" + "因為這樣算。" * (i % 7)}
        for i in range(start, start + count)
    ]
