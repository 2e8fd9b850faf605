"""Training lines for a language model from runs that Suffice stopped: the command `suffice export finetune`."""
