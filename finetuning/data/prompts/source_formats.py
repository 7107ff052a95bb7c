"""The prompt format of each source of a mixture, of which some have a template or a system message of their own."""

from pathlib import Path

from finetuning.config.run import Run
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format


def formats_of_sources(run: Run, of_run: PromptFormat) -> list[PromptFormat]:
    """One for each source, in order; that of the run where it is one data set."""
    config = run.config
    known = {(config.prompt_template, config.system_prompt): of_run}
    found = []
    for source in run.mixture:
        texts = (source.prompt_template, source.system_prompt or None)
        if texts not in known:
            known[texts] = load_prompt_format(
                Path(run.model_path), *texts, needs_template=False, day=run.prompt_date, train_on=config.train_on
            )
        found.append(known[texts])
    return found or [of_run]
