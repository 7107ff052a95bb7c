"""Whether a model that is served is the one that was trained: the same prompts, answers and log-probabilities as our decoder's.

In: our model, and one as it is served (finetuning.inference.served). Out: a `Proof`, which names what differs. A server that
computes in 16 bit rounds otherwise than we do, so the second likeliest token may be chosen where two are almost equally likely;
that is told from a fault by how likely our decoder finds the token that was chosen.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.records import Sample
from finetuning.errors import RunError
from finetuning.i18n import t
from finetuning.inference.compare import observe
from finetuning.inference.evaluate import SampleLoss, mean_loss, sample_losses
from finetuning.inference.generate import REPLACEMENT
from finetuning.inference.loading import LoadedModel
from finetuning.inference.served import Served, ServedAnswer
from finetuning.model.llama import Llama

# Nats by which 16-bit weights, activations and keys may move a token's log-probability. llama.cpp moved those of a small model
# by 4e-6 (f16) to 4e-4 (q4_k_m), and by 0.12 (f16) of one that had not learned its answers (benchmarks/serving.md).
TOLERANCE = 0.15
# By which share the perplexity may grow; some three times what llama.cpp publishes for an 8B (tools/quantize/README.md). Few
# tokens make that uncertain: some standard errors more are allowed, and at most as much again.
PERPLEXITY_SHARES = {"fp8": 0.03, "q8_0": 0.01, "q6_k": 0.02, "q5_k_m": 0.04, "q4_k_m": 0.10}
ERRORS = 2
LONG_PROMPT, LONG_ANSWER = 4096, 8  # tokens; Llama 3.1's scaling changes what turns once in 2048 or more
EXACT, GROWTH = 1e-3, 20  # of a difference on a long prompt, where short ones agree better
NEARER = 4  # times, that another model must be to be named
SHOWN_CHARACTERS = 60
# Where tokenizers with other rules part: blanks, line ends, digits, contractions, scripts, marks, emoji, and no special tokens.
TEXTS = (
    "1 22 333 4444 55555  2026-11-28 3.14159 1,000,000",
    "I'LL we've don't it's 'RE 'tis rock'n'roll",
    "  two  three   four    \n\n\n  \t\t tab\r\n end \n",
    "如何在資料中搜尋字串？「引號」，頓號、分號；",
    "混合 English 與中文123字ABC的句子。",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # …\n",
    "Ünïcödé naïve café ＡＢＣ ﬁ ½ ① ² Ⅷ",
    "😀👩‍👩‍👧‍👦🇹🇼🏳️‍🌈 ❤️ é (e\u0301)",
    "https://example.com/a?b=c&d=%20#e user@example.org C:\\path\\file",
    "日本語テスト 한국어 시험 العربية עברית हिन्दी ไทย",
)


@dataclass(frozen=True)
class OurAnswer:
    tokens: list[int]  # greedy, without the end token
    logprobs: Tensor  # [A + 1, V], at the answer's positions and the one after it; float32, CPU
    has_ended: bool


@dataclass
class Proof:
    """What was compared. `faults` name what differs; empty: it is the same model."""

    prompts: int
    same_prompts: int | None = None  # None: the server does not tell tokens
    same_texts: int | None = None
    same_answers: int = 0
    first_differences: list[tuple[int, int]] = field(default_factory=list)  # prompt, and after how many tokens
    largest_difference: float | None = None  # of a log-probability, along what both answer
    compared_tokens: int = 0
    perplexity: float | None = None  # ours
    served_perplexity: float | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        return not self.faults


def prove(
    model: LoadedModel,
    served: Served,
    samples: list[Sample],
    max_new_tokens: int,
    *,
    quantization: str | None = None,
    long_sample: Sample | None = None,
    others: Callable[[], Iterable[tuple[str, Llama]]] = tuple,
) -> Proof:
    """
    Args:
        quantization: of the served weights, a key of PERPLEXITY_SHARES; None: 16 bit or more.
        long_sample: a prompt of so many tokens that another RoPE scaling shows, which the others do not have.
        others: what may be served instead, with what that would be called; only asked for where log-probabilities differ.
    """
    prompt_format = model.prompt_format
    prompts = [prompt_format.encode_prompt(sample) for sample in samples]
    proof = Proof(len(samples))
    answers = [served.answer(prompt_format.messages(sample), max_new_tokens) for sample in samples]
    ours = [_our_answer(model.net, prompt, prompt_format.end_token_ids, max_new_tokens) for prompt in prompts]
    _compare_prompts(proof, prompt_format, prompts, answers)
    _compare_texts(proof, prompt_format, served)
    same_prompts = not proof.faults
    _compare_answers(proof, prompt_format, ours, answers, TOLERANCE if quantization is None else None)
    _compare_perplexity(proof, model, served, samples, quantization)
    if long_sample is not None and not proof.faults:
        _compare_long(proof, model, served, long_sample)
    if same_prompts and quantization is None and (proof.largest_difference or 0.0) > TOLERANCE:
        named = _named(others(), prompts, answers, prompt_format, proof.largest_difference or 0.0)
        proof.faults += [named] if named is not None else []
    return proof


def _our_answer(net: Llama, prompt: list[int], ends: tuple[int, ...], max_new_tokens: int) -> OurAnswer:
    found = observe(net, [prompt], None, ends, max_new_tokens)
    (answer,), (logits_PV,) = found.answers, found.logits
    return OurAnswer(answer, logits_PV.log_softmax(-1), len(answer) < max_new_tokens)


def _compare_prompts(
    proof: Proof, prompt_format: PromptFormat, prompts: list[list[int]], answers: Sequence[ServedAnswer]
) -> None:
    told = [(ours, answer.prompt) for ours, answer in zip(prompts, answers, strict=True) if answer.prompt is not None]
    if told:
        proof.same_prompts = sum(ours == theirs for ours, theirs in told)
        different = next(((ours, theirs) for ours, theirs in told if ours != theirs), None)
        if different is not None:
            proof.faults.append(prompt_difference(prompt_format, *different))
        return
    lengths = [(len(ours), answer.prompt_length) for ours, answer in zip(prompts, answers, strict=True)]
    wrong = next(((ours, theirs) for ours, theirs in lengths if theirs not in (None, ours)), None)
    if wrong is not None:
        proof.faults.append(
            t(
                "template or tokenizer: a prompt has {ours} token{ours:s} in training and {theirs} as served",
                ours=wrong[0],
                theirs=wrong[1],
            )
        )


def prompt_difference(prompt_format: PromptFormat, ours: list[int], theirs: list[int]) -> str:
    """What it is that makes two prompts different, in a sentence."""
    begin = prompt_format.begin_token_id
    if begin is not None and theirs == [begin, *ours]:
        return t("template: the begin token is written twice")
    if begin is not None and [begin, *theirs] == ours:
        return t("template: the begin token is missing")
    trained, served = prompt_format.decode_all([ours, theirs], skip_special_tokens=False)
    if trained == served:
        at = next(i for i, (a, b) in enumerate(zip(ours, [*theirs, None], strict=False)) if a != b)
        text = prompt_format.decode(ours[at : at + 4], skip_special_tokens=False)
        return t("tokenizer: the same prompt becomes other tokens from {text!r} on: another rule of splitting text", text=text)
    if trained.startswith(served):
        return t(
            "template: the prompt ends before {text!r}, without the generation prompt", text=_shown(trained[len(served) :])
        )
    at = next((i for i, (a, b) in enumerate(zip(trained, served, strict=False)) if a != b), min(len(trained), len(served)))
    return t(
        "template: in training the prompt went on with {trained!r}, as served with {served!r}",
        trained=_shown(trained[at:]),
        served=_shown(served[at:]),
    )


def _compare_texts(proof: Proof, prompt_format: PromptFormat, served: Served) -> None:
    theirs = served.tokenize(TEXTS)
    if theirs is None:
        return
    ours = prompt_format.encode_texts(list(TEXTS))
    proof.same_texts = sum(a == b for a, b in zip(ours, theirs, strict=True))
    wrong = next((text for text, a, b in zip(TEXTS, ours, theirs, strict=True) if a != b), None)
    if wrong is not None:
        proof.faults.append(
            t("tokenizer: {text!r} becomes other tokens than in training: another rule of splitting text", text=_shown(wrong))
        )


def _compare_answers(
    proof: Proof,
    prompt_format: PromptFormat,
    ours: Sequence[OurAnswer],
    answers: Sequence[ServedAnswer],
    tolerance: float | None,
) -> None:
    ends, differences, goes_on, unlikely = prompt_format.end_token_ids, [], False, 0.0
    for number, (own, answer) in enumerate(zip(ours, answers, strict=True)):
        tokens = _tokens_of(prompt_format, own, answer)
        common = _common(own.tokens, tokens)
        if common == len(own.tokens) == len(tokens) and answer.has_ended == own.has_ended:
            proof.same_answers += 1
        else:
            proof.first_differences.append((number, common))
            chosen = list(tokens[common : common + 1]) or list(ends)  # it ended here
            at = own.logprobs[common]
            gap = (at.max() - at[chosen].max()).item()
            goes_past = own.has_ended and common == len(own.tokens)
            goes_on |= goes_past and (gap > TOLERANCE or chosen[0] in ends)
            unlikely = max(unlikely, 0.0 if goes_past else gap)
        for place, logprob in aligned(answer.logprobs, tokens[:common]):
            differences.append(abs(own.logprobs[place, tokens[place]].item() - logprob))
    proof.compared_tokens, proof.largest_difference = len(differences), max(differences, default=None)
    if goes_on:
        proof.faults.append(
            t(
                "stop token: an answer goes on where it ended in training; give the server these as stops: {ends}",
                ends=", ".join(prompt_format.source.ends),
            )
        )
    largest = max(proof.largest_difference or 0.0, unlikely)
    if tolerance is not None and largest > tolerance:
        proof.faults.append(
            t(
                "weights: the log-probability of a token differs by {difference:.3g}, and rounding explains {tolerance:g}: "
                "other weights, an adapter that is missing or on another base, another RoPE scaling, or coarse quantization",
                difference=largest,
                tolerance=tolerance,
            )
        )


def _tokens_of(prompt_format: PromptFormat, own: OurAnswer, answer: ServedAnswer) -> list[int]:
    """Of a served answer, without the end token; where the server tells only text, those that the text becomes."""
    if answer.tokens is not None:
        return without_end(answer.tokens, prompt_format.end_token_ids)
    # Of a character that the limit has cut, a server tells nothing.
    if answer.text == prompt_format.decode(own.tokens).rstrip(REPLACEMENT) and (answer.text or answer.has_ended):
        return own.tokens
    return prompt_format.encode_texts([answer.text])[0]


def _compare_perplexity(
    proof: Proof, model: LoadedModel, served: Served, samples: list[Sample], quantization: str | None
) -> None:
    scored = [sample for sample in samples if sample.output]
    if not scored:
        return
    encoded, theirs = model.prompt_format.encode_all(scored), []
    for sample, (tokens, is_target) in zip(scored, encoded, strict=True):
        found = served.logprobs(tokens.tolist())
        if found is None:
            return
        weights = model.prompt_format.weights(sample, is_target)
        told = zip(found, weights[1:], is_target[1:], strict=True)
        theirs.append(-math.fsum(value * float(weight) for value, weight, wanted in told if wanted))
    ours = sample_losses(model.net, model.prompt_format, scored, model.device)
    growth, error = growth_of(ours, theirs)
    proof.perplexity = math.exp(mean_loss(ours))
    proof.served_perplexity = proof.perplexity * math.exp(growth)
    rounding = math.log1p(PERPLEXITY_SHARES.get(quantization or "", 0.01))
    allowed = rounding + min(ERRORS * error, rounding)
    if abs(growth) > allowed:
        proof.faults.append(
            t(
                "weights: the perplexity is {served:.4g} as served and {ours:.4g} as trained; at most {share:.1%} is rounding",
                served=proof.served_perplexity,
                ours=proof.perplexity,
                share=math.expm1(allowed),
            )
        )


def growth_of(ours: Sequence[SampleLoss], theirs: Sequence[float]) -> tuple[float, float]:
    """How much higher the mean loss of a served model is (its samples' sums are `theirs`), and the standard error of that.

    Tokens of a sample err together, so that the error is one of samples: of losses 4 and 4 over 4 tokens each, which are 4.4
    and 4.0 as served, 0.05 and 0.05.
    """
    weight = math.fsum(item.weight for item in ours)
    growths = [served - item.loss_sum for served, item in zip(theirs, ours, strict=True)]
    growth = math.fsum(growths) / weight
    if len(ours) < 2:
        return growth, 0.0
    apart = math.fsum((found - growth * item.weight) ** 2 for found, item in zip(growths, ours, strict=True))
    return growth, math.sqrt(apart * len(ours) / (len(ours) - 1)) / weight


def _compare_long(proof: Proof, model: LoadedModel, served: Served, sample: Sample) -> None:
    """One more prompt, where short ones agree; a server whose context is too short for it says nothing about it."""
    prompt = model.prompt_format.encode_prompt(sample)
    try:
        answer = served.answer(model.prompt_format.messages(sample), LONG_ANSWER)
    except RunError:
        return
    if answer.prompt is not None and answer.prompt != prompt:  # a server that cuts it
        return
    own, long = _our_answer(model.net, prompt, model.prompt_format.end_token_ids, LONG_ANSWER), Proof(1)
    # A server that computes as exactly as we do on short prompts does so on a long one.
    tolerance = min(TOLERANCE, max(EXACT, GROWTH * proof.largest_difference)) if proof.largest_difference else TOLERANCE
    _compare_answers(long, model.prompt_format, [own], [answer], tolerance)
    if long.faults:
        proof.faults.append(
            t(
                "RoPE scaling: prompts of the data are answered alike, and a long one is not ({tokens} token{tokens:s})",
                tokens=len(prompt),
            )
        )


def long_sample(prompt_format: PromptFormat, tokens: int) -> Sample:
    """A question of about so many tokens: short texts again and again."""
    text = "\n".join(TEXTS)
    return Sample(0, "\n".join([text] * max(1, tokens // prompt_format.count_tokens(text))), "")


def _named(
    others: Iterable[tuple[str, Llama]],
    prompts: list[list[int]],
    answers: Sequence[ServedAnswer],
    prompt_format: PromptFormat,
    largest: float,
) -> str | None:
    """Which other model answers as the served one does, of those that faults make; `largest` is how far the trained one is."""
    ends = prompt_format.end_token_ids
    for name, net in others:
        differences = []
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = without_end(
                answer.tokens if answer.tokens is not None else prompt_format.encode_texts([answer.text])[0], ends
            )
            logprobs = observe(net, [prompt], [tokens], ends, 1).logits[0].log_softmax(-1)
            differences += [abs(logprobs[at, tokens[at]].item() - theirs) for at, theirs in aligned(answer.logprobs, tokens)]
        if differences and max(differences) <= min(TOLERANCE, largest / NEARER):
            return name
    return None


def aligned(logprobs: Sequence[tuple[int, float]], tokens: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Places of tokens whose log-probability is told: of [(7, a), (9, b)] and 7 8 9, (0, a) and (2, b)."""
    at = 0
    for token, logprob in logprobs:
        while at < len(tokens) and tokens[at] != token:
            at += 1
        if at == len(tokens):
            return
        yield at, logprob
        at += 1


def without_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    return tokens[:-1] if tokens and tokens[-1] in ends else tokens


def _common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"
