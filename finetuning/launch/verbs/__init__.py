"""`finetune list`, `status`, `logs`, `cancel`, `doctor`: one module each, with `main(arguments) -> exit code`."""
