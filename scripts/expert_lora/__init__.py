"""LoRA on chosen experts of a Hugging Face checkpoint: data, adapter, training."""
