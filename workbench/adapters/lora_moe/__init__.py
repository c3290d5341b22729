"""A mixture of LoRA experts as a PEFT method."""
