"""Everything heavy that test processes need; imported once, by the server they are forked from (see tests/processes.py)."""

import peft  # noqa: F401
import pytest  # noqa: F401
import torch._dynamo
import torch.distributed.checkpoint  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import finetuning.formats.peft.sharded
import finetuning.formats.peft.write
import finetuning.training.evaluate
import finetuning.training.sample_answers
import finetuning.training.step  # noqa: F401
