"""The words for what a check of data finds: a sentence for each finding, and a name for each kind of them."""

from collections.abc import Mapping

from finetuning.i18n import t

Values = Mapping[str, str | int]


def describe(code: str, values: Values) -> str:
    """The sentence for a finding, without its place and excerpt."""
    match code:
        case "unreadable":
            return t("cannot be read ({reason}); the file is damaged, or not what its name says", **values)
        case "inflates":
            return t("unpacks to more than {times} times its size; the file is damaged, or made to fill the memory", **values)
        case "utf_16":
            return t("the file is UTF-16; save it as UTF-8: iconv -f UTF-16 -t UTF-8")
        case "json_array":
            return t("one JSON array; a line for each object is needed: `finetune data prepare` converts it")
        case "line_too_large" if "row" in values:
            return t(
                "a row of more than {limit_mib} MiB, far more than a model reads in one sample; divide the text into several "
                "samples",
                **values,
            )
        case "line_too_large":
            return t(
                "a line of more than {limit_mib} MiB, far more than a model reads in one sample, and nothing behind it was "
                "read; divide the text into several samples, or add the line end that is missing",
                **values,
            )
        case "no_records":
            return t("holds no samples")
        case "not_utf8" if "column" in values:
            return t("not UTF-8 (in column '{column}'); write it as text", **values)
        case "not_utf8" if values["looks_like"]:
            return t("not UTF-8 (byte {position}), it looks like {looks_like}; save the file as UTF-8", **values)
        case "not_utf8":
            return t("not UTF-8 (byte {position}); save the file as UTF-8", **values)
        case "bad_json" if values.get("reason") == "depth":
            return t("not valid JSON: nested too deeply")
        case "bad_json" if values.get("reason") == "digits":
            return t("not valid JSON: a number of thousands of digits")
        case "bad_json":
            return t("not valid JSON ({message} at column {column})", **values)
        case "not_an_object":
            return t("must be a JSON object with 'input' and 'output'")
        case "missing_field":
            return t("field '{name}' is missing; found {found}", **values)
        case "wrong_type" if values.get("wanted") == "messages":
            return t("field '{name}' must be a list of objects, one for each message, but is {value}", **values)
        case "wrong_type" if values.get("wanted") == "parts":
            return t("field '{name}' must be text, or a list of parts of the type 'text', but has {value}", **values)
        case "wrong_type" if values.get("wanted") == "calls":
            return t(
                "field '{name}' must hold calls, each a function with its 'name' and 'arguments', but has {value}", **values
            )
        case "wrong_type" if values.get("wanted") == "arguments":
            return t("field '{name}' of a call must be an object, or the JSON text of one, but is {value}", **values)
        case "wrong_type" if values.get("wanted") == "tools":
            return t("field '{name}' must be a list of functions, each with its 'name', but has {value}", **values)
        case "wrong_type" if values.get("wanted") == "depth":
            return t("field '{name}' is nested more than {limit} levels deep: {value}", **values)
        case "wrong_type" if values.get("wanted") == "history":
            return t("field '{name}' must be a list of pairs of question and answer, but is {value}", **values)
        case "wrong_type":
            return t("field '{name}' must be text, but is {value}", **values)
        case "wrong_role":
            return t("the role '{role}' is unknown; use {roles}", **values)
        case "wrong_turns":
            return t("a conversation must hold a question and end with the assistant's answer; found {found}", **values)
        case "unknown_call":
            return t("the result of a call '{id}' that no message before it makes", **values)
        case "wrong_weight":
            return t(
                "field '{name}' is {value}; an answer is trained (1) or not (0); only 'weight' may be between, from 0.000001",
                **values,
            )
        case "several_weights":
            return t("{names} do not agree on whether the answer is trained", **values)
        case "nothing_trained":
            return t("no answer of it is trained: each has the weight 0")
        case "unsupported_field":
            return t(
                "field '{name}' would change the sample and is not supported: {value}; remove the field, or leave the "
                "sample out",
                **values,
            )
        case "several_formats":
            return t("holds {names} of another format as well, with a text of its own; keep the fields of one format", **values)
        case "own_field":
            return t(
                "has a field '{name}' of its own, for which --columns gives '{column}'; name it there, too, or remove it",
                **values,
            )
        case "two_systems":
            return t("has two different system messages: in 'messages' and in 'system'")
        case "lone_surrogate":
            return t("half a character (an unpaired \\ud800 … \\udfff escape), which no text can hold")
        case "empty_answer":
            return t("the answer ('{name}') is empty", **values)
        case "empty_question":
            return t("the question ('{name}') is empty", **values)
        case "no_question":
            return t("a text has no question that could be answered")
        case "no_chat_template":
            return t(
                "the tokenizer has no chat template (a base model?), so only {form} can be read; use an -Instruct model, or "
                "give --prompt_template",
                form='{"text": …}',  # braces would be places of the sentence
            )
        case "system_has_no_place":
            return t("has a system message, for which --prompt_template has no place")
        case "turns_have_no_place":
            return t("has several turns, but the tokenizer's chat template cannot be repeated; give --prompt_template")
        case "conversation_has_no_place":
            return t(
                "has more than a question and an answer in turns ({what}), for which --prompt_template has no place", **values
            )
        case "no_place_in_form":
            return t("has more than `--to {form}` can hold; it is not written", **values)
        case "template_differs" if values["where"] == "not_written":
            return t("the chat template does not write '{theirs}' of it; remove the field, or use another template", **values)
        case "template_differs" if values["where"] == "error":
            return t("the chat template fails on it ({theirs}); change the sample, or give --prompt_template", **values)
        case "template_differs":
            return t(
                "the chat template depends on the text itself: it writes {theirs!r} where the sample has {ours!r}; change "
                "the sample, or give --prompt_template",
                **values,
            )
        case "tokenizer_fails":
            return t("the tokenizer fails on this sample: {error}", **values)
        case "wrong_begin":
            return t("would not begin with exactly one begin-of-text token")
        case "no_end_token":
            return t("an answer would not end with a trained end token, so the model would not learn to stop there")
        case "token_beyond_table":
            return t(
                "token {token!r} has the id {id}, and the model's embedding table only {size} rows; enlarge the table, or "
                "use the tokenizer that belongs to the model",
                **values,
            )
        case "too_long" if "at_least" in values:
            return t(
                "more than {at_least} tokens do not fit --seq_length {seq_length}; the answer would be cut; shorten it, "
                "or choose with --truncation",
                **values,
            )
        case "too_long":
            return t(
                "{tokens} tokens ({prompt} of them prompt) do not fit --seq_length {seq_length}; the answer would be cut; "
                "shorten it, give --seq_length {tokens} or more, or choose with --truncation",
                **values,
            )
        case "byte_order_mark":
            return t("begins with a byte order mark; it is skipped")
        case "duplicate_key":
            return t("key '{name}' stands twice; the last one counts", **values)
        case "not_a_number":
            return t("{value} is not JSON; it is read as a number", **values)
        case "unknown_field" if not values["name"]:
            return t("not used: {count} field{count:s} of other names", **values)
        case "unknown_field":
            return t("field '{name}' is not used ({count} time{count:s} in this file)", **values)
        case "replacement_character":
            return t("holds '\ufffd', the trace of a text read in the wrong encoding")
        case "pasted_template":
            return t(
                "a chat template's '{text}' is part of the text; the template is added here, so it would stand twice", **values
            )
        case "special_token":
            return t("'{token}' inside the text is treated as plain text, never as a control token", **values)
        case "exact_duplicate":
            return t("the same as {other}", **values)
        case "near_duplicate":
            return t("almost the same as {other} (about {percent} %)", **values)
        case "leakage" if values["kind"] == "same":
            return t("also in {other}: measured on it, the model looks better than it is", **values)
        case "leakage" if values["kind"] == "question":
            return t("the same question as {other}: measured on it, the model looks better than it is", **values)
        case "leakage":
            return t(
                "almost the same as {other} (about {percent} %): measured on it, the model looks better than it is", **values
            )
        case "simplified_chinese":
            return t("Simplified characters in Traditional Chinese data: {characters}", **values)
        case "traditional_chinese":
            return t("Traditional characters in Simplified Chinese data: {characters}", **values)
        case "input_cut" if "at_least" in values:
            return t("more than {at_least} tokens do not fit --seq_length {seq_length}: the input is cut", **values)
        case "input_cut":
            return t(
                "{tokens} tokens do not fit --seq_length {seq_length}: {removed} token{removed:s} of the input are cut",
                **values,
            )
        case "dropped_too_long" if "at_least" in values:
            return t("more than {at_least} tokens do not fit --seq_length {seq_length}: the sample is dropped", **values)
        case "dropped_too_long":
            return t("{tokens} tokens do not fit --seq_length {seq_length}: the sample is dropped", **values)
    raise AssertionError(code)


