"""Everything heavy that test processes need; imported once, by the server they are forked from (see tests/processes.py)."""

import importlib

from finetuning.runtime.garbage import begin_imports, end_imports

MODULES = (
    "peft",
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "transformers.models.llama.modeling_llama",
    "finetuning.formats.peft.sharded",
    "finetuning.formats.peft.write",
    "finetuning.training.evaluate",
    "finetuning.training.sample_answers",
    "finetuning.training.step",
)

begin_imports()
for name in MODULES:
    importlib.import_module(name)
end_imports()
