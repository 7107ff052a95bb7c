"""`python llama_cpp_convert.py SOURCE MODEL OUT.gguf TYPE`: llama.cpp's own converter, which lies in SOURCE, on a model folder.

The converter knows a tokenizer's rule for splitting text by a hash of what the tokenizer makes of a test text, and so only
published tokenizers. That of the tests splits as Llama 3's does, so the rule's name, llama-bpe, is given; the test compares
what llama.cpp then makes of texts with the tokenizer itself.
"""

import sys

source, model, out, kind = sys.argv[1:]
sys.path[:0] = [source, f"{source}/gguf-py"]

import convert_hf_to_gguf  # noqa: E402
from conversion.base import TextModel  # noqa: E402

TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, "--outtype", kind]
convert_hf_to_gguf.main()