def title(code: str) -> str:
    """The name of a kind of finding, for headings and counts."""
    match code:
        case "unreadable":
            return t("unreadable file")
        case "inflates":
            return t("unpacks without end")
        case "utf_16":
            return t("UTF-16 file")
        case "json_array":
            return t("JSON array")
        case "line_too_large":
            return t("line too large")
        case "no_records":
            return t("empty file")
        case "not_utf8":
            return t("not UTF-8")
        case "bad_json":
            return t("not valid JSON")
        case "not_an_object":
            return t("not an object")
        case "missing_field":
            return t("missing field")
        case "wrong_type":
            return t("wrong type")
        case "wrong_role":
            return t("unknown role")
        case "wrong_turns":
            return t("wrong turns")
        case "unknown_call":
            return t("result of no call")
        case "wrong_weight":
            return t("wrong weight")
        case "several_weights":
            return t("contradicting weights")
        case "nothing_trained":
            return t("nothing to train")
        case "unsupported_field":
            return t("field that is not supported")
        case "several_formats":
            return t("several formats in one record")
        case "own_field":
            return t("field and column of one name")
        case "two_systems":
            return t("two system messages")
        case "lone_surrogate":
            return t("half a character")
        case "empty_answer":
            return t("empty answer")
        case "empty_question":
            return t("empty question")
        case "no_question":
            return t("no question")
        case "no_chat_template":
            return t("no chat template")
        case "system_has_no_place":
            return t("system message without a place")
        case "turns_have_no_place":
            return t("several turns without a place")
        case "conversation_has_no_place":
            return t("conversation without a place")
        case "no_place_in_form":
            return t("more than the form holds")
        case "template_differs":
            return t("the chat template writes it otherwise")
        case "tokenizer_fails":
            return t("the tokenizer fails")
        case "wrong_begin":
            return t("wrong begin of text")
        case "no_end_token":
            return t("no end token")
        case "token_beyond_table":
            return t("token without an embedding")
        case "too_long":
            return t("too long")
        case "byte_order_mark":
            return t("byte order mark")
        case "duplicate_key":
            return t("key twice")
        case "not_a_number":
            return t("NaN or Infinity")
        case "unknown_field":
            return t("field that is not used")
        case "replacement_character":
            return t("replacement character")
        case "pasted_template":
            return t("pasted template")
        case "special_token":
            return t("special token in the text")
        case "exact_duplicate":
            return t("exact duplicate")
        case "near_duplicate":
            return t("near duplicate")
        case "leakage":
            return t("leakage between the parts")
        case "simplified_chinese":
            return t("Simplified in Traditional Chinese")
        case "traditional_chinese":
            return t("Traditional in Simplified Chinese")
        case "input_cut":
            return t("input cut")
        case "dropped_too_long":
            return t("dropped: too long")
    raise AssertionError(code)
