"""A module for `LimitedProcess`, as finetuning.data.prompts.limited is one; it does what a request asks for."""

import builtins
import os
import signal
import time
from typing import Any

from finetuning.errors import InputError
from finetuning.runtime import limited_process

IDLE_S = 0.5


def answer(request: Any) -> Any:
    match request:
        case ["process"]:
            return os.getpid()
        case ["long", count]:
            return "x" * count
        case ["end by", number]:
            os.kill(os.getpid(), number)
            time.sleep(60)
        case ["spin"]:
            while True:
                pass
        case ["sleep"]:
            signal.pause()
        case ["memory"]:
            return len(bytearray(8 << 30))
        case ["print"]:
            print("not an answer", flush=True)
            os.write(1, b"neither is this")
            return "answer"
        case ["exit", code]:
            os._exit(code)
        case ["raise", name]:
            raise vars(builtins)[name]("a")
        case ["refuse"]:
            raise InputError(["one", "two"])
    return request


if __name__ == "__main__":
    limited_process.IDLE_S = IDLE_S
    limited_process.serve(answer)
