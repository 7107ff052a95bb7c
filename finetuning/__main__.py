"""`python -m finetuning VERB …` and the installed command: `finetune VERB …`."""

from finetuning.interpreter import exit_if_unfit


def run() -> None:
    exit_if_unfit()
    from finetuning.cli.main import console

    console()


if __name__ == "__main__":
    run()
