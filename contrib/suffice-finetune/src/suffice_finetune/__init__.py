"""Training lines for a language model, from runs that Suffice cut: the command `suffice export finetune`."""
