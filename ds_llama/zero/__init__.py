"""The plugin between a model definition and DeepSpeed ZeRO."""
