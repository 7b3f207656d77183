"""Hugging Face safetensors in and out, streaming, under any ZeRO stage."""
