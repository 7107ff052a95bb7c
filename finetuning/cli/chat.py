"""`finetune chat MODEL`: a conversation in the terminal; answers appear as they are made."""

from collections.abc import Sequence

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.model_argument import open_given_model
from finetuning.cli.model_flags import add_model_flags, add_prompt_flags, add_sampling_flags, chosen_device, chosen_sampling
from finetuning.config.llama import LlamaConfig
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.i18n import printable, t
from finetuning.inference.conversation import Conversation
from finetuning.inference.generate import TextStream, open_conversation
from finetuning.inference.loading import LoadedModel, load_model
from finetuning.inference.plain import PlainConversation
from finetuning.inference.samples import check_prompts, check_tokens

RESET, LEAVE = "/reset", "/exit"


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("chat", t("A conversation with a model."))
    add_model_flags(parser)
    add_sampling_flags(parser, max_new_tokens=512, batched=False)
    add_prompt_flags(parser)
    given = parser.parse_args(argv)
    sampling = chosen_sampling(given)
    device, dtype = chosen_device(given)
    stored = open_given_model(given.model, given.base)
    model = load_model(stored, device, dtype, given.prompt_template, given.system_prompt)
    print(t("{leave} or Ctrl-D leaves, {reset} begins anew, Ctrl-C ends an answer", leave=LEAVE, reset=RESET))
    conversation = open_conversation(model.net, sampling, model.prompt_format.end_token_ids)
    try:
        _talk(model, conversation, stored.base.config)
    finally:
        conversation.close()
    return EXIT_FINISHED


def _talk(model: LoadedModel, conversation: Conversation | PlainConversation, config: LlamaConfig) -> None:
    sampling = conversation.sampling
    turns: list[tuple[str, str]] = []
    while True:
        try:
            question = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if question == LEAVE:
            return
        if question == RESET:
            turns = []
            continue
        if not question:
            continue
        if turns and model.prompt_format.parts.again is None:
            turns = []  # its template writes one question only
        conversation_so_far = Sample(len(turns) + 1, question, "", history=tuple(turns))
        check_prompts([conversation_so_far], model.prompt_format, config, with_answer=False)
        prompt = model.prompt_format.encode_prompt(conversation_so_far)
        check_tokens([conversation_so_far], [prompt], 0, model.prompt_format, config)
        if len(prompt) + sampling.max_new_tokens > conversation.num_positions:
            raise InputError(_too_long(len(prompt), sampling.max_new_tokens, conversation.num_positions, config))
        stream = TextStream(model.prompt_format)
        try:
            for token in conversation.answer(prompt):
                print(printable(stream.add(token)), end="", flush=True)
        except KeyboardInterrupt:
            print(" …", end="")
        print(printable(stream.end()))
        turns.append((question, stream.shown))


def _too_long(tokens: int, new: int, positions: int, config: LlamaConfig) -> str:
    if positions < config.max_position_embeddings:
        return t(
            "the conversation has grown to {tokens} token{tokens:s}, and with --max_new_tokens {new} the GPU's memory holds "
            "only {limit} positions; begin anew",
            tokens=tokens,
            new=new,
            limit=positions,
        )
    return t(
        "the conversation has grown to {tokens} token{tokens:s}, and with --max_new_tokens {new} the model "
        "has only {limit} "
        "positions; begin anew",
        tokens=tokens,
        new=new,
        limit=positions,
    )
