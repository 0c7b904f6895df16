"""LoRA adapters in PEFT's format, many over one base model."""
