"""Fine-tuning: the model with gradients, data, LoRA, and the loop over steps."""
