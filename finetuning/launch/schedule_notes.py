"""What the start screen says of a schedule that can hardly learn; nothing is refused."""

from finetuning.config.learning_rate import FAR, LearningRate
from finetuning.config.run import Run
from finetuning.i18n import t

FEW_STEPS = 20  # AdamW has hardly left its warm-up by then
FEW_EPOCHS = 0.5  # of the data, where the user chose the number of steps


def schedule_notes(run: Run, rate: LearningRate, num_samples: int) -> list[str]:
    """Too few steps, a batch larger than the data, a learning rate far from the rule."""
    batch, steps = run.config.global_batch_size, run.max_steps
    notes = []
    if batch > num_samples:
        notes.append(
            t(
                "--global_batch_size {batch} is more than the {samples} training samples: one step sees some of them several "
                "times; a smaller batch gives more steps per epoch",
                batch=batch,
                samples=num_samples,
            )
        )
    if steps < FEW_STEPS:
        smaller = max(1, num_samples // (5 * FEW_STEPS))
        notes.append(
            t(
                "{steps} step{steps:s} can teach little: below {few}, weights hardly move; give --max_steps {few} or more, or "
                "--global_batch_size near {smaller}",
                steps=steps,
                few=FEW_STEPS,
                smaller=smaller,
            )
        )
    elif run.config.max_steps is not None and steps * batch < FEW_EPOCHS * num_samples:
        notes.append(
            t(
                "--max_steps {steps} sees {share:.0%} of the {samples} training samples; an epoch is {epoch} steps",
                steps=steps,
                share=steps * batch / num_samples,
                samples=num_samples,
                epoch=-(-num_samples // batch),
            )
        )
    if not rate.rule / FAR < rate.peak < rate.rule * FAR:
        notes.append(
            t(
                "learning rate {peak:g} is {factor:.0f} times {direction} what the rule says, {rule:.2g}: {danger}",
                peak=rate.peak,
                factor=max(rate.peak / rate.rule, rate.rule / rate.peak),
                direction=t("above") if rate.peak > rate.rule else t("below"),
                rule=rate.rule,
                danger=t("the loss may jump") if rate.peak > rate.rule else t("it may hardly learn"),
            )
        )
    return notes
